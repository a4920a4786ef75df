"""The work of a ladder: every system in every state, and the tables that come of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from mechsafety.ladder_config import VERDICT_COLUMNS, Kind
from mechsafety.ladder_systems import LadderSetting, LadderSystem
from mechsafety.ladder_tables import State, breaking_table, paired_table, survival_table
from mechsafety.progress import bar

_DIRECTIONS: dict[Kind, str] = {"refusal": "of its refusal subspace", "random": "drawn at random"}


@dataclass(kw_only=True)
class LadderWork:
    """Goes through the systems one after another; ``notes`` say what was left out."""

    setting: LadderSetting
    say: Callable[[str], None]
    notes: list[str] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table but the comparison's."""
        config = self.setting.config
        systems = [LadderSystem(self.setting, spec) for spec in config.systems]
        states = self._states()
        clock = _Clock(sum(not system.done(*state) for system in systems for state in states))
        verdicts: list[pd.DataFrame] = []
        costs: dict[State, dict[str, float]] = {}
        ranks: list[pd.DataFrame] = []
        links: list[pd.DataFrame] = []
        with bar("ladder", total=len(systems) * len(states), unit="state") as progress:
            for number, system in enumerate(systems, start=1):
                title = f"[{number}/{len(systems)}] {system.spec}"
                if not system.has_subspace:
                    self.say(f"{title} · directions and layer")
                ranks.append(system.subspace.ranks)
                for kind, directions in states:
                    fresh = not system.done(kind, directions)
                    if fresh:
                        self.say(f"{title} · {_described(kind, directions)}{clock.left()}")
                    found, cost = system.state(kind, directions)
                    verdicts.append(self._rows(system.spec, kind, directions, found))
                    costs[system.spec, kind, directions] = cost
                    progress.update(1)
                    clock.count(fresh=fresh)
                links.append(self._links(system))
                self.facts[system.spec] = system.facts()
                system.drop()
        table = pd.concat(verdicts, ignore_index=True)
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

    def _states(self) -> list[tuple[Kind, int]]:
        """The system as it is, without directions of its refusal subspace, and without as many random ones."""
        kinds: tuple[Kind, ...] = ("refusal", "random")
        return [("unedited", 0), *((kind, count) for kind in kinds for count in self.setting.config.counts)]

    def _rows(self, system: str, kind: Kind, directions: int, found: dict[str, str]) -> pd.DataFrame:
        rows = [(system, kind, directions, p.id, p.label, found[p.id]) for p in self.setting.report]
        return pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))

    def _links(self, system: LadderSystem) -> pd.DataFrame:
        table, note = system.links()
        if note is not None:
            self.notes.append(note)
        return table


class _Clock:
    """How long the states that are left take, if they take as long as those of this session did."""

    def __init__(self, left: int) -> None:
        self._left, self._measured, self._started = left, 0, time.monotonic()

    def count(self, *, fresh: bool) -> None:
        """One more state is there, ``fresh`` if it was measured just now."""
        self._measured += fresh
        self._left -= fresh

    def left(self) -> str:
        """``, 3 min left``; empty as long as nothing was measured."""
        if not self._measured:
            return ""
        minutes = (time.monotonic() - self._started) / self._measured * self._left / 60
        return f", {minutes:.0f} min left" if minutes >= 1 else ", less than a minute left"


def _described(kind: Kind, directions: int) -> str:
    if kind == "unedited":
        return "as it is"
    return f"without {directions} direction{'s' * (directions > 1)} {_DIRECTIONS[kind]}"
