"""Checks of arguments, whose messages name the argument and say what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

#: The largest seed that torch, numpy and scikit-learn all take.
LARGEST_SEED = 2**32 - 1


def check_whole(name: str, value: Any, least: int, most: int | None = None, called: str = "") -> None:
    """Refuse anything but a whole number from ``least`` to ``most``; a bool does not count as one.

    In the message, ``called`` says what ``most`` is.

    Raises:
        ValueError: if the value is refused; the message names the argument and says what is allowed.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    number = int(value)
    if most is not None and not least <= number <= most:
        limit = f"{called}, {most}" if called else most
        raise ValueError(f"{name} must be between {least} and {limit}; it is {value}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def suggestion(name: object, known: Iterable[str]) -> str:
    """For a message about an unknown name: “; did you mean …?”, or nothing if none of the known names is close."""
    plain = {one.casefold().replace("_", "-"): one for one in known}
    close = get_close_matches(str(name).casefold().replace("_", "-"), plain, n=1, cutoff=0.8)
    return f"; did you mean {plain[close[0]]!r}?" if close else ""


def check_seed(value: Any) -> None:
    """Refuse a seed that some generator does not accept: random.Random treats -1 as 1, and numpy rejects it.

    Raises:
        ValueError: if it is not a whole number from 0 to :data:`LARGEST_SEED`.
    """
    check_whole("seed", value, 0, LARGEST_SEED)


def check_real(name: str, value: Any, *, zero: bool = False) -> None:
    """Refuse anything but a finite positive number; with ``zero``, 0 is allowed too.

    Raises:
        ValueError: if the value is refused; the message names the argument and says what is allowed.
    """
    wanted = "0 or positive" if zero else "positive"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(f"{name} must be {wanted} (a number), not {value!r}")
    number = float(value)
    if not (math.isfinite(number) and (number > 0 or (zero and number == 0))):
        raise ValueError(f"{name} must be {wanted}, not {value}")
