"""--classes gives order and subset of the classes; logits of a teacher or of labels are reduced to them."""

import hashlib
import json
import random
import shutil

import numpy as np
import pytest
import torch
from helpers import BATCH, CPU, LIGHT, SIDE, make_images, read_run, relabel_flags, run, same_weights, save_teacher
from PIL import Image

import relabel_FKD
import train_FKD_parallel
import train_KD_parallel
from utils.config import FIXED_ON_RESUME, NEUTRAL_IN_REPORTS
from utils.data.images import ImageSet
from utils.labels import command
from utils.labels.formats import open_labels
from utils.labels.training_views import TrainingViews
from utils.report import random_images
from utils.run import teacher_check
from utils.run.classes import imagenet_numbers, listed_classes, numbers_of_classes, select_classes, select_pair
from utils.run.subsets import SUBSETS
from utils.system.errors import InputError
from utils.training.precision import Precision
from utils.training.teachers import Ensemble, combine

NETTE = SUBSETS["imagenette"]
NETTE_WORDS = "tench,English springer,cassette player,chain saw,church,French horn,garbage truck,gas pump,golf ball"
NETTE_WORDS = [*NETTE_WORDS.split(","), "parachute"]
# DD-Ranking's lists, ddranking/utils/data.py
NUMBERS = {
    "imagenette": [0, 217, 482, 491, 497, 566, 569, 571, 574, 701],
    "imagewoof": [193, 182, 258, 162, 155, 167, 159, 273, 207, 229],
    "imagemeow": [281, 282, 283, 284, 285, 291, 292, 290, 289, 287],
    "imagesquawk": [84, 130, 88, 144, 145, 22, 96, 9, 100, 89],
    "imagefruit": [953, 954, 949, 950, 951, 957, 952, 945, 943, 948],
    "imageyellow": [309, 986, 954, 951, 987, 779, 599, 291, 72, 11],
}
# of the wnids of imagenet-100, with spaces between them, in the order of github.com/HobbitLong/CMC/imagenet100.txt
IMAGENET_100_SHA256 = "fa2b1926ad6f96fb2011dfd8e1621f1d1c1014144cbb3465ee1579cb042df394"
LISTED = ["n03394916", "n01440764", "n03888257"]  # French horn, tench, parachute: not in the order of sorted names
LISTED_NUMBERS = [566, 0, 701]
EXTRA = "n02102040"


@pytest.mark.parametrize("name", SUBSETS)
def test_subsets_are_classes_of_imagenet(name):
    """Each has as many different wnids as its name says, all of ImageNet-1K, in the order of DD-Ranking."""
    wnids = listed_classes(name)
    assert len(set(wnids)) == len(wnids) == (100 if name.endswith("-100") else 10)
    numbers = [imagenet_numbers()[wnid] for wnid in wnids]
    if not name.startswith("imagenet-"):
        assert numbers == NUMBERS[name]


def test_orders_of_subsets():
    """ImageNet-10 is the start of ImageNet-100, as in IDC; ImageNette is sorted; `image` may be left out."""
    assert listed_classes("imagenet-10") == listed_classes("imagenet-100")[:10]
    assert hashlib.sha256(" ".join(listed_classes("imagenet-100")).encode()).hexdigest() == IMAGENET_100_SHA256
    assert listed_classes("imagenette") == sorted(NETTE) == NETTE
    assert listed_classes("meow") == listed_classes("ImageMeow") == SUBSETS["imagemeow"]


def test_a_file_names_one_class_a_line(tmp_path, monkeypatch):
    """Blank lines, CRLF and a byte order mark do not count; the name of a subset is no file."""
    file = tmp_path / "classes.txt"
    file.write_bytes("﻿dog\r\n\r\ncat of mine\r\n\n".encode())
    assert listed_classes(str(file)) == ["dog", "cat of mine"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meow").write_text("dog\n")
    assert listed_classes("meow") == SUBSETS["imagemeow"]
    assert listed_classes("./meow") == ["dog"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dog\ncat\ndog\n", "names dog twice; name each class once"),
        ("\n \n", "names no class; give one folder name per line"),
        ("dog\0\n", "is not a text file in UTF-8"),
    ],
)
def test_wrong_files(text, message, tmp_path):
    """The sentence names flag, file and fault."""
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(InputError, match=f"--classes .*c.txt {message}"):
        listed_classes(str(tmp_path / "c.txt"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagenete", r"is neither a file nor one of imagenette, .* \(did you mean imagenette\?\); give one of them"),
        ("squak", r"\(did you mean squawk\?\)"),
        ("cifar", r"one of imagenette, [^(]*; give one of them, or a file"),
        ("lists/absent.txt", r"lists/absent.txt cannot be read \(No such file or directory\)"),
    ],
)
def test_unknown_names(name, message):
    """Near names are pointed out; a path is meant as a file."""
    with pytest.raises(InputError, match=message):
        listed_classes(name)


