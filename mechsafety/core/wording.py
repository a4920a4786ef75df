"""How numbers and lists are spelt in sentences, the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def counted(number: int, word: str) -> str:
    """``1 direction``, ``2 directions``, ``2 matrices``."""
    plural = f"{word[:-2]}ices" if word.endswith("ix") else f"{word}s"
    return f"{number} {word if number == 1 else plural}"


def listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def span(values: Iterable[Any], form: str) -> str:
    """``0.1 to 0.3``, or the one value where both ends read the same; ``undefined`` without values."""
    known = [float(value) for value in values if value == value]
    if not known:
        return "undefined"
    low, high = format(min(known), form), format(max(known), form)
    return low if low == high else f"{low} to {high}"
