"""Write docs/flags.md: every flag of every command, from the settings that also make --help.

    make flags        or: python scripts/flags_page.py

The text above MARK is written by hand and stays as it is.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from utils.config import (
    IMAGE_COMMANDS,
    LABEL_COMMANDS,
    CommandConfig,
    FKDConfig,
    Flag,
    Group,
    KDConfig,
    RandomImagesConfig,
    RelabelConfig,
    ReportConfig,
    own_fields,
    typed,
)

PAGE = Path(__file__).resolve().parents[1] / "docs" / "flags.md"
MARK = "<!-- `make flags` writes everything below this line from utils/config.py -->\n"
COMMANDS: list[type[CommandConfig]] = [
    *(FKDConfig, KDConfig, RelabelConfig, *LABEL_COMMANDS.values(), *IMAGE_COMMANDS.values()),
    *(ReportConfig, RandomImagesConfig),
]


def page(before: str) -> str:
    """Return the text of the page.

    Args:
        before: text of the page before; its part above MARK is kept.
    """
    shown: set[type[Group]] = set()  # groups whose tables are on the page
    parts = [before.partition(MARK)[0], MARK]
    for command in COMMANDS:
        parts += section(command, shown)
    return "".join(parts)


def section(command: type[CommandConfig], shown: set[type[Group]]) -> Iterator[str]:
    """Yield the lines about one command; add its groups to `shown`. Groups in `shown` are linked, not repeated."""
    name = command.program.removeprefix("python ").removeprefix("-m ")
    about = command.about.removesuffix(".")
    yield f"\n## {name}\n\n{about[0].upper()}{about[1:]}.\n\n```sh\n{command.examples.strip()}\n```\n"
    repeated = [group for group in command.groups if group in shown]
    for group in command.groups:
        if group in shown:
            continue
        shown.add(group)
        yield f"\n### {group.title}\n\n| flag | value | default | meaning |\n|---|---|---|---|\n"
        for item in own_fields(group):
            yield row(item.metadata["flag"], item.name, item.default)
    if repeated:
        links = [f"[{group.title}](#{anchor(group.title)})" for group in repeated]
        yield f"\nMore flags, the same as in commands above: {', '.join(links)}.\n"


def row(flag: Flag, name: str, default: object) -> str:
    """Return the table row of a flag."""
    meaning, usual = flag.described(default)
    meaning = re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", meaning)
    spellings = flag.spellings(name)
    positional = not spellings[0].startswith("-")
    shown = ", ".join(f"`{word.upper() if positional else word}`" for word in spellings)
    if default is False:
        value, usual = "", usual or "off"
    elif flag.choices:
        value = ", ".join(f"`{one}`" for one in flag.choices)
    else:
        words = (flag.kind.metavar or name.upper()).strip("{}").replace(",", "`, `").replace("|", "` or `")
        value = "" if positional else f"`{words}`"
    several = flag.nargs in ("+", "*") or flag.repeats
    if several and not positional:
        value += " (several)" if flag.nargs == "+" else " (repeat the flag)"
    if isinstance(flag.nargs, int):
        value = typed([value] * flag.nargs)
    if flag.required or (positional and flag.nargs != "*"):
        usual = "**required**"
    return "| " + " | ".join(text.replace("<", "&lt;") for text in (shown, value, usual, meaning)) + " |\n"


def anchor(title: str) -> str:
    """Return the anchor that Markdown makes of a heading: `Logging to W&B` -> `logging-to-wb`."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
