"""Scores per (position, layer): how far a direction separates, removes and induces refusal.

One row per candidate. ``bypass`` is the mean refusal score of harmful prompts while the direction is
projected out everywhere; ``induce`` that of harmless prompts with the direction added at its own layer;
``kl`` the divergence that the projection causes on harmless prompts (Arditi et al. 2024, section 2.3). ``harmful`` and
``harmless`` are the unedited model's means on the same prompts, ``removed`` and ``caused`` the shares of their gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.arguments import whole_numbers
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.progress import with_progress
from mechsafety.core.values import Value
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Direction, Directions
from mechsafety.directions.other_weights import other_weights, require_same_model
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat_settings import chat_bound
from mechsafety.models.loading import current_fingerprint
from mechsafety.plots.look import Look, drawn
from mechsafety.prompts.accepted import PromptsLike, as_prompt_set
from mechsafety.prompts.columns import LABELS
from mechsafety.prompts.fed import truncated
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.prompts.splits import require_classes
from mechsafety.runs.journal import Journal
from mechsafety.sweeps.behaviour import rows_as_labelled
from mechsafety.sweeps.candidates import CandidateScores, Validation, candidates_of
from mechsafety.sweeps.measures import MeasureChoice, own_measure, refusal_measure
from mechsafety.sweeps.racing import Unedited
from mechsafety.sweeps.ranking import with_shares
from mechsafety.sweeps.refusal_scores import RefusalTokens, TokensLike
from mechsafety.sweeps.scoring import AllScores, score_all
from mechsafety.sweeps.selected import Selection
from mechsafety.sweeps.selection import nearest, select, selection_stability
from mechsafety.sweeps.token_sets import TokenScores, TokenStability, token_stability

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SCORE_COLUMNS = (
    *("position", "layer", "norm", "stability", "split_half", "auroc", "bypass", "induce", "kl"),
    *("harmful", "harmless", "gap_low", "gap_high", "n_harmful", "n_harmless", "removed", "caused"),
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sweep(Value):
    """The table of scores, and what it was measured against.

    ``measure`` is what the scores are about, and why. ``base_harmful`` and ``base_harmless`` are the unedited model's
    mean refusal scores, ``unedited`` those of every prompt. ``scores`` holds the score of every prompt under every
    candidate, in the order of the table's rows; NaN where racing (``cost`` below 1: the share of prompts scored) took
    none. ``token_scores`` hold P of every refusal token, where the scores are about first tokens.
    """

    frame: pd.DataFrame
    directions: Directions
    measure: MeasureChoice
    base_harmful: float
    base_harmless: float
    n_harmful: int
    n_harmless: int
    n_layers: int
    scores: tuple[CandidateScores, ...]
    unedited: Unedited
    token_scores: TokenScores | None = None
    cost: float = 1.0
    other_weights: bool = False
    labelled: bool = True

    def select(self, *, rule: str = "auto") -> Selection:
        """The candidate that ``rule`` selects, auto or arditi, and what every filter dropped (:func:`select`).

        Raises :class:`MechsafetyError` where none passes.
        """
        return select(self.frame, n_layers=self.n_layers, rule=rule)

    def best(self, *, rule: str = "auto") -> Direction:
        """The direction that ``rule`` selects.

        Raises :class:`MechsafetyError`, naming what to call next, where none passes.
        """
        try:
            chosen = self.select(rule=rule)
        except MechsafetyError as error:
            how = way(
                "",
                ". What comes nearest: sweep.nearest() names it, sweep.plot() shows every candidate, and "
                "sweep.directions.at(layer=..., position=...) takes one of your own choice",
            )
            raise MechsafetyError(f"{error}{how}") from None
        return self.directions.at(layer=chosen.layer, position=chosen.position)

    def nearest(self) -> Selection:
        """The candidate that comes nearest where none passes every filter; its ``failed`` names those it misses."""
        return nearest(self.frame, n_layers=self.n_layers)

    def stability(self, *, seed: int = 0, rule: str = "auto", resamples: int = 200) -> pd.DataFrame:
        """How often ``rule`` picks each candidate by its scores when the prompts are drawn again, with replacement.

        Columns position, layer, share; the row with no layer is the share in which nothing passed.
        """
        return selection_stability(
            self.frame,
            bypass=torch.stack([s.bypass for s in self.scores]).numpy(),
            induce=torch.stack([s.induce for s in self.scores]).numpy(),
            kl=torch.stack([s.kl for s in self.scores]).numpy(),
            unedited=(self.unedited.harmful, self.unedited.harmless),
            n_layers=self.n_layers,
            rule=rule,
            resamples=resamples,
            seed=seed,
        )

    def token_stability(self, *, rule: str = "auto", seed: int = 0) -> TokenStability | None:
        """How often half of the refusal tokens picks another candidate by ``rule``; None where there is one, or none.

        Every set of half of the tokens (rounded down), or 50 drawn with ``seed`` where there are more.
        """
        if self.token_scores is None:
            return None
        return token_stability(self.frame, self.token_scores, n_layers=self.n_layers, rule=rule, seed=seed)

    def facts(self, *, rule: str | None = "auto") -> dict[str, Any]:
        """The scores' entry in a run's manifest: refusal tokens, measure, unedited scores, prompts used.

        Under ``rule`` half of the refusal tokens is tried; not where it is None, no candidate being selected.
        """
        scores = {"harmful": round(self.base_harmful, 4), "harmless": round(self.base_harmless, 4)}
        stability = None if rule is None else self.token_stability(rule=rule)
        return {
            "refusal_tokens": asdict(self.refusal_tokens),
            "refusal_measure": self.measure.facts(),
            "token_stability": None if stability is None else asdict(stability),
            "base_refusal_score": scores,
            "validation_prompts_used": {"harmful": self.n_harmful, "harmless": self.n_harmless},
            "share_of_prompts_scored": round(self.cost, 4),
            **({"directions_of": self.directions.model} if self.other_weights else {}),
        }

    @property
    def refusal_tokens(self) -> RefusalTokens:
        """The first tokens of refusals, whether or not the scores are about them."""
        return self.measure.refusal_tokens

    @property
    def model_name(self) -> str:
        return self.directions.model

    @property
    def selected_layer(self) -> int | None:
        """The layer that the ``auto`` rule selects; None when it leaves none."""
        try:
            return self.select().layer
        except MechsafetyError:
            return None

    @property
    def selected_position(self) -> int | None:
        """The position of that candidate."""
        try:
            return self.select().position
        except MechsafetyError:
            return None

    @drawn
    def plot(self, *, position: int | None = None, **_look: Unpack[Look]) -> go.Figure:
        """Scores by layer of every position that was swept: ``position`` boldly, the others faintly.

        By default that of the selected candidate, which is marked where it stands at ``position``; the last one where
        nothing is selected.
        """
        from mechsafety.sweeps import figures

        return figures.layer_sweep(self, position=position)

    def to_frame(self) -> pd.DataFrame:
        """One row per candidate, with the columns of :data:`SCORE_COLUMNS`."""
        return self.frame.copy()

    def describe(self) -> str:
        positions = ", ".join(map(str, sorted(self.frame["position"].unique())))
        chosen = self.selected_layer
        found = (
            "none selected"
            if chosen is None
            else f"layer {chosen}, position {self.selected_position} selected"
        )
        head = f"Sweep({len(self.frame)} candidates of {self.model_name!r}: positions {positions}; {found})\n"
        if not self.labelled:
            return f"{head}{self.n_harmful} prompts without labels, unedited score {self.base_harmful:.2f}"
        return (
            f"{head}{self.n_harmful} harmful and {self.n_harmless} harmless prompts, unedited refusal scores "
            f"{self.base_harmful:.2f} and {self.base_harmless:.2f}"
        )

    def _repr_html_(self) -> str:
        return self.frame.round(3).to_html(index=False, border=0)


@with_progress
def sweep(
    model: ModelLike,
    directions: Directions,
    prompts: PromptsLike,
    *,
    refusal_tokens: TokensLike | None = None,
    measure: MeasureChoice | None = None,
    score: Callable[[Tensor], Any] | None = None,
    layers: int | Sequence[int] | None = None,
    batch_size: int = 64,
    fast_path: bool = True,
    journal: Journal | None = None,
    truncate_prompts: bool = False,
    racing: bool = False,
    threshold: float | None = None,
    seed: int = 0,
    allow_other_weights: bool = False,
    progress: bool = True,  # noqa: ARG001 - with_progress reads it
) -> Sweep:
    """Score every direction on ``prompts`` (the validation split: harmful and harmless).

    Scores are by ``measure``, which :func:`mechsafety.sweeps.measures.refusal_measure` takes on these prompts, here too
    where none is given: of ``refusal_tokens``, or of the first tokens that harmful prompts make likelier, or of written
    answers where these tell more. Or they are what ``score`` makes of the logits [prompt, vocabulary] of the first
    token of the answer, one number per prompt, higher where the model refuses: ``bypass`` is then its mean over
    harmful prompts with the direction projected out, ``induce`` that over harmless prompts with it added. With
    ``score`` the prompts need no labels: where none has one, all three columns (``kl`` too) are about all of them, and
    there is no ``auroc``.

    Prompts that the unedited model treats against their label (harmful ones that score no higher, or harmless ones that
    score no lower, than ``threshold``: the middle between the means of the classes by default, 0 in the source) are
    left out where at least 8 of a label remain. Zero vectors score NaN. With ``racing`` candidates that cannot come
    among the first are not scored on all prompts (:func:`mechsafety.sweeps.racing.race`, with ``seed``), and those in
    the last fifth of the layers, which no rule selects, on none. Without ``fast_path`` the sweep runs one candidate at
    a time and gives the same numbers. ``journal`` keeps every finished candidate; those it holds already are not run
    again, and those of another model, other directions or other prompts are an error.

    Directions of a model with other weights are refused unless ``allow_other_weights``, which ``Sweep.facts`` then
    records. Raises :class:`MechsafetyError` when the directions were found on another model, for one class only, no
    prompts, a layer that does not exist, a measure of other prompts, and prompts longer than the model's window
    (``truncate_prompts`` cuts their texts instead).

    Arguments:
        directions: What is scored, of ms.find_directions.

    Returns:
        The scores, one row per position and layer.

    Example:
        >>> swept = ms.sweep(model, directions, prompts.validation, layers=(1, 2), progress=False)
        >>> list(swept.to_frame()["layer"])
        [1, 2]
        >>> chosen = swept.nearest()  # the candidate that comes nearest to what the rule asks for
        >>> direction = directions.at(layer=chosen.layer, position=chosen.position)
    """
    model = as_model(model)
    prompts = as_prompt_set(prompts, empty=True)
    import pandas as pd

    require_same_model(model, directions, allow_other_weights=allow_other_weights)
    labelled = score is None or any(prompt.label for prompt in prompts)
    _check_prompts(prompts, labelled=labelled)
    if not labelled:
        prompts = _under_both_labels(prompts)
    if truncate_prompts:
        prompts, _ = truncated(model, prompts, new_tokens=0)
    chosen = _checked_layers(layers, directions.n_layers)
    if score is not None:
        if measure is not None:
            raise MechsafetyError(
                "score= and measure= exclude each other: what is measured is one of the two"
            )
        measure = own_measure(model, prompts, score, refusal_tokens=refusal_tokens, batch_size=batch_size)
        fast_path = False  # its batches hold probabilities of tokens, not logits
    elif measure is None:
        measure = refusal_measure(model, prompts, refusal_tokens=refusal_tokens, batch_size=batch_size)
    elif measure.prompts_sha256 != prompts.sha256():
        raise MechsafetyError(
            "this measure was taken on other prompts: take one with refusal_measure() on these"
        )
    score_a, score_b = measure.harmful.scores, measure.harmless.scores
    keep_a, keep_b = (
        rows_as_labelled(score_a, score_b, threshold)
        if labelled
        else (list(range(len(score_a))), list(range(len(score_b))))
    )
    harmful, harmless = measure.passes
    validation = Validation(
        harmful=[harmful.sequences[i] for i in keep_a],
        harmless=[harmless.sequences[i] for i in keep_b],
        base_harmless=harmless.logits[keep_b],
        measure=measure.taken,
        batch_size=batch_size,
    )
    if journal is not None:
        journal.bind(
            model=current_fingerprint(model),
            **chat_bound(model),
            directions=directions.sha256(),
            prompts=prompts.sha256(),
            measure=measure.taken.made_from(),
            threshold=threshold,
        )
    reading: dict[str, Any] = {"positions": directions.positions, "final_norm": directions.final_norm}
    cache = residual_stream(model, prompts, **reading, batch_size=batch_size)
    candidates = candidates_of(directions, chosen)
    unedited = Unedited(harmful=score_a[keep_a].numpy(), harmless=score_b[keep_b].numpy())
    scored = score_all(
        model, validation, candidates, unedited, fast=fast_path, journal=journal, racing=racing, seed=seed
    )
    gap_low, gap_high = _gap_interval(score_a.numpy(), score_b.numpy())
    rows: list[dict[str, Any]] = []
    kept: list[CandidateScores] = []
    held_out = cache.select("harmful"), cache.select("harmless")
    read = directions.vectors if directions.covectors is None else directions.covectors
    for row, position in enumerate(directions.positions):
        for layer in chosen:
            one, a, b = scored.of((position, layer))
            kept.append(one)
            rows.append(
                {
                    "position": position,
                    "layer": layer,
                    "norm": float(directions.vectors[row, layer].norm()),
                    "stability": float(directions.stability[row, layer]),
                    "split_half": float(directions.split_half[row, layer]),
                    "auroc": projection_auroc(
                        held_out[0][:, row, layer], held_out[1][:, row, layer], read[row, layer]
                    )
                    if labelled
                    else math.nan,
                    "bypass": float(one.bypass[a].mean()),
                    "induce": float(one.induce[b].mean()),
                    "kl": float(one.kl[b].mean()),
                    "harmful": float(unedited.harmful[a].mean()) if a else math.nan,
                    "harmless": float(unedited.harmless[b].mean()) if b else math.nan,
                    "gap_low": gap_low,
                    "gap_high": gap_high,
                    "n_harmful": len(a),
                    "n_harmless": len(b),
                }
            )
    return Sweep(
        frame=with_shares(pd.DataFrame(rows))[list(SCORE_COLUMNS)],
        directions=directions,
        measure=measure,
        base_harmful=float(unedited.harmful.mean()),
        base_harmless=float(unedited.harmless.mean()),
        n_harmful=len(keep_a),
        n_harmless=len(keep_b),
        n_layers=model.cfg.n_layers,
        scores=tuple(kept),
        unedited=unedited,
        token_scores=_token_scores(scored, directions, chosen, measure, (keep_a, keep_b)),
        cost=scored.cost,
        other_weights=other_weights(model, directions),
        labelled=labelled,
    )


def _token_scores(
    scored: AllScores,
    directions: Directions,
    layers: Sequence[int],
    measure: MeasureChoice,
    kept: tuple[list[int], list[int]],
) -> TokenScores | None:
    """P of every refusal token in the order of the table's rows; None for written answers."""
    if scored.tokens is None or measure.harmful.tokens is None or measure.harmless.tokens is None:
        return None
    bypass, induce = scored.tokens
    rows = [scored.places.get((position, layer)) for position in directions.positions for layer in layers]
    nothing = (np.full(part.shape[1:], math.nan) for part in (bypass, induce))
    no_bypass, no_induce = nothing
    return TokenScores(
        bypass=np.stack([no_bypass if at is None else bypass[at] for at in rows]),
        induce=np.stack([no_induce if at is None else induce[at] for at in rows]),
        harmful=measure.harmful.tokens[kept[0]].numpy(),
        harmless=measure.harmless.tokens[kept[1]].numpy(),
    )


