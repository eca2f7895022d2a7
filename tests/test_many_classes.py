"""The benchmark of labels with many classes continues where it was stopped."""

import json

import pytest
from PIL import Image

from benchmarks import many_classes


def test_finished_parts_are_not_repeated(tmp_path, monkeypatch, capsys):
    """A second call continues where the first was stopped, and every form of labels gets a row."""
    flags = f"{tmp_path}/work --model shufflenet_v2_x0_5 --teacher-epochs 1 --epochs 1 --batch-size 4 --topk 2 --bits 8"
    flags = [*flags.split(), "--glyphs", "--classes 4 --train 2 --distilled 2 --val 1", "--json", f"{tmp_path}/rows"]
    many_classes.main([*flags, "--seeds", "1"])
    before = json.loads((tmp_path / "rows").read_text())
    ways = [(row["kept"], row["bits"], row["mass"]) for row in before]
    assert ways == [(None, 8, "all"), (2, 8, "kept"), (2, 8, "renormalised")]
    assert all(row["bytes"] > 1000 for row in before)
    trained, train = [], many_classes.train_FKD_parallel.main
    monkeypatch.setattr(many_classes.train_FKD_parallel, "main", lambda words: trained.append(words) or train(words))
    many_classes.main([*flags, "--seeds", "2", "--figure", f"{tmp_path}/figure.png"])
    assert len(trained) == len(ways)
    assert all("--seed 1" in " ".join(words) for words in trained)
    after = json.loads((tmp_path / "rows").read_text())
    assert [row["top1"][:1] for row in after] == [row["top1"] for row in before]
    with pytest.raises(SystemExit):
        many_classes.main([*flags, "--seeds", "1", "--temperature", "20"])
    assert "was made with other --temperature; give another WORK" in capsys.readouterr().err
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width > 900
