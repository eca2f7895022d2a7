"""The report averages only runs of one group, and its arithmetic and files are right."""

import contextlib
import csv
import itertools
import json
import math
import re
import warnings
from unittest import mock

import pytest
from finished_runs import EPOCHS, make_run
from helpers import run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from utils.report import command
from utils.report.evidence import parse_full_data
from utils.report.groups import (
    augmentation_robust_score,
    group_runs,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
    paired,
    spread,
)
from utils.report.runs import find_runs
from utils.report.tables import Table, csv_text, document, size, tex
from utils.system.errors import InputError
from utils.system.plotting import PAGE

PERCENT = st.floats(0, 100)


def report_on(root, *words, draw=False):
    """Report on everything below `root`; return (result of the command, report.md, rows of report.csv).

    Figures take longer than all else, so they are drawn only with `draw`.
    """
    with contextlib.ExitStack() as stack:
        if not draw:
            stack.enter_context(mock.patch.object(command, "draw_figures", return_value=[]))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("error", UserWarning)  # matplotlib warns if something exceeds its figure
        result = run(command, root, "--output", root / "report", *words)
    assert result.code == 0, result.err
    with open(root / "report" / "report.csv") as file:
        return result.out, (root / "report" / "report.md").read_text(), list(csv.DictReader(file))


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Report on two students x three regimes x two image sets x three seeds with known figures."""
    root = tmp_path_factory.mktemp("plan")
    base = {"HL": 50.0, "SL": 70.0, "SL+KD": 80.0}
    for model in ("resnet18", "vit_tiny"):
        for regime, start in base.items():
            for seed in range(3):
                name = f"{regime}/{model}-{seed}"
                make_run(root, f"d/{name}", start + 6 - seed, seed, regime, "distilled", model)
                make_run(root, f"r/{name}", start + 2 * seed, seed, regime, "random", model)
    return root, *report_on(root, "--full-data", "resnet18=90", draw=True)


def test_groups_mean_deviation_n(plan):
    """Each group of 3 seeds has one line with its sample standard deviation."""
    _, said, _, rows = plan
    assert "36 finished runs in 12 groups, 0 unfinished, 0 damaged, 0 repeated" in said
    assert len(rows) == 12
    row = next(r for r in rows if (r["student"], r["regime"], r["images"]) == ("resnet18", "SL", "random"))
    assert [float(row[c]) for c in ("n", "top1", "top1_sd", "best_top1", "hours")] == [3, 72, 2, 73, 2]
    assert (row["seeds"], row["label_bytes"], row["image_bytes"]) == ("0 1 2", "5000", "140000")


def test_evidence_is_paired(plan):
    """Gains of 6, 3 and 0 give their mean and standard error; recovery needs a full-data figure."""
    root = plan[0]
    with open(root / "report" / "evidence.csv") as file:
        rows = {(r["student"], r["regime"]): r for r in csv.DictReader(file)}
    assert len(rows) == 6
    row = rows["resnet18", "SL"]
    assert [float(row[c]) for c in ("n", "ior", "ior_se", "hlr")] == pytest.approx([3, 3, math.sqrt(3), 35])
    scores = [label_robust_score(gain, 90 - (56 - seed)) for seed, gain in enumerate((6, 3, 0))]
    assert float(row["lrs"]) == pytest.approx(sum(scores) / 3)
    assert (rows["vit_tiny", "SL"]["hlr"], rows["vit_tiny", "SL"]["lrs"]) == ("", "")


def test_the_page_has_tables_conditions_and_figures(plan):
    """Figures of two students exist in all formats, as wide as a page at 300 dpi."""
    root, _, page, _ = plan
    for title in ("Top-1 by group", "Is it the images or the labels?", "Cross-architecture"):
        assert f"## {title}\n" in page
    for axis in ("images", "labels", "student"):
        assert f"## Paired comparisons: {axis}\n" in page
    assert "All runs: PyTorch 2.15.0, epochs 4, commit c0ffee." in page
    assert "picked on the validation set" in page
    names = re.findall(r"!\[\w+\]\((.*?)\)", page)
    assert names == ["top1.png", "curves.png", "differences.png"]
    for name in names:
        assert abs(Image.open(root / "report" / name).width - PAGE / 2.54 * 300) < 2
        assert (root / "report" / name).with_suffix(".svg").read_text().startswith("<?xml")
        assert (root / "report" / name).with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_the_latex_is_well_formed(plan):
    """Environments nest, every row has as many cells as its tabular has columns, and special characters are escaped."""
    text = (plan[0] / "report" / "report.tex").read_text()
    open_environments = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert not open_environments
    tables = re.findall(r"\\begin\{tabular\}\{(\S+)\}\n(.*?)\\end\{tabular\}", text, re.S)
    assert len(tables) == 6
    for columns, body in tables:
        assert [rule in body for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [True] * 3
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(re.sub("{.*?}", "", columns))}
        assert not re.search(r"(?<!\\)[_#%^~]", body)


@given(st.text())
def test_tex_escapes_everything(text):
    """No character that LaTeX would interpret is left, and all text is Western."""
    escaped = tex(text)
    bare = re.sub(r"\\[&%$#_{}]|\\text\w+\{2?\}|\$\\\w+\$|\\dots\{\}", "", escaped)
    assert not set(bare) & set("&%$#_{}\\~^")
    escaped.encode("latin-1")


@pytest.mark.parametrize(
    "changed",
    [
        {"adamw_lr": 0.002},
        {"labels": "another digest"},
        {"val_images": "another digest"},
        {"arithmetic": "fp32"},
        {"commit": "decade"},
        {"images": "distilled2", "train_dir": "data/distilled"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_runs_that_differ_are_never_averaged(changed, tmp_path):
    """Each run has its own group, and the page names the difference."""
    make_run(tmp_path, "a", 60, seed=0)
    make_run(tmp_path, "b", 70, seed=1, workers=7, side_by_side=2, **changed)
    _, page, rows = report_on(tmp_path)
    assert [row["n"] for row in rows] == ["1", "1"]
    name = {"images": "distilled (", "commit": "git_commit="}.get(next(iter(changed)), f"{next(iter(changed))}=")
    assert all(name in f"{row['images']} {row['settings']}" for row in rows)
    assert len({row["name"] for row in rows}) == 2
    assert all(row["name"].split(", ", 2)[2] in page for row in rows)


def test_a_commit_with_changes_is_shown_as_such(tmp_path):
    """Cut to ten digits alone, the two commits would be the same text."""
    make_run(tmp_path, "a", 60, seed=0, commit="c0ffee1234567890")
    make_run(tmp_path, "b", 70, seed=1, commit="c0ffee1234567890-dirty")
    _, page, _ = report_on(tmp_path)
    assert "commit c0ffee1 against c0ffee1 with changes" in page


def test_whole_images_are_named_between_regimes(tmp_path):
    """Hard labels on whole images and a teacher on crops differ in more than the regime."""
    for number, (regime, augment) in enumerate(itertools.product(["HL", "SL+KD"], ["none", "rrc"])):
        make_run(tmp_path, str(number), 60 + number, regime=regime, augment=augment)
    rows = [row["also_differs"] for row in compared(tmp_path) if row["axis"] == "regime"]
    assert sorted(rows) == ["", "", "augment: none | rrc", "augment: rrc | none"]


SGD = {"sgd": True, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
ADAMW = {"sgd": False, "adamw_lr": 0.001, "adamw_weight_decay": 0.01}
PACKED = {"facts": {"policy": {"mix_type": "cutmix", "mixup": 0.8, "cutmix": 1.0}}}
SAME = {  # name -> settings of two runs whose figures are equal
    "cos": ({"schedule": "cos", "cos": True}, {"schedule": "cos", "cos": False}),
    "eval_every": ({"eval_every": 1}, {"eval_every": 10}),
    "loader": ({"loader": "workers"}, {"loader": "auto"}),
    "device": ({"device": "cpu", "device_name": "x86_64"}, {"device": "auto", "device_name": "x86_64"}),
    "precision": ({"precision": "auto", "arithmetic": "bf16"}, {"precision": "bf16", "arithmetic": "bf16"}),
    "class files": (
        {"class_order": "a.txt", "class_map": "b.txt", "classes": "numbered by a.txt, paired by b.txt"},
        {"classes": "numbered by the names that the labels state, paired by name"},
    ),
    "rates of SGD": (ADAMW | {"momentum": 0.1, "learning_rate": 2.0, "weight_decay": 0.3}, ADAMW),
    "rates of AdamW": (SGD | {"adamw_lr": 0.1, "adamw_weight_decay": 0.3}, SGD),
    "smoothing": ({"schedule": "cos", "smoothing": 3.0}, {"schedule": "cos", "smoothing": 2.0}),
    "ce_weight of cosine": ({"loss_type": "cosine", "ce_weight": 0.3}, {"loss_type": "cosine", "ce_weight": 0.1}),
    "no warm-up": ({"warmup_epochs": 0, "warmup_factor": 0.3}, {}),
    "no T squared": ({"loss_scale_t2": False}, {}),
    "ce_weight": ({"loss_type": "kl", "ce_weight": 0.3}, {"loss_type": "kl", "ce_weight": 0.1}),
    "temperature": ({"temperature": 3.0}, {"temperature": 20.0}),  # mse_gt
    "temperature of ce": ({"loss_type": "ce", "keep_topk": 2}, {"loss_type": "ce", "temperature": 20.0}),
    "temperature of probabilities": (
        {"loss_type": "kl", "answers": "probabilities", "student_temperature": 1.0, "temperature": 3.0},
        {"loss_type": "kl", "answers": "probabilities", "student_temperature": 1.0, "temperature": 4.0},
    ),
    "temperature schedule": (
        {"loss_type": "kl", "temperature_step_size": 5, "temperature_gamma": 0.5, "temperature_min": 1.0},
        {"loss_type": "kl"},
    ),
    "topk_mass": ({"loss_type": "kl", "topk_mass": "kept"}, {"loss_type": "kl", "topk_mass": "renormalised"}),
    "teacher": (
        {"teacher_model": "resnet50", "teacher_stem": "small", "ensemble": "norm-mean", "ensemble_weights": [0.2, 0.8]},
        {"teacher_model": "resnet18"},
    ),
    "runs of one teacher before there were several": (
        {"teachers": [{"weights": "a"}], "teacher_model": "resnet18"},
        {"teachers": [{"weights": "a"}], "teacher_model": "resnet18", "ensemble": None, "ensemble_weights": None},
    ),
    "no mixing": ({"mix_type": "None", "mixup": 0.3, "cutmix": 2.0}, {"mix_type": None}),
    "alpha": ({"mix_type": "cutmix", "mixup": 0.3, "cutmix": 1.0}, {"mix_type": "cutmix", "mixup": 0.8, "cutmix": 1.0}),
    "sync_bn": ({"sync_bn": True, "processes": 1}, {"sync_bn": False, "processes": 1}),
    "reuse_labels": ({"reuse_labels": True}, {"reuse_labels": False}),
    "ipc": ({"ipc": 10}, {"ipc": None}),
    "num_classes": ({"num_classes": 10, "facts": {"num_classes": 10}}, {"facts": {"num_classes": 10}}),
    "fkd_seed": (PACKED | {"fkd_seed": 1}, PACKED | {"fkd_seed": 2}),
    "accept_labels": ({"accept_labels": True}, {"accept_labels": False}),
    "names of validation files": (
        {"val_images": "sizes:1", "validation": "abc"},
        {"val_images": "sizes:2", "validation": "abc", "val_dir": "elsewhere"},
    ),
    "flags of later releases": (
        {"student_temperature": "teacher", "val_resize": 37, "input_size": 32},
        {"input_size": 32},
    ),
}
APART = {  # name -> settings of two runs whose figures differ
    "schedule": ({"schedule": "cos", "cos": True}, {"schedule": "linear", "cos": False}),
    "device": ({"device": "cpu", "device_name": "x86_64"}, {"device": "auto", "device_name": "NVIDIA H100"}),
    "momentum": (SGD, SGD | {"momentum": 0.8}),
    "adamw_lr": (ADAMW, ADAMW | {"adamw_lr": 0.1}),
    "smoothing": ({"schedule": "smoothed", "smoothing": 3.0}, {"schedule": "smoothed", "smoothing": 2.0}),
    "smoothing of cos2": ({"schedule": "cos2", "smoothing": 3.0}, {"schedule": "cos2", "smoothing": 2.0}),
    "ce_weight": ({"ce_weight": 0.3}, {"ce_weight": 0.1}),
    "ce_weight of gift": ({"loss_type": "gift", "ce_weight": 0.3}, {"loss_type": "gift", "ce_weight": 0.1}),
    "loss_scale_t2": ({"loss_type": "kl", "loss_scale_t2": True}, {"loss_type": "kl"}),
    "warmup_factor": ({"warmup_epochs": 5, "warmup_factor": 0.1}, {"warmup_epochs": 5, "warmup_factor": 0.01}),
    "temperature": ({"loss_type": "kl", "temperature": 3.0}, {"loss_type": "kl", "temperature": 20.0}),
    "temperature_min": (
        {"loss_type": "dist", "temperature_schedule": "cosine-reverse", "temperature_min": 1.0},
        {"loss_type": "dist", "temperature_schedule": "cosine-reverse", "temperature_min": 2.0},
    ),
    "topk_mass": (
        {"loss_type": "kl", "keep_topk": 2, "topk_mass": "kept"},
        {"loss_type": "kl", "keep_topk": 2, "topk_mass": "renormalised"},
    ),
    "teachers": ({"teachers": [{"weights": "a"}]}, {"teachers": [{"weights": "b"}]}),
    "ensemble": ({"teachers": [{"weights": "a"}], "ensemble": "norm-mean"}, {"teachers": [{"weights": "a"}]}),
    "cutmix": ({"mix_type": "cutmix", "cutmix": 1.0}, {"mix_type": "cutmix", "cutmix": 2.0}),
    "sync_bn": ({"sync_bn": True, "processes": 2}, {"sync_bn": False, "processes": 2}),
    "fkd_seed": (
        PACKED | {"fkd_seed": 1, "label_order": "sampled"},
        PACKED | {"fkd_seed": 2, "label_order": "sampled"},
    ),
    "train_images": ({"train_images": "classes:a"}, {"train_images": "classes:b"}),
    "val_resize": ({"val_resize": 32, "input_size": 32}, {"input_size": 32}),
    "validation": ({"val_images": "sizes:1", "validation": "abc"}, {"val_images": "sizes:1", "validation": "def"}),
    "labels accepted": ({"labels_accepted": "classes a and b are swapped"}, {"labels_accepted": None}),
}


def groups_of(root, pair):
    """Return the groups of two runs with these settings and seeds 0 and 1."""
    for seed, settings in enumerate(pair):
        make_run(root, f"{seed}", 60 + 10 * seed, seed=seed, **settings)
    groups, repeated = group_runs(find_runs([str(root)]).finished)
    assert repeated == []
    return groups


@pytest.mark.parametrize("name", SAME)
def test_flags_without_effect_keep_no_runs_apart(name, tmp_path):
    """The runs are in one group with a common mean."""
    (group,) = groups_of(tmp_path, SAME[name])
    assert (group.last().n, group.last().mean, group.apart) == (2, 65, ())


@pytest.mark.parametrize("name", APART)
def test_flags_with_an_effect_keep_runs_apart(name, tmp_path):
    """The two groups name the flag in which they differ."""
    one, other = groups_of(tmp_path, APART[name])
    assert one.apart != other.apart
    assert name.split()[0] in " ".join(one.apart + other.apart)
    assert one.name != other.name


def test_validation_sets_are_never_compared(tmp_path):
    """No comparison and no recovery mixes validation sets; the tables name both."""
    for folder, digest, gain in (("one", "aaaa11112222", 0), ("two", "bbbb33334444", 20)):
        make_run(tmp_path, f"{folder}/d", 60 + gain, validation=digest, val_dir=f"data/{folder}")
        make_run(tmp_path, f"{folder}/hl", 40 + gain, regime="HL", validation=digest, val_dir=f"data/{folder}")
    make_run(tmp_path, "one/r", 55, images="random", validation="aaaa11112222", val_dir="data/one")
    _, page, rows = report_on(tmp_path, "--full-data", "90")
    assert len(rows) == 5
    for row in rows:
        assert re.search(r"validation=(one \(aaaa11\)|two \(bbbb33\))", row["settings"])
    with open(tmp_path / "report" / "comparisons.csv") as file:
        compared = list(csv.DictReader(file))
    assert sorted((row["axis"], row["difference"]) for row in compared) == [
        ("images", "5"),
        ("regime", "-20"),
        ("regime", "-20"),
    ]
    with open(tmp_path / "report" / "evidence.csv") as file:
        (found,) = csv.DictReader(file)
    assert ([float(found[name]) for name in ("ior", "hlr")], "validated on two" in page) == ([5, 50], True)


def test_the_best_of_late_evaluations_is_named(tmp_path):
    """--eval-from does not change the last epoch, which is compared, but what `best` means."""
    runs = [make_run(tmp_path, f"{seed}", 50, seed, eval_from=seed and 249) for seed in range(2)]
    runs.append(make_run(tmp_path, "other", 50, images="other"))
    _, page, rows = report_on(tmp_path)
    assert len(rows) == len(runs) - 1
    name = "resnet18, soft labels, distilled"
    assert f"In these groups it is the best of the evaluations from an epoch on: {name}: epoch 0 or 249.\n" in page


def test_few_validation_images_are_named(tmp_path):
    """Also if all runs of the report are alike; a group with a run on all images has the same images in each run."""
    for seed in range(2):
        make_run(tmp_path, f"few{seed}", 50, seed, images="few", val_ipc=50, validation="50")
        make_run(tmp_path, f"all{seed}", 50, seed, images="all", val_ipc=[None, 50][seed], validation="all")
    _, page, _ = report_on(tmp_path)
    said = page.split("These groups were validated on no more than the first images of each class: ")[1].split("\n")[0]
    assert re.fullmatch(r"resnet18, soft labels, few[^;]*: 50\.", said)


@pytest.mark.parametrize(("validation", "groups"), [("v", 1), (None, 2)])
def test_the_validation_digest_replaces_the_number_of_its_images(validation, groups, tmp_path):
    """--val-ipc 50 and no such flag may validate on the same images."""
    for seed, number in enumerate((None, 50)):
        make_run(tmp_path, f"{seed}", 50, seed, validation=validation, val_ipc=number)
    assert len(report_on(tmp_path)[2]) == groups


def test_accepted_labels_are_marked(tmp_path):
    """They have their own group and a note under the main table, and no gain is computed against right labels."""
    make_run(tmp_path, "a", 60)
    make_run(tmp_path, "b", 50, images="random", labels_accepted="class_3 and class_5 seem to be swapped")
    _, page, rows = report_on(tmp_path)
    assert {row["images"]: row["settings"] for row in rows} == {"distilled": "", "random": "labels accepted"}
    main = page[page.index("## Top-1 by group") :].split("\n## ")[0]
    assert "resnet18, soft labels, random, labels accepted: class_3 and class_5 seem to be swapped." in main
    assert "Is it the images" not in page


def test_two_random_sets_are_not_one(tmp_path):
    """Neither is picked silently; either can be named. A folder of another name is no baseline."""
    make_run(tmp_path, "d", 60)
    make_run(tmp_path, "a", 50, images="random", train_dir="a/random")
    make_run(tmp_path, "b", 55, images="other draw", train_dir="b/random")
    result = run(command, tmp_path, "--output", tmp_path / "report")
    assert result.code == 2
    assert "--random random is the name of 2 image sets of different content (a/random, b/random); give" in result.err
    for name, gain in (("a/random", ["10", "5"]), ("b/random", ["-5", "5"])):
        _, page, _ = report_on(tmp_path, "--random", name)
        with open(tmp_path / "report" / "evidence.csv") as file:
            assert sorted(row["ior"] for row in csv.DictReader(file)) == sorted(gain)
        assert f"the images in {name}, which are taken for random by their name alone" in page
    result = run(command, tmp_path, "--output", tmp_path / "report", "--random", "c")
    assert (result.code, "--random c is the name of no image set; give one of" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("digest", "says"), [("random", "drawn from data/train with seed 3"), ("x", "by their name alone")]
)
def test_a_baseline_is_known_by_its_record(digest, says, tmp_path):
    """RANDOM.json states the digest of the images; a folder that is only named random does not count."""
    make_run(tmp_path, "d", 60)
    make_run(tmp_path, "r", 50, images="random", train_dir=str(tmp_path / "images" / "random"))
    (tmp_path / "images").mkdir()
    record = {"real": "data/train", "seed": 3, "digest": digest}
    (tmp_path / "images" / "random.json").write_text(json.dumps(record))
    page = report_on(tmp_path)[1]
    assert says in page[page.index("Is it the images") :]


def test_versions_keep_runs_apart_unless_ignored(tmp_path):
    """--ignore drops one setting from the comparison, and the page says so."""
    make_run(tmp_path, "a", 60, seed=0, commit="c0ffee")
    make_run(tmp_path, "b", 70, seed=1, commit="decade", side_by_side=2)
    assert len(report_on(tmp_path)[2]) == 2
    _, page, rows = report_on(tmp_path, "--ignore", "git_commit")
    assert [(row["n"], row["top1"], row["hours"]) for row in rows] == [("2", "65", "1.5")]
    assert "overlooked: git_commit" in page


def compared(root):
    """Return the rows of comparisons.csv after a report on `root`."""
    report_on(root)
    with open(root / "report" / "comparisons.csv") as file:
        return list(csv.DictReader(file))


def test_comparisons_name_other_differences(tmp_path):
    """Image sets that were trained with different rates are compared with a note, unless a pair has the same rate."""
    make_run(tmp_path, "a", 60, images="distilled", adamw_lr=0.001)
    make_run(tmp_path, "b", 50, images="random", adamw_lr=0.002)
    (row,) = compared(tmp_path)
    assert [row[name] for name in ("axis", "difference", "also_differs")] == ["images", "10", "adamw_lr: 0.001 | 0.002"]
    make_run(tmp_path, "c", 55, images="random", adamw_lr=0.001)
    rows = {row["axis"]: row for row in compared(tmp_path)}
    assert (len(compared(tmp_path)), rows["images"]["difference"], rows["images"]["also_differs"]) == (2, "5", "")
    assert rows["settings"]["also_differs"] == "adamw_lr: 0.001 | 0.002"


def test_labels_of_other_lengths_are_compared(tmp_path):
    """Image sets whose labels have other numbers of epochs, and students, are compared; the settings are named."""
    for model in ("resnet18", "resnet50"):
        make_run(tmp_path, f"a/{model}", 60, images="distilled", model=model, facts={"epochs": 300})
        make_run(tmp_path, f"b/{model}", 50, images="other", model=model, facts={"epochs": 100}, epochs=EPOCHS)
    rows = compared(tmp_path)
    images = [(row["difference"], row["also_differs"]) for row in rows if row["axis"] == "images"]
    assert images == [("10", "labels.epochs: 300 | 100")] * 2
    assert [row["also_differs"] for row in rows if row["axis"] == "student"] == ["", ""]


DAMAGE = {
    "summary.json": ["{", "[]", "{}", '{"args": 3}', '{"args": {"epochs": 1}, "epochs_done": "x"}'],
    "metrics.csv": ["", "epoch,val_top1\n3,12.0\n", "\0"],
}


@pytest.mark.parametrize(("file", "content"), [(file, c) for file, contents in DAMAGE.items() for c in contents])
def test_a_damaged_run_spoils_no_other(file, content, tmp_path):
    """The damaged run is named with a reason; the others are reported."""
    make_run(tmp_path, "good", 60)
    (make_run(tmp_path, "bad", 70, seed=1) / file).write_text(content)
    said, page, rows = report_on(tmp_path)
    assert "1 finished runs in 1 groups, 0 unfinished, 1 damaged" in said
    assert re.search(rf"Damaged run folders\n\n.*\n.*\n\| {tmp_path}/bad \| .+ \|", page)
    assert [row["top1"] for row in rows] == ["60"]


def test_unfinished_and_repeated_runs_are_named(tmp_path):
    """No average includes them."""
    make_run(tmp_path, "a", 60)
    make_run(tmp_path, "b", 61)
    (make_run(tmp_path, "c", 62, seed=2) / "summary.json").unlink()
    said, page, rows = report_on(tmp_path)
    assert "1 finished runs in 1 groups, 1 unfinished, 0 damaged, 1 repeated" in said.replace(
        "2 finished", "1 finished"
    )
    assert f"| {tmp_path}/c | {EPOCHS} of {EPOCHS} epochs |" in page
    assert f"| {tmp_path}/b | seed 0 counts already" in page
    assert [(row["n"], row["top1"], row["top1_sd"]) for row in rows] == [("1", "60", "")]


def test_nothing_finished(tmp_path):
    """The report says that no run has finished."""
    (make_run(tmp_path, "a", 60) / "summary.json").unlink()
    _, page, rows = report_on(tmp_path)
    assert "No run is finished." in page
    assert rows == []


def test_a_real_run(whole_run, tmp_path):
    """A report reads the folder that a real run leaves."""
    result = run(command, whole_run.path, "--output", tmp_path, "--random", "train")
    assert result.code == 0, result.err
    with open(tmp_path / "report.csv") as file:
        row = next(csv.DictReader(file))
    assert (row["student"], row["regime"], row["images"], row["n"]) == ("resnet18", "SL", "train", "1")
    assert float(row["top1"]) == pytest.approx(whole_run.summary["last"]["top1"], rel=1e-6)
    assert int(row["image_bytes"]) == whole_run.summary["images"]["bytes"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing"], "RUN .*missing is not a folder"),
        (["."], "RUN .* holds no run"),
        ([".", "--full-data", "resnet18=high"], "--full-data resnet18=high is no percentage"),
        ([".", "--full-data", "120"], "--full-data 120 is no percentage"),
    ],
)
def test_bad_input_is_one_sentence(words, message, tmp_path):
    """The exit code is 2."""
    result = run(command, tmp_path / words[0], *words[1:], "--output", tmp_path / "out")
    assert result.code == 2
    assert re.match(rf"error: {message}.*\n$", result.err)


def test_full_data():
    """Full-data figures are given per student, or once for all."""
    assert parse_full_data(["71.3", "resnet50=76"]) == {"": 71.3, "resnet50": 76.0}
    with pytest.raises(InputError):
        parse_full_data(["nan"])


def test_the_score_of_the_paper():
    """The score has the right ends and middle, and one value worked out by hand: w 0.5, IOR 4, HLR 30: alpha -0.13."""
    assert label_robust_score(100, -100) == pytest.approx(100)
    assert label_robust_score(-100, 100) == pytest.approx(0)
    assert label_robust_score(0, 0) == pytest.approx(100 * (1 - 1 / math.e) / (math.e - 1 / math.e))
    assert label_robust_score(4, 30) == pytest.approx(100 * (math.exp(-0.13) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert label_robust_score(4, 30, weight=1) == pytest.approx(label_robust_score(8, 0))


def test_the_score_of_augmentation():
    """The score has the ends and the middle of the formula, and a value by hand: IOR 6 and -2 give beta 0.02."""
    assert [augmentation_robust_score(*both) for both in ((100, 100), (-100, -100))] == pytest.approx([100, 0])
    by_hand = 100 * (math.exp(0.02) - math.exp(-1)) / (math.e - math.exp(-1))
    assert augmentation_robust_score(6, -2) == pytest.approx(by_hand)
    assert augmentation_robust_score(6, -2, weight=1) == pytest.approx(augmentation_robust_score(6, 6))


WHOLE = {"augment": "none", "min_scale_crops": 1.0, "max_scale_crops": 1.0, "hflip": 0.0}
MIXED = {"augment": "rrc", "min_scale_crops": 0.08, "max_scale_crops": 1.0, "hflip": 0.5, "mix_type": "cutmix"}


def found_on(root, *words):
    """Return the rows of evidence.csv and the page of a report on `root`."""
    page = report_on(root, *words)[1]
    with open(root / "report" / "evidence.csv") as file:
        return list(csv.DictReader(file)), page


def test_augmentation_robustness_needs_runs_on_whole_images(tmp_path):
    """ARS is averaged over the seeds of all four groups; it is in the row of the augmented runs, with its own HLR."""
    figures = {"distilled": ([60, 62], [40, 41, 90]), "random": ([50, 54], [42, 40, 10])}
    for images, (mixed, _) in figures.items():
        for seed, top1 in enumerate(mixed):
            make_run(tmp_path, f"m/{images}{seed}", top1, seed, "HL", images, image_labels="mixed classes", **MIXED)
    (row,), page = found_on(tmp_path, "--full-data", "90")
    assert (row["ars"], row["hlr"], "ARS" in page) == ("", "29", False)
    for images, (_, whole) in figures.items():
        for seed, top1 in enumerate(whole):
            make_run(tmp_path, f"w/{images}{seed}", top1, seed, "HL", images, image_labels="classes", **WHOLE)
    rows, page = found_on(tmp_path, "--full-data", "90")
    rows = {"augment=none" in row["images"]: row for row in rows}
    scores = [augmentation_robust_score(10, -2), augmentation_robust_score(8, 1)]
    assert [float(rows[False][name]) for name in ("ars", "ars_se", "hlr")] == pytest.approx(
        [sum(scores) / 2, abs(scores[0] - scores[1]) / 2, 29], rel=1e-6
    )
    assert (rows[True]["ars"], float(rows[True]["hlr"])) == ("", 33)
    assert "| ARS (%) |" in page
    assert "does not divide points by 100" in page


@pytest.mark.parametrize(
    "changed",
    [
        {"epochs": 4, "adamw_lr": 0.1},
        {"mix_type": "cutmix"},
        {"factor_crop": 2},
        {"shuffle_patches": 3},
        {"images": "random"},
    ],
)
def test_other_runs_give_no_augmentation_robustness(changed, tmp_path):
    """Runs on whole images with another rate, with mixing, or without runs on random images, are no partners."""
    for images in ("distilled", "random"):
        make_run(tmp_path, f"m/{images}", 60, 0, "HL", images, **MIXED)
    for images in {changed.get("images", "distilled"), "random"}:
        make_run(tmp_path, f"w/{images}", 50, 0, "HL", **{"images": images} | WHOLE | changed)
    rows, page = found_on(tmp_path)
    assert {row["ars"] for row in rows} == {""}
    assert "ARS" not in page


SEARCH = {"d": {0.001: [60, 62], 0.01: [70, 66], 0.1: [90]}, "random": {0.001: [50, 58], 0.01: [52, 52], 0.1: [10, 10]}}


def test_a_search_reports_the_best_value(tmp_path):
    """Each set has its best rate, of those with the most seeds; the others are in a table and in no average."""
    for images, rates in SEARCH.items():
        for rate, figures in rates.items():
            for seed, top1 in enumerate(figures):
                make_run(tmp_path, f"{images}/{rate}/{seed}", top1, seed, "HL", images, adamw_lr=rate)
    _, page, rows = report_on(tmp_path, "--searched", "adamw_lr", "learning_rate")
    assert [[row[name] for name in ("images", "settings", "n", "top1")] for row in rows] == [
        ["d", "adamw_lr=0.01, the best of 3", "2", "68"],
        ["random", "adamw_lr=0.001, the best of 3", "2", "54"],
    ]
    (found,), _ = found_on(tmp_path, "--searched", "adamw_lr")
    assert (found["n"], found["ior"]) == ("2", "14")
    tried = page[page.index("## Searched settings") :]
    assert "| d, learning rate 0.01 (the best of 3) |" in page
    assert re.search(r"\| d \| learning rate 0.1 \| 1 \| 90.00 \| 91.00 \|  \|", tried)
    assert re.search(r"\| d \| learning rate 0.01 \| 2 \| 68.00 ± 2.83 \| 69.00 ± 2.83 \| picked \|", tried)
    assert "These settings were searched, and their values picked by top-1 on the validation set" in page
    assert len(report_on(tmp_path)[2]) == 6


@given(PERCENT, PERCENT, PERCENT, st.floats(0, 1))
def test_better_images_never_score_less(full, distilled, random, weight):
    """The score lies in [0, 100] and grows with the top-1 on the distilled images."""
    scores = [
        label_robust_score(improvement_over_random(top1, random), hard_label_recovery(full, top1), weight)
        for top1 in (distilled, min(distilled + 5, 100))
    ]
    assert -1e-9 <= scores[0] <= scores[1] + 1e-9 <= 100 + 2e-9


@given(st.dictionaries(st.integers(0, 9), PERCENT), st.dictionaries(st.integers(0, 9), PERCENT))
def test_pairs_are_of_common_seeds(ours, theirs):
    """n is the number of common seeds; the difference is antisymmetric; shared offsets cancel."""
    there, back = paired(ours, theirs), paired(theirs, ours)
    assert (there is None) == (not ours.keys() & theirs.keys())
    if there and back:
        assert there.n == len(ours.keys() & theirs.keys())
        assert there.mean == pytest.approx(-back.mean)
        assert (there.error is None) == (there.n == 1)
    same = paired(ours, {seed: value - 1.5 for seed, value in ours.items()})
    assert same is None or (same.mean == pytest.approx(1.5) and (same.error or 0) == pytest.approx(0, abs=1e-9))


def test_spread():
    """The spread is the sample standard deviation, and None for one value."""
    assert spread([1.0, 3.0]).deviation == pytest.approx(math.sqrt(2))
    assert (spread([5.0]).deviation, spread([5.0]).error) == (None, None)


def test_cells():
    """Sizes, pipes in Markdown and empty cells in CSV are written right."""
    assert [size(n) for n in (None, 0, 9999, 5.7e9, 2e15)] == ["–", "0 B", "9,999 B", "5,700 MB", "2,000 TB"]
    table = Table("t", ["a", "b"], [["x|y", "1"]])
    assert "| x\\|y | 1 |" in table.markdown()
    assert csv_text(["a", "b"], [{"a": None, "b": 1 / 3}]) == "a,b\n,0.3333333\n"
    assert document([table]).count(r"\begin{table}") == 1
