"""One change that was drawn several times, and changes in two systems: what holds of every draw, and of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mechsafety.claims.contrasts import NAN, Contrast, Control, Estimate, paired_binary, paired_control
from mechsafety.claims.numbers import ALPHA
from mechsafety.statistics.judge_effects import sign_change_p
from mechsafety.statistics.resampling import mean_interval

Verdicts = Mapping[object, str]
"""The verdict on each item, by its id."""


def least_sure(draws: Sequence[Contrast]) -> Contrast:
    """Of the contrasts of several draws of one change that of the largest p, which holds of all of them.

    ``p`` is 1 where the draws do not lie to one side, and the interval then spans those of all.
    """
    if len(draws) == 1:
        return draws[0]
    place, least = max(enumerate(draws), key=lambda item: _rank(item[1]))
    named = replace(
        least,
        subject=f"{least.subject}, draw {place + 1} of {len(draws)}",
        test=f"{least.test}, largest p of {len(draws)} draws",
    )
    if len({np.sign(one.difference.value) for one in draws}) == 1 or least.p != least.p:
        return named
    span = replace(
        least.difference,
        low=min(one.difference.low for one in draws),
        high=max(one.difference.high for one in draws),
    )
    return replace(named, difference=span, p=1.0, corrected=1.0)


def least_sure_control(controls: Sequence[Control]) -> Control:
    """Whether each of several draws of a change is beyond its control, to one side: the one of the largest p."""
    least = max(controls, key=_rank)
    if least.p != least.p or len({one.below for one in controls}) == 1:
        return least
    return replace(least, p=1.0, corrected=1.0, below=None)


def _rank(one: Contrast | Control) -> float:
    return 2.0 if one.p != one.p else one.p


def paired_draws(
    before: Verdicts,
    draws: Sequence[Verdicts],
    *,
    subject: str,
    measure: str,
    is_hit: str = "refusal",
    states: tuple[str, str] = ("original", "edited"),
) -> Contrast:
    """Several draws of one change of the same items (:func:`least_sure`)."""
    named: dict[str, Any] = {"subject": subject, "measure": measure, "is_hit": is_hit, "states": states}
    return least_sure([paired_binary(before, after, **named) for after in draws or [{}]])


def control_of_draws(
    name: str, draws: Sequence[Verdicts], random: Sequence[Verdicts], *, is_hit: str = "refusal"
) -> Control | None:
    """Is each of several draws of a change beyond each random draw, to one side? None without random draws."""
    if not random:
        return None
    return least_sure_control([paired_control(name, after, random, is_hit=is_hit) for after in draws or [{}]])


def differing_changes(
    one: tuple[Verdicts, Verdicts],
    other: tuple[Verdicts, Verdicts],
    *,
    subject: str,
    measure: str,
    states: tuple[str, str],
    is_hit: str = "refusal",
) -> Contrast:
    """The difference of two differences: the net loss of ``other`` less that of ``one``, over the same items.

    Each pair is (before, after). An item's difference is one of -2 to 2; if both lost alike, each were as likely with
    the other sign (:func:`sign_change_p`). ``states`` name the two.
    """
    sides = (*one, *other)
    read = [key for key in one[0] if all(side.get(key, "unparsed") != "unparsed" for side in sides)]
    hits = [np.array([side[key] == is_hit for key in read], dtype=int) for side in sides]
    losses = (hits[0] - hits[1], hits[2] - hits[3])
    apart = losses[1] - losses[0]
    low, high = np.clip(mean_interval(apart), -2.0, 2.0).tolist()
    p = sign_change_p(apart) if len(read) else NAN
    if p >= ALPHA:  # the bootstrap is not the test
        low, high = min(low, 0.0), max(high, 0.0)
    n = len(read)
    first, second = (Estimate(value=float(x.mean()) if n else NAN, n=n) for x in losses)
    return Contrast(
        subject=subject,
        measure=measure,
        states=states,
        before=first,
        after=second,
        difference=Estimate(value=float(apart.mean()) if n else NAN, low=low, high=high, n=n),
        test="exact sign changes",
        p=p,
        corrected=p,
        least_p=0.5 ** (n - 1) if n else 1.0,
        why="" if n else "no item was read in all four states",
    )
