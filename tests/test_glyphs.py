"""The glyph data set has distinct classes, held-out faces, and images that follow from the seed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import glyphs


def test_no_two_classes_look_alike_and_none_is_cut_off():
    """A font without a glyph would draw the same box for all missing ones."""
    assert len(set(glyphs.GLYPHS)) == len(glyphs.GLYPHS) >= 200
    for faces in (glyphs.TRAIN_FACES, glyphs.VAL_FACES):
        drawn = [np.asarray(glyphs.draw_plain(glyph, faces.split()[0])) for glyph in glyphs.GLYPHS]
        assert len({image.tobytes() for image in drawn}) == len(drawn)
        assert all(image.any() and not image[[0, -1]].any() and not image[:, [0, -1]].any() for image in drawn)


def test_faces_are_held_out():
    assert not set(glyphs.TRAIN_FACES.split()) & set(glyphs.VAL_FACES.split())


def files_of(folder):
    """Return the bytes of every file, by relative path."""
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*.png")}


def test_images_follow_from_the_seed(tmp_path):
    words = "--classes 3 --train 3 --distilled 2 --val 1".split()
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        glyphs.main([str(tmp_path / name), *words, "--seed", seed])
    first = files_of(tmp_path / "a")
    assert first == files_of(tmp_path / "b") != files_of(tmp_path / "c")
    assert [len(list((tmp_path / "a" / part).glob("*/*.png"))) for part in ("train", "distilled", "val")] == [9, 6, 3]
    for path, data in files_of(tmp_path / "a" / "distilled").items():
        assert first[Path("train") / path] == data
    with Image.open(next((tmp_path / "a").rglob("*.png"))) as image:
        assert (image.size, image.mode) == ((32, 32), "RGB")


def test_too_many_classes_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        glyphs.main([str(tmp_path), "--classes", "1000"])
    assert "--classes 1000 is not between" in capsys.readouterr().err
