"""Scores per (position, layer): how far a direction separates, removes and induces refusal.

One row per candidate. ``bypass`` is the mean refusal score of harmful prompts while the direction is
projected out everywhere; ``induce`` that of harmless prompts with the direction added at its own layer;
``kl`` the divergence that the projection causes on harmless prompts (Arditi et al. 2024, section 2.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import bar
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Direction, Directions
from mechsafety.generation.bodies import body_under
from mechsafety.models.loading import current_fingerprint, known_fingerprint, model_name
from mechsafety.models.prefixes import all_last_logits
from mechsafety.prompts.fed import fitting, truncated
from mechsafety.prompts.prompt_set import Prompt, PromptSet
from mechsafety.runs.folder import Journal
from mechsafety.sweeps.candidates import (
    BatchedScorer,
    Candidate,
    CandidateScores,
    Validation,
    candidates_of,
    has_fast_path,
    score_plain,
)
from mechsafety.sweeps.refusal_scores import RefusalTokens, derive_refusal_tokens, refusal_scores
from mechsafety.sweeps.selection import Selection, select, selection_stability

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from transformer_lens.model_bridge import TransformerBridge

SCORE_COLUMNS = ("position", "layer", "norm", "stability", "split_half", "auroc", "bypass", "induce", "kl")
_ROWS_A_CHUNK = 256  # of candidate x prompt: enough that batches hold prompts of like length


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The table of scores, and what it was measured against.

    ``base_harmful`` and ``base_harmless`` are the unedited model's mean refusal scores. ``scores`` holds the
    score of every prompt under every candidate, in the order of the table's rows.
    """

    table: pd.DataFrame
    directions: Directions
    refusal_tokens: RefusalTokens
    base_harmful: float
    base_harmless: float
    n_harmful: int
    n_harmless: int
    n_layers: int
    scores: tuple[CandidateScores, ...]

    def select(self, *, rule: str = "auto") -> Selection:
        """The selected candidate and what every filter dropped; see :func:`select`."""
        return select(self.table, n_layers=self.n_layers, rule=rule)

    def best(self, *, rule: str = "auto") -> Direction:
        """The selected direction."""
        chosen = self.select(rule=rule)
        return self.directions.at(layer=chosen.layer, position=chosen.position)

    def stability(self, *, seed: int, rule: str = "auto", resamples: int = 200) -> pd.DataFrame:
        """How often the rule picks each candidate when the prompts are drawn again, with replacement.

        Columns position, layer, share; the row with no layer is the share in which nothing passed.
        """
        return selection_stability(
            self.table,
            bypass=torch.stack([s.bypass for s in self.scores]).numpy(),
            induce=torch.stack([s.induce for s in self.scores]).numpy(),
            kl=torch.stack([s.kl for s in self.scores]).numpy(),
            n_layers=self.n_layers,
            rule=rule,
            resamples=resamples,
            seed=seed,
        )

    def facts(self) -> dict[str, Any]:
        """The scores' entry in a run's manifest: refusal tokens, unedited scores, prompts used."""
        scores = {"harmful": round(self.base_harmful, 4), "harmless": round(self.base_harmless, 4)}
        return {
            "refusal_tokens": asdict(self.refusal_tokens),
            "base_refusal_score": scores,
            "validation_prompts_used": {"harmful": self.n_harmful, "harmless": self.n_harmless},
        }

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

    def plot(self) -> go.Figure:
        """Scores by layer at the selected position, as a plotly figure; the other positions faintly."""
        from mechsafety.sweeps import figures

        return figures.layer_sweep(self)

    def _repr_html_(self) -> str:
        return self.table.round(3).to_html(index=False, border=0)


