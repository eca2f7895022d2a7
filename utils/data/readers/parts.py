"""Choose by name the files or arrays that hold one part of a set (train, val or test)."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from utils.system.errors import InputError, listing
from utils.system.log import log

WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
IN_A_NAME = re.compile(rf"(?<![a-z])({'|'.join(sorted(WORDS, reverse=True))})(?![a-z])")
PREFERRED = {"train": ("train",), "val": ("val", "test")}  # requested part -> parts that may be used for it, best first


def files_with(folder: Path, suffix: str) -> list[str]:
    """List the names in a folder that end in `suffix`, sorted, without hidden ones; [] if the folder is unreadable."""
    try:
        return sorted(
            entry.name for entry in os.scandir(folder) if entry.name.endswith(suffix) and entry.name[0] != "."
        )
    except OSError:
        return []


def part_in(name: str) -> str | None:
    """Return the part that a name mentions (`train`, `val` or `test`); None if it mentions no part or several."""
    mentioned = {WORDS[word] for word in IN_A_NAME.findall(name.lower())}
    return mentioned.pop() if len(mentioned) == 1 else None


def of_part(names: Iterable[str], part: str, path: object, flag: str) -> list[str]:
    """Return the names that belong to the requested part; log the choice if the names mention several parts.

    Args:
        names: names of the files in a folder, or of the arrays in a file.
        part: the requested part, `train` or `val`. If no name mentions `val`, names that mention `test` are used.
        path: the folder or file, for messages.
        flag: command-line flag that gave `path`, for messages.

    Returns:
        in the order of `names`, the names that mention the part and no other. If there are none, the names that mention
        no part or several parts.

    Raises:
        InputError: every name mentions another part.
    """
    groups: dict[str | None, list[str]] = {}
    for name in names:
        groups.setdefault(part_in(name), []).append(name)
    taken = next((own for own in PREFERRED[part] if own in groups), None)
    if taken is None and groups and None not in groups:
        files = listing(name for group in groups.values() for name in group)
        raise InputError(f"{flag} {path} holds no {part} part, only {files}; give a folder or file with this part")
    others = sorted(other for other in groups if other not in (taken, None))
    if taken is not None and others:
        log.info("images  %s holds the parts %s: %s takes %s", path, listing(sorted([taken, *others])), flag, taken)
    return groups.get(taken, [])
