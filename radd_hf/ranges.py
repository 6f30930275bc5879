# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Checks that numbers lie in their range, before any work is done.

A script checks its fields by a table: `check_fields({"seed": 0, "passes": 3}, {"passes": COUNT})`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .settings_radd import is_integer, plain, shortened

LARGEST = 2**31 - 1  # the largest count: sizes and indices in other libraries have 32 bits


@dataclass(frozen=True)
class Range:
    """Holds the ends of an interval. With `open_low` or `open_high` that end is not part of it."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.high in (math.inf, LARGEST):
            least = f"more than {self.low}" if self.open_low else f"at least {self.low}"
            return f"be {least}" + (f" and at most {LARGEST}" if self.high == LARGEST else "")
        return f"lie in {'(' if self.open_low else '['}{self.low}, {self.high}{')' if self.open_high else ']'}"


COUNT = Range(1, LARGEST)
COUNT_OR_ZERO = Range(0, LARGEST)
POSITIVE = Range(0, open_low=True)
NOT_NEGATIVE = Range(0)
FRACTION = Range(0, 1)
FRACTION_BELOW_ONE = Range(0, 1, open_high=True)


def check_fields(fields: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Raises a ValueError for a field that is empty text, infinite, nan or out of its range; the message names it.

    None stands for a field that was left out. A field without a range may be any finite number.
    """
    for name, value in fields.items():
        if value == "":
            raise ValueError(f"{name}='' must not be empty: leave it out, or give it a value.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value} must be a finite number.")
        if name in ranges and value is not None and value not in ranges[name]:
            raise ValueError(f"{name}={value!r} must {ranges[name]}.")


def check_count(name: str, value: Any, least: int = 1, most: int = LARGEST) -> int:
    """Returns the value as an int; raises a ValueError if it is not an integer or is out of range."""
    value = plain(value)
    if not is_integer(value) or not least <= value <= most:
        raise ValueError(f"{name}={shortened(value)} must be an integer of at least {least}, and at most {most}.")
    return int(value)
