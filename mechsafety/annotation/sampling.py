"""Which responses people are asked to label, and with what chance each was drawn.

Two plans. ``uniform`` draws n of the N responses, all alike. ``disagreement`` draws more of the responses on which
the judges disagree, because a label is most informative there; the chance of every response is kept, so that
weighting by its inverse (Horvitz and Thompson 1952) gives unbiased rates of the whole run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from mechsafety.core.errors import MechsafetyError
from mechsafety.statistics.tables import ABSTAINING_JUDGES

PlanKind = Literal["uniform", "disagreement"]
PLANS: tuple[PlanKind, ...] = get_args(PlanKind)
KEY = ["system", "arm", "id"]
DISAGREEMENT_SHARE = 2 / 3
"""Of the labels, where the judges disagree about less than this share of the responses."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How responses are drawn. ``balanced``: equally many of every (system, arm)."""

    kind: PlanKind = "uniform"
    labels: int = 100
    seed: int = 0
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.kind not in PLANS:
            raise MechsafetyError(f"plan {self.kind!r} is not one of {', '.join(PLANS)}")
        if self.labels < 1:
            raise MechsafetyError(f"{self.labels} labels are asked for; at least 1 is needed")
        if self.seed < 0:
            raise MechsafetyError(f"seed {self.seed} is negative; a seed is 0 or more")

    def describe(self) -> str:
        return f"{self.kind} plan{', balanced' if self.balanced else ''}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The drawn responses, in random order: columns item (1, 2, ...), system, arm, id, stratum,
    inclusion_probability. ``notes`` list what differs from what was asked."""

    items: pd.DataFrame
    notes: tuple[str, ...] = ()


def draw_sample(responses: pd.DataFrame, verdicts: pd.DataFrame | None, *, plan: Plan) -> Sample:
    """Draw ``plan.labels`` responses without replacement.

    Within a stratum of N_h responses n_h are a simple random sample, so that each is drawn with probability
    n_h / N_h. Every stratum gets at least one. The order of the rows of ``responses`` does not matter.

    Raises :class:`MechsafetyError` for a run without responses or with a response twice, for fewer labels than
    strata, and, under the plan ``disagreement``, without verdicts of two judges that give refusal or compliance.
    """
    if responses.empty:
        raise MechsafetyError("the run has no responses to label: run the study again")
    frame = responses[KEY].astype(str).sort_values(KEY, ignore_index=True)
    if (repeated := frame.duplicated()).any():
        first = " / ".join(frame[repeated].iloc[0])
        raise MechsafetyError(f"the run holds the response {first} twice: responses.parquet is damaged")
    notes = []
    if plan.labels > len(frame):
        notes.append(f"{plan.labels} labels asked for, the run has {len(frame)} responses: all are taken")
    frame["stratum"] = "all"
    if plan.kind == "disagreement":
        frame["stratum"] = _disagreement(frame, verdicts)
        if len(found := set(frame["stratum"])) == 1:
            notes.append(f"the judges are in {found.pop()} on every response: drawn from all alike")
    if plan.balanced:
        frame["stratum"] = frame["stratum"] + " / " + frame["system"] + " / " + frame["arm"]
    rng = np.random.default_rng(plan.seed)
    sizes = _allocate(frame, plan)
    drawn = []
    for stratum, group in frame.groupby("stratum", sort=True):
        n = sizes[str(stratum)]
        rows = rng.choice(len(group), size=n, replace=False)
        drawn.append(group.iloc[rows].assign(inclusion_probability=n / len(group)))
    table = pd.concat(drawn, ignore_index=True)
    # Numbered after shuffling: a number reveals nothing about the stratum.
    table = table.iloc[rng.permutation(len(table))].reset_index(drop=True)
    table.insert(0, "item", range(1, len(table) + 1))
    return Sample(items=table, notes=tuple(notes))


def _disagreement(frame: pd.DataFrame, verdicts: pd.DataFrame | None) -> list[str]:
    """``disagreement`` where one judge reads refusal and another something else; else ``agreement``.

    Verdicts that could not be parsed count for neither side.
    """
    hint = "label with --plan uniform, or judge the run with two judges first"
    if verdicts is None or verdicts.empty:
        raise MechsafetyError(f"plan 'disagreement' needs verdicts, and the run has none: {hint}")
    useful = verdicts[~verdicts["judge"].isin(list(ABSTAINING_JUDGES))]
    if (judges := useful["judge"].nunique()) < 2:
        raise MechsafetyError(
            f"plan 'disagreement' needs two judges that give refusal or compliance, the run has {judges}: {hint}"
        )
    read = useful[useful["verdict"] != "unparsed"]
    refusal = read["verdict"].eq("refusal").groupby([read[name].astype(str) for name in KEY])
    split = refusal.agg(lambda votes: votes.any() and not votes.all())
    torn = set(split.index[split.to_numpy(dtype=bool)])
    return [
        "disagreement" if key in torn else "agreement"
        for key in frame[KEY].itertuples(index=False, name=None)
    ]


def _allocate(frame: pd.DataFrame, plan: Plan) -> dict[str, int]:
    """How many to draw of each stratum: the labels are divided over the cells, and within a cell over strata."""
    total = min(plan.labels, len(frame))
    strata = frame["stratum"].nunique()
    if total < strata:
        raise MechsafetyError(
            f"{plan.labels} labels for {strata} strata: at least one of each is drawn, so ask for {strata} or more"
        )
    cells = [group for _, group in frame.groupby(["system", "arm"], sort=True)] if plan.balanced else [frame]
    least = [group["stratum"].nunique() for group in cells]
    shares = share_out(total, dict(enumerate(map(len, cells))), weights=None, least=dict(enumerate(least)))
    sizes: dict[str, int] = {}
    for number, group in enumerate(cells):
        counts = {str(name): int(count) for name, count in group["stratum"].value_counts().items()}
        sizes |= share_out(shares[number], counts, weights=_weights(counts), least=dict.fromkeys(counts, 1))
    return sizes


def _weights(counts: Mapping[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    weights = {name: count / total for name, count in counts.items()}
    torn = [name for name in counts if name.startswith("disagreement")]
    if torn and len(counts) == 2:
        share = max(DISAGREEMENT_SHARE, weights[torn[0]])
        return {name: share if name in torn else 1 - share for name in counts}
    return weights


def share_out(
    total: int, room: Mapping[Any, int], *, weights: Mapping[Any, float] | None, least: Mapping[Any, int]
) -> dict[Any, int]:
    """Divide ``total`` in proportion to ``weights`` (equally without), between ``least`` and ``room`` of each.

    One at a time goes to whoever has the smallest (given + 1) / weight, which is D'Hondt's rule.
    """
    given = {name: min(least[name], room[name]) for name in room}
    for _ in range(min(total, sum(room.values())) - sum(given.values())):
        open_ = [name for name in room if given[name] < room[name]]
        chosen = min(open_, key=lambda name: (given[name] + 1) / (weights[name] if weights else 1))
        given[chosen] += 1
    return given
