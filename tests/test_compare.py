"""--compare says in words which of two folders of runs is better; its figures are those of scipy."""

import csv
import math
import re
import shutil

import numpy as np
import pytest
from finished_runs import make_run
from helpers import run
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from utils.report import command
from utils.report.significance import Difference, compare_seeds, holm, seeds_needed

TOP1 = st.floats(0, 100).map(lambda value: round(value, 2))
SOME = st.lists(TOP1, min_size=2, max_size=6)


def compare(root, *words):
    """Compare the folders `a` and `b` of `root`; return the printed lines, with `a` and `b` for their paths."""
    result = run(command, "--compare", root / "a", root / "b", *words)
    assert result.code == 0, result.err
    return result.out.replace(f"{root}/", "").splitlines()


def make_runs(root, name, figures, first_seed=0, **changed):
    """Write a run for each top-1 in `figures`, with the seeds `first_seed`, `first_seed` + 1 and so on."""
    for seed, top1 in enumerate(figures, first_seed):
        model = changed.get("model", "resnet18")
        make_run(root, f"{name}/{model}-seed{seed}", top1, seed, **changed)


@given(SOME, SOME, st.booleans())
@settings(max_examples=60)
def test_intervals_are_those_of_scipy(first, second, paired):
    """Equal seeds give the paired t test, others Welch's: p-value and both ends of the interval agree to 1e-9."""
    if paired:
        first, second = first[: len(second)], second[: len(first)]
    spreads = [np.subtract(second, first)] if paired else [np.array(first), np.array(second)]
    if not all(np.std(values) > 1e-3 for values in spreads):
        return  # scipy warns of values without spread
    ours = compare_seeds(dict(enumerate(first)), dict(enumerate(second, 0 if paired else 50)))
    theirs = stats.ttest_rel(second, first) if paired else stats.ttest_ind(second, first, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert ours.paired == paired
    assert [ours.p, *ours.interval] == pytest.approx([theirs.pvalue, *interval], rel=1e-9, abs=1e-9)


def test_holm_by_hand():
    """The smallest p-value is multiplied by their number, the next by one less, and none is below its predecessor."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.02, 0.9]) == pytest.approx([1.0, 0.06, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize("deviations", [(0.3,), (1.0,), (2.5,), (0.7, 0.7), (0.2, 3.0)])
@pytest.mark.parametrize("size", [2.0, 1.0, 0.2])
def test_sample_size_by_the_noncentral_t(deviations, size):
    """The n has a power of at least 80 %, and n - 1 has less."""

    def power(n):
        terms = [deviation**2 / n for deviation in deviations]
        freedom = sum(terms) ** 2 / sum(term**2 / (n - 1) for term in terms)
        limit, shift = stats.t.ppf(0.975, freedom), size / math.sqrt(sum(terms))
        return stats.nct.sf(limit, freedom, shift)

    seeds = seeds_needed(Difference(0.1, len(deviations) == 1, (3, 3), deviations), size)
    assert power(seeds) >= 0.8
    assert seeds == 2 or power(seeds - 1) < 0.8
    assert seeds_needed(Difference(0.1, True, (3, 3), (1e-12,)), size) == 2


@pytest.mark.parametrize("paired", [True, False])
def test_no_difference_is_called_one_in_twenty_times(paired):
    """2,000 draws of groups without a difference: 5 % are called different, with a standard error of 0.5 %."""
    draws = np.random.default_rng(0).normal(60, 1, (2000, 2, 4))
    calls = [
        compare_seeds(dict(enumerate(one)), dict(enumerate(two, 0 if paired else 50))).p < 0.05 for one, two in draws
    ]
    assert sum(calls) / len(calls) == pytest.approx(0.05, abs=0.015)


def test_the_better_folder_is_named(tmp_path):
    """The interval is that of the three pairs by hand: mean 2, deviation 1, t 4.3027; no output folder is needed."""
    make_runs(tmp_path, "a", [60, 61, 62])
    make_runs(tmp_path, "b", [61, 63, 65], adamw_lr=0.002)
    reach = 4.302653 / math.sqrt(3)
    (line,) = compare(tmp_path)
    assert line == (
        f"resnet18, soft labels, distilled: no difference shown: b is 2.00 points above a (95 % interval "
        f"{2 - reach:+.2f} to {2 + reach:+.2f}; 3 pairs of seeds). With this spread, 10 seeds would show a difference "
        "of 1 point. Mean top-1: a 61.00 % (3 seeds), b 63.00 % (3 seeds). What differs, a against b: learning rate of "
        "AdamW none against 0.002."
    )
    make_runs(tmp_path, "b", [64], first_seed=3, adamw_lr=0.002)
    make_runs(tmp_path, "a", [62], first_seed=3)
    (line,) = compare(tmp_path)
    reach = 3.182446 * stats.sem([1, 2, 3, 2])
    assert line.startswith(
        f"resnet18, soft labels, distilled: b is better than a by 2.00 points (95 % interval {2 - reach:.2f} to "
        f"{2 + reach:.2f}; 4 pairs of seeds). Mean top-1: a 61.25 % (4 seeds), b 63.25 % (4 seeds). What differs, "
    )
    (tmp_path / "b").rename(tmp_path / "c")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "c").rename(tmp_path / "a")
    assert f"a is better than b by 2.00 points (95 % interval {2 - reach:.2f} to" in compare(tmp_path)[0]


def test_a_difference_that_is_not_shown_names_the_higher_folder_first(tmp_path):
    """Whichever folder is given first, the difference is positive, and the interval has its sign."""
    make_runs(tmp_path, "a", [61, 63, 65])
    make_runs(tmp_path, "b", [60, 61, 62])
    reach = 4.302653 / math.sqrt(3)
    (line,) = compare(tmp_path)
    start = "no difference shown: a is 2.00 points above b (95 % interval "
    assert f"{start}{2 - reach:+.2f} to {2 + reach:+.2f}; 3 pairs of seeds)" in line
    assert "Mean top-1: a 63.00 % (3 seeds), b 61.00 % (3 seeds)." in line


def test_labels_of_other_lengths_are_named(tmp_path):
    """Other labels are named by what a reader knows, not by a digest that follows from it."""
    make_runs(tmp_path, "a", [60, 61], labels="v2:0123456789", fkd_path="labels/long", facts={"epochs": 300})
    make_runs(tmp_path, "b", [60, 61], labels="v2:9876543210", fkd_path="labels/short", facts={"epochs": 100})
    (line,) = compare(tmp_path)
    assert line.endswith("a against b: epochs of the labels 300 against 100.")
    assert "no difference shown: a and b have the same top-1, but all 2 pairs of seeds differ by exactly this" in line
    assert "seeds would show" not in line  # without a spread nothing can be said


def test_runs_of_other_seeds_are_not_paired(tmp_path):
    """Welch's test takes all runs; so it does for other students, whose seeds do not give the same weights."""
    make_runs(tmp_path, "a", [60, 61, 62])
    make_runs(tmp_path, "b", [70, 71.5, 73, 72], first_seed=5)
    (line,) = compare(tmp_path)
    low, high = stats.ttest_ind([70, 71.5, 73, 72], [60, 61, 62], equal_var=False).confidence_interval()
    assert f"b is better than a by 10.62 points (95 % interval {low:.2f} to {high:.2f}; 3 and 4 seeds, unp" in line
    assert line.endswith("No recorded setting differs.")
    make_runs(tmp_path / "students", "a", [60, 61, 62], model="resnet18")
    make_runs(tmp_path / "students", "b", [60.5, 61, 62], model="resnet50")
    (line,) = compare(tmp_path / "students")
    assert line.startswith("resnet18 against resnet50, soft labels, distilled: no difference shown")
    assert "3 and 3 seeds, unpaired). With this spread, 14 seeds of each would show a difference of 1 point" in line
    assert line.endswith(". No other recorded setting differs.")


def test_runs_without_a_partner_are_left_out(tmp_path):
    """Two seeds in common are paired; one in common is not, and all runs count."""
    make_runs(tmp_path, "a", [60, 61, 62])
    make_runs(tmp_path, "b", [61, 62.5, 64], first_seed=1)
    assert "; 2 pairs of seeds, 2 runs without partner left out)" in compare(tmp_path)[0]
    make_runs(tmp_path / "one", "a", [60, 61, 62])
    make_runs(tmp_path / "one", "b", [61, 62.5, 64], first_seed=2)
    assert "; 3 and 3 seeds, unpaired)" in compare(tmp_path / "one")[0]


def test_a_single_run_has_no_interval(tmp_path):
    """The sentence says how many seeds are needed."""
    make_runs(tmp_path, "a", [60, 61])
    make_runs(tmp_path, "b", [63])
    start = "resnet18, soft labels, distilled: no answer yet: b is 3.00 points above a, but one seed"
    assert compare(tmp_path) == [
        f"{start} of b gives no interval, so that it may be chance; run 1 more seed of a and 2 more seeds of b. "
        "Mean top-1: a 60.50 % (2 seeds), b 63.00 % (1 seed). No recorded setting differs."
    ]
    make_runs(tmp_path, "a", [62], first_seed=2)
    assert "may be chance; run 2 more seeds of b. Mean" in compare(tmp_path)[0]
    shutil.rmtree(tmp_path / "a" / "resnet18-seed1")
    shutil.rmtree(tmp_path / "a" / "resnet18-seed2")
    assert compare(tmp_path) == [
        f"{start} each gives no interval, so that it may be chance; run 2 more seeds of each (such as --seed 1 2). "
        "Mean top-1: a 60.00 % (1 seed), b 63.00 % (1 seed). No recorded setting differs."
    ]


def test_equal_differences_show_nothing(tmp_path):
    """Few seeds on a small validation set often differ alike; floating point gives them a spread of 1e-14 points."""
    make_runs(tmp_path, "a", [60.1, 61.2, 62.3])
    make_runs(tmp_path, "b", [61.2, 62.3, 63.4])
    needed = "so that there is no interval; run more seeds"
    assert compare(tmp_path) == [
        f"resnet18, soft labels, distilled: no difference shown: b is 1.10 points above a, but all 3 pairs of seeds "
        f"differ by exactly this, {needed}. Mean top-1: a 61.20 % (3 seeds), b 62.30 % (3 seeds). No recorded "
        "setting differs."
    ]
    make_runs(tmp_path / "other", "a", [60, 60])
    make_runs(tmp_path / "other", "b", [70, 70], first_seed=5)
    line, _ = compare(tmp_path / "other", "--output", tmp_path / "out")
    assert f"b is 10.00 points above a, but the runs of each are exactly alike, {needed}." in line
    (row,) = csv.DictReader((tmp_path / "out" / "compare.csv").open())
    assert (row["p"], row["low"], row["better"]) == ("", "", "")


def test_several_students_are_corrected_by_holm(tmp_path):
    """A difference that is shown alone is not shown beside three comparisons; the table has both p-values."""
    gains = {
        "resnet18": [1, 2, 3.5, 2],
        "resnet50": [0, 1, -1, 0.5],
        "vit_tiny": [9, 9.1, 9.2, 9.1],
        "alexnet": [-9, 9],
    }
    for model, some in gains.items():
        make_runs(tmp_path, "a", [60.0 for _ in some], model=model)
        make_runs(tmp_path, "b", [60 + gain for gain in some], model=model)
    lines = {line.split(",")[0]: line for line in compare(tmp_path, "--output", tmp_path / "out")}
    assert (
        "no difference shown after Holm's correction for 4 comparisons: b is 2.12 points above a (" in lines["resnet18"]
    )
    assert "no difference shown: b" in lines["resnet50"]
    assert "b is better than a by 9.10 points" in lines["vit_tiny"]
    with open(tmp_path / "out" / "compare.csv") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    alone = {model: stats.ttest_1samp(some, 0).pvalue for model, some in gains.items()}
    assert {model: float(row["p"]) for model, row in rows.items()} == pytest.approx(alone, rel=1e-5)
    factors = {"vit_tiny": 4, "resnet18": 3, "resnet50": 2, "alexnet": 2}  # the last one has the p-value before it
    expected = {model: min(1, factors[model] * alone[model]) for model in alone}
    expected["alexnet"] = max(expected["resnet50"], alone["alexnet"])
    assert {model: float(row["p_holm"]) for model, row in rows.items()} == pytest.approx(expected, rel=1e-5)
    assert rows["vit_tiny"]["better"].endswith("/b")
    assert rows["resnet18"]["better"] == ""
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "* resnet50, soft labels, distilled: no difference shown" in page
    assert page.count("\n| ") == 6
    assert r"\toprule" in (tmp_path / "out" / "compare.tex").read_text()


def test_groups_find_their_counterparts(tmp_path):
    """One group is compared with all of a sweep, which --searched reduces; several with the most similar ones."""
    make_runs(tmp_path, "a", [60, 61], adamw_lr=0.001)
    for rate, start in ((0.002, 62), (0.005, 64)):
        make_runs(tmp_path, f"b/{rate}", [start, start + 2], adamw_lr=rate)
    said = [line.rpartition("learning rate of AdamW ")[2] for line in compare(tmp_path)]
    assert said == ["0.001 against 0.002.", "0.001 against 0.005."]
    make_runs(tmp_path, "b/0.001", [60, 61.5], adamw_lr=0.001)
    assert len(compare(tmp_path)) == 3
    shutil.rmtree(tmp_path / "b" / "0.001")
    lines = compare(tmp_path, "--searched", "adamw_lr")
    assert "b is 4.50 points above a" in lines[0]
    assert lines[1].startswith("These settings were searched, and their values picked by top-1 on the validation set")
    make_runs(tmp_path, "a/2", [61, 61.5], adamw_lr=0.002)
    (rest, same) = compare(tmp_path)
    assert ["b is 1.75 points above a" in same, "No recorded setting differs." in same] == [True, True]
    assert rest.endswith("What differs, a against b: learning rate of AdamW 0.001 against 0.005.")
    lines = compare(tmp_path, "--ignore", "adamw_lr")
    assert lines[-1] == "Differences in these settings were overlooked: adamw_lr."


def test_groups_of_one_student_are_told_apart(tmp_path):
    """The sentences name what distinguishes the groups of a folder, also where the other folder has the same."""
    for folder in ("a", "b"):
        for views in ("none", "rrc"):
            make_runs(tmp_path, f"{folder}/{views}", [60, 61.5 if folder == "a" else 61], augment=views)
    starts = [line.partition(": ")[0] for line in compare(tmp_path)]
    views = ["none (whole images)", "rrc"]
    assert starts == [f"resnet18, soft labels, distilled, augmentation {name}" for name in views]


def test_other_validation_sets_are_never_compared(tmp_path):
    """One sentence says so, with the folders of the images; groups on the same images are compared all the same."""
    make_runs(tmp_path, "a", [60, 61], validation="v:aaaa1111", val_dir="data/one")
    make_runs(tmp_path, "b", [70, 71], validation="v:bbbb2222", val_dir="data/two")
    result = run(command, "--compare", tmp_path / "a", tmp_path / "b")
    assert (result.code, result.out) == (2, "")
    assert result.err.replace(f"{tmp_path}/", "") == (
        "error: --compare: a was validated on data/one (aaaa11), b on data/two (bbbb22), and top-1 on different images "
        "cannot be compared; validate both on the same images\n"
    )
    make_runs(tmp_path, "b/2", [62, 63], validation="v:aaaa1111", val_dir="data/one")
    lines = compare(tmp_path)
    assert "b is 2.00 points above a" in lines[0]
    assert len(lines) == 2
    assert re.fullmatch(r"resnet18, soft labels, distilled, validated on two in b has no counterpart in a", lines[1])


def test_unfinished_runs_are_named(tmp_path):
    """They are no part of the comparison; a folder without finished runs cannot be compared."""
    make_runs(tmp_path, "a", [60, 61, 70])
    make_runs(tmp_path, "b", [60, 61.5, 62])
    (tmp_path / "a" / "resnet18-seed2" / "summary.json").unlink()
    line, note = compare(tmp_path)
    assert "2 pairs of seeds, 1 run without partner left out" in line
    assert note == "a: 1 unfinished run left out"
    for seed in range(2):
        (tmp_path / "a" / f"resnet18-seed{seed}" / "summary.json").unlink()
    result = run(command, "--compare", tmp_path / "a", tmp_path / "b")
    assert (result.code, "a holds no finished run (3 unfinished, 0 damaged); let a run finish" in result.err) == (
        2,
        True,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give RUN and --output DIR for a report, or --compare A B"),
        (["a"], "give RUN and --output DIR for a report, or --compare A B"),
        (["--output", "o"], "give RUN and --output DIR for a report, or --compare A B"),
        (["--compare", "a"], "argument --compare: expected 2 arguments"),
        (["--compare", "a", "missing"], "--compare missing is not a folder"),
        (["--compare", "a", "empty"], "--compare empty holds no run"),
        (["--compare", "a", "a"], "--compare a a: both hold the run .*/a/resnet18-seed0; give folders without common"),
        (["a", "--compare", "a", "b"], "RUN a has no effect with --compare a b; leave it out"),
        (["--compare", "a", "b", "--full-data", "70"], "--full-data 70 has no effect with --compare; leave it out"),
        (["--compare", "a", "b", "--random", "r"], "--random r has no effect with --compare; leave it out"),
        (["--compare", "a", "b", "--wandb-project", "p"], "--wandb-project with --compare needs --output"),
        (["--compare", "a", "b", "--searched", "rate"], "--searched rate is no setting of a run"),
        (["--compare", "a", "b", "--ignore", "images"], "--ignore images would mix the results of image sets"),
    ],
)
def test_what_cannot_be_compared(words, message, tmp_path, monkeypatch):
    """One sentence, exit code 2."""
    make_runs(tmp_path, "a", [60])
    make_runs(tmp_path, "b", [61])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    result = run(command, *words)
    assert result.code == 2
    assert re.match(rf"error: {message}.*\n$", result.err)
