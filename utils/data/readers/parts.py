"""Tell the parts of a set (train, val, test) apart by the names of its files or arrays."""

import re
from collections.abc import Iterable

from utils.system.errors import InputError, listing
from utils.system.log import log

WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
IN_A_NAME = re.compile(rf"(?<![a-z])({'|'.join(sorted(WORDS, reverse=True))})(?![a-z])")
PREFERRED = {"train": ("train",), "val": ("val", "test")}  # part that was asked for -> parts to take, the first is best


def part_in(name: str) -> str | None:
    """Return the part that a name mentions: `train`, `val` or `test`; None if it mentions none, or several."""
    mentioned = {WORDS[word] for word in IN_A_NAME.findall(name.lower())}
    return mentioned.pop() if len(mentioned) == 1 else None


def of_part(names: Iterable[str], part: str, path: object, flag: str) -> list[str]:
    """Return the names that belong to a part, and log which part was taken if there are others.

    Args:
        names: names of the files or arrays of one place.
        part: `train` or `val`, the part that is asked for. The part `val` is the test part if there is no other.
        path: the place, for messages.
        flag: command-line flag that gave the place, for messages.

    Returns:
        the names that mention the part, or, if no name mentions a part, all names; in the order of `names`.

    Raises:
        InputError: the names mention other parts only.
    """
    groups: dict[str | None, list[str]] = {}
    for name in names:
        groups.setdefault(part_in(name), []).append(name)
    taken = next((own for own in PREFERRED[part] if own in groups), None)
    if taken is None and groups and None not in groups:
        files = listing(name for group in groups.values() for name in group)
        raise InputError(f"{flag} {path} holds no {part} part, only {files}; give a place that holds it")
    others = sorted(other for other in groups if other not in (taken, None))
    if taken is not None and others:
        log.info("images  %s holds the parts %s: %s takes %s", path, listing(sorted([taken, *others])), flag, taken)
    return groups.get(taken, [])
