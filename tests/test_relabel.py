"""relabel_FKD.py writes the logits that its teacher gives for the replayed views."""

import json
import shutil
from argparse import Namespace

import pytest
import torch
from helpers import CPU, SIDE, make_images, relabel_flags, run, save_teacher

import relabel_FKD
import train_FKD_parallel
from utils.config import ENSEMBLE_RULES, IMAGENET_MEAN, IMAGENET_STD
from utils.data.batch import Batch, LiveTeacher
from utils.data.folders import open_folder
from utils.data.preview import ask_teacher
from utils.data.replay import Normalise
from utils.data.workers import ViewDataset, WorkerBatches
from utils.labels.agreement import dominating
from utils.labels.formats import open_labels
from utils.labels.views import DrawnViews, ViewPolicy
from utils.system.errors import InputError
from utils.system.safe_load import load_archive
from utils.training.models import build_student, build_teacher
from utils.training.precision import Precision
from utils.training.teachers import Ensemble


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The file of a ResNet-18 of 3 classes."""
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pth", "resnet18", seed=5)


def flags(images, teacher, labels, *more, epochs=2):
    """Return the command line that writes labels as .tar files."""
    return relabel_flags(images, teacher, labels, "--format", "tar", *more, epochs=epochs)


def written(folder):
    """Return the items of every batch file, by name."""
    return {str(path.relative_to(folder)): load_archive(path) for path in sorted(folder.glob("*/*"))}


@pytest.mark.parametrize(
    ("more", "dtype"),
    [
        (["--mix-type", "cutmix", "--use-fp16"], torch.float16),
        (["--mix-type", "mixup"], torch.float32),
        (["--mix-type", "None"], torch.float32),
    ],
)
def test_replayed_views_get_the_stored_labels(more, dtype, tiny, teacher, tmp_path):
    """Views are replayed from the files, mixed, and shown to the teacher again."""
    result = run(relabel_FKD, *flags(tiny.train, teacher, tmp_path / "labels", *more))
    assert result.code == 0, result.err
    files = written(tmp_path / "labels")
    assert list(files) == [f"epoch_{epoch}/batch_{batch}.tar" for epoch in range(2) for batch in range(3)]
    assert all(len(items) == 7 and items[5].dtype == dtype for items in files.values())

    store = open_labels(tmp_path / "labels")
    assert (store.num_images, store.num_classes, store.batch_size, store.epochs) == (12, 3, 5, 2)
    assert store.mix_type == more[1].lower()
    dataset = ViewDataset(open_folder(tiny.train, "--data").samples, store, SIDE)
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, CPU, torch.contiguous_format)
    batches = WorkerBatches(dataset, range(2), normalise, 0, CPU)
    model = build_teacher("resnet18", teacher)
    for epoch in range(2):
        for batch in batches.epoch(epoch):
            answers = model(batch.images)
            torch.testing.assert_close(batch.soft_labels.float(), answers, rtol=2e-3, atol=2e-3)
            assert answers.std(dim=0).max() > 0.02  # the views matter


def test_workers_do_not_matter_but_the_seed_does(tiny, teacher, tmp_path):
    """No workers and two workers give the same items; another seed gives other views."""
    cutmix = ["--mix-type", "cutmix"]
    runs = {"a": [*cutmix, "-j", 0], "b": [*cutmix, "-j", 2], "c": [*cutmix, "--fkd-seed", 7]}
    for name, more in runs.items():
        assert run(relabel_FKD, *flags(tiny.train, teacher, tmp_path / name, *more)).code == 0
    a, b, c = (written(tmp_path / name) for name in runs)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    for name in a:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert not torch.equal(a[name][0], c[name][0])


@pytest.mark.parametrize("mix_type", ["cutmix", "mixup"])
def test_images_in_memory_give_the_same_files(mix_type, tiny, teacher, tmp_path):
    """Images are decoded once, or by workers in every epoch; packed stores and manifests are equal as well."""
    for name, more in (("a", ["--loader", "resident"]), ("b", ["--loader", "workers", "-j", 1])):
        words = [*flags(tiny.train, teacher, tmp_path / name), "--format", "packed", "--mix-type", mix_type, *more]
        done = run(relabel_FKD, *words)
        assert done.code == 0, done.err
        assert f"loader  {more[1]}" in done.out
    a, b = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab")
    assert len(a) == 4  # two epochs, the manifest, the digests of the images
    assert a == b


@pytest.mark.parametrize("rule", ENSEMBLE_RULES)
def test_several_batches_at_once_are_combined_each_alone(rule, teacher):
    """A GPU runs several stored batches at once; ensemble rules use the norms of one stored batch."""
    ensemble = Ensemble(["resnet18"] * 2, [teacher] * 2, rule, Precision("fp32", CPU))
    ensemble.teachers[1] = lambda images: 3 * images.mean(dim=(2, 3))
    batches = [torch.randn(rows, 3, SIDE, SIDE) * (1 + rows) for rows in (5, 5, 2)]
    for together, alone in zip(ensemble.answer(batches), map(ensemble, batches), strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_answers_come_in_order_and_a_gpu_is_given_several_batches(teacher, monkeypatch):
    """A GPU gets up to 512 rows at a time, queued before the last result is read; a CPU gets one batch at a time."""
    ensemble = Ensemble(["resnet18"], [teacher], "mean", Precision("fp32", CPU))
    asked = []
    # only the order and the sizes of the calls matter, and a GPU is missing
    monkeypatch.setattr(ensemble, "answer", lambda group: asked.append([len(one) for one in group]) or group)
    sizes = (232, 232, 232, 90)
    batches = [Batch(torch.full((rows, 1), float(n)), None, torch.zeros(rows)) for n, rows in enumerate(sizes)]
    answers = ensemble.answers_to(batches)
    assert next(answers)[0] == 0
    assert asked == [[232], [232]]
    assert [len(one) for one in answers] == [232, 232, 90]
    asked.clear()
    ensemble.precision = Namespace(device=torch.device("cuda"))
    answers = [(len(one), one[0].item()) for one in ensemble.answers_to(batches)]
    assert answers == [(232, 0), (232, 1), (232, 2), (90, 3)]
    assert asked == [[232, 232], [232, 90]]


def test_labels_that_are_not_finite_are_refused(tiny, teacher, tmp_path):
    """They are refused in preflight, in a later batch, and after an epoch of a live teacher."""
    state = torch.load(teacher, weights_only=True)
    state["fc.bias"][1] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    done = run(relabel_FKD, *flags(tiny.train, tmp_path / "nan.pth", tmp_path / "labels"))
    assert (done.code, "answers are not finite" in done.err) == (2, True)
    batches = [Batch(torch.full((2, 3), value), None, torch.zeros(2)) for value in (1.0, float("inf"))]
    ensemble = Ensemble(["resnet18"], [teacher], "mean", Precision("fp32", CPU))
    ensemble.teachers = [lambda images: images]
    answers = ensemble.answers_to(batches)
    next(answers)
    with pytest.raises(InputError, match="answers are not finite"):
        next(answers)
    source = Namespace(batches_per_epoch=2, epoch=lambda *_: iter(batches))
    live = LiveTeacher(source, ensemble).epoch(0)
    assert len([next(live), next(live)]) == 2
    with pytest.raises(InputError, match="answers are not finite"):
        next(live)


@pytest.mark.parametrize("format", ["packed", "tar"])
def test_students_see_floating_point_images_as_the_teacher_did(format, tiny, teacher, tmp_path):
    """Labels state --normalised; training refuses another value, and accepts labels without the entry."""
    images, labels = tmp_path / "images.pt", tmp_path / "labels"
    pixels = torch.rand(12, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    torch.save((pixels, torch.arange(3).repeat_interleave(4)), images)
    more = ["--normalised", "yes", "--format", format, "--accept-labels"]
    done = run(relabel_FKD, *relabel_flags(images, teacher, labels, *more, epochs=1))
    assert done.code == 0, done.err
    assert open_labels(labels).settings["pixel_values"] == "normalised"
    how = {"train_dir": images, "fkd_path": labels, "epochs": 1, "accept_labels": True, "dry_run": True}
    for flag in ("auto", "no"):
        done = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", normalised=flag, **how))
        assert done.code == 2
        assert f"--normalised {flag} contradicts the labels in {labels}" in done.err
        assert done.err.endswith("give --normalised yes\n")
    done = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", normalised="yes", **how))
    assert done.code == 0, done.err
    if format == "packed":
        manifest = json.loads((labels / "manifest.json").read_text())
        del manifest["settings"]["pixel_values"]
        (labels / "manifest.json").write_text(json.dumps(manifest))
        done = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", normalised="no", **how))
        assert done.code == 0, done.err


@pytest.mark.gpu
def test_relabelling_on_cuda(tiny, teacher, tmp_path):
    """Views are replayed on the device, several batches at a time; logits are close to those of workers, not equal."""
    stores = {}
    for loader in ("resident", "workers"):
        words = flags(tiny.train, teacher, tmp_path / loader, "--format", "packed", "--mix-type", "cutmix")
        words[words.index("cpu")] = "cuda"
        done = run(relabel_FKD, *words, "--loader", loader)
        assert done.code == 0, done.err
        stores[loader] = open_labels(tmp_path / loader)
    for batch in range(3):
        ours, theirs = (store.read(1, batch) for store in stores.values())
        assert torch.equal(ours.coords, theirs.coords)
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=0.05, atol=0.05)
    words[words.index(tmp_path / "workers")] = tmp_path / "resident"
    done = run(relabel_FKD, *words, "--loader", "workers")
    assert (done.code, "replay is on the device" in done.err) == (
        2,
        True,
    )  # other bits would differ, so it is not continued


def test_crop_scales_are_respected(tiny, teacher, tmp_path):
    """Crops have at least half and at most 0.6 of the area, up to rounding to pixels."""
    more = ["--min-scale-crops", 0.5, "--max-scale-crops", 0.6]
    assert run(relabel_FKD, *flags(tiny.train, teacher, tmp_path / "l", *more, epochs=1)).code == 0
    coords = torch.cat([items[0] for items in written(tmp_path / "l").values()])
    area = coords[:, 2] * coords[:, 3]
    assert area.min() > 0.45
    assert area.max() < 0.65


def test_bad_input(tiny, teacher, tmp_path):
    """One line names the flag or the file, and no file is overwritten."""
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "notes.txt").write_text("mine")
    other = tmp_path / "other.pth"
    torch.save(build_student("resnet34", 3, 0).state_dict(), other)
    broken = make_images(tmp_path / "broken")
    (broken / "class_1" / "2.png").write_bytes(b"not an image")
    for words, named in (
        (flags(tiny.train, teacher, labels), str(labels)),
        (flags(tmp_path / "none", teacher, tmp_path / "x"), "--data"),
        (flags(tiny.train, tmp_path / "none.pth", tmp_path / "x"), "none.pth"),
        (flags(tiny.train, other, tmp_path / "y"), "other.pth"),
        (
            [word if word != "resnet18" else "resnet19" for word in flags(tiny.train, teacher, tmp_path / "z")],
            "resnet18",
        ),
        (flags(tiny.train, teacher, tmp_path / "x", "--min-scale-crops", 0.9, "--max-scale-crops", 0.5), "--max-scale"),
        (flags(broken, teacher, tmp_path / "p"), "2.png"),
        (flags(broken, teacher, tmp_path / "q", "-j", 2), "2.png"),
    ):
        result = run(relabel_FKD, *words)
        assert result.code == 2
        assert result.err.startswith("error: ")
        assert len(result.err.splitlines()) == 1
        assert named in result.err
    assert (labels / "notes.txt").read_text() == "mine"


def test_a_dry_run_draws_and_writes_no_label(tiny, teacher, tmp_path):
    """The picture lies beside the folder of the labels, which does not exist yet."""
    result = run(relabel_FKD, *flags(tiny.train, teacher, tmp_path / "labels", "--dry-run"))
    assert result.code == 0, result.err
    assert [path.name for path in tmp_path.iterdir()] == ["labels-views.png"]
    assert "teacher agrees with the folders" in result.out


def test_a_teacher_is_asked_until_enough_views_are_of_one_image(tiny):
    """Two halves of a view say little, so that the first epoch of a small set may not do: half of ten classes permuted
    were relabelled without a word at 25 % agreement."""
    policy = ViewPolicy(0, SIDE, 0.5, 1.0, "cutmix", 0.8, 1.0, 0.5)
    folder = open_folder(tiny.train, "--data")
    views = DrawnViews(policy, len(folder.samples), 5)
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, CPU, torch.contiguous_format)
    asked = ask_teacher(ViewDataset(folder.samples, views, SIDE), 0, normalise, lambda x: x.mean(dim=(2, 3)), 3)
    assert sum(int(dominating(labels, SIDE)[1].sum()) for labels in asked) >= 30 * 3
    assert len(asked) > views.batches_per_epoch


def test_too_little_disk_for_labels(tiny, teacher, tmp_path, monkeypatch):
    """The error comes before the first view; it counts 3 logits and 21 bytes of view per image and epoch."""
    free = [12 * 2 * (3 * 4 + 21)]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free[0] - 1))  # a full disk
    result = run(relabel_FKD, *flags(tiny.train, teacher, tmp_path / "labels"))
    assert result.code == 2
    assert "the labels need" in result.err
    free[0] += 1
    assert run(relabel_FKD, *flags(tiny.train, teacher, tmp_path / "more")).code == 0