def images_of(names, named=True, answers=None):
    """Return an image set with two images of each class, in mixed order."""
    samples = [(f"{name}/{number}", place) for number in range(2) for place, name in enumerate(names)]
    return ImageSet("SET", list(names), samples, named=named, answers=answers)


def as_dict(images):
    """Return image -> class number."""
    return dict(images.samples)


def listed_in(tmp_path, names):
    """Write a --classes file."""
    (tmp_path / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return str(tmp_path / "classes.txt")


def test_a_line_is_a_class_number(tmp_path, program_log):
    """Classes that are not listed lose their images; the others keep the order of their images."""
    images = images_of(["ant", "bee", "cat", "dog"])
    select_classes(listed_in(tmp_path, ["dog", "ant"]), images, "--data")
    assert images.classes == ["dog", "ant"]
    assert images.samples == [("ant/0", 1), ("dog/0", 0), ("ant/1", 1), ("dog/1", 0)]
    assert "2 of 4 classes of --data SET are left out" in program_log.text


@pytest.mark.parametrize(
    ("names", "how"),
    [
        (NETTE_WORDS, "by ImageNet's list of classes"),
        ([name.replace("n0", "N0") for name in NETTE], "by name, ignoring case and spaces"),
        ([*NETTE_WORDS, "goldfish"], "by ImageNet's list of classes"),
    ],
)
def test_other_spellings(names, how, program_log):
    """Words and wnids are the same class; the set's own spelling is kept."""
    names = random.Random(0).sample(names, len(names))
    images = images_of(names)
    select_classes("imagenette", images, "--data")
    assert how in program_log.text
    assert images.classes == [next(n for n in names if n.casefold() in (w, x.casefold())) for w, x in NETTE_PAIRS]
    assert all(images.classes[number] == image.split("/")[0] for image, number in images.samples)


NETTE_PAIRS = list(zip(NETTE, NETTE_WORDS, strict=True))


def test_a_thousand_numbered_folders_are_imagenet():
    """SRe2L's new000 … new999 are ImageNet's classes in order."""
    images = images_of([f"new{number:03d}" for number in range(1000)])
    select_classes("imagewoof", images, "--data")
    assert images.classes == [f"new{number:03d}" for number in NUMBERS["imagewoof"]]


def test_a_set_without_names_goes_by_number():
    """As many classes as lines: class k is line k; otherwise nobody knows."""
    images = images_of([str(number) for number in range(10)], named=False)
    select_classes("imagewoof", images, "--data")
    assert images.classes == SUBSETS["imagewoof"]
    assert as_dict(images)["7/1"] == 7
    with pytest.raises(InputError, match="lists n02096294, n02093754, n02111889 and 7 more"):
        select_classes("imagewoof", images_of([str(number) for number in range(12)], named=False), "--data")


def test_numbered_folders_are_no_names():
    """Whose order 00000 … 00009 are in is not known (RDED #4, #9, #10)."""
    with pytest.raises(InputError, match="--data SET has no such class"):
        select_classes("imagewoof", images_of([f"{number:05d}" for number in range(10)]), "--data")


def test_a_listed_class_must_be_in_both_sets(tmp_path):
    """The sentence names the flag and the classes, and nothing else."""
    file = listed_in(tmp_path, ["dog", "ant", "bee"])
    with pytest.raises(InputError, match=r"classes.txt lists bee, and --val-dir SET has no such class; give images"):
        select_pair(file, images_of(["ant", "bee", "dog"]), images_of(["ant", "cow", "dog"]))
    with pytest.raises(InputError, match=r"lists dog, and --train-dir SET has no such class"):
        select_pair(file, images_of(["ant", "bee"]), images_of(["ant", "bee", "dog"]))


def test_a_class_that_the_training_set_lacks_is_not_blamed_on_the_validation_set(tmp_path):
    """With --class-map, a validation folder gets its class through its training folder; here there is none."""
    file = listed_in(tmp_path, ["ant", "bee"])
    (tmp_path / "map").write_text("Ameise\tant\nHund\tdog\n")
    with pytest.raises(InputError, match=r"lists bee, and --train-dir SET has no such class"):
        select_pair(file, images_of(["ant", "dog"]), images_of(["Ameise", "Biene", "Hund"]), str(tmp_path / "map"))
    with pytest.raises(InputError, match=r"lists bee, and --val-dir SET has no such class"):
        select_pair(file, images_of(["ant", "bee", "dog"]), images_of(["Ameise", "Hund"]), str(tmp_path / "map"))


def test_a_class_map_pairs_with_all_training_folders(tmp_path):
    """The map may name classes that are not listed."""
    (tmp_path / "map").write_text("Hund\tdog\nAmeise\tant\nBiene\tbee\n")
    train, val = images_of(["ant", "bee", "dog"]), images_of(["Ameise", "Biene", "Hund"])
    select_pair(listed_in(tmp_path, ["dog", "ant"]), train, val, str(tmp_path / "map"))
    assert as_dict(train) == {"dog/0": 0, "ant/0": 1, "dog/1": 0, "ant/1": 1}
    assert as_dict(val) == {"Hund/0": 0, "Ameise/0": 1, "Hund/1": 0, "Ameise/1": 1}
    train, val = images_of(["ant", "bee", "dog"]), images_of(["x", "y", "z"])
    select_pair(listed_in(tmp_path, ["dog", "ant"]), train, val, "sorted")
    assert as_dict(val) == {"z/0": 0, "x/0": 1, "z/1": 0, "x/1": 1}


def test_a_set_with_soft_labels_is_reduced_as_well(tmp_path):
    """A run on stored labels or a teacher does not use them; the set keeps the new number of each of their columns."""
    images = images_of(["0", "1", "2"], named=False, answers="logits")
    assert images.numbers is None
    select_classes(listed_in(tmp_path, ["2", "0"]), images, "--train-dir")
    assert as_dict(images) == {"0/0": 1, "2/0": 0, "0/1": 1, "2/1": 0}
    assert images.numbers == [1, None, 0]


def test_numbers_of_a_teachers_classes(tmp_path):
    """--class-order comes before the labels' names, these before ImageNet's, these before the lines."""
    file = listed_in(tmp_path, ["dog", "ant"])
    order = tmp_path / "order"
    order.write_text("cow\nant\nbee\ndog\n")

    def numbers(num_classes, **more):
        return numbers_of_classes(file, ["Dog", "Ant"], num_classes, "the labels have", **more)

    assert numbers(4, class_order=str(order)) == [3, 1]
    assert numbers(4, stated={"Ant": 2, "Dog": 0, "x": 1}) == [0, 2]
    assert numbers(4, stated={"ant": 3, "dog": 0, "x": 1}) == [0, 3]
    assert numbers(2, stated={"ant": 0, "dog": 1}) == [1, 0]
    assert numbers(2) == [0, 1]
    assert numbers_of_classes("imagewoof", SUBSETS["imagewoof"], 1000, "") == NUMBERS["imagewoof"]
    assert numbers_of_classes("imagenette", [f"{n:05d}" for n in range(10)], 1000, "") == NUMBERS["imagenette"]
    assert numbers_of_classes("imagewoof", SUBSETS["imagewoof"], 10, "") == list(range(10))
    with pytest.raises(InputError, match=r"labels have 4 classes, and .* the 2 of --classes .*--class-order FILE"):
        numbers(4)
    with pytest.raises(InputError, match="the labels have 1000 classes, and it is not known"):
        numbers(1000, stated={"ant": 3})
    order.write_text("cow\nant\n")
    with pytest.raises(InputError, match=r"--class-order .* does not name Dog"):
        numbers(4, class_order=str(order))


@pytest.mark.parametrize(("count", "rule"), [(1, "mean"), (2, "norm-mean")])
def test_an_ensemble_keeps_the_logits_of_some_classes(count, rule, tmp_path):
    """They equal the combined logits at these numbers, also in parts and for no rows."""
    files = [save_teacher(tmp_path / f"{seed}.pth", LIGHT, 20, seed) for seed in range(count)]
    teacher = Ensemble([LIGHT] * count, files, rule, Precision("fp32", CPU))
    images = torch.randn(5, 3, SIDE, SIDE)
    whole = teacher(images)
    assert torch.equal(whole, combine(torch.stack([one(images) for one in teacher.teachers]), rule))
    teacher.keep_classes([7, 0, 19])
    assert torch.equal(teacher(images), whole[:, [7, 0, 19]])
    first, second = teacher.answer([images, images[:0]])
    assert torch.equal(first, whole[:, [7, 0, 19]])
    assert list(second.shape) == list(teacher(images[:0]).shape) == [0, 3]
    assert teacher.num_classes(SIDE) == 3


def write_folders(root, names, per_class=4):
    """Write class folders of noise; the images of a class do not depend on the other classes."""
    for name in names:
        (root / name).mkdir(parents=True)
        rng = np.random.default_rng(int(name[1:]))
        for number in range(per_class):
            pixels = rng.integers(0, 256, (36, 44, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """Training folders of LISTED, validation folders of one more class, a teacher of 1,000 classes and its labels."""
    root = tmp_path_factory.mktemp("thousand")
    write_folders(root / "train", LISTED)
    write_folders(root / "more", [*LISTED, EXTRA])
    write_folders(root / "val", [*LISTED, EXTRA], 2)
    listed_in(root, LISTED)
    save_teacher(root / "teacher.pth", LIGHT, 1000)
    label(root, root / "labels")
    label(root, root / "reduced", "--classes", root / "classes.txt")
    return root


def label(root, target, *more, data="train"):
    """Relabel with the teacher of 1,000 classes; an untrained teacher has to be accepted."""
    words = relabel_flags(root / data, root / "teacher.pth", target, "--mix-type", "cutmix", *more, arch=LIGHT)
    result = run(relabel_FKD, *words, "--accept-labels")
    assert result.code == 0, result.err
    return target


def words_of(root, output, labels=None, train="train", epochs=2, **more):
    """Return the command line of a training run, on stored labels or with the live teacher."""
    flags = {"train-dir": root / train, "val-dir": root / "val", "output-dir": output, "input-size": SIDE}
    flags |= {"batch-size": BATCH, "epochs": epochs, "model": LIGHT, "device": "cpu", "precision": "fp32", "workers": 0}
    flags |= {"loss-type": "mse_gt"}
    live = {"teacher-model": LIGHT, "teacher-checkpoint": root / "teacher.pth", "mix-type": "cutmix"}
    flags |= {"fkd-path": labels} if labels else live
    flags |= {name.replace("_", "-"): value for name, value in more.items()}
    words = [word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value))]
    return [*words, "--accept-labels"]


def trained(root, output, labels=None, *extra, **more):
    """Train, and return the `Run`."""
    script = train_FKD_parallel if labels else train_KD_parallel
    result = run(script, *words_of(root, output, labels, **more), *extra)
    assert result.code == 0, result.err
    return read_run(output)


def test_relabelling_stores_the_logits_of_the_listed_classes(thousand):
    """They equal those of all 1,000 classes at the numbers of the wnids, and the labels name their classes."""
    whole, reduced = open_labels(thousand / "labels"), open_labels(thousand / "reduced")
    assert (whole.num_classes, reduced.num_classes) == (1000, 3)
    assert reduced.class_list == LISTED
    assert reduced.settings["teacher_classes"] == LISTED_NUMBERS
    assert "teacher_classes" not in whole.settings
    for epoch in range(2):
        for batch in range(3):
            one, other = whole.read(epoch, batch), reduced.read(epoch, batch)
            assert torch.equal(one.logits[:, LISTED_NUMBERS], other.logits)
            assert torch.equal(one.index, other.index)


def test_labels_of_a_subset_are_checked_with_the_teacher(thousand, capsys):
    """`verify` compares the kept classes, and relabelling goes on with the same settings only."""

    def verify(teacher):
        words = ["verify", thousand / "reduced", "--images", thousand / "train", "--arch", LIGHT, "--checkpoint"]
        return command.main([*map(str, [*words, teacher, "--device", "cpu"])], ask_teacher=teacher_check.run)

    assert verify(thousand / "teacher.pth") == 0
    assert "these labels are this teacher's answers to these images" in capsys.readouterr().out
    flags = relabel_flags(
        thousand / "train", thousand / "teacher.pth", thousand / "reduced", "--mix-type", "cutmix", arch=LIGHT
    )
    result = run(relabel_FKD, *flags, "--accept-labels")
    assert result.code == 2
    assert "made with other settings" in result.err
    small = save_teacher(thousand / "small.pth", LIGHT, 10)
    assert verify(small) == 2
    assert "use class 701 of their teacher, but the given teacher has only 10 classes" in capsys.readouterr().err
    teacher = Ensemble([LIGHT], [str(small)], "mean", Precision("fp32", CPU))
    for numbers in ([], [0, -1], [True], "012", [0, 1.0]):
        with pytest.raises(InputError, match=r"the labels in L do not state the teacher's class numbers"):
            teacher_check.keep_stated_classes(teacher, numbers, "L", SIDE)


def test_live_and_stored_logits_are_reduced_alike(thousand, tmp_path):
    """A live teacher, stored labels of 1,000 classes and labels of the subset train the same student of 3 outputs."""
    live = trained(thousand, tmp_path / "live", classes=thousand / "classes.txt")
    stored = trained(thousand, tmp_path / "stored", thousand / "labels", classes=thousand / "classes.txt")
    reduced = trained(thousand, tmp_path / "reduced", thousand / "reduced")
    named = trained(thousand, tmp_path / "named", thousand / "reduced", classes=thousand / "classes.txt")
    assert live.weights()["fc.weight"].shape[0] == 3
    for other in (stored, reduced, named):
        assert same_weights(live.weights(), other.weights())
        assert other.rows[-1]["val_top1"] == live.rows[-1]["val_top1"]
    settings = [json.loads((done.path / "args.json").read_text()) for done in (live, stored, reduced, named)]
    kept = [one["kept_classes"] for one in settings]
    assert kept[0] == kept[1]
    assert kept[0].startswith("3 of 1000: ")
    assert kept[2:] == [None, None]
    # 3 of the 4 validation folders, numbered by the lines in all four runs
    assert len({one["val_images"] for one in settings}) == len({one["train_images"] for one in settings}) == 1
    assert live.summary["validation"]["number"] == 6


def test_several_workers_read_the_same_reduced_labels(thousand, tmp_path):
    """Worker processes and images in memory give the same student."""
    flags = {"classes": thousand / "classes.txt"}
    one = trained(thousand, tmp_path / "one", thousand / "labels", loader="resident", **flags)
    two = trained(thousand, tmp_path / "two", thousand / "labels", loader="workers", **flags | {"workers": 2})
    assert same_weights(one.weights(), two.weights())


def test_views_keep_the_logits_of_the_classes(thousand):
    """Each batch has the stored logits at the kept numbers, in this order."""
    store = open_labels(thousand / "labels")
    views = TrainingViews(store, kept_classes=tuple(LISTED_NUMBERS))
    assert (views.num_classes, TrainingViews(store).num_classes) == (3, 1000)
    assert torch.equal(views.read(1, 2).logits, store.read(1, 2).logits[:, LISTED_NUMBERS])
    assert torch.equal(TrainingViews(store).read(1, 2).logits, store.read(1, 2).logits)


def test_without_the_flag_a_student_has_all_classes(thousand, tmp_path):
    """The present behaviour: 1,000 outputs, and images with ImageNet's numbers."""
    done = trained(thousand, tmp_path / "run", thousand / "labels", epochs=1)
    assert done.weights()["fc.weight"].shape[0] == 1000
    assert json.loads((done.path / "args.json").read_text())["kept_classes"] is None


def test_folders_that_are_not_listed_are_left_out(thousand, tmp_path):
    """A folder more in --train-dir changes nothing, with a live teacher and with plain labels."""
    flags = {"classes": thousand / "classes.txt", "epochs": 1}
    for name, more in {"live": {}, "hard": {"teacher_checkpoint": None, "loss_type": "ce"}}.items():
        one = trained(thousand, tmp_path / f"{name}-3", **flags, **more)
        result = run(train_KD_parallel, *words_of(thousand, tmp_path / f"{name}-4", train="more", **flags, **more))
        assert result.code == 0, result.err
        assert same_weights(one.weights(), read_run(tmp_path / f"{name}-4").weights())
        assert one.weights()["fc.weight"].shape[0] == 3
        assert "1 of 4 classes of --train-dir" in result.out + result.err


def test_another_list_prevents_a_resume(thousand, tmp_path):
    """So do another order, and the same classes without the flag; the same list goes on."""
    hard = {"teacher_checkpoint": None, "loss_type": "ce", "mix_type": None}
    trained(thousand, tmp_path / "run", epochs=1, classes=thousand / "classes.txt", train="more", **hard)
    other = tmp_path / "other"
    other.mkdir()
    for names in (sorted(LISTED), [*LISTED, EXTRA], LISTED[:2], None):
        file = None if names is None else listed_in(other, names)
        words = words_of(thousand, tmp_path / "run", train="more", epochs=1, classes=file, **hard)
        result = run(train_KD_parallel, *words, "--resume")
        assert result.code == 2
        assert "train_images" in result.err or "training images" in result.err, result.err
    words = words_of(thousand, tmp_path / "run", train="more", epochs=1, classes=thousand / "classes.txt", **hard)
    assert run(train_KD_parallel, *words, "--resume").code == 0
    assert "kept_classes" in FIXED_ON_RESUME
    assert "kept_classes" not in NEUTRAL_IN_REPORTS


def test_labels_that_cannot_be_reduced(thousand, tmp_path):
    """Top-k labels, labels of more images and too many kept logits are refused in one sentence."""
    listed = {"classes": thousand / "classes.txt", "epochs": 1}

    def refused(labels, *extra, **more):
        result = run(train_FKD_parallel, *words_of(thousand, tmp_path / "run", labels, **listed | more), *extra)
        assert result.code == 2
        return result.err

    topk = label(thousand, tmp_path / "topk", "--keep-topk", 5, "--epochs", 1)
    assert "only the 5 largest answers of each view, which cannot be reduced to --classes" in refused(topk)
    more = label(thousand, tmp_path / "more", "--epochs", 1, data="more")
    assert "leaves 12 images of --train-dir" in refused(more, train="more")
    assert "--keep-topk 4 is more than the 3 classes of --classes" in refused(thousand / "labels", keep_topk=4)
    names = listed_in(tmp_path, [*LISTED, EXTRA])
    assert f"lists {EXTRA}, and --train-dir" in refused(thousand / "labels", classes=names)


def test_a_teacher_whose_classes_are_not_known(tmp_path):
    """20 classes and 2 folders: --class-order says which are meant."""
    make_images(tmp_path / "train")
    make_images(tmp_path / "val", seed=1)
    save_teacher(tmp_path / "teacher.pth", LIGHT, 20)
    listed = listed_in(tmp_path, ["class_2", "class_0"])
    result = run(train_KD_parallel, *words_of(tmp_path, tmp_path / "run", classes=listed, epochs=1))
    assert result.code == 2
    assert f"--teacher-model {LIGHT} answers for 20 classes, and it is not known which of them are the 2" in result.err
    order = tmp_path / "order.txt"
    order.write_text("".join(f"other_{number}\n" for number in range(17)) + "class_2\nclass_1\nclass_0\n")
    words = words_of(tmp_path, tmp_path / "run", classes=listed, class_order=order, epochs=1)
    result = run(train_KD_parallel, *words)
    assert result.code == 0, result.err
    assert read_run(tmp_path / "run").weights()["fc.weight"].shape[0] == 2
    assert "answers for 20 classes, of which 2 are kept" in result.out + result.err
    result = run(relabel_FKD, *relabel_flags(tmp_path / "train", tmp_path / "teacher.pth", tmp_path / "l", arch=LIGHT),
                 "--classes", listed)  # fmt: skip
    assert result.code == 2
    assert f"--arch {LIGHT} answers for 20 classes, and it is not known" in result.err


def test_random_images_of_a_subset(thousand, tmp_path):
    """Only the listed classes are drawn, with a number for each class or with a set to match."""
    words = [thousand / "more", "--classes", thousand / "classes.txt", "--seed", 3]
    result = run(random_images, *words, "--per-class", 2, "--output", tmp_path / "two")
    assert result.code == 0, result.err
    drawn = sorted(path.parent.name for path in (tmp_path / "two").glob("*/*"))
    assert drawn == sorted(LISTED * 2)
    shutil.copytree(thousand / "val", tmp_path / "like")
    result = run(random_images, *words, "--like", tmp_path / "like", "--output", tmp_path / "like-2")
    assert result.code == 0, result.err
    assert sorted(path.parent.name for path in (tmp_path / "like-2").glob("*/*")) == drawn
    assert json.loads((tmp_path / "two.json").read_text())["classes"] == str(thousand / "classes.txt")


def test_tensors_of_a_subset_find_their_validation_folders(tmp_path):
    """A tensor set has no class names: its class k is line k, and the teacher's logits are those of the wnids."""
    images = images_of(["0", "1", "2"], named=False)
    select_pair(listed_in(tmp_path, LISTED), images, images_of([*LISTED, EXTRA]))
    assert images.classes == LISTED
    assert numbers_of_classes(str(tmp_path / "classes.txt"), images.classes, 1000, "") == LISTED_NUMBERS
