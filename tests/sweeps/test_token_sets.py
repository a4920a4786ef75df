"""Scores by some of the refusal tokens are those of a sweep that knows only these."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Directions, find_directions
from mechsafety.runs.journal import Journal
from mechsafety.sweeps.refusal_scores import RefusalTokens
from mechsafety.sweeps.selection import nearest, select
from mechsafety.sweeps.sweep import Sweep, sweep
from mechsafety.sweeps.token_sets import TokenScores, token_stability
from tests.prompt_sets import small_prompts

IDS = (5, 9, 20, 31)


def named(ids: tuple[int, ...]) -> RefusalTokens:
    return RefusalTokens(ids=ids, texts=tuple(map(str, ids)), weight=(1.0,) * len(ids), source="user")


def found_on(model: Any) -> Directions:
    return find_directions(residual_stream(model, small_prompts().fit, positions=(-2, -1)), resamples=1)


def run(model: Any, directions: Directions, ids: tuple[int, ...], **options: Any) -> Sweep:
    # Six prompts a class: none is left out, whatever it scores.
    return sweep(model, directions, small_prompts().validation, refusal_tokens=named(ids), **options)


def assert_scores(swept: Sweep, tokens: tuple[int, ...], table: pd.DataFrame, *, atol: float = 1e-9) -> None:
    assert swept.token_scores is not None
    means = swept.token_scores.means(tokens)
    for name in ("bypass", "induce", "harmful", "harmless"):
        np.testing.assert_allclose(
            np.broadcast_to(means[name], len(table)), table[name], rtol=0, atol=atol, equal_nan=True
        )


@pytest.mark.parametrize("fast_path", [True, False])
def test_scores_by_some_tokens_equal_a_sweep_with_these(
    tiny_kept: Callable[..., Any], tmp_path: Path, fast_path: bool
) -> None:
    model = tiny_kept("llama")
    directions, path = found_on(model), tmp_path / "journal.jsonl"
    whole = run(model, directions, IDS, fast_path=fast_path, journal=Journal(path))
    resumed = run(model, directions, IDS, fast_path=fast_path, journal=Journal(path))
    assert_scores(whole, (0, 1, 2, 3), whole.to_frame())
    for tokens in ((0, 1), (1, 3), (2,)):
        part = run(model, directions, tuple(IDS[i] for i in tokens), fast_path=fast_path)
        for swept in (whole, resumed):
            assert_scores(swept, tokens, part.to_frame())
        with pytest.raises(AssertionError):  # the control: another set scores otherwise
            assert_scores(whole, tokens, whole.to_frame(), atol=1e-3)


def test_a_race_leaves_no_scores_of_what_it_dropped(tiny_kept: Callable[..., Any]) -> None:
    model, prompts = tiny_kept("llama"), small_prompts(40).validation
    swept = sweep(
        model, found_on(model), prompts, refusal_tokens=named(IDS), racing=True, threshold=-1e3, seed=0
    )
    assert swept.cost < 1
    assert swept.token_scores is not None
    partial = (swept.to_frame()["n_harmful"] < 40) | (swept.to_frame()["n_harmless"] < 40)
    means = swept.token_scores.means((0, 1))
    assert np.isnan(means["bypass"][partial.to_numpy()]).all()
    whole = swept.to_frame()[~partial & swept.to_frame()["bypass"].notna()].index
    assert np.isfinite(means["bypass"][whole]).all()
    bypass = swept.token_scores.means(range(4))["bypass"]
    np.testing.assert_allclose(bypass[whole], swept.to_frame()["bypass"][whole], rtol=0, atol=1e-9)
    assert swept.token_stability() is not None


def test_prompts_that_a_sweep_leaves_out_are_left_out_here(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    swept = sweep(
        model, found_on(model), small_prompts(20).validation, refusal_tokens=named(IDS), layers=[1, 2]
    )
    assert swept.n_harmful < 20
    assert_scores(swept, (0, 1, 2, 3), swept.to_frame())


# -- the choice by half of the tokens -----------------------------------------------------------------


def made_up(share: np.ndarray) -> tuple[pd.DataFrame, TokenScores]:
    """A table and P of each token; of candidate k and token t the share ``share[k, t]`` is removed."""
    n, n_tokens = share.shape
    generator = np.random.default_rng(0)
    harmful = generator.uniform(0.1, 0.12, (16, n_tokens))
    harmless = harmful / 100
    scores = TokenScores(
        bypass=harmful[None] * (1 - share)[:, None] + harmless[None] * share[:, None],
        induce=np.broadcast_to(harmful, (n, 16, n_tokens)).copy(),
        harmful=harmful,
        harmless=harmless,
    )
    table = pd.DataFrame({"position": -1, "layer": range(n), "kl": np.linspace(0.01, 0.02, n)})
    return table.assign(**scores.means(range(n_tokens))), scores


def test_tokens_that_agree_change_nothing_and_those_that_do_not_do() -> None:
    agreeing = np.full((3, 4), 0.9) * [[1.0], [0.9], [0.8]]
    table, scores = made_up(agreeing)
    found = token_stability(table, scores, n_layers=10, rule="auto", seed=0)
    assert found is not None
    assert (found.n_tokens, found.size, found.sets, found.changed, found.none) == (4, 2, 6, 0.0, 0.0)
    # One candidate removes the first two tokens, another the last two, a third all of them nearly.
    table, scores = made_up(np.array([[1.0, 1.0, 0, 0], [0, 0, 1.0, 1.0], [0.95, 0.95, 0.95, 0.95]]))
    found = token_stability(table, scores, n_layers=10, rule="auto", seed=0)
    assert found is not None
    assert select(table, n_layers=10).layer == 2
    assert found.changed == pytest.approx(2 / 6)
    assert found.none == 0


def test_every_half_is_tried_or_fifty_of_them() -> None:
    for n, size, sets in ((2, 1, 2), (3, 1, 3), (5, 2, 10), (8, 4, 50)):
        table, scores = made_up(np.full((2, n), 0.9))
        found = token_stability(table, scores, n_layers=10, rule="auto", seed=0)
        assert found is not None
        assert (found.size, found.sets) == (size, sets)
    table, scores = made_up(np.full((2, 1), 0.9))
    assert token_stability(table, scores, n_layers=10, rule="auto", seed=0) is None


def test_the_shares_are_what_selecting_by_hand_gives(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    directions = found_on(model)
    swept = run(model, directions, IDS)
    found = swept.token_stability()
    assert found is not None

    def pick(table: pd.DataFrame) -> tuple[tuple[int, int], bool]:
        table = table.drop(columns=["gap_low", "gap_high"])
        try:
            chosen = select(table, n_layers=swept.n_layers)
        except MechsafetyError:
            chosen = nearest(table, n_layers=swept.n_layers)
            return (chosen.position, chosen.layer), False
        return (chosen.position, chosen.layer), True

    whole, _ = pick(swept.to_frame())
    picked = [pick(run(model, directions, ids).to_frame()) for ids in itertools.combinations(IDS, 2)]
    assert found.sets == len(picked)
    assert found.changed == pytest.approx(sum(place != whole for place, _ in picked) / len(picked))
    assert found.none == pytest.approx(sum(not passed for _, passed in picked) / len(picked))
    # What the model writes under a candidate says nothing about half of the tokens.
    confirmed = replace(swept, frame=swept.to_frame().assign(complied=float("nan")))
    assert confirmed.token_stability() == found
