"""Compares image sets with random real images, to see whether good results are due to the images or to the labels."""

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

RANDOM = "random"  # default of --random, the name of the image set with random real images


@dataclass(frozen=True)
class Finding:
    """Comparison of an image set with random real images, for one student and one regime (kind of labels).

    Attributes:
        group: runs on the image set.
        random: runs on random real images. Settings other than images and labels are those of `group`.
        improvement: `improvement_over_random` in percentage points, over the seeds that both groups have.
        recovery: `hard_label_recovery` in percentage points, over the seeds of the runs with hard labels; None if
            no seed has a recovery.
        score: `label_robust_score` in percent, over the seeds that have an improvement and a recovery; None if no seed
            has a score.
    """

    group: Group
    random: Group
    improvement: Spread
    recovery: Spread | None
    score: Spread | None


def parse_full_data(words: Sequence[str]) -> dict[str, float]:
    """Parse the words of --full-data: `resnet18=71.3` for one student, or `71.3` for all other students.

    Returns:
        student -> top-1 in percent; the key "" has the value for all students that are not named.

    Raises:
        InputError: the number in a word is missing or not between 0 and 100.
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
    """Find the image set with random real images; return its name as shown in tables (`Group.images`).

    Args:
        groups: all groups.
        name: value of --random: a name as shown in tables, or the end of the path of the image folder.

    Returns:
        the name; None if `groups` is empty, or if no image set fits the default name RANDOM.

    Raises:
        InputError: `name` fits several image sets with different images; or `name` is not RANDOM and fits no image
            set.
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
    """Return a phrase that states how the images of a group were drawn, or that no record of a draw exists."""
    folder = str(group.folder)
    try:
        record = json.loads(record_of(Path(folder)).read_text())
        if record["digest"] == group.settings["images"]:
            return f"the images in {folder}, drawn from {record['real']} with seed {record['seed']}"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return f"the images in {folder}, which are taken for random by their name alone: no record of a draw exists"


def find_evidence(groups: list[Group], baseline: str | None, full: dict[str, float]) -> list[Finding]:
    """Compare each group of runs with the group on random real images that has the same student and settings.

    Hard-label recovery is computed from the group with hard labels that has the same student, images and validation
    set. If there is no such group, or more than one, `recovery` is None.

    Args:
        groups: all groups.
        baseline: name of the random image set, from `find_baseline`.
        full: top-1 on all real images, from `parse_full_data`.

    Returns:
        one `Finding` for each group that has a seed in common with its random counterpart.
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
    """Return whether two groups agree in student, regime, validation set and other settings (`Group.apart`)."""
    if (one.student, one.regime) != (other.student, other.regime):
        return False
    return one.validation == other.validation and one.apart == other.apart
