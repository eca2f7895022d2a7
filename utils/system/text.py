"""Text that can be printed and drawn everywhere, and text that is short."""

from typing import Any


def printable(text: str) -> str:
    r"""Return a text that every encoder and every font library takes.

    Python gives the bytes of a file name that is not UTF-8 as surrogates, which cannot be written: they become `\xb9`.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that no file name has
        return text.encode("utf-8", "backslashreplace").decode()


def printable_all(value: Any) -> Any:
    """Return dicts, lists and tuples with every text in them, keys too, as `printable` makes it."""
    if isinstance(value, dict):
        return {printable_all(key): printable_all(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(printable_all, value))
    return printable(value) if isinstance(value, str) else value


def one_line(text: str) -> str:
    r"""Return a printable text with its line breaks as `\n`: names of files may have some."""
    return printable("\\n".join(text.splitlines()))


def shorten(text: object, width: int) -> str:
    """Return a text in one line of at most `width` letters; a longer one ends after a whole word, with ` …`."""
    line = " ".join(str(text).split())
    if len(line) <= width:
        return line
    start = line[: width - 1]  # the last two letters are ` …`
    words = start.rpartition(" ")[0] or start[:-1]
    return words.rstrip(" ,;:.(") + " …"