def sweep(
    model: TransformerBridge,
    directions: Directions,
    prompts: PromptSet,
    *,
    refusal_tokens: RefusalTokens | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int = 64,
    fast_path: bool = True,
    journal: Journal | None = None,
    truncate_prompts: bool = False,
) -> Sweep:
    """Score every direction on ``prompts`` (the validation split: harmful and harmless).

    Prompts that the unedited model treats against their label (harmful with score <= 0, harmless with
    score >= 0) are left out where at least 8 of a label remain, as in the source. Zero vectors score NaN.
    Without ``fast_path`` the sweep runs one candidate at a time and gives the same numbers. ``journal`` keeps every
    finished candidate; those it holds already are not run again, and those of another model, other directions or
    other prompts are an error.

    Raises :class:`MechsafetyError` when the directions were found on another model, for one class only, no
    prompts, a layer that does not exist, and prompts longer than the model's window (``truncate_prompts`` cuts their
    texts instead).
    """
    import pandas as pd

    _check_same_model(model, directions)
    _check_prompts(prompts)
    if truncate_prompts:
        prompts, _ = truncated(model, prompts, new_tokens=0)
    chosen = _checked_layers(layers, directions.n_layers)
    harmful, base_harmful = _first_pass(model, prompts.harmful, batch_size)
    harmless, base_harmless = _first_pass(model, prompts.harmless, batch_size)
    tokens = refusal_tokens or derive_refusal_tokens(
        base_harmful, base_harmless, decode=lambda i: str(model.tokenizer.decode([i]))
    )
    keep_a = _as_labelled(refusal_scores(base_harmful, tokens.ids) > 0)
    keep_b = _as_labelled(refusal_scores(base_harmless, tokens.ids) < 0)
    validation = Validation(
        harmful=[harmful[i] for i in keep_a],
        harmless=[harmless[i] for i in keep_b],
        base_harmless=base_harmless[keep_b],
        refusal_ids=tokens.ids,
        batch_size=batch_size,
    )
    if journal is not None:
        journal.bind(
            model=current_fingerprint(model),
            directions=directions.sha256(),
            prompts=prompts.sha256(),
            refusal_tokens=list(tokens.ids),
        )
    cache = residual_stream(model, prompts, positions=directions.positions, batch_size=batch_size)
    candidates = candidates_of(directions, chosen)
    scored = _score_all(model, validation, candidates, fast=fast_path, journal=journal)
    rows: list[dict[str, Any]] = []
    kept: list[CandidateScores] = []
    for row, position in enumerate(directions.positions):
        for layer in chosen:
            one = scored.get((position, layer)) or _no_scores(len(keep_a), len(keep_b))
            read = directions.vectors if directions.covectors is None else directions.covectors
            kept.append(one)
            rows.append(
                {
                    "position": position,
                    "layer": layer,
                    "norm": float(directions.vectors[row, layer].norm()),
                    "stability": float(directions.stability[row, layer]),
                    "split_half": float(directions.split_half[row, layer]),
                    "auroc": projection_auroc(
                        cache.select("harmful")[:, row, layer],
                        cache.select("harmless")[:, row, layer],
                        read[row, layer],
                    ),
                    "bypass": float(one.bypass.mean()),
                    "induce": float(one.induce.mean()),
                    "kl": float(one.kl.mean()),
                }
            )
    return Sweep(
        table=pd.DataFrame(rows, columns=list(SCORE_COLUMNS)),
        directions=directions,
        refusal_tokens=tokens,
        base_harmful=float(refusal_scores(base_harmful, tokens.ids)[keep_a].mean()),
        base_harmless=float(refusal_scores(base_harmless, tokens.ids)[keep_b].mean()),
        n_harmful=len(keep_a),
        n_harmless=len(keep_b),
        n_layers=model.cfg.n_layers,
        scores=tuple(kept),
    )


Place = tuple[int, int]


