"""Dose curves: where removal ends and damage begins.

Refusal, degenerate text, KL and perplexity together, against how much of a direction is removed (alpha), how
many directions are, and in which layers, each with a random control of the same size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import DOSAGES, Dosage
from mechsafety.core.progress import bar
from mechsafety.directions.direction import Direction
from mechsafety.edits.interventions import Ablate, Edit, digest
from mechsafety.judges.outcomes import Keep, KeepState, Tally, answered
from mechsafety.models.loading import current_fingerprint
from mechsafety.prompts.prompt_set import LABELS, PromptSet
from mechsafety.runs.folder import Journal
from mechsafety.sweeps.edit_costs import EditCosts

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

Measures = dict[str, float | int]
_ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
_RANKS = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Dose:
    """One point of a curve. ``amount`` orders the points of a family; ``control`` is a random direction's."""

    family: Dosage
    name: str
    amount: float
    edit: Edit | None
    control: bool

    @property
    def key(self) -> str:
        return f"{self.family}|{self.name}|{'control' if self.control else 'refusal'}"


def layer_sets(n_layers: int, selected: int) -> dict[str, tuple[int, ...]]:
    """The sets of edited layers that the curves compare, by name."""
    third = [round(n_layers * k / 3) for k in range(4)]
    near = range(max(0, selected - 2), min(n_layers, selected + 3))
    sets = {
        "first third": range(third[0], third[1]),
        "middle third": range(third[1], third[2]),
        "last third": range(third[2], third[3]),
        "selected ± 2": near,
        "selected on": range(min(selected, n_layers - 1), n_layers),
        "all": range(n_layers),
    }
    return {name: tuple(layers) for name, layers in sets.items() if len(layers)}


def plan_doses(
    direction: Direction,
    basis: Float[Tensor, "k d_model"],
    n_layers: int,
    *,
    families: Sequence[Dosage] = DOSAGES,
    alphas: Sequence[float] = _ALPHAS,
    ranks: Sequence[int] = _RANKS,
    seed: int,
) -> list[Dose]:
    """The unedited model first, then every dose with its random control.

    ``basis`` spans the subspace whose first row is the direction (:func:`refusal_subspace`); the
    control draws as many directions from a normal distribution.
    """
    if any(not math.isfinite(a) or a < 0 for a in alphas):
        raise MechsafetyError(f"alphas {list(alphas)}: finite numbers from 0 on (0 keeps all, 1 removes all)")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(basis.shape, generator=generator, dtype=torch.float32)
    sources: dict[bool, tuple[Any, Tensor]] = {False: (direction, basis), True: (noise[0], noise)}
    doses = [Dose(family=f, name="unedited", amount=0.0, edit=None, control=False) for f in families]
    for control, (one, several) in sources.items():
        if "alpha" in families:
            doses += [
                Dose(family="alpha", name=f"{a:g}", amount=a, edit=Ablate(one, alpha=a), control=control)
                for a in alphas
                if a
            ]
        if "directions" in families:
            doses += [
                Dose(
                    family="directions",
                    name=str(k),
                    amount=float(k),
                    edit=Ablate(several[:k]),
                    control=control,
                )
                for k in ranks
                if 0 < k <= len(basis)
            ]
        if "layers" in families:
            doses += [
                Dose(
                    family="layers",
                    name=name,
                    amount=float(number),
                    edit=Ablate(one, layers=layers),
                    control=control,
                )
                for number, (name, layers) in enumerate(
                    layer_sets(n_layers, direction.layer).items(), start=1
                )
            ]
    return doses


def dose_curves(
    model: TransformerBridge,
    doses: Sequence[Dose],
    prompts: PromptSet,
    *,
    max_new_tokens: int = 32,
    seed: int,
    journal: Journal | None = None,
    keep_state: KeepState = lambda *_: None,
) -> pd.DataFrame:
    """Measure every dose on held-out ``prompts``, one row per dose.

    Columns: family, dose, amount, control; for harmful prompts ``n``, ``refused`` and its Wilson interval
    (``low``, ``high``), ``degenerate`` (shares, by the judge ``rules``); for harmless prompts ``n_harmless``,
    ``harmless_refused``, ``harmless_degenerate``; ``kl``, the mean divergence of the next token after harmless
    prompts, in nats; ``perplexity`` of the unedited model's own answers to harmless prompts under the edit.

    ``journal`` keeps finished doses, each by its edit; ``keep_state`` receives the answers of each (``unedited``, or
    family, dose and whether it is the control with ``|`` between them). Raises :class:`MechsafetyError` for one class
    only or no prompts.
    """
    import pandas as pd

    for label in ("harmful", "harmless"):
        if not len(prompts.where(label=label)):
            raise MechsafetyError(f"dose curves need harmful and harmless prompts; here none is {label}")
    if journal is not None:
        settings = {"max_new_tokens": max_new_tokens, "seed": seed}
        journal.bind(model=current_fingerprint(model), prompts=prompts.sha256(), **settings)
    bench = _Baseline(model=model, prompts=prompts, max_new_tokens=max_new_tokens, seed=seed)
    rows = []
    measured: dict[str, Measures] = {}
    with bar("dose curves", total=len(doses), unit="dose") as progress:
        for dose in doses:
            # The unedited model stands at the start of every family and is measured once.
            key = "unedited" if dose.edit is None else f"{dose.key}|{digest(dose.edit)}"
            stored = measured.get(key) or (journal.get(key) if journal is not None else None)
            if stored is None:
                name = "unedited" if dose.edit is None else dose.key
                stored = bench.measure(dose.edit, partial(keep_state, name))
                if journal is not None:
                    journal.put(key, stored)
            measured[key] = stored
            rows.append(
                {"family": dose.family, "dose": dose.name, "amount": dose.amount, "control": dose.control}
                | stored
            )
            progress.update(1)
    return pd.DataFrame(rows)


@dataclass(kw_only=True)
class _Baseline:
    """The prompts, and the unedited model's answers to them, made when first asked for."""

    model: TransformerBridge
    prompts: PromptSet
    max_new_tokens: int
    seed: int

    def __post_init__(self) -> None:
        self._costs: EditCosts | None = None

    def measure(self, edit: Edit | None, keep: Keep) -> Measures:
        harmful, harmless = self._answered(edit, keep)
        return {
            "n": harmful.n,
            "refused": harmful.refused.rate,
            "low": harmful.refused.low,
            "high": harmful.refused.high,
            "degenerate": harmful.degenerated.rate,
            "n_harmless": harmless.n,
            "harmless_refused": harmless.refused.rate,
            "harmless_degenerate": harmless.degenerated.rate,
            **self.costs().measure(edit),
        }

    def costs(self) -> EditCosts:
        if self._costs is None:
            self._answered(None)
        assert self._costs is not None
        return self._costs

    def _answered(self, edit: Edit | None, keep: Keep = lambda _: None) -> tuple[Tally, ...]:
        """Verdicts on harmful and on harmless prompts, counted."""
        settings = {"max_new_tokens": self.max_new_tokens, "seed": self.seed, "keep": keep}
        done, labels = answered(self.model, self.prompts, edit=edit, judge="rules", **settings)
        if edit is None:
            answers = [c.tokens for c in done if c.label == "harmless"]
            self._costs = EditCosts(model=self.model, prompts=self.prompts.harmless, answers=answers)
        return tuple(
            Tally.of([v for c, v in zip(done, labels, strict=True) if c.label == label]) for label in LABELS
        )
