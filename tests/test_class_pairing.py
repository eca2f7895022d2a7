"""Classes are paired by name, or by a list that says so, or not at all."""

import random

import pytest

from utils.data.images import ImageSet
from utils.run.classes import (
    Numbering,
    display_names,
    imagenet_numbers,
    number_train_folders,
    number_val_folders,
    pair_names,
    trailing_numbers,
)
from utils.system.errors import InputError

WORDS = "zero one two three four five six seven eight nine".split()
NETTE = "n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 n03445777 n03888257".split()
NETTE_NUMBERS = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]  # DD-Ranking's list of ImageNette
NETTE_WORDS = "tench,English springer,cassette player,chain saw,church,French horn,garbage truck,gas pump,golf ball"
NETTE_WORDS = [*NETTE_WORDS.split(","), "parachute"]
WNIDS = [f"n{number:08d}" for number in range(1000)]


def all_wnids():
    """Return ImageNet-1K's wnids in order."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_label_name(number) for number in range(1000)]


def pair(val, train, class_map=None):
    """Return the places of the validation folders among the training folders."""
    return pair_names(sorted(val), sorted(train), class_map, "--val-dir V and --train-dir T")


def test_imagenet_has_wnids_and_words():
    """ImageNette's classes get the numbers of DD-Ranking."""
    known = imagenet_numbers()
    assert [known[name] for name in NETTE] == NETTE_NUMBERS
    assert [known[name.casefold()] for name in NETTE_WORDS] == NETTE_NUMBERS
    assert "crane" not in known  # both a bird and a machine
    assert [known[name] for name in all_wnids()] == list(range(1000))


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["new000", "new001"], [0, 1]),
        (["0", "1", "10", "2"], [0, 1, 10, 2]),
        (WORDS, None),
        (["a1", "b2"], None),
        (NETTE, None),
        (["class", "class1"], None),
        (["01", "1"], None),
    ],
)
def test_numbered_names(names, numbers):
    """Names with one prefix and different numbers are numbers; wnids are names."""
    assert trailing_numbers(names) == numbers


def test_training_folders_of_a_thousand_class_teacher():
    """ImageNette is numbered by ImageNet's classes, by wnid and by word; ten other folders keep their sorted order."""
    assert number_train_folders(NETTE, 1000).numbers == NETTE_NUMBERS
    assert number_train_folders(sorted(NETTE_WORDS), 1000).numbers == [
        NETTE_NUMBERS[NETTE_WORDS.index(name)] for name in sorted(NETTE_WORDS)
    ]
    assert number_train_folders(NETTE, 10).numbers == list(range(10))
    assert number_train_folders(sorted(WORDS), 1000).numbers == list(range(10))
    assert number_train_folders([f"new{n:03d}" for n in range(1000)], 1000).numbers == list(range(1000))


def test_class_order(tmp_path):
    """Line n of the file is class n; unnamed folders and lines beyond the classes are refused."""
    file = tmp_path / "order.txt"
    file.write_text("zero\none\ntwo\nthree\n")
    order = number_train_folders(["one", "three", "two"], 4, str(file))
    assert order.numbers == [1, 3, 2]
    with pytest.raises(InputError, match=r"does not name five of --train-dir"):
        number_train_folders(["five", "one"], 4, str(file))
    with pytest.raises(InputError, match=r"has 4 lines, but the labels have 3 classes"):
        number_train_folders(["one"], 3, str(file))
    file.write_text("one\none\n")
    with pytest.raises(InputError, match="names one twice"):
        number_train_folders(["one"], 3, str(file))
    with pytest.raises(InputError, match="cannot be read"):
        number_train_folders(["one"], 3, str(tmp_path / "absent"))


def test_labels_that_state_their_classes():
    """Folders are numbered by name, whatever else sorts between them."""
    assert number_train_folders(["b", "c"], 3, stated={"a": 0, "b": 2, "c": 1}).numbers == [2, 1]


def test_equal_names_pair_by_name():
    """A class that is not trained has no number."""
    assert pair(WORDS, WORDS) == (list(range(10)), "by name")
    places, how = pair([*WORDS, "ten"], WORDS)
    assert how == "by name"
    assert [name for name, place in zip(sorted([*WORDS, "ten"]), places, strict=True) if place is None] == ["ten"]


@pytest.mark.parametrize(
    ("val", "train"),
    [
        (WORDS, [f"digit_{n}" for n in range(10)]),  # top-1 was 10.04 % instead of 97.99
        ([f"digit_{n}" for n in range(10)], WORDS),
        ([f"digit_{n}" for n in range(1, 11)], [f"class{n}" for n in range(10)]),
        (NETTE, [f"{n:05d}" for n in range(10)]),  # whose order? RDED #4, #9, #10
        (["cat", "dog"], ["cat", "horse"]),
        (["crane", "tench"], ["n01440764", "n02012849"]),
    ],
)
def test_other_names_are_refused(val, train):
    """The error names the first differences and both remedies."""
    with pytest.raises(InputError, match=r"cannot be matched by name .*--class-map FILE.*--class-map sorted"):
        pair(val, train)


