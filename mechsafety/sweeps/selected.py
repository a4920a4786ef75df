"""A chosen candidate: its scores, what every filter dropped, and what the model writes under it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mechsafety.core.values import Value
from mechsafety.core.wording import percent, points

Place = tuple[int, int]
"""Position and layer."""


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """What the model writes to harmful validation prompts under the selected candidate, and under the runner-up.

    Shares of ``n`` answers; ``nll`` is the mean negative log-likelihood, in nats a token, of the unedited model's own
    answers to harmless prompts. ``margin`` is the difference in ``complied`` to the candidate with the next highest
    one, with Newcombe's 95 % interval; NaN where there is no other.
    """

    n: int
    refused: float
    complied: float
    degenerate: float
    nll: float
    candidates: int
    runner_up: Place | None
    margin: float
    margin_low: float
    margin_high: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Selection(Value):
    """The chosen candidate, the KL bound it met, and how many each filter dropped.

    ``removed`` and ``caused`` are shares of the gap between the unedited scores of harmful and harmless prompts; NaN
    where the table does not hold these. ``failed`` names the filters that a candidate of rule ``nearest`` does not
    pass. ``confirmed`` is what the model writes, where it was asked.
    """

    position: int
    layer: int
    bypass: float
    induce: float
    kl: float
    rule: str
    kl_bound: float
    kept: int
    total: int
    dropped: dict[str, int]
    removed: float = math.nan
    caused: float = math.nan
    failed: tuple[str, ...] = ()
    confirmed: Confirmation | None = None

    @classmethod
    def from_record(cls, stored: Mapping[str, Any]) -> Selection:
        """What ``dataclasses.asdict`` made of one, read back from JSON."""
        values: dict[str, Any] = {
            name: math.nan if value is None else value for name, value in stored.items()
        }
        confirmed: dict[str, Any] | None = stored.get("confirmed")
        if confirmed is not None:
            runner_up = confirmed["runner_up"]
            known: dict[str, Any] = {
                name: math.nan if value is None else value for name, value in confirmed.items()
            }
            known["runner_up"] = runner_up and tuple(runner_up)
            values["confirmed"] = Confirmation(**known)
        return cls(
            **values
            | {"failed": tuple(stored.get("failed", ())), **({} if confirmed else {"confirmed": None})}
        )

    def describe(self) -> str:
        return f"Selection({self.explain()})"

    def explain(self) -> str:
        """How it was chosen, for the report: one sentence, and one more where its answers were read."""
        text = f"Layer {self.layer}, position {self.position}"
        scores = f"bypass {self.bypass:.2f}, induce {self.induce:.2f}, KL {self.kl:.2f}"
        shares = "" if math.isnan(self.removed) else f"removed {self.removed:.2f}, caused {self.caused:.2f}, "
        drops = counts_text(self.dropped)
        if self.rule == "fixed":
            return f"{text} (fixed, one of {self.total}, no filter): {shares}{scores}"
        if self.rule == "nearest":
            fails = f"it fails {' and '.join(self.failed)}" if self.failed else "it passes every filter"
            text += f": the nearest of {self.total} candidates (dropped: {drops}); {fails}; {shares}{scores}"
        elif self.rule == "auto":
            passed = f"{self.kept} of {self.total} candidates pass (dropped: {drops})"
            why = (
                "the first of those that pass" if self.confirmed is None else "taken by what the model writes"
            )
            text += f": {why}; {passed}; {shares}{scores}; rule auto, KL bound {self.kl_bound:g}"
        else:
            text += (
                f": the lowest bypass of those that pass, {self.bypass:.2f}; {self.kept} of {self.total} candidates "
                f"pass (dropped, whatever their bypass: {drops}); rule {self.rule}, KL bound {self.kl_bound:g}"
            )
        return text if self.confirmed is None else f"{text}. {_read(self.confirmed)}"


def counts_text(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{n} by {name}" for name, n in dropped.items() if n) or "none"


def _read(c: Confirmation) -> str:
    text = (
        f"Of {c.candidates} candidates whose answers to {c.n} harmful validation prompts were read it was taken: "
        f"{percent(c.refused)} refused, {percent(c.complied)} coherent compliance, {percent(c.degenerate)} degenerate"
    )
    if c.runner_up is None:
        return text
    position, layer = c.runner_up
    return (
        f"{text}; coherent compliance less that under layer {layer}, position {position}: "
        f"{points(c.margin)} points [{points(c.margin_low)}, {points(c.margin_high)}]"
    )
