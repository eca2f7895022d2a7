"""An argument parser whose errors are one sentence, and number types with bounds for flags."""

import argparse
import difflib
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from utils.system.errors import InputError

Number = TypeVar("Number", int, float)


class Parser(argparse.ArgumentParser):
    """ArgumentParser that raises InputError with one sentence, and suggests a flag for a mistyped one."""

    def __init__(self, description: str | None = None, **options: Any):
        formatter = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(description=description, allow_abbrev=False, formatter_class=formatter, **options)

    def error(self, message: str) -> NoReturn:
        hint = self._hint(message)
        message = re.sub(r"\b\w{40,}\b", "<key>", message)  # may be a W&B key after a mistyped flag
        raise InputError(f"{message}{hint}; see --help")

    def _hint(self, message: str) -> str:
        unknown = re.search(r"unrecognized arguments:.*?(--[\w-]+)", message)
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        return f" (did you mean {near[0]}?)" if near else ""


def number(
    kind: type[Number], low: float = -math.inf, high: float = math.inf, open_low: bool = False
) -> Callable[[str], Number]:
    """Return an argparse type: an int or float in [low, high], or in (low, high] with `open_low`."""

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'an integer' if kind is int else 'a number'}") from None
        if not (low < value if open_low else low <= value) or not value <= high or not math.isfinite(value):
            bounds = f"above {low}" if open_low else f"at least {low}"
            if high < math.inf:
                bounds += f" and at most {high}"
            raise argparse.ArgumentTypeError(f"{text} must be {bounds}")
        return value

    return parse


COUNT = number(int, 1)


NATURAL = number(int, 0)


POSITIVE = number(float, 0, open_low=True)


NOT_NEGATIVE = number(float, 0)
