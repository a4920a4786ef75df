"""Racing finds what scoring every candidate on every prompt finds, at a fraction of the cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mechsafety.runs.journal import Journal
from mechsafety.sweeps.candidates import BatchedScorer
from mechsafety.sweeps.racing import Scored, Unedited, exhaustive, race, rounds
from mechsafety.sweeps.ranking import first_late_layer, shortlist
from mechsafety.sweeps.selection import nearest, select
from mechsafety.sweeps.sweep import sweep
from tests.prompt_sets import small_prompts
from tests.sweeps.test_sweep import TOKENS, directions_of

N_LAYERS, POSITIONS = 24, (-5, -4, -3, -2, -1)
PLACES = [(position, layer) for position in POSITIONS for layer in range(1, N_LAYERS)]


def drawn(seed: int, *, n: int = 32, noise: float = 0.35) -> tuple[Scored, Unedited]:
    """Scores as sweeps look: what is removed and caused rises and falls over layers, KL falls, prompts differ."""
    generator = np.random.default_rng(seed)
    unedited = Unedited(harmful=generator.normal(4, 2, n), harmless=generator.normal(-4, 2, n))
    gap = unedited.harmful.mean() - unedited.harmless.mean()
    layers = np.array([layer for _, layer in PLACES])
    middle = generator.uniform(8, 18)
    hump = np.exp(-(((layers - middle) / generator.uniform(3, 6)) ** 2))
    hump = hump * np.array([1.0 if p == -1 else generator.uniform(0.2, 1.0) for p, _ in PLACES])
    removed = 1.2 * hump + generator.normal(0, 0.05, len(PLACES))
    caused = 0.9 * hump + generator.normal(0, 0.05, len(PLACES))
    kl = np.exp(generator.normal(-2.5, 0.7, len(PLACES)) + 1.5 * (layers < 6))
    shared_a, shared_b = generator.normal(0, noise, n), generator.normal(0, noise, n)

    def around(mean: Any, shared: Any) -> Any:
        return mean[:, None] + shared + generator.normal(0, noise / 2, (len(PLACES), n))

    return (
        Scored(
            bypass=unedited.harmful - gap * around(removed, shared_a),
            induce=unedited.harmless + gap * around(caused, shared_b),
            kl=kl[:, None] * generator.gamma(2.0, 0.5, (len(PLACES), n)),
        ),
        unedited,
    )


def looked_up(scores: Scored) -> Callable[[Sequence[int], Sequence[int], Sequence[int]], Scored]:
    def score(some: Sequence[int], harmful: Sequence[int], harmless: Sequence[int]) -> Scored:
        rows = list(some)
        return Scored(
            bypass=scores.bypass[np.ix_(rows, list(harmful))],
            induce=scores.induce[np.ix_(rows, list(harmless))],
            kl=scores.kl[np.ix_(rows, list(harmless))],
        )

    return score


def table_of(raced: Any, unedited: Unedited) -> pd.DataFrame:
    found = raced.scores
    rows = []
    for at, (position, layer) in enumerate(PLACES):
        a = list(raced.harmful_order[: raced.n_harmful[at]])
        b = list(raced.harmless_order[: raced.n_harmless[at]])
        nothing = float("nan")
        rows.append(
            {
                **{"position": position, "layer": layer, "n_harmful": len(a), "n_harmless": len(b)},
                "bypass": found.bypass[at, a].mean() if a else nothing,
                "induce": found.induce[at, b].mean() if b else nothing,
                "kl": found.kl[at, b].mean() if b else nothing,
                "harmful": unedited.harmful[a].mean() if a else nothing,
                "harmless": unedited.harmless[b].mean() if b else nothing,
            }
        )
    return pd.DataFrame(rows)


def both(seed: int, **options: Any) -> tuple[pd.DataFrame, pd.DataFrame, float]:
    scores, unedited = drawn(seed, **options)
    layers = [layer for _, layer in PLACES]
    raced = race(looked_up(scores), unedited, layers, n_layers=N_LAYERS, seed=seed)
    whole = exhaustive(looked_up(scores), len(PLACES), *scores.bypass.shape[1:], scores.kl.shape[1])
    return table_of(raced, unedited), table_of(whole, unedited), raced.cost


def test_racing_finds_the_first_candidates_at_a_third_of_the_cost() -> None:
    firsts, lists, costs = [], [], []
    for seed in range(30):
        raced, whole, cost = both(seed)
        firsts.append(nearest(raced, n_layers=N_LAYERS).layer == nearest(whole, n_layers=N_LAYERS).layer)
        lists.append(shortlist(raced, n_layers=N_LAYERS) == shortlist(whole, n_layers=N_LAYERS))
        costs.append(cost)
    assert np.mean(firsts) >= 0.95
    assert np.mean(lists) >= 0.85
    assert np.mean(costs) <= 1 / 3
    # The control: as many prompts, the same ones for every candidate, find the first ones less often.
    blind = []
    for seed in range(30):
        scores, unedited = drawn(seed)
        few = Scored(bypass=scores.bypass[:, :9], induce=scores.induce[:, :9], kl=scores.kl[:, :9])
        some = Unedited(harmful=unedited.harmful[:9], harmless=unedited.harmless[:9])
        short = table_of(exhaustive(looked_up(few), len(PLACES), 9, 9), some)
        whole = table_of(exhaustive(looked_up(scores), len(PLACES), 32, 32), unedited)
        blind.append(shortlist(short, n_layers=N_LAYERS) == shortlist(whole, n_layers=N_LAYERS))
    assert np.mean(blind) < np.mean(lists) - 0.2


def test_what_is_left_has_the_scores_of_the_exhaustive_table() -> None:
    raced, whole, _ = both(3)
    left = raced["n_harmful"] == raced["n_harmful"].max()
    assert 5 <= left.sum() < len(raced) / 2
    columns = ["bypass", "induce", "kl", "harmful", "harmless"]
    pd.testing.assert_frame_equal(raced.loc[left, columns], whole.loc[left, columns])
    late = raced["layer"] >= first_late_layer(N_LAYERS)
    assert (raced.loc[late, "n_harmful"] == 0).all()
    assert select(raced, n_layers=N_LAYERS) is not None


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("constant", "factor"), [(40.0, 1.0), (0.0, 7.0), (-3.0, 0.01)])
def test_no_race_depends_on_the_zero_or_the_unit_of_the_scores(
    seed: int, constant: float, factor: float
) -> None:
    scores, unedited = drawn(seed)
    layers = [layer for _, layer in PLACES]
    moved = Scored(
        bypass=factor * scores.bypass + constant, induce=factor * scores.induce + constant, kl=scores.kl
    )
    other = Unedited(
        harmful=factor * unedited.harmful + constant, harmless=factor * unedited.harmless + constant
    )
    counts = [
        race(looked_up(s), u, layers, n_layers=N_LAYERS, seed=0).n_harmful.tolist()
        for s, u in ((scores, unedited), (moved, other))
    ]
    assert counts[0] == counts[1]
    assert len(set(counts[0])) > 2


def test_candidates_without_finite_scores_are_not_raced_on() -> None:
    scores, unedited = drawn(0)
    broken = [PLACES.index((-1, layer)) for layer in (10, 12, 14)]
    scores.kl[broken] = np.nan
    layers = [layer for _, layer in PLACES]
    raced = race(looked_up(scores), unedited, layers, n_layers=N_LAYERS, seed=0)
    assert set(raced.n_harmful[broken]) == {rounds(32)[0]}


@pytest.mark.parametrize(("n", "sizes"), [(2, [2]), (6, [6]), (7, [6, 7]), (32, [6, 12, 24, 32])])
def test_rounds_double_and_end_with_all_prompts(n: int, sizes: list[int]) -> None:
    assert rounds(n) == sizes


@pytest.mark.parametrize("n", [(2, 2), (3, 40), (40, 5)])
def test_uneven_and_tiny_classes_are_raced_to_the_end(n: tuple[int, int]) -> None:
    scores, unedited = drawn(1, n=40)
    a, b = n
    some = Scored(bypass=scores.bypass[:, :a], induce=scores.induce[:, :b], kl=scores.kl[:, :b])
    few = Unedited(harmful=unedited.harmful[:a], harmless=unedited.harmless[:b])
    layers = [layer for _, layer in PLACES]
    raced = race(looked_up(some), few, layers, n_layers=N_LAYERS, seed=0)
    assert (raced.n_harmful.max(), raced.n_harmless.max()) == n


@pytest.mark.parametrize(
    "architecture", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "gemma2", "qwen2"))]
)
@pytest.mark.parametrize("fast_path", [True, False])
def test_a_raced_sweep_scores_what_it_scores_as_an_exhaustive_one(
    tiny_kept: Callable[..., Any], architecture: str, fast_path: bool
) -> None:
    model, prompts = tiny_kept(architecture), small_prompts(30).validation
    directions = directions_of(model, positions=(-2, -1))
    options: dict[str, Any] = {"refusal_tokens": TOKENS, "batch_size": 7, "fast_path": fast_path}
    raced = sweep(model, directions, prompts, racing=True, **options)
    whole = sweep(model, directions, prompts, **options)
    assert raced.cost < 1 == whole.cost
    for a, b in zip(raced.scores, whole.scores, strict=True):
        for name in ("bypass", "induce", "kl"):
            taken = ~torch.isnan(getattr(a, name))
            torch.testing.assert_close(getattr(a, name)[taken], getattr(b, name)[taken], rtol=0, atol=1e-4)
    counts = raced.to_frame()["n_harmful"]
    late = raced.to_frame()["layer"] >= first_late_layer(model.cfg.n_layers)
    assert (counts[late] == 0).all()
    assert counts.max() == whole.to_frame()["n_harmful"].max()
    full = counts == counts.max()
    columns = ["bypass", "induce", "kl", "harmful", "harmless"]
    pd.testing.assert_frame_equal(
        raced.to_frame().loc[full, columns], whole.to_frame().loc[full, columns], rtol=0, atol=1e-4
    )


def test_an_interrupted_race_goes_on_from_its_journal(
    tiny_kept: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = tiny_kept("llama"), small_prompts(60).validation
    directions = directions_of(model, positions=(-2, -1))
    options: dict[str, Any] = {"refusal_tokens": TOKENS, "racing": True}
    whole = sweep(model, directions, prompts, **options)
    score, calls = BatchedScorer.score, []

    def third(self: BatchedScorer, candidates: Any, *prompts: Any) -> Any:
        calls.append(len(candidates))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(self, candidates, *prompts)

    monkeypatch.setattr(BatchedScorer, "score", third)
    path = tmp_path / "journal.jsonl"
    with pytest.raises(KeyboardInterrupt):
        sweep(model, directions, prompts, journal=Journal(path), **options)
    resumed = sweep(model, directions, prompts, journal=Journal(path), **options)
    pd.testing.assert_frame_equal(resumed.to_frame(), whole.to_frame())
    calls.clear()
    pd.testing.assert_frame_equal(
        sweep(model, directions, prompts, journal=Journal(path), **options).to_frame(), whole.to_frame()
    )
    assert not calls


def test_one_class_only_is_refused(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    with pytest.raises(Exception, match="none is harmless"):
        sweep(model, directions_of(model), small_prompts().validation.harmful, racing=True)