def _score_all(
    model: TransformerBridge,
    validation: Validation,
    candidates: Mapping[Place, Candidate],
    *,
    fast: bool,
    journal: Journal | None,
) -> dict[Place, CandidateScores]:
    """Scores by (position, layer): from the journal where it has them, else run and written there."""
    done = {place: _from_journal(journal, place) for place in candidates}
    scored = {place: scores for place, scores in done.items() if scores is not None}
    todo = {place: c for place, c in candidates.items() if place not in scored}
    batched = fast and has_fast_path(model)
    with bar("layer sweep", total=len(candidates), unit="candidate") as progress:
        progress.update(len(scored))
        scorer = BatchedScorer(model, validation) if batched and todo else None
        n_prompts = len(validation.harmful) + len(validation.harmless)
        for chunk in _chunks(todo, least=max(1, _ROWS_A_CHUNK // n_prompts) if scorer else 1):
            some = [todo[place] for place in chunk]
            found = scorer.score(some) if scorer else [score_plain(model, validation, one) for one in some]
            for place, scores in zip(chunk, found, strict=True):
                scored[place] = scores
                _to_journal(journal, place, scores)
            progress.update(len(chunk))
    return scored


def _chunks(todo: Mapping[Place, Candidate], *, least: int) -> Iterator[list[Place]]:
    """Places in chunks of ``least`` or more that never part the positions of a layer."""
    chunk: list[Place] = []
    for place, one in todo.items():
        if len(chunk) >= least and todo[chunk[-1]].layer != one.layer:
            yield chunk
            chunk = []
        chunk.append(place)
    if chunk:
        yield chunk


def _from_journal(journal: Journal | None, place: Place) -> CandidateScores | None:
    stored = journal.get(_key(place)) if journal is not None else None
    if stored is None:
        return None
    parts = {
        name: torch.tensor([float("nan") if v is None else v for v in stored[name]], dtype=torch.float64)
        for name in ("bypass", "induce", "kl")
    }
    return CandidateScores(**parts)


def _to_journal(journal: Journal | None, place: Place, scores: CandidateScores) -> None:
    if journal is not None:
        # JSON has no NaN.
        parts = {
            name: [None if v != v else v for v in getattr(scores, name).tolist()]
            for name in ("bypass", "induce", "kl")
        }
        journal.put(_key(place), parts)


def _key(place: Place) -> str:
    return f"{place[0]},{place[1]}"


def _no_scores(n_harmful: int, n_harmless: int) -> CandidateScores:
    def nothing(n: int) -> Tensor:
        return torch.full((n,), float("nan"), dtype=torch.float64)

    return CandidateScores(bypass=nothing(n_harmful), induce=nothing(n_harmless), kl=nothing(n_harmless))


def _check_prompts(prompts: PromptSet) -> None:
    if not len(prompts):
        raise MechsafetyError(
            "no validation prompts: a sweep needs held-out ones, in a split 'validation' of the prompt set"
        )
    for label in ("harmful", "harmless"):
        if not len(prompts.where(label=label)):
            raise MechsafetyError(
                f"a sweep needs harmful and harmless prompts; among these {len(prompts)} none is {label}"
            )


def _checked_layers(layers: Sequence[int] | None, n: int) -> tuple[int, ...]:
    chosen = tuple(range(n)) if layers is None else tuple(dict.fromkeys(layers))
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


def _first_pass(
    model: TransformerBridge, prompts: Sequence[Prompt], batch_size: int
) -> tuple[list[list[int]], Float[Tensor, "row vocabulary"]]:
    _, sequences = fitting(model, prompts, truncate=False)
    with body_under(model, None) as body:
        return sequences, all_last_logits(model, body, sequences, batch_size=batch_size)


def _as_labelled(agrees: Tensor, *, least: int = 8) -> list[int]:
    """Rows the model treats as their label asks; every row where too few do."""
    kept = agrees.nonzero().flatten().tolist()
    return kept if len(kept) >= least else list(range(len(agrees)))


def _check_same_model(model: TransformerBridge, directions: Directions) -> None:
    if directions.vectors.shape[-1] != model.cfg.d_model or directions.n_layers != model.cfg.n_layers + 1:
        raise MechsafetyError(
            f"directions of shape {list(directions.vectors.shape)} do not fit a model of {model.cfg.n_layers} "
            f"layers and d_model {model.cfg.d_model}"
        )
    if directions.fingerprint and known_fingerprint(model) != directions.fingerprint:
        raise MechsafetyError(
            f"these directions were found on {directions.model!r}, whose weights differ from {model_name(model)!r}'s"
        )
