"""Checks of arguments: what is wrong with a number, said with its name and with what is allowed."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

#: The largest seed that torch, numpy and scikit-learn all take.
LARGEST_SEED = 2**32 - 1


def check_whole(name: str, value: Any, least: int, most: int | None = None, called: str = "") -> None:
    """Refuse what is not a whole number from ``least`` to ``most``, which is ``called`` so; a bool is none.

    Raises:
        ValueError: naming the argument, and what is allowed.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    number = int(value)
    if most is not None and not least <= number <= most:
        limit = f"{called}, {most}" if called else most
        raise ValueError(f"{name} must be between {least} and {limit}; it is {value}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def check_seed(value: Any) -> None:
    """Refuse a seed that not every generator takes: random.Random takes -1 for 1, numpy does not take it.

    Raises:
        ValueError: for anything but a whole number from 0 to :data:`LARGEST_SEED`.
    """
    check_whole("seed", value, 0, LARGEST_SEED)


def check_real(name: str, value: Any, *, zero: bool = False) -> None:
    """Refuse what is not a finite positive number; with ``zero``, 0 is allowed too.

    Raises:
        ValueError: naming the argument, and what is allowed.
    """
    wanted = "0 or positive" if zero else "positive"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(f"{name} must be {wanted}, a number, not {value!r}")
    number = float(value)
    if not (math.isfinite(number) and (number > 0 or (zero and number == 0))):
        raise ValueError(f"{name} must be {wanted}, not {value}")
