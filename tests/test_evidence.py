"""evidence.sh runs its whole plan; the random baseline and the demo's coreset are drawn right."""

import csv
import json
import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import CLASSES, LIGHT, PER_CLASS, ROOT, SIDE, make_images, run, save_teacher
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from utils.data.folders import open_folder
from utils.data.identity import know_images
from utils.data.write import name_files
from utils.report import random_images
from utils.report.random_images import draw_images

herd = runpy.run_path(str(ROOT / "demo" / "choose_images.py"))["herd"]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """More real images than the distilled set has, in folders with other names."""
    root = tmp_path_factory.mktemp("real")
    make_images(root / "real", per_class=PER_CLASS + 3, seed=7)
    for number, folder in enumerate(sorted((root / "real").iterdir())):
        folder.rename(root / "real" / f"n0{number}")
    return root / "real"


def test_a_random_set_matches_the_distilled_one(tiny, real, tmp_path):
    """It has as many real images per class, in the same folders, with a list; one seed gives one set."""
    lists = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        words = [real, "--like", tiny.train, "--seed", seed, "--output", tmp_path / name]
        result = run(random_images, *words)
        assert result.code == 0, result.err
        lists.append((tmp_path / f"{name}.txt").read_text())
    assert lists[0] == lists[1] != lists[2]
    files = sorted((tmp_path / "a").glob("*/*"))
    assert Counter(file.parent.name for file in files) == {f"class_{c}": PER_CLASS for c in range(CLASSES)}
    rows = dict(line.split("\t") for line in lists[0].splitlines())
    assert {str(file.relative_to(tmp_path / "a")): str(file.resolve()) for file in files} == rows
    assert all(Path(path).parent.name == f"n0{name[6]}" for name, path in rows.items())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 5), st.data())
def test_every_draw_is_without_replacement(classes, seed, data):
    """Each class gets the wanted number of images, none twice, and other classes do not matter."""
    samples = [(f"{number}.png", target) for number, target in enumerate(classes)]
    wanted = {c: data.draw(st.integers(1, n)) for c, n in Counter(classes).items()}
    drawn = draw_images(samples, wanted, seed)
    assert Counter(target for _, target in drawn) == wanted
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(samples)
    first = classes[0]
    assert draw_images(samples, {first: wanted[first]}, seed) == [s for s in drawn if s[1] == first]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["{train}", "--like", "{real}", "--output", "{out}"],
            "class n00 of the real images has 4 files, and 7 are",
        ),
        (["{real}", "--like", "{val}", "--output", "{val}"], "--output .* exists"),
        (["{missing}", "--like", "{val}", "--output", "{out}"], "REAL .*missing does not exist"),
        (
            ["{real}", "--like", "{other}", "--output", "{out}"],
            "REAL .* and --like .*: the class folders cannot be matched by name .only in REAL: n00",
        ),
    ],
)
def test_impossible_draws_are_refused(words, message, tiny, real, tmp_path):
    """The script prints one sentence, exits with code 2 and leaves nothing behind."""
    for name in ("cat", "dog"):
        make_images(tmp_path / "made", classes=1)
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "made" / "class_0").rename(tmp_path / "other" / name)
    places = {"train": tiny.train, "val": tiny.val, "real": real, "out": tmp_path / "out"}
    places["other"] = tmp_path / "other"
    result = run(random_images, *(word.format(missing=tmp_path / "missing", **places) for word in words))
    assert result.code == 2
    assert re.search(message, result.err)
    assert not (tmp_path / "out").exists()


def test_each_drawn_image_has_its_own_link():
    """Equal file names in sub-folders of a class get a number, which no other file name of the class has."""
    drawn = [(path, 0) for path in ("a/x.png", "1-x.png", "2-x.png", "b/x.png")] + [("x.png", 1)]
    links = [(name, image) for name, image, _ in name_files(drawn, ["cat", "dog"])]
    assert [image for _, image in links] == [path for path, _ in drawn]
    assert [name for name, _ in links] == ["cat/x.png", "cat/1-x.png", "cat/2-x.png", "cat/3-x.png", "dog/x.png"]
    *_, (last, _, _) = name_files([("a/x.png", 0), ("3-x.png", 0), ("2-x.png", 0), ("b/x.png", 0)], ["cat"])
    assert last == "cat/4-x.png"


