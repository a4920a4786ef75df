"""One rule from a contrast to a claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mechsafety.claims.contrasts import Contrast, Control
from mechsafety.claims.numbers import ALPHA, significant

Direction = Literal["up", "down", "equal", "none shown", "not tested"]
Beyond = Literal["yes", "no", "control does more", "not tested", "no control"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a contrast shows.

    ``direction`` is ``up`` or ``down`` where the test after correction shows a change; ``equal`` where it does not and
    the interval of the difference lies within the stated margin; else ``none shown``. ``beyond`` is whether a change
    that is shown goes beyond its control, to its own side. ``powerless`` is whether so few items could show nothing.
    ``alpha`` is the level of the test.
    """

    contrast: Contrast
    direction: Direction
    beyond: Beyond
    powerless: bool
    alpha: float = ALPHA

    @property
    def shown(self) -> bool:
        return self.direction in ("up", "down")


def decide(contrast: Contrast, *, alpha: float = ALPHA) -> Claim:
    """The claim of a contrast: its test after correction decides, or without a test its interval; never an overlap of
    two intervals.

    Example: ``decide(paired_counts(subject="a", measure="refusals of harmful prompts", n=50, hits=46, lost=40,
    gained=0)).direction`` is ``"down"``.
    """
    direction = _direction(contrast, alpha)
    least = contrast.least_p if contrast.least_corrected is None else contrast.least_corrected
    return Claim(
        contrast=contrast,
        direction=direction,
        beyond=_beyond(contrast.control, direction, alpha),
        powerless=direction == "none shown" and not significant(least, alpha),
        alpha=alpha,
    )


def _direction(contrast: Contrast, alpha: float) -> Direction:
    change = contrast.difference
    if not change.known or contrast.why:
        return "not tested"
    by_test = contrast.corrected == contrast.corrected
    if not by_test and change.low != change.low:
        return "not tested"
    shown = significant(contrast.corrected, alpha) if by_test else change.low > 0 or change.high < 0
    if shown and change.value:
        return "up" if change.value > 0 else "down"
    margin = contrast.margin
    if margin is not None and -margin <= change.low and change.high <= margin:
        return "equal"
    return "none shown"


def _beyond(control: Control | None, direction: Direction, alpha: float) -> Beyond:
    if control is None:
        return "no control"
    if control.corrected != control.corrected or direction == "not tested":
        return "not tested"
    if not significant(control.corrected, alpha) or control.below is None:
        return "no"
    if direction in ("up", "down"):
        return "yes" if control.below == (direction == "down") else "control does more"
    return "no"
