"""Make text printable, whatever the encoding, and shorten it."""

from typing import Any


def printable(text: str) -> str:
    r"""Return `text` without surrogates, so that every encoder and every font library accepts it.

    Python represents bytes of a file name that is not UTF-8 as surrogates, which cannot be encoded: they become `\xb9`.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that do not come from a file name
        return text.encode("utf-8", "backslashreplace").decode()


def printable_all(value: Any) -> Any:
    """Apply `printable` to every string in nested dicts, lists and tuples, keys included."""
    if isinstance(value, dict):
        return {printable_all(key): printable_all(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(printable_all, value))
    return printable(value) if isinstance(value, str) else value


def one_line(text: str) -> str:
    r"""Return `text` as one printable line; line breaks, which names of files may have, become `\n`."""
    return printable("\\n".join(text.splitlines()))


def shorten(text: object, width: int) -> str:
    """Return `text` as one line of at most `width` characters; longer text is cut after a whole word, with ` …`."""
    line = " ".join(str(text).split())
    if len(line) <= width:
        return line
    start = line[: width - 1]  # leaves two characters for ` …`, since the cut drops at least one
    words = start.rpartition(" ")[0] or start[:-1]
    return words.rstrip(" ,;:.(") + " …"
