"""Compare every image set with random real images: do the images or the labels make the result?"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.report.groups import (
    Group,
    Spread,
    hard_label_recovery,
    improvement_over_random,
    is_called,
    label_robust_score,
    spread,
)
from utils.report.random_images import record_of
from utils.system.errors import InputError, listing

RANDOM = "random"  # default folder name of the random images


@dataclass(frozen=True)
class Finding:
    """Comparison of an image set with random real images, in one regime.

    Attributes:
        group, random: the two groups, which differ only in images and labels.
        improvement: `improvement_over_random` over common seeds, in percentage points.
        recovery: `hard_label_recovery` over seeds, in percentage points; None without a full-data top-1 or
            without exactly one group of hard-label runs.
        score: `label_robust_score` over common seeds, in percent; None without `recovery` or common seeds.
    """

    group: Group
    random: Group
    improvement: Spread
    recovery: Spread | None
    score: Spread | None


def parse_full_data(words: Sequence[str]) -> dict[str, float]:
    """Parse the words of --full-data: `71.3` for every student, or `resnet18=71.3` for one.

    Returns:
        student -> top-1 in percent; the key "" stands for every other student.

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
    """Return the name in tables of the image set called `name`; None if no set has the default name RANDOM.

    Raises:
        InputError: image sets of different content are called `name`, or no set is, and `name` is not RANDOM.
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
    """Return a phrase that says how a group's random images were drawn, or that no record of a draw exists."""
    folder = str(group.folder)
    try:
        record = json.loads(record_of(Path(folder)).read_text())
        if record["digest"] == group.settings["images"]:
            return f"the images in {folder}, drawn from {record['real']} with seed {record['seed']}"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return f"the images in {folder}, which are taken for random by their name alone: no record of a draw exists"


def find_evidence(groups: list[Group], baseline: str | None, full: dict[str, float]) -> list[Finding]:
    """Compare every group with the random group of the same student, regime, validation set and settings.

    Pairs of groups without a common seed are left out. Hard-label recovery comes from the hard-label group of the same
    student, images and validation set, if there is exactly one.

    Args:
        groups: all groups.
        baseline: the result of `find_baseline`.
        full: the result of `parse_full_data`.
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
        recovery: dict[int, float] = {}
        if top1 is not None and len(hard) == 1:
            recovery = {seed: hard_label_recovery(top1, figure) for seed, figure in hard[0].by_seed().items()}
        ours = group.by_seed()
        theirs = random.by_seed()
        gains = {seed: improvement_over_random(ours[seed], theirs[seed]) for seed in ours.keys() & theirs.keys()}
        scores = [label_robust_score(gains[seed], recovery[seed]) for seed in gains.keys() & recovery.keys()]
        if gains:
            finding = Finding(
                group,
                random,
                improvement=spread(list(gains.values())),
                recovery=spread(list(recovery.values())) if recovery else None,
                score=spread(scores) if scores else None,
            )
            found.append(finding)
    return found


def same_but_images(one: Group, other: Group) -> bool:
    """Return whether two groups agree in student, regime, validation set and `Group.apart`."""
    if (one.student, one.regime) != (other.student, other.regime):
        return False
    return one.validation == other.validation and one.apart == other.apart
