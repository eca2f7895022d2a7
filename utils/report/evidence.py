"""Is it the images or the labels? What every image set is worth beside random real images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.report.formulas import (
    Spread,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
    spread,
)
from utils.report.groups import Group, is_called
from utils.report.random_images import record_of
from utils.system.errors import InputError, listing

RANDOM = "random"  # the usual name of the random images' folder


@dataclass(frozen=True)
class Finding:
    """One image set in one regime beside the random one.

    Attributes:
        group, random: the two groups; equal but for images and labels.
        improvement: IOR over common seeds, in percentage points.
        recovery: HLR over seeds, in percentage points; None without a full-data figure or hard-label runs.
        score: LRS over common seeds, in percent; None where `recovery` is.
    """

    group: Group
    random: Group
    improvement: Spread
    recovery: Spread | None
    score: Spread | None


def parse_full_data(words: Sequence[str]) -> dict[str, float]:
    """Read --full-data: `71.3` for every student, or `resnet18=71.3 …`; student -> percent, "" for every other.

    Raises:
        InputError: a word is no percentage.
    """
    full = {}
    for word in words:
        student, _, figure = word.rpartition("=")
        try:
            full[student] = float(figure)
        except ValueError:
            full[student] = -1.0
        if not 0 <= full[student] <= 100:
            raise InputError(f"--full-data {word} is no percentage; give 71.3, or resnet18=71.3 resnet50=76.1")
    return full


def find_baseline(groups: list[Group], name: str) -> str | None:
    """Return the images that --random names, as the tables call them; None if there are none called `random`.

    Raises:
        InputError: several image sets of different content have that name, or none has a name that was given.
    """
    called = list(dict.fromkeys(group.images for group in groups if is_called(group, name)))
    if len(called) > 1:
        raise InputError(
            f"--random {name} is the name of {len(called)} image sets of different content ({listing(called)}); give "
            "one of these names, or leave the runs of the others out"
        )
    if groups and not called and name != RANDOM:
        others = listing(dict.fromkeys(group.images for group in groups))
        raise InputError(f"--random {name} is the name of no image set; give one of {others}")
    return called[0] if called else None


def origin_of(group: Group) -> str:
    """Say how the images of the baseline were drawn, or that nothing but their name says that they were."""
    folder = str(group.folder)
    try:
        record = json.loads(record_of(Path(folder)).read_text())
        if record["digest"] == group.settings["images"]:
            return f"the images in {folder}, drawn from {record['real']} with seed {record['seed']}"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return f"the images in {folder}, which are taken for random by their name alone, since no record of a draw says it"


def find_evidence(groups: list[Group], baseline: str | None, full: dict[str, float]) -> list[Finding]:
    """Return a `Finding` for every group that has its random counterpart and a seed in common with it.

    Both were evaluated on the same validation set, as were the hard labels' runs that the recovery is about.

    Args:
        groups: all groups.
        baseline: what `find_baseline` returned.
        full: what `parse_full_data` returned.
    """
    found = []
    for group in groups:
        rivals = [g for g in groups if g.images == baseline and same_but_images(g, group)]
        if group.images == baseline or not rivals:
            continue
        random = rivals[0]
        same = group.student, group.images, group.validation
        hard = [g for g in groups if g.regime == "HL" and (g.student, g.images, g.validation) == same]
        top1 = full.get(group.student, full.get(""))
        recovered = {} if top1 is None or len(hard) != 1 else hard[0].by_seed()
        recovery = {seed: hard_label_recovery(top1, figure) for seed, figure in recovered.items() if top1 is not None}
        ours, theirs = group.by_seed(), random.by_seed()
        gains = {s: improvement_over_random(ours[s], theirs[s]) for s in ours.keys() & theirs.keys()}
        scores = [label_robust_score(gains[seed], recovery[seed]) for seed in gains.keys() & recovery.keys()]
        if gains:
            spreads = [spread(values) if values else None for values in (list(recovery.values()), scores)]
            found.append(Finding(group, random, spread(list(gains.values())), *spreads))
    return found


def same_but_images(one: Group, other: Group) -> bool:
    """Whether two groups are of one student, regime and validation set, and nothing else sets them apart."""
    ours, theirs = ((g.student, g.regime, g.validation, g.apart) for g in (one, other))
    return ours == theirs
