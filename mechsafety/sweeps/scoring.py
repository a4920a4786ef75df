"""The scores of all candidates of a sweep: in chunks of candidates, each kept in the journal as it is finished."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mechsafety.core.progress import bar
from mechsafety.runs.journal import Journal
from mechsafety.sweeps.candidates import (
    BatchedScorer,
    Candidate,
    CandidateScores,
    Validation,
    has_fast_path,
    score_plain,
)
from mechsafety.sweeps.measures import TokenMeasure
from mechsafety.sweeps.racing import Raced, Scored, Unedited, exhaustive, race
from mechsafety.sweeps.selected import Place

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ROWS_A_CHUNK = 256
"""Of candidate x prompt: enough that batches hold prompts of like length."""


@dataclass(frozen=True, kw_only=True)
class AllScores:
    """Scores of every candidate with a direction, and the prompts of each class that they were taken on.

    ``tokens`` are P of the refusal tokens of harmful prompts (bypass) and harmless ones (induce), by candidate.
    """

    places: Mapping[Place, int]
    raced: Raced
    tokens: tuple[np.ndarray, np.ndarray] | None = None

    def of(self, place: Place) -> tuple[CandidateScores, list[int], list[int]]:
        """One candidate's scores, and the rows of harmful and of harmless prompts; NaN on all for a zero vector."""
        raced, at = self.raced, self.places.get(place)
        found = raced.scores
        if at is None:
            shape_a, shape_b = found.bypass.shape[1], found.kl.shape[1]
            nothing = (torch.full((n,), math.nan, dtype=torch.float64) for n in (shape_a, shape_b, shape_b))
            bypass, induce, kl = nothing
            return CandidateScores(bypass=bypass, induce=induce, kl=kl), [*range(shape_a)], [*range(shape_b)]
        rows_a = sorted(raced.harmful_order[: raced.n_harmful[at]])
        rows_b = sorted(raced.harmless_order[: raced.n_harmless[at]])
        bypass, induce, kl = (torch.from_numpy(part[at]) for part in (found.bypass, found.induce, found.kl))
        return CandidateScores(bypass=bypass, induce=induce, kl=kl), rows_a, rows_b

    @property
    def cost(self) -> float:
        return self.raced.cost


def score_all(
    model: TransformerBridge,
    validation: Validation,
    candidates: Mapping[Place, Candidate],
    unedited: Unedited,
    *,
    fast: bool,
    journal: Journal | None,
    racing: bool,
    seed: int,
) -> AllScores:
    """Scores of the candidates: from the journal where it has them, else run and written there."""
    places = list(candidates)
    scorer: BatchedScorer | None = None
    n_harmful, n_harmless = len(validation.harmful), len(validation.harmless)
    tokens: tuple[np.ndarray, np.ndarray] | None = None
    if isinstance(validation.measure, TokenMeasure):
        n_tokens = len(validation.measure.ids)
        tokens = (
            np.full((len(places), n_harmful, n_tokens), math.nan),
            np.full((len(places), n_harmless, n_tokens), math.nan),
        )

    def score(some: Sequence[int], harmful: Sequence[int], harmless: Sequence[int]) -> Scored:
        nonlocal scorer
        # The prompts are part of the key: a candidate that races has an entry for each round.
        rounds = f"{','.join(map(str, harmful))}|{','.join(map(str, harmless))}" if racing else ""
        keys = {places[at]: _key(places[at], rounds) for at in some}
        done = {place: _from_journal(journal, key) for place, key in keys.items()}
        scored = {place: scores for place, scores in done.items() if scores is not None}
        todo = {place: candidates[place] for place in keys if place not in scored}
        if fast and todo and scorer is None and has_fast_path(model):
            scorer = BatchedScorer(model, validation)
        n_prompts = len(harmful) + len(harmless)
        title = f"layer sweep, {n_prompts} prompts" if racing else "layer sweep"
        with bar(title, total=len(keys), unit="candidate") as progress:
            progress.update(len(scored))
            for chunk in _chunks(todo, least=max(1, ROWS_A_CHUNK // n_prompts) if scorer else 1):
                ones = [todo[place] for place in chunk]
                if scorer is not None:
                    found = scorer.score(ones, harmful, harmless)
                else:
                    found = [score_plain(model, validation, one, harmful, harmless) for one in ones]
                for place, scores in zip(chunk, found, strict=True):
                    scored[place] = scores
                    _to_journal(journal, keys[place], scores)
                progress.update(len(chunk))
        found = [scored[place] for place in keys]
        if tokens is not None:
            for at, one in zip(some, found, strict=True):
                assert one.bypass_tokens is not None
                assert one.induce_tokens is not None
                tokens[0][at, list(harmful)] = one.bypass_tokens.numpy()
                tokens[1][at, list(harmless)] = one.induce_tokens.numpy()
        sizes = dict(zip(_PARTS, (len(harmful), len(harmless), len(harmless)), strict=True))
        parts = {name: np.empty((len(keys), n)) for name, n in sizes.items()}
        for row, one in enumerate(found):
            for name in _PARTS:
                parts[name][row] = getattr(one, name).numpy()
        return Scored(**parts)

    layers = [layer for _, layer in places]
    if racing:
        raced = race(score, unedited, layers, n_layers=model.cfg.n_layers, seed=seed)
    else:
        raced = exhaustive(score, len(places), n_harmful, n_harmless)
    return AllScores(places={place: at for at, place in enumerate(places)}, raced=raced, tokens=tokens)


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


_PARTS = ("bypass", "induce", "kl")
_TOKEN_PARTS = ("bypass_tokens", "induce_tokens")


def _from_journal(journal: Journal | None, key: str) -> CandidateScores | None:
    stored = journal.get(key) if journal is not None else None
    if stored is None:
        return None
    # Token by token, so that no prompt at all still has a shape.
    parts = {name: torch.tensor(_with_nan(stored[name]), dtype=torch.float64).t() for name in stored}
    return CandidateScores(**parts)


def _to_journal(journal: Journal | None, key: str, scores: CandidateScores) -> None:
    if journal is not None:
        parts = {name: getattr(scores, name) for name in (*_PARTS, *_TOKEN_PARTS)}
        journal.put(key, {name: _with_null(p.t().tolist()) for name, p in parts.items() if p is not None})


def _with_null(values: list[Any]) -> list[Any]:
    """JSON has no NaN."""
    return [_with_null(v) if isinstance(v, list) else None if v != v else v for v in values]


def _with_nan(values: list[Any]) -> list[Any]:
    return [_with_nan(v) if isinstance(v, list) else math.nan if v is None else v for v in values]


def _key(place: Place, rounds: str) -> str:
    return f"{place[0]},{place[1]}" + (f"|{rounds}" if rounds else "")
