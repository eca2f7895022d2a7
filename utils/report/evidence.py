"""Compares image sets with random real images, to see whether good results are due to the images or to the labels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.config import AugmentFlags, ViewFlags, own_fields
from utils.report.groups import (
    Group,
    Spread,
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    is_called,
    label_robust_score,
    spread,
)
from utils.report.runs import record_of
from utils.report.significance import Difference, deviations_of
from utils.system.errors import InputError, listing

# settings in which runs with and without augmentation may differ; `image_labels` depends on whether images are mixed
VIEW_SETTINGS = {item.name for group in (ViewFlags, AugmentFlags) for item in own_fields(group)} | {"image_labels"}
VIEW_SETTINGS -= {"fkd_seed", "zca"}  # the order of the images, and their normalisation
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
        robustness: `augmentation_robust_score` in percent, over the seeds that both sets have with and without
            augmentation; None if there are no such runs, or if these are the runs without augmentation.
    """

    group: Group
    random: Group
    improvement: Spread
    recovery: Spread | None
    score: Spread | None
    robustness: Spread | None

    @property
    def difference(self) -> Difference:
        """Return `improvement` as a `Difference`, which gives its confidence interval."""
        n = self.improvement.n
        return Difference(self.improvement.mean, True, (n, n), deviations_of(self.improvement))


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
    set. If there is no such group, or more than one, `recovery` is None. Groups that show whole images count only for
    other such groups, if there are groups with augmentation as well.

    Args:
        groups: all groups.
        baseline: name of the random image set, from `find_baseline`.
        full: top-1 on all real images, from `parse_full_data`.

    Returns:
        one `Finding` for each group that has a seed in common with its random counterpart.
    """
    found = []
    for group in groups:
        random = counterpart(group, groups, baseline)
        if random is None:
            continue
        same = group.student, group.images, group.validation
        hard = [g for g in groups if g.regime == "HL" and (g.student, g.images, g.validation) == same]
        hard = [g for g in hard if g.whole == group.whole] or hard
        top1 = full.get(group.student, full.get(""))
        recovery: dict[int, float] = {}
        if top1 is not None and len(hard) == 1:
            recovery = {seed: hard_label_recovery(top1, figure) for seed, figure in hard[0].by_seed().items()}
        gains = gains_over(group, random)
        scores = [label_robust_score(gains[seed], recovery[seed]) for seed in gains.keys() & recovery.keys()]
        if gains:
            finding = Finding(
                group,
                random,
                improvement=spread(list(gains.values())),
                recovery=spread(list(recovery.values())) if recovery else None,
                score=spread(scores) if scores else None,
                robustness=robustness_of(group, gains, groups, baseline),
            )
            found.append(finding)
    return found


def counterpart(group: Group, groups: list[Group], baseline: str | None) -> Group | None:
    """Return the group on random images that equals `group` in all else; None if there is none or `group` is it."""
    if group.images == baseline:
        return None
    return next((g for g in groups if g.images == baseline and same_but_images(g, group)), None)


def gains_over(group: Group, random: Group) -> dict[int, float]:
    """Return seed -> `improvement_over_random` in percentage points, for the seeds that both groups have."""
    ours, theirs = group.by_seed(), random.by_seed()
    return {seed: improvement_over_random(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())}


def robustness_of(group: Group, gains: dict[int, float], groups: list[Group], baseline: str | None) -> Spread | None:
    """Return the `augmentation_robust_score` over the seeds that all four groups have; None if a group is missing.

    Args:
        group: runs with augmentation on the image set; None is returned if they show whole images.
        gains: `gains_over` of `group` and its counterpart.
        groups: all groups, in which the runs on whole images are searched. These differ from `group` in nothing but the
            settings of views.
        baseline: name of the random image set.
    """
    if group.whole:
        return None
    for plain in (g for g in groups if g.whole and g.images == group.images and same_but_views(g, group)):
        random = counterpart(plain, groups, baseline)
        if random is not None:
            whole = gains_over(plain, random)
            scores = [augmentation_robust_score(gains[seed], whole[seed]) for seed in gains.keys() & whole.keys()]
            return spread(scores) if scores else None
    return None


def same_but_views(one: Group, other: Group) -> bool:
    """Return whether two groups agree in student, regime and all settings but those that shape views."""
    if (one.student, one.regime) != (other.student, other.regime):
        return False
    names = one.settings.keys() | other.settings.keys()
    return all(one.settings.get(name) == other.settings.get(name) for name in names if name not in VIEW_SETTINGS)


def same_but_images(one: Group, other: Group) -> bool:
    """Return whether two groups agree in student, regime, validation set and other settings (`Group.apart`)."""
    if (one.student, one.regime) != (other.student, other.regime):
        return False
    return one.validation == other.validation and one.apart == other.apart
