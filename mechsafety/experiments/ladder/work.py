"""The work of a ladder: every system in every state, and the tables that come of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from mechsafety.core.progress import bar
from mechsafety.experiments.ladder.config import Kind
from mechsafety.experiments.ladder.systems import LadderSetting, LadderSystem
from mechsafety.experiments.ladder.tables import (
    VERDICT_COLUMNS,
    State,
    breaking_table,
    paired_table,
    survival_table,
)

_DIRECTIONS: dict[Kind, str] = {"refusal": "of its refusal subspace", "random": "drawn at random"}


@dataclass(kw_only=True)
class LadderWork:
    """Goes through the systems one after another; ``notes`` list what was left out."""

    setting: LadderSetting
    notes: list[str] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.setting.config
        draws = range(1, config.controls + 1)
        self.states: list[tuple[Kind, int, int]] = [
            ("unedited", 0, 0),
            *(("refusal", count, 0) for count in config.counts),
            *(("random", count, draw) for count in config.counts for draw in draws),
        ]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table but the comparison's."""
        config = self.setting.config
        systems = [LadderSystem(self.setting, spec) for spec in config.systems]
        self.measure(systems)
        verdicts: list[tuple[object, ...]] = []
        costs: dict[State, dict[str, float]] = {}
        ranks, links = [], []
        for system in systems:
            ranks.append(system.ranks())
            for state in self.states:
                found, costs[(system.spec, *state)] = system.state(*state)
                report = self.setting.prompts.report
                verdicts += [(system.spec, *state, p.id, p.label, found[p.id]) for p in report]
            table, note = system.links()
            links.append(table)
            self.notes += [] if note is None else [note]
            self.facts[system.spec] = system.facts()
        table = pd.DataFrame(verdicts, columns=list(VERDICT_COLUMNS))
        survival, tests = survival_table(table, costs), paired_table(table)
        tables = {
            "survival": survival,
            "verdicts": table,
            "tests": tests,
            "breaking": breaking_table(survival, tests),
            "ranks": pd.concat(ranks, ignore_index=True),
        }
        if config.base is not None or config.regions is not None:
            there = [found for found in links if len(found)]
            tables["links"] = pd.concat(there, ignore_index=True) if there else links[0]
        return tables

    def measure(self, systems: Sequence[LadderSystem]) -> None:
        """Make what is missing of each system, which is loaded meanwhile."""
        say, states = self.setting.session.say, self.states
        clock = _Clock(
            subspaces=sum(not system.has_subspace for system in systems),
            states=sum(not system.done(*state) for system in systems for state in states),
        )
        with bar("ladder", total=len(systems) * len(states), unit="state") as progress:
            for number, system in enumerate(systems, start=1):
                title = f"[{number}/{len(systems)}] {system.spec}"
                if not system.has_subspace:
                    say(f"{title} · directions and layer{clock.left()}")
                    with clock.timed("subspace"):
                        system.find_subspace()
                for state in states:
                    if not system.done(*state):
                        say(f"{title} · {_described(*state)}{clock.left()}")
                        with clock.timed("state"):
                            system.measure(*state)
                    progress.update(1)
                system.links()
                system.drop()


class _Clock:
    """How long the work takes that is left, if it takes as long as what this session has done of its kind."""

    def __init__(self, *, subspaces: int, states: int) -> None:
        self._left = {"subspace": subspaces, "state": states}
        self._took: dict[str, list[float]] = {"subspace": [], "state": []}

    @contextmanager
    def timed(self, kind: Literal["subspace", "state"]) -> Iterator[None]:
        """One piece of work of a kind."""
        started = time.monotonic()
        yield
        self._took[kind].append(time.monotonic() - started)
        self._left[kind] -= 1

    def left(self) -> str:
        """``, about 3 min left``; empty as long as no state was measured."""
        if not self._took["state"]:
            return ""
        means = {kind: sum(took) / len(took) for kind, took in self._took.items() if took}
        minutes = sum(self._left[kind] * mean for kind, mean in means.items()) / 60
        return f", about {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"


def _described(kind: Kind, directions: int, draw: int) -> str:
    if kind == "unedited":
        return "as it is"
    drawn = f", draw {draw}" if draw else ""
    return f"without {directions} direction{'s' * (directions > 1)} {_DIRECTIONS[kind]}{drawn}"