def _gap_interval(harmful: Float[np.ndarray, " a"], harmless: Float[np.ndarray, " b"]) -> tuple[float, float]:
    """Welch's 95 % interval of the difference of the class means; NaN for fewer than two prompts of a class."""
    from scipy.stats import ttest_ind

    if min(len(harmful), len(harmless)) < 2 or max(np.ptp(harmful), np.ptp(harmless)) == 0:
        return math.nan, math.nan
    found: Any = ttest_ind(harmful, harmless, equal_var=False)
    interval = found.confidence_interval()
    return float(interval.low), float(interval.high)


def _under_both_labels(prompts: PromptSet) -> PromptSet:
    """Each prompt once for what is measured of harmful prompts, and once for what is measured of harmless ones."""
    both = [replace(p, id=f"{p.id} ({label})", label=label) for label in LABELS for p in prompts]
    return PromptSet(tuple(both), prompts.name)


def _check_prompts(prompts: PromptSet, *, labelled: bool) -> None:
    if not len(prompts):
        raise MechsafetyError(
            "no validation prompts: a sweep needs held-out ones, in a split 'validation' of the prompt set"
        )
    if not any(prompt.label for prompt in prompts) and labelled:
        how = way(
            "give their file a column label",
            "load them with labels, e.g. ms.load_prompts(data, label=...), or give a score= of your own, which needs "
            "none",
        )
        raise MechsafetyError(f"none of these {len(prompts)} prompts has a label: {how}")
    if labelled:
        require_classes(prompts, "sweep layers")


def _checked_layers(layers: int | Sequence[int] | None, n: int) -> tuple[int, ...]:
    chosen = tuple(range(n)) if layers is None else tuple(dict.fromkeys(whole_numbers(layers, "layers")))
    wrong = [layer for layer in chosen if not 0 <= layer < n]
    if wrong or not chosen:
        raise MechsafetyError(
            f"layers {', '.join(map(str, wrong)) or '(none)'} do not exist: this model's are 0 to {n - 1}"
        )
    return chosen


def projection_auroc(
    harmful: Float[Tensor, "a d_model"],
    harmless: Float[Tensor, "b d_model"],
    vector: Float[Tensor, " d_model"],
) -> float:
    """AUROC of the projection on ``vector``, harmful as the positive class; NaN for a zero vector."""
    from sklearn.metrics import roc_auc_score

    if not float(vector.norm()):
        return float("nan")
    scores = torch.cat([harmful, harmless]) @ vector
    truth = [1] * len(harmful) + [0] * len(harmless)
    return float(roc_auc_score(truth, scores.numpy()))