def make_named(folder, names):
    """Write an image folder with classes of these names, each image of its own colour."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), (20 * number, 50 * i, 7)).save(folder / name / f"{i}.png")
    return folder


def drawn_from(output):
    """Map each class folder of a random set to the class folders of its real images."""
    rows = [line.split("\t") for line in output.with_name(f"{output.name}.txt").read_text().splitlines()]
    return {(link.split("/")[0], Path(path).parent.name) for link, path in rows}


def test_a_number_per_class_needs_no_set_to_match(tmp_path):
    """Every class gives as many images, other images for another seed; both flags together, or none, are refused."""
    real = make_named(tmp_path / "real", ["ant", "bee"])
    links = set()
    for seed in range(4):
        result = run(random_images, real, "--per-class", "2", "--seed", str(seed), "--output", tmp_path / f"out{seed}")
        assert result.code == 0, result.err
        found = open_folder(tmp_path / f"out{seed}", "out")
        assert (found.classes, found.targets) == (["ant", "bee"], [0, 0, 1, 1])
        links.add((tmp_path / f"out{seed}.txt").read_text())
    assert len(links) > 1
    for words in ([], ["--per-class", "2", "--like", str(real)]):
        result = run(random_images, real, *words, "--output", tmp_path / "none")
        assert (result.code, result.err) == (2, "error: give either --like SET or --per-class N\n")


def test_classes_are_paired_by_name(tmp_path):
    """The real images have more classes, some of which sort before those of the distilled ones."""
    real = make_named(tmp_path / "real", ["ant", "bee", "cat", "dog", "eel"])
    like = make_named(tmp_path / "like", ["bee", "dog"])
    result = run(random_images, real, "--like", like, "--output", tmp_path / "out")
    assert result.code == 0, result.err
    assert "3 of 5 class folders" in result.out
    assert drawn_from(tmp_path / "out") == {("bee", "bee"), ("dog", "dog")}
    record = json.loads((tmp_path / "out.json").read_text())
    samples = open_folder(tmp_path / "out", "out").samples
    assert (record["real"], record["seed"]) == (str(real), 0)
    assert record["digest"] == know_images(str(tmp_path / "out"), samples).digests.digest()


def test_a_class_map_pairs_other_names(tmp_path):
    """The map has one line per class; other words are refused with the lines that are expected."""
    real, like = make_named(tmp_path / "real", ["n1x", "n2x", "n3x"]), make_named(tmp_path / "like", ["ant", "bee"])
    result = run(random_images, real, "--like", like, "--output", tmp_path / "out")
    assert (result.code, "REAL_FOLDER<tab>LIKE_FOLDER" in result.err) == (2, True)
    (tmp_path / "map").write_text("n3x\tant\nn1x\tbee\n")
    result = run(random_images, real, "--like", like, "--output", tmp_path / "out", "--class-map", tmp_path / "map")
    assert result.code == 0, result.err
    assert drawn_from(tmp_path / "out") == {("ant", "n3x"), ("bee", "n1x")}
    (tmp_path / "map").write_text("n3x\tant\n")
    result = run(random_images, real, "--like", like, "--output", tmp_path / "two", "--class-map", tmp_path / "map")
    assert (result.code, "no folder of REAL belongs to class bee" in result.err) == (2, True)


def test_a_set_that_is_there_is_taken_again_only_if_it_is_the_same_draw(tmp_path):
    """Another seed, other real images or another set to match are refused, and nothing changes."""
    real, other = (make_named(tmp_path / name, ["ant", "bee"]) for name in ("real", "other"))
    like = make_named(tmp_path / "like", ["ant", "bee"])
    for folder in like.iterdir():
        (folder / "0.png").unlink()

    def draw(*words):
        return run(random_images, *words, "--output", tmp_path / "out", "--again")

    assert draw(real, "--like", like).code == 0
    made = (tmp_path / "out.txt").read_text()
    again = draw(real, "--like", like)
    assert (again.code, "in " in again.out and "already" in again.out) == (0, True)
    (like / "ant" / "1.png").rename(tmp_path / "kept.png")
    for words in ([real, "--like", like], [other, "--like", like]):
        result = draw(*words)
        assert (result.code, "does not hold the draw of seed 0" in result.err) == (2, True)
    (tmp_path / "kept.png").rename(like / "ant" / "1.png")
    results = [draw(real, "--like", like, "--seed", seed) for seed in range(1, 6)]
    assert 2 in {result.code for result in results}
    assert draw(other, "--like", like).code == 2
    assert (tmp_path / "out.txt").read_text() == made


def test_herding_follows_the_mean():
    """The chosen rows differ, and their mean is closer to the overall mean than that of first or random rows."""
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)) + torch.tensor([3.0] + [0.0] * 7)
    picked = herd(features, 10)
    assert len(set(picked)) == 10
    distance = [(features[rows].mean(dim=0) - features.mean(dim=0)).norm() for rows in (picked, list(range(10)))]
    assert distance[0] < distance[1] / 3
    assert sorted(herd(features[:4], 4)) == [0, 1, 2, 3]


COMMANDS = {  # of one plan, as releases before scripts/evidence.py wrote it
    "HL": (
        "DATA='images 2629737465-24, validation 302344204-12' \"$PYTHON\" '{root}/'train_KD_parallel.py "
        "--loss-type ce --hflip 0 --train-dir 'a' --model r18 --val-dir 'v' --output-dir \"$OUTPUT_DIR\" "
        '--epochs 300 --batch-size 50 --gradient-accumulation-steps 2 --input-size 224 -j "$WORKERS" '
        "--cos"
    ),
    "SL": (
        "DATA='images 2629737465-24, validation 302344204-12, 7 epochs of labels, cutmix, --hflip 0, of "
        "resnet18 3361000959-7' \"$PYTHON\" '{root}/'train_FKD_parallel.py --loss-type mse_gt --ce-weight "
        "0.1 -T 20 --fkd-path 'w/labels/a' --reuse-labels --train-dir 'a' --model r18 --val-dir 'v' "
        '--output-dir "$OUTPUT_DIR" --epochs 300 --batch-size 50 --gradient-accumulation-steps 2 '
        '--input-size 224 -j "$WORKERS" --cos'
    ),
    "SL+KD": (
        "DATA='images 2629737465-24, validation 302344204-12, teacher resnet18 3361000959-7' \"$PYTHON\" "
        "'{root}/'train_KD_parallel.py --loss-type mse_gt --ce-weight 0.1 -T 20 --teacher-model resnet18 "
        "--teacher-checkpoint 't.pth' --mix-type cutmix --fkd-seed 43 --hflip 0 --train-dir 'a' --model "
        "r18 --val-dir 'v' --output-dir \"$OUTPUT_DIR\" --epochs 300 --batch-size 50 "
        '--gradient-accumulation-steps 2 --input-size 224 -j "$WORKERS" --cos'
    ),
}


class Planned:
    """scripts/evidence.py on image folders of few bytes, with a stand-in for Python that ends with `code`."""

    def __init__(self, folder):
        self.folder = folder
        files = {"a/c/1.png": "12345", "a/c/2.png": "123", "a/.hidden": "x", "v/c/1.png": "1234567", "t.pth": "teacher"}
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    def __call__(self, code=0, **changed):
        stub = self.folder / "python"
        stub.write_text(f'#!/bin/sh\necho "$*" >>notes\nexit {code}\n')
        stub.chmod(0o755)
        settings = {"IMAGE_SETS": "a", "REAL_DIR": "a", "VAL_DIR": "v", "TEACHER_CHECKPOINT": "t.pth", "WORK": "w"}
        settings |= {"MODELS": "r18", "SEEDS": "0 1", "VIEWS": "--hflip 0", "LABEL_EPOCHS": "7", "PYTHON": str(stub)}
        command = [sys.executable, str(ROOT / "scripts" / "evidence.py")]
        environment = {"PATH": os.environ["PATH"]} | settings | changed
        return subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=environment)

    def notes(self):
        """The first words that the stand-in was called with, each time."""
        path = self.folder / "notes"
        return [Path(line.split()[0]).name for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def planned(tmp_path):
    return Planned(tmp_path)


def test_commands_are_those_of_earlier_releases(planned):
    """Also the checksums of what folders and files hold: otherwise the runs in their WORK would be refused."""
    planned()
    lines = [line.split("\t") for line in (planned.folder / "w" / "plan.txt").read_text().splitlines()]
    assert [name for name, _, _ in lines] == [f"{regime}/{one}/r18" for regime in COMMANDS for one in ("a", "random")]
    assert {seeds for _, _, seeds in lines} == {"0 1"}
    assert [command for _, command, _ in lines[::2]] == [text.format(root=ROOT) for text in COMMANDS.values()]


def test_classes_reach_every_command(planned):
    """The draw, both labellings and all six runs get --classes; a file's content is part of the runs' commands."""
    (planned.folder / "c.txt").write_text("c\n")
    planned(CLASSES="c.txt", GPUS="0", SIDE_BY_SIDE="8")
    notes = (planned.folder / "notes").read_text().splitlines()
    assert [" --classes c.txt" in line for line in notes] == [*[True] * 9, False]
    plan = (planned.folder / "w" / "plan.txt").read_text()
    (planned.folder / "c.txt").write_text("d\n")
    planned(CLASSES="c.txt", GPUS="0", SIDE_BY_SIDE="8")
    assert (planned.folder / "w" / "plan.txt").read_text() != plan


def test_labels_are_made_only_for_the_regime_that_reads_them(planned):
    """The order of what is run: the draw, labels of each image set, the students, the report."""
    planned(REGIMES="HL SL+KD")
    assert "relabel_FKD.py" not in planned.notes()
    (planned.folder / "notes").unlink()
    planned(WORK="other", REGIMES="SL", GPUS="0", SIDE_BY_SIDE="1")
    relabelled, trained = ["relabel_FKD.py"] * 2, ["train_FKD_parallel.py"] * 4
    assert planned.notes() == ["-m", *relabelled, *trained, "-m"]


def test_the_number_of_runs_is_said_before_labels_are_made(planned):
    """It comes before the first long command, and again before the first run; a second call counts finished runs."""
    (planned.folder / "w" / "runs" / "HL" / "a" / "r18-seed1").mkdir(parents=True)
    (planned.folder / "w" / "runs" / "HL" / "a" / "r18-seed1" / "summary.json").touch()
    lines = planned(GPUS="0 1").stdout.splitlines()
    assert lines[:2] == [
        "soft labels of 2 image sets, then 12 runs (1 finished)",
        "runs: 1 of 12 finished, 11 left; 2 processes at a time",
    ]
    again = planned(GPUS="0", REGIMES="HL").stdout.splitlines()
    assert again[0] == "runs: 1 of 4 finished, 3 left; 1 process at a time"


RATES = ["0.001", "0.005", "0.01", "0.05", "0.1"]


def plan_of(planned, **changed):
    """Return {name: command} of the plan, and the words that the report was called with."""
    planned(**changed)
    lines = [line.split("\t") for line in (planned.folder / "w" / "plan.txt").read_text().splitlines()]
    return {name: command for name, command, _ in lines}, (planned.folder / "notes").read_text().splitlines()[-1]


def test_rates_are_searched_for_hard_labels_and_random_images(planned):
    """Each rate has its own line and folder; the other runs keep one rate; the report is told."""
    plan, report = plan_of(planned, SEARCH_RATES=" ".join(RATES), RATE="0.002")
    searched = [f"{run}/lr{rate}/r18" for run in ("HL/a", "HL/random") for rate in RATES]
    for regime in ("SL", "SL+KD"):
        searched += [f"{regime}/a/r18", *(f"{regime}/random/lr{rate}/r18" for rate in RATES)]
    assert list(plan) == searched
    for name, command in plan.items():
        rate = name.split("/")[2].removeprefix("lr") if "/lr" in name else "0.002"
        assert command.endswith(f"--cos --adamw-lr {rate} --learning-rate {rate}")
    assert report.endswith("--searched adamw_lr learning_rate")


def test_whole_images_are_a_further_line(planned):
    """HL and SL+KD have it, without the flags that shape views and without mixing; SL has stored views, and has not."""
    usual, _ = plan_of(planned)
    plan, report = plan_of(planned, NO_AUGMENT="yes")
    further = {name: command for name, command in plan.items() if name not in usual}
    assert {name: plan[name] for name in usual} == usual
    assert list(further) == [f"{regime}/{one}/no-augment/r18" for regime in ("HL", "SL+KD") for one in ("a", "random")]
    for command in further.values():
        assert "--augment none" in command
        assert not re.search("--hflip|--mix-type", command)
    assert "--searched" not in report


def test_a_rate_beside_the_search_is_refused(planned):
    """It would replace the rate of every run, since trailing flags win."""
    environment = {"PATH": os.environ["PATH"], "VAL_DIR": "v", "IMAGE_SETS": "a", "SEARCH_RATES": "0.1"}
    command = [sys.executable, str(ROOT / "scripts" / "evidence.py"), "--adamw-lr", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=planned.folder, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --adamw-lr would replace all of SEARCH_RATES; give RATE")


def test_a_draw_that_fails_ends_the_call(planned):
    """With the exit code of a failed run, or of an error that a setting remedies; nothing is trained or reported."""
    assert planned(code=3).returncode == 123
    assert planned(code=2).returncode == 2
    assert planned.notes() == ["-m", "-m"]
    assert not (planned.folder / "w" / "plan.txt").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"REGIMES": "HL KD"}, "REGIMES: KD is none of HL, SL, SL+KD"),
        ({"VAL_DIR": "missing"}, "VAL_DIR missing does not exist; set VAL_DIR to what exists"),
        ({"REAL_DIR": ""}, "REAL_DIR data/train does not exist (REAL_DIR is not set); set REAL_DIR"),
        ({"TEACHER_CHECKPOINT": "no.pth"}, "TEACHER_CHECKPOINT no.pth does not exist; set TEACHER_CHECKPOINT"),
        ({"IMAGE_SETS": " "}, "IMAGE_SETS names no folder; give the distilled images"),
        (
            {"IMAGE_SETS": "a b/a"},
            "IMAGE_SETS: a and b/a have the same last name, by which labels and runs are named; ",
        ),
        ({"NO_AUGMENT": "1"}, "NO_AUGMENT 1 is neither yes nor no"),
        ({"NO_AUGMENT": "yes", "REGIMES": "SL"}, "NO_AUGMENT=yes has no effect on SL, whose views are stored"),
        ({"SEARCH_RATES": "0.1,0.2"}, "0.1,0.2 in SEARCH_RATES or RATE is no learning rate; give numbers such as"),
    ],
    ids=["regimes", "val-dir", "real-dir", "teacher", "no-images", "same-name", "no-augment", "stored views", "rates"],
)
def test_settings_that_cannot_be_used(changed, message, planned):
    """One sentence, exit code 2, before anything is made."""
    done = planned(**changed)
    assert (done.returncode, planned.notes(), done.stdout) == (2, [], "")
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert not (planned.folder / "w").exists()


def test_the_whole_plan(tiny, real, tmp_path):
    """scripts/evidence.py on tiny data gives six groups and a report; a second call runs nothing again."""
    save_teacher(tmp_path / "teacher.pth")
    settings = {
        **{"IMAGE_SETS": str(tiny.train), "REAL_DIR": str(real), "VAL_DIR": str(tiny.val), "WORK": str(tmp_path / "w")},
        **{"TEACHER": LIGHT, "TEACHER_CHECKPOINT": str(tmp_path / "teacher.pth"), "MODELS": LIGHT, "SEEDS": "1"},
        **{"EPOCHS": "2", "LABEL_EPOCHS": "1", "BATCH_SIZE": "4", "ACCUMULATION": "1", "INPUT_SIZE": str(SIDE)},
        **{"WORKERS": "0", "FULL_DATA": "80", "GPUS": "0 0", "PYTHON": sys.executable},
    }
    command = [sys.executable, str(ROOT / "scripts" / "evidence.py"), "--device", "cpu", "--precision", "fp32"]
    calls = {"capture_output": True, "text": True, "cwd": tmp_path, "env": os.environ | settings}
    done = subprocess.run(command, **calls)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done: ") == 6
    with open(tmp_path / "w" / "report" / "evidence.csv") as file:
        rows = {row["regime"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["HL", "SL", "SL+KD"]
    assert all(row["images"] == "train" and row["n"] == "1" and row["hlr"] for row in rows.values())
    with open(tmp_path / "w" / "report" / "comparisons.csv") as file:
        assert [row["also_differs"] for row in csv.DictReader(file)] == [""] * 9  # the sets differ in nothing else
    calls["env"] |= {"REGIMES": "HL", "SEEDS": "1 1"}
    again = subprocess.run(command, **calls)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (again.stdout.count("finished before: "), again.stdout.count("done: ")) == (4, 0)
    page = (tmp_path / "w" / "report" / "report.md").read_text()
    assert f"drawn from {real} with seed 0" in page
    refuse_other_data(tiny, real, tmp_path, command, calls)


def test_a_search_and_robustness_end_to_end(tiny, real, tmp_path):
    """Two rates and whole images: the report has ARS, and the better rate of the random images beside the other."""
    save_teacher(tmp_path / "teacher.pth")
    settings = {
        **{"IMAGE_SETS": str(tiny.train), "REAL_DIR": str(real), "VAL_DIR": str(tiny.val), "WORK": str(tmp_path / "w")},
        **{"TEACHER": LIGHT, "TEACHER_CHECKPOINT": str(tmp_path / "teacher.pth"), "MODELS": LIGHT, "SEEDS": "1"},
        **{"EPOCHS": "1", "BATCH_SIZE": "4", "ACCUMULATION": "1", "INPUT_SIZE": str(SIDE), "WORKERS": "0"},
        **{"REGIMES": "SL+KD", "NO_AUGMENT": "yes", "SEARCH_RATES": "0.001 0.1", "GPUS": "0 0"},
    }
    command = [sys.executable, str(ROOT / "scripts" / "evidence.py"), "--device", "cpu", "--precision", "fp32"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done: ") == 6
    with open(tmp_path / "w" / "report" / "evidence.csv") as file:
        rows = [("augment=none" in row["images"], bool(row["ars"])) for row in csv.DictReader(file)]
    assert rows == [(True, False), (False, True)]
    page = (tmp_path / "w" / "report" / "report.md").read_text()
    assert "picked by top-1 on the validation set" in page
    assert page.count("| picked |") == 2


def refuse_other_data(tiny, real, root, command, calls):
    """Assert that nothing in WORK is used or trained if it was made from other data."""

    def refused(message, **changed):
        call = calls | {"env": calls["env"] | changed}
        done = subprocess.run(command, **call)
        assert (done.returncode, "done: " in done.stdout) == (2, False), done.stdout + done.stderr
        assert re.search(message, done.stderr), done.stderr

    before = (root / "w" / "images" / "random.txt").read_text()
    refused("random does not hold the draw of seed 8 from", RANDOM_SEED="8")
    make_images(root / "others" / "train", per_class=PER_CLASS, seed=11)
    refused("error: IMAGE_SETS: .* have the same last name", IMAGE_SETS=f"{tiny.train} {root}/others/train")
    refused("error: IMAGE_SETS: .* have the same last name", IMAGE_SETS=f"{tiny.train} {root}/mine/random")
    refused("train/.*-seed1 is finished, but was made with other settings or data", IMAGE_SETS=f"{root}/others/train")
    make_images(root / "val", per_class=2, seed=3)
    refused("seed1 is finished, but was made with other settings or data", VAL_DIR=str(root / "val"))
    save_teacher(root / "teacher.pth", seed=1)
    refused("SL.*seed1 is finished, but was made with other", REGIMES="SL+KD", SEEDS="1")
    assert (root / "w" / "images" / "random.txt").read_text() == before
