"""Dose curves: where removal ends and damage begins.

Refusal, degenerate text, KL and perplexity together, against how much of a direction is removed (alpha), how
many directions are, and in which layers, each with random controls of the same size and of like energy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import DOSAGES, Dosage
from mechsafety.core.progress import bar
from mechsafety.core.verdict import Label
from mechsafety.directions.controls import control_bases, control_directions, energies
from mechsafety.directions.direction import Direction
from mechsafety.edits.interventions import Ablate, Edit, digest
from mechsafety.judges.outcomes import Keep, KeepState, Tally, answered
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat_settings import chat_bound
from mechsafety.models.loading import current_fingerprint
from mechsafety.prompts.accepted import PromptsLike, as_prompt_set
from mechsafety.prompts.columns import LABELS
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.prompts.splits import require_classes
from mechsafety.runs.journal import Journal
from mechsafety.sweeps.edit_costs import EditCosts

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

Measures = dict[str, float | int]
_ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
_RANKS = (1, 2, 4, 8)


KeepVerdicts = Callable[[str, Mapping[str, Label]], None]
"""Receives the verdict on each prompt by its id, of one state by its name."""


REFUSAL = "refusal"
"""The curve of the direction itself; those of random draws are named by :func:`control_name`."""


def control_name(draw: int) -> str:
    return f"control-{draw}"


@dataclass(frozen=True, kw_only=True)
class Dose:
    """One point of a curve. ``amount`` orders the points of a family; ``draw`` numbers random controls, from 1.

    ``energy`` is the share of the fit activations' mean square that the full projection takes away.
    """

    family: Dosage
    name: str
    amount: float
    edit: Edit | None
    draw: int = 0
    energy: float = 0.0

    @property
    def control(self) -> bool:
        return self.draw > 0

    @property
    def curve(self) -> str:
        """What it removes: the refusal direction, or which random draw."""
        return control_name(self.draw) if self.control else REFUSAL

    @property
    def key(self) -> str:
        return f"{self.family}|{self.name}|{self.curve}"


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


@dataclass(frozen=True, kw_only=True)
class _Removed:
    """What the doses of one curve remove: one direction, or the first rows of a basis, with their energies."""

    draw: int
    one: Any
    energy: float
    several: Float[Tensor, "k d_model"]
    energies: Sequence[float]


def plan_doses(
    direction: Direction,
    basis: Float[Tensor, "k d_model"],
    n_layers: int,
    *,
    activations: tuple[Float[Tensor, "a d_model"], Float[Tensor, "b d_model"]],
    system: str = "model",
    controls: int = 3,
    families: Sequence[Dosage] = DOSAGES,
    alphas: Sequence[float] = _ALPHAS,
    ranks: Sequence[int] = _RANKS,
    seed: int = 0,
) -> list[Dose]:
    """The unedited model first, then every dose, then the same doses of every random control.

    ``basis`` spans the subspace whose first row is the direction (:func:`refusal_subspace`). ``activations`` are the
    harmful and the harmless fit prompts' at the direction's place, from which ``controls`` random directions
    (:func:`control_directions`) and bases (:func:`control_bases`) are drawn; the bases have no more rows than the
    activations have dimensions within classes.

    Raises :class:`MechsafetyError` for a family, a strength or a rank that cannot be.

    Arguments:
        direction: The direction that is removed.
        n_layers: Blocks of the model.
        families: What is varied: alpha, directions, layers.
        alphas: Strengths: 1 removes the whole component.
        ranks: Numbers of directions.

    Returns:
        The doses, in the order in which they are measured.

    Example:
        >>> harmful, harmless = cache.select("harmful")[:, 0, 2], cache.select("harmless")[:, 0, 2]
        >>> basis = ms.anatomy.refusal_subspace(harmful, harmless, k=2)
        >>> doses = ms.anatomy.plan_doses(
        ...     direction, basis, model.cfg.n_layers,
        ...     activations=(harmful, harmless), families="alpha", alphas=(0.5, 1.0), controls=0,
        ... )
        >>> [(dose.family, dose.amount) for dose in doses]
        [('alpha', 0.0), ('alpha', 0.5), ('alpha', 1.0)]
    """
    if any(not math.isfinite(a) or a < 0 for a in alphas):
        raise MechsafetyError(f"alphas {list(alphas)}: finite numbers from 0 on (0 keeps all, 1 removes all)")
    both = torch.cat(activations)
    own = _Removed(
        draw=0,
        one=direction,
        energy=float(energies(both, direction.unit[None])[0]),
        several=basis,
        energies=energies(both, basis).tolist(),
    )
    asked: dict[str, Any] = {"n": controls, "seed": seed, "system": system}
    ones = control_directions(*activations, direction.unit, **asked)
    several = control_bases(*activations, basis[: max(1, len(both) - 2)], **asked)
    random = [
        _Removed(draw=draw, one=one.unit, energy=one.energy, several=rows.rows, energies=rows.energies)
        for draw, (one, rows) in enumerate(zip(ones, several, strict=True), start=1)
    ]
    layers = layer_sets(n_layers, direction.layer)
    doses = [Dose(family=f, name="unedited", amount=0.0, edit=None) for f in families]
    for removed in (own, *random):
        doses += _doses_of(removed, families, alphas, ranks, layers)
    return doses


def _doses_of(
    removed: _Removed,
    families: Sequence[Dosage],
    alphas: Sequence[float],
    ranks: Sequence[int],
    layers: Mapping[str, tuple[int, ...]],
) -> list[Dose]:
    one, several = removed.one, removed.several
    energy, energies = removed.energy, removed.energies
    points: dict[Dosage, list[tuple[str, float, Edit, float]]] = {
        "alpha": [(f"{a:g}", a, Ablate(one, alpha=a), energy) for a in alphas if a],
        "directions": [
            (str(k), float(k), Ablate(several[:k]), sum(energies[:k])) for k in ranks if 0 < k <= len(several)
        ],
        "layers": [
            (name, float(number), Ablate(one, layers=those), energy)
            for number, (name, those) in enumerate(layers.items(), start=1)
        ],
    }
    return [
        Dose(family=family, name=name, amount=amount, edit=edit, draw=removed.draw, energy=taken)
        for family in DOSAGES
        if family in families
        for name, amount, edit, taken in points[family]
    ]


def dose_curves(
    model: ModelLike,
    doses: Sequence[Dose],
    prompts: PromptsLike,
    *,
    max_new_tokens: int = 32,
    seed: int = 0,
    journal: Journal | None = None,
    keep_state: KeepState = lambda *_: None,
    keep_verdicts: KeepVerdicts = lambda *_: None,
) -> pd.DataFrame:
    """Measure every dose on held-out ``prompts``, one row per dose.

    Columns: family, dose, amount, control, draw, energy; for harmful prompts ``n``, ``refused`` and its Wilson interval
    (``low``, ``high``), ``degenerate`` (shares, by the judge ``rules``); for harmless prompts ``n_harmless``,
    ``harmless_refused``, ``harmless_degenerate``; ``kl``, the mean divergence of the next token after harmless
    prompts, in nats; ``perplexity`` of the unedited model's own answers to harmless prompts under the edit.

    ``journal`` keeps finished doses, each by its edit; ``keep_state`` receives the answers of each (``unedited``, or
    family, dose and ``refusal`` or the draw of the control with ``|`` between them), and ``keep_verdicts`` the verdicts
    by their prompts' ids. Raises :class:`MechsafetyError` for one class only or no prompts.

    Arguments:
        doses: What is measured, of ms.anatomy.plan_doses.

    Returns:
        One row per dose, with the columns above.

    Example:
        >>> harmful, harmless = cache.select("harmful")[:, 0, 2], cache.select("harmless")[:, 0, 2]
        >>> doses = ms.anatomy.plan_doses(
        ...     direction, direction.unit[None], model.cfg.n_layers,
        ...     activations=(harmful, harmless), families="alpha", alphas=1.0, controls=0,
        ... )
        >>> curve = ms.anatomy.dose_curves(model, doses, prompts.report, max_new_tokens=3)
        >>> float(curve["kl"][0])  # the unedited model
        0.0
    """
    model = as_model(model)
    prompts = as_prompt_set(prompts)
    import pandas as pd

    require_classes(prompts, "measure dose curves")
    if journal is not None:
        settings = {"max_new_tokens": max_new_tokens, "seed": seed}
        journal.bind(
            model=current_fingerprint(model), prompts=prompts.sha256(), **chat_bound(model), **settings
        )
    bench = _Baseline(
        **{"model": model, "prompts": prompts, "max_new_tokens": max_new_tokens, "seed": seed},
        keep_verdicts=keep_verdicts,
    )
    rows = []
    measured: dict[str, Measures] = {}
    with bar("dose curves", total=len(doses), unit="dose") as progress:
        for dose in doses:
            # The unedited model stands at the start of every family and is measured once.
            key = "unedited" if dose.edit is None else f"{dose.key}|{digest(dose.edit)}"
            stored = measured.get(key) or (journal.get(key) if journal is not None else None)
            if stored is None:
                name = "unedited" if dose.edit is None else dose.key
                stored = bench.measure(dose.edit, partial(keep_state, name), name)
                if journal is not None:
                    journal.put(key, stored)
            measured[key] = stored
            rows.append(
                {
                    **{"family": dose.family, "dose": dose.name, "amount": dose.amount},
                    **{"control": dose.control, "draw": dose.draw, "energy": dose.energy},
                    **stored,
                }
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
    keep_verdicts: KeepVerdicts

    def __post_init__(self) -> None:
        self._costs: EditCosts | None = None

    def measure(self, edit: Edit | None, keep: Keep, name: str) -> Measures:
        """What one dose does; ``name`` is under which its verdicts are kept."""
        harmful, harmless = self._answered(edit, keep, name)
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

    def _answered(self, edit: Edit | None, keep: Keep = lambda _: None, name: str = "") -> tuple[Tally, ...]:
        """Verdicts on harmful and on harmless prompts, counted."""
        settings = {"max_new_tokens": self.max_new_tokens, "seed": self.seed, "keep": keep}
        done, labels = answered(self.model, self.prompts, edit=edit, judge="rules", **settings)
        if name:
            self.keep_verdicts(name, dict(zip([c.id for c in done], labels, strict=True)))
        if edit is None:
            answers = [c.written for c in done if c.label == "harmless"]
            self._costs = EditCosts(model=self.model, prompts=self.prompts.harmless, answers=answers)
        return tuple(
            Tally.of([v for c, v in zip(done, labels, strict=True) if c.label == label]) for label in LABELS
        )
