"""benchmarks/gpu.py keeps all measured figures if a row fails or the time runs out."""

import json

import pytest

from benchmarks import gpu


@pytest.fixture
def call(monkeypatch, tmp_path):
    def run(rows, *words):
        monkeypatch.setattr(gpu, "ROWS", rows)
        code = gpu.main([str(tmp_path), "--device", "cpu", "--quick", "--rows", *rows, *words])
        return code, {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in rows}

    return run


def broken(day):
    yield {"one": 1.0}
    day.run("broken", "-c", "raise SystemExit(3)")
    yield {"two": 2.0}


def sound(day):
    day.run("sound", "-c", "")
    yield {"5 seeds / 1 seed, time": 3.0}


def test_a_row_that_fails_keeps_its_figures_and_the_next_is_run(call, capsys, tmp_path):
    code, results = call({"broken": broken, "sound": sound})
    assert code == 1
    assert results["broken"]["figures"] == {"one": 1.0}
    assert "broken failed; see" in results["broken"]["error"]
    assert results["sound"]["figures"] == {"5 seeds / 1 seed, time": 3.0}
    assert "error" not in results["sound"]
    assert (tmp_path / "table.txt").read_text() in capsys.readouterr().out


def test_the_day_ends_in_time(call, tmp_path):
    """A command is stopped at its own limit or at the end of the day; later ones are not started."""

    def sleep(day):
        yield {"slept": day.run("sleep", "-c", "import time; time.sleep(60)")}

    code, results = call({"sleep": sleep, "sound": sound}, "--seconds", "1.5")
    assert code == 1
    assert "TimeoutExpired" in results["sleep"]["error"]
    assert "no time was left for sound; give --rows" in results["sound"]["error"]
    assert results["sleep"]["seconds"] < 10


def test_aims_are_judged():
    assert gpu.judged("resident / ceiling", 0.96, quick=False).endswith("met")
    assert gpu.judged("resident / ceiling", 0.94, quick=False).endswith("NOT MET")
    assert gpu.judged("whole job, s", 361, quick=False).endswith("NOT MET")
    assert gpu.judged("anything else", 1, quick=False) == ""
