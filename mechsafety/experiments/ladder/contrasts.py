"""The contrasts of a ladder: each system without refusal directions against itself, beside random directions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from mechsafety.claims import Claim, Contrast, corrected_over, decide, paired_binary, paired_control
from mechsafety.claims.rows import verdicts_by
from mechsafety.claims.shared import once
from mechsafety.core.wording import counted
from mechsafety.experiments.ladder.tables import STATE_COLUMNS, State
from mechsafety.plots.style import distinct, name_forms, short_name

Claims = Mapping[tuple[str, int], Claim]
"""By system and number of directions removed."""


def rung_of(system: str) -> str:
    """The last part of a system's name: after +, / or a colon, in small letters, without hyphens."""
    last = re.split(r"[+/:\\]", system.rstrip("/\\"))[-1]
    return re.sub(r"[-_ ]", "", last.lower())


def rung_names(systems: Sequence[str]) -> dict[str, str]:
    """Short names: the last part of each, after + or /, and where that is not enough to tell them apart, more."""
    return distinct({s: [_end(s), *name_forms(s)] for s in systems})


def _end(system: str) -> str:
    return short_name(re.split(r"[+/\\]", system.rstrip("/\\"))[-1])


def ladder_systems(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """The systems in the order of the run."""
    return list(dict.fromkeys(tables["survival"]["system"]))


@once
def verdicts_by_state(tables: Mapping[str, pd.DataFrame], label: str) -> dict[State, dict[object, str]]:
    """The verdict on each prompt of a label by its id, in every state; empty where the run holds none."""
    return verdicts_by(tables.get("verdicts"), STATE_COLUMNS, label=label)


@once
def ladder_claims(tables: Mapping[str, pd.DataFrame], label: str = "harmful") -> Claims:
    """Refusals of the prompts of a label without refusal directions, corrected over all systems and numbers.

    The control is every draw of as many random directions. Empty where the run holds no verdicts by prompt.
    """
    states = verdicts_by_state(tables, label)
    names = rung_names(ladder_systems(tables))
    found: dict[tuple[str, int], Contrast] = {}
    for (system, kind, directions, _), after in states.items():
        if kind != "refusal":
            continue
        random = [v for (s, k, n, _), v in states.items() if (s, k, n) == (system, "random", directions)]
        contrast = paired_binary(
            states.get((system, "unedited", 0, 0), {}),
            after,
            subject=f"{names.get(system, system)} without {counted(directions, 'direction')}",
            measure=f"refusals of {label} prompts",
            states=("unedited", "without"),
        )
        control = paired_control("as many random directions", after, random) if random else None
        found[system, directions] = replace(contrast, control=control)
    corrected = corrected_over(list(found.values()), "removals")
    return dict(zip(found, map(decide, corrected), strict=True))


def of_system(claims: Claims, system: str) -> dict[int, Claim]:
    """The claims of one system by number of directions, in ascending order."""
    return dict(sorted((k, claim) for (name, k), claim in claims.items() if name == system))
