"""The work of a ladder: every system in every state, and the tables that come of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from mechsafety.core.progress import bar
from mechsafety.experiments.ladder.config import VERDICT_COLUMNS, Kind
from mechsafety.experiments.ladder.systems import LadderSetting, LadderSystem
from mechsafety.experiments.ladder.tables import State, breaking_table, paired_table, survival_table

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
        clock = _Clock(
            subspaces=sum(not system.has_subspace for system in systems),
            states=sum(not system.done(*state) for system in systems for state in states),
        )
        verdicts: list[pd.DataFrame] = []
        costs: dict[State, dict[str, float]] = {}
        ranks: list[pd.DataFrame] = []
        links: list[pd.DataFrame] = []
        with bar("ladder", total=len(systems) * len(states), unit="state") as progress:
            for number, system in enumerate(systems, start=1):
                title = f"[{number}/{len(systems)}] {system.spec}"
                if not system.has_subspace:
                    self.say(f"{title} · directions and layer{clock.left()}")
                    with clock.timed("subspace"):
                        system.find_subspace()
                ranks.append(system.ranks())
                for state in states:
                    if not system.done(*state):
                        self.say(f"{title} · {_described(*state)}{clock.left()}")
                        with clock.timed("state"):
                            system.measure(*state)
                    found, cost = system.state(*state)
                    verdicts.append(self._rows(system.spec, *state, found))
                    costs[(system.spec, *state)] = cost
                    progress.update(1)
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


def _described(kind: Kind, directions: int) -> str:
    if kind == "unedited":
        return "as it is"
    return f"without {directions} direction{'s' * (directions > 1)} {_DIRECTIONS[kind]}"
