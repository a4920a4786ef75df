"""Sweep scores equal a slow plain implementation, and mean what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mechsafety.activations import residual_stream
from mechsafety.directions import Directions, find_directions
from mechsafety.errors import MechsafetyError
from mechsafety.refusal_scores import (
    RefusalTokens,
    derive_refusal_tokens,
    kl_divergence,
    named_refusal_tokens,
    openings_of,
    refusal_scores,
)
from mechsafety.sweeps import separation, sweep
from tests.prompt_sets import small_prompts
from tests.reference.plain_sweep import kl, plain_llama_scores, refusal_score

TOKENS = RefusalTokens(ids=(5, 9), texts=("a", "b"), weight=(0.1, 0.1), source="user")


def directions_of(
    model: Any, *, method: Any = "mean_difference", positions: tuple[int, ...] = (-1,)
) -> Directions:
    return find_directions(
        residual_stream(model, small_prompts().fit, positions=positions), method=method, seed=0
    )


@pytest.mark.parametrize("method", ["mean_difference", "pca"])
def test_scores_equal_the_plain_reference(tiny: Callable[..., Any], method: str) -> None:
    model, prompts = tiny("llama"), small_prompts().validation
    directions = directions_of(model, method=method)
    swept = sweep(model, directions, prompts, refusal_tokens=TOKENS, batch_size=5)
    # A random model refuses nothing in particular, so no prompt is left out for its score.
    assert (swept.n_harmful, swept.n_harmless) == (6, 6)
    for row in swept.table.itertuples():
        vector = directions.vectors[0, row.layer]
        if row.layer == 0:
            # The last prompt token is the template's: its embedding is the same for every prompt.
            assert float(vector.norm()) == 0.0
            assert row.bypass != row.bypass
            continue
        if row.layer == model.cfg.n_layers:
            assert row.induce != row.induce
            continue
        scale = 1.0 if method == "mean_difference" else float(directions.gaps[0, row.layer])
        expected = plain_llama_scores(
            model,
            [p.text for p in prompts.harmful],
            [p.text for p in prompts.harmless],
            vector * scale,
            row.layer,
            TOKENS.ids,
        )
        assert row.bypass == pytest.approx(expected["bypass"], abs=1e-4)
        assert row.kl == pytest.approx(expected["kl"], abs=1e-4)
        assert row.induce == pytest.approx(expected["induce"], abs=1e-4)


def test_scores_are_their_formulas() -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)) * 3
    other = torch.randn(4, 30, generator=torch.Generator().manual_seed(1)) * 3
    for row in range(4):
        assert float(refusal_scores(logits, (3, 7))[row]) == pytest.approx(refusal_score(logits[row], (3, 7)))
        assert float(kl_divergence(logits, other)[row]) == pytest.approx(kl(logits[row], other[row]))
    assert float(kl_divergence(logits, logits).abs().max()) == 0.0
    certain = torch.zeros(1, 30)
    certain[0, 3] = 200.0
    assert torch.isfinite(refusal_scores(certain, (3,))).all()
    assert torch.isfinite(refusal_scores(certain, (4,))).all()


def test_separation_is_one_half_for_noise_and_one_for_a_gap() -> None:
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    v = torch.zeros(8)
    assert separation(x[:100], x[100:], v) != separation(x[:100], x[100:], v)
    v[2] = 1.0
    assert separation(x[:100], x[100:], v) == pytest.approx(0.5, abs=0.1)
    assert separation(x[:100] + 10 * v, x[100:], v) == 1.0
    assert separation(x[:100] + 10 * v, x[100:], -v) == 0.0


def test_refusal_tokens_are_those_that_harmful_prompts_make_likelier() -> None:
    harmful, harmless = torch.zeros(5, 20), torch.zeros(5, 20)
    harmful[:, 4] = 5.0
    harmful[:, 11] = 4.0
    harmless[:, 2] = 5.0
    found = derive_refusal_tokens(harmful, harmless, decode=str)
    assert found.ids == (4, 11)
    assert found.texts == ("4", "11")
    nothing = derive_refusal_tokens(harmless, harmless, decode=str)
    assert len(nothing.ids) == 1


def test_openings_are_counted_among_own_refusals() -> None:
    refusals = [[4, 1], [4, 2], [4], [7, 1], [9, 2], *[[4]] * 15]
    found = openings_of(refusals, decode=str)
    assert found is not None
    assert found.ids == (4,)
    assert found.weight == (0.9,)
    both = openings_of([[4], [7], [7]], decode=str)
    assert both is not None
    assert both.ids == (7, 4)
    assert openings_of([[4], [4], []], decode=str) is None


def test_named_refusal_tokens(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    found = named_refusal_tokens(model, ["sorry", "no"])
    assert model.tokenizer.convert_ids_to_tokens(list(found.ids)) == ["sorry", "no"]
    with pytest.raises(MechsafetyError, match="at least one token"):
        named_refusal_tokens(model, [" "])


def test_prompts_treated_against_their_label_are_left_out_only_where_enough_remain(
    tiny: Callable[..., Any],
) -> None:
    model = tiny("llama")
    prompts = small_prompts(20).validation
    swept = sweep(model, directions_of(model), prompts, layers=[1])
    assert 8 <= swept.n_harmful <= 20
    assert swept.base_harmful > 0 or swept.n_harmful == 20


def test_zero_vectors_score_nan(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    found = directions_of(model)
    vectors = found.vectors.clone()
    vectors[0, 2] = 0
    swept = sweep(model, Directions(**{**vars(found), "vectors": vectors}), small_prompts().validation)
    row = swept.table.set_index("layer").loc[2]
    assert row[["auroc", "bypass", "induce", "kl"]].isna().all()
    assert swept.table.set_index("layer").loc[1].notna().all()


def test_every_post_instruction_position_is_scored(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    swept = sweep(model, directions_of(model, positions=(-2, -1)), small_prompts().validation, layers=[0, 3])
    assert swept.table[["position", "layer"]].to_numpy().tolist() == [[-2, 0], [-2, 3], [-1, 0], [-1, 3]]


def test_directions_of_other_weights_or_shapes_are_refused(tiny: Callable[..., Any]) -> None:
    found = directions_of(tiny("llama"))
    with pytest.raises(MechsafetyError, match="weights differ"):
        sweep(tiny("llama", seed=1), found, small_prompts().validation)
    narrow = Directions(**{**vars(found), "vectors": found.vectors[..., :16]})
    with pytest.raises(MechsafetyError, match="do not fit"):
        sweep(tiny("llama"), narrow, small_prompts().validation)
    with pytest.raises(MechsafetyError, match="harmful and harmless"):
        sweep(tiny("llama"), found, small_prompts().validation.harmful)