def test_a_class_without_validation_images_is_refused():
    """The error names the class."""
    with pytest.raises(InputError, match=r"no folder of --val-dir belongs to class nine; give images of every class"):
        pair(WORDS[:-1], WORDS)


def test_numbers_pair_with_numbers():
    """class_0 … class_11 sort as text; zero-padded numbers sort in another order."""
    train, val = sorted(f"class_{n}" for n in range(12)), [f"{n:03d}" for n in range(12)]
    places, how = pair(val, train)
    assert how == "by the numbers in their names"
    assert [train[place] for place in places] == [f"class_{n}" for n in range(12)]


def test_wnids_pair_with_words_and_with_a_thousand_numbers():
    """ImageNet's list gives the pairs; SRe2L's new000 … new999 are its classes in order."""
    places, how = pair(NETTE, NETTE_WORDS)
    assert how == "by ImageNet's list of classes"
    assert [sorted(NETTE_WORDS)[place] for place in places] == NETTE_WORDS
    places, how = pair(all_wnids(), [f"new{n:03d}" for n in range(1000)])
    assert (places, how) == (list(range(1000)), "by ImageNet's list of classes")
    places, _ = pair(all_wnids(), NETTE_WORDS)
    assert sum(place is not None for place in places) == 10


def test_spelling_is_no_difference():
    """Case, spaces and underscores do not matter."""
    assert pair(["Golden Retriever", "tabby-cat"], ["golden_retriever", "Tabby cat"])[0] == [1, 0]


def test_class_map(tmp_path):
    """Each line pairs two names; `sorted` pairs by position; a mistake is named."""
    file = tmp_path / "map.tsv"
    train = [f"digit_{n}" for n in range(10)]
    file.write_text("".join(f"{word}\tdigit_{n}\n" for n, word in enumerate(WORDS)))
    places, _ = pair(WORDS, train, str(file))
    assert [train[place] for place in places] == [f"digit_{WORDS.index(word)}" for word in sorted(WORDS)]
    assert pair(WORDS, train, "sorted")[0] == list(range(10))
    with pytest.raises(InputError, match="10 and 9 class folders"):
        pair(WORDS, train[:-1], "sorted")
    cases = {
        "zero digit_0\n": "has no tab",
        "zero\tdigit_x\n": "names no folder",
        "digit_0\tzero\n": "has its two names in the wrong order",
    }
    for text, wrong in cases.items():
        file.write_text(text)
        with pytest.raises(InputError, match=wrong):
            pair(WORDS, train, str(file))
    file.write_text("zero\tdigit_0\none\tdigit_0\n")
    with pytest.raises(InputError, match="assigns two folders of --val-dir to digit_0"):
        pair(WORDS, train, str(file))
    file.write_text("zero\tdigit_0\n")
    with pytest.raises(InputError, match=r"no validation folder belongs to class digit_1, digit_2, digit_3 and 6 more"):
        number_val_folders(
            ImageSet("val", sorted(WORDS), []),
            ImageSet("train", train, []),
            Numbering(list(range(10)), ""),
            str(file),
            "here",
        )


def test_files_of_editors_on_windows(tmp_path):
    """A byte order mark is not part of the first name; UTF-16 is named in the error."""
    file = tmp_path / "map.tsv"
    lines = "".join(f"{word}\tdigit_{n}\r\n" for n, word in enumerate(WORDS))
    train = [f"digit_{n}" for n in range(10)]
    file.write_bytes(lines.encode("utf-8-sig"))
    places, _ = pair(WORDS, train, str(file))
    assert [train[place] for place in places] == [f"digit_{WORDS.index(word)}" for word in sorted(WORDS)]
    file.write_bytes("\r\n".join(WORDS).encode("utf-8-sig"))
    assert number_train_folders(sorted(WORDS), 10, str(file)).numbers == [WORDS.index(word) for word in sorted(WORDS)]
    file.write_bytes(lines.encode("utf-16"))
    with pytest.raises(InputError, match=r"is not a text file in UTF-8; save it as one"):
        pair(WORDS, train, str(file))


def test_names_for_pictures():
    """A class is called by its folder, if it has one."""
    assert display_names(["a", "b"], Numbering([2, 0], ""), 3) == ["b", "class 1", "a"]


@pytest.mark.parametrize("seed", range(20))
def test_random_names_never_pair_wrongly(seed):
    """Two paired folders always have the same name, or the same number in their names."""
    rng = random.Random(seed)
    kinds = [WORDS, [f"digit_{n}" for n in range(10)], [f"{n:02d}" for n in range(10)], NETTE, NETTE_WORDS]
    train, val = (sorted(rng.sample(kind, rng.randint(2, 10))) for kind in rng.choices(kinds, k=2))
    try:
        places, how = pair(val, train)
    except InputError:
        return
    known = imagenet_numbers()
    for name, place in zip(val, places, strict=True):
        if place is None:
            continue
        other = train[place]
        digits = [word.lstrip("digt_").lstrip("0") for word in (name, other)]
        classes = [known.get(word.casefold()) for word in (name, other)]
        assert name == other or digits[0] == digits[1] or (classes[0] is not None and classes[0] == classes[1]), how
