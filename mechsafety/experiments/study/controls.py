"""The random arm of a study: matched random directions that are removed as the direction is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch

from mechsafety.directions.activations import ResidualCache
from mechsafety.directions.controls import control_directions, control_table, in_place_of
from mechsafety.directions.direction import Direction
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.prompts.columns import LABELS
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.folder import RunFolder
from mechsafety.statistics.controls import control_tests
from mechsafety.statistics.tables import ABSTAINING_JUDGES

if TYPE_CHECKING:
    from mechsafety.experiments.session import Session

RANDOM = "random-"
"""What the arms of random directions begin with; their draw follows, from 1."""


def random_arms(config: StudyConfig, report: PromptSet) -> list[str]:
    """The arms in which a random direction is removed; none where no harmful prompt is asked."""
    return [f"{RANDOM}{draw}" for draw in range(1, config.controls + 1)] if len(report.harmful) else []


def draw_controls(
    session: Session,
    spec: str,
    direction: Direction,
    *,
    config: StudyConfig,
    read: Callable[[int], ResidualCache],
) -> pd.DataFrame:
    """The random directions of one system, drawn once: :func:`control_table` with their vectors beside (``unit``).

    ``read`` returns the residual stream of the fit prompts at a position.
    """

    def make() -> pd.DataFrame:
        cache = read(direction.position)
        harmful, harmless = (cache.select(label)[:, 0, direction.layer] for label in LABELS)
        drawn = control_directions(
            harmful,
            harmless,
            direction.unit,
            n=config.controls,
            seed=config.seed,
            system=spec,
        )
        return control_table(drawn).assign(unit=[control.unit.tolist() for control in drawn])

    return session.part("controls", spec, make=make)


def direction_of_arm(drawn: pd.DataFrame, direction: Direction, arm: str) -> Direction:
    """The draw of one random arm, at the direction's place."""
    (unit,) = drawn.loc[drawn["draw"] == _draw(arm), "unit"]
    return in_place_of(direction, torch.tensor(unit, dtype=torch.float32))


def control_tables(
    run: RunFolder,
    config: StudyConfig,
    specs: Sequence[str],
    verdicts: pd.DataFrame,
    *,
    columns: Sequence[str],
) -> dict[str, pd.DataFrame]:
    """The tables of the random arm, of the systems that have one, by every judge that read all of it; else none.

    ``verdicts`` are those of the other arms; ``columns`` those that a table of responses has.
    """
    arms = answered_draws(run, config, specs)
    if not arms:
        return {}
    # The primary judge reads every draw; the others those of a run in which they were asked to.
    judges = [judge for judge in config.judges if all(run.has_part("verdicts", judge, *arm) for arm in arms)]
    read = {judge: _joined(run, [("verdicts", judge, *arm) for arm in arms]) for judge in judges}
    edited = verdicts[(verdicts["arm"] == "edited") & (verdicts["label"] == "harmful")]
    found = [_controls(run, edited[edited["judge"] == judge], random) for judge, random in read.items()]
    return {
        "controls": pd.concat(found, ignore_index=True),
        "random_responses": _joined(run, [("responses", *arm) for arm in arms]).filter(items=list(columns)),
        "random_verdicts": pd.concat(read.values(), ignore_index=True),
    }


def answered_draws(run: RunFolder, config: StudyConfig, specs: Sequence[str]) -> list[tuple[str, str]]:
    """The systems and random arms that have answers."""
    return [
        (spec, arm)
        for spec in specs
        for draw in range(1, config.controls + 1)
        if run.has_part("responses", spec, arm := f"{RANDOM}{draw}")
    ]


def _joined(run: RunFolder, parts: Sequence[tuple[str, ...]]) -> pd.DataFrame:
    return pd.concat([run.read_part(*part) for part in parts], ignore_index=True)


def _controls(run: RunFolder, edited: pd.DataFrame, random: pd.DataFrame) -> pd.DataFrame:
    """The table of one judge."""
    (judge,) = set(random["judge"])
    numbered = random.assign(draw=random["arm"].map(_draw))
    if (
        judge in ABSTAINING_JUDGES
    ):  # it separates degenerate from coherent text alone: nothing is known of refusals
        edited, numbered = edited.assign(verdict="unparsed"), numbered.assign(verdict="unparsed")
    tests = control_tests(edited, numbered).assign(judge=judge)
    specs = list(dict.fromkeys(tests["system"]))
    drawn = pd.concat([run.read_part("controls", spec).assign(system=spec) for spec in specs])
    table = drawn.drop(columns=["unit", "number"]).merge(tests, on=["system", "draw"], validate="1:1")
    table["kl"] = [
        _kl(run, spec, f"{RANDOM}{draw}") for spec, draw in zip(table["system"], table["draw"], strict=True)
    ]
    table["kl_edited"] = [_kl(run, spec, "edited") for spec in table["system"]]
    first = ["system", "judge"]
    return table[[*first, *[name for name in table.columns if name not in first]]]


def _kl(run: RunFolder, spec: str, arm: str) -> float:
    there = run.has_part("kl", spec, arm, suffix="json")
    return float(run.read_json_part("kl", spec, arm)) if there else math.nan


def _draw(arm: str) -> int:
    return int(arm.removeprefix(RANDOM))
