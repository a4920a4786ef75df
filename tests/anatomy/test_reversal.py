"""States between base and tuned: their ends are exact, their parts add up, and nothing of them is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mechsafety.anatomy.interpolation import interpolated
from mechsafety.anatomy.readings import outcome_rows, prompt_groups
from mechsafety.anatomy.reversal import (
    REVERSAL_COLUMNS,
    ReversalState,
    in_state,
    reversal_rows,
    reversal_states,
    top_factors,
)
from mechsafety.anatomy.weight_changes import MLP_KINDS, weight_changes
from mechsafety.core.errors import MechsafetyError
from mechsafety.models.loading import load_model
from mechsafety.regions.maps import linear_maps
from tests.anatomy.test_interpolation import answers, pair
from tests.prompt_sets import small_prompts
from tests.regions.test_maps import both_logits
from tests.regions.test_removal import bits, same, weights

__all__ = ["pair"]
OTHERS = [
    *(("neox", "float32"), ("falcon", "float32"), ("bloom", "float32")),
    *(("gpt2", "bfloat16"), ("phi3", "bfloat16"), ("falcon", "bfloat16"), ("bloom", "bfloat16")),
]
FULL = 10_000


def matrices(model: Any) -> dict[str, torch.Tensor]:
    return {m.name: m.weight().float().clone() for m in linear_maps(model)}


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        *(("llama", "float32"), ("llama", "bfloat16"), ("gpt2", "float32"), ("phi3", "float32")),
        *(("neox", "bfloat16"), *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)),
    ],
)
def test_the_ends_are_the_two_models_bit_for_bit(pair: Any, architecture: str, dtype: str) -> None:
    base, tuned = pair(architecture, dtype)
    before, after = weights(base), weights(tuned)
    for state in (ReversalState(what="base"), ReversalState(what="kept", r=0)):
        with in_state(base, tuned, state, seed=0):
            assert same(before, weights(base))
    for state in (ReversalState(what="tuned"), ReversalState(what="removed", r=0)):
        with in_state(base, tuned, state, seed=0):
            assert same(after, weights(base))
            for a, b in zip(both_logits(base), both_logits(tuned), strict=True):
                assert torch.equal(bits(a), bits(b))
            assert answers(base) == answers(tuned)
    whole, original = ReversalState(what="kept", r=FULL), list(matrices(base).values())
    with in_state(base, tuned, ReversalState(what="matrices"), seed=0):
        changed = weights(base)
        assert not same(changed, after)  # biases and norms are the base's
    with in_state(base, tuned, whole, seed=0):
        assert same(changed, weights(base))
    with in_state(base, tuned, ReversalState(what="others"), seed=0):
        left = weights(base)
        assert not same(left, before)
        assert all(
            torch.equal(m.weight().float(), w) for m, w in zip(linear_maps(base), original, strict=True)
        )
    with in_state(base, tuned, ReversalState(what="removed", r=FULL), seed=0):
        assert same(left, weights(base))
    for state in reversal_states((1,)):
        with pytest.raises(RuntimeError, match="inside"), in_state(base, tuned, state, seed=0):
            raise RuntimeError("inside")
        assert same(before, weights(base))
        assert same(after, weights(tuned))


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_mlp_and_rest_are_the_two_halves(pair: Any, architecture: str) -> None:
    base, tuned = pair(architecture)
    before, after = matrices(base), matrices(tuned)
    norms = {n: p.detach().clone() for n, p in tuned.named_parameters() if p.ndim == 1}
    assert norms
    with in_state(base, tuned, ReversalState(what="mlp"), seed=0):
        for linear in linear_maps(base):
            expected = after if linear.kind in MLP_KINDS else before
            assert torch.equal(linear.weight(), expected[linear.name])
        assert not any(torch.equal(p, norms[n]) for n, p in base.named_parameters() if n in norms)
    with in_state(base, tuned, ReversalState(what="rest"), seed=0):
        for linear in linear_maps(base):
            expected = before if linear.kind in MLP_KINDS else after
            assert torch.equal(linear.weight(), expected[linear.name])
        assert all(torch.equal(p, norms[n]) for n, p in base.named_parameters() if n in norms)


@pytest.mark.parametrize("architecture", ["gpt2", "neox"])
def test_truncations_are_the_best_of_their_rank_and_add_up(pair: Any, architecture: str) -> None:
    base, tuned = pair(architecture)
    before, after = matrices(base), matrices(tuned)
    for given in (None, top_factors(weight_changes(base, tuned), rank=6)):
        with in_state(base, tuned, ReversalState(what="kept", r=3), seed=0, factors=given):
            kept = {name: w - before[name] for name, w in matrices(base).items()}
            bridge, module, twin = both_logits(base)
            torch.testing.assert_close(bridge, twin, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(module, twin, atol=1e-4, rtol=1e-4)
        with in_state(base, tuned, ReversalState(what="removed", r=3), seed=0, factors=given):
            left = {name: w - before[name] for name, w in matrices(base).items()}
        for name, part in kept.items():
            change = after[name] - before[name]
            u, s, v = torch.linalg.svd(change, full_matrices=False)
            torch.testing.assert_close(part, u[:, :3] * s[:3] @ v[:3], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(part + left[name], change, atol=1e-5, rtol=1e-4)


def test_the_random_change_has_the_norm_of_the_true_one(pair: Any) -> None:
    base, tuned = pair("llama")
    before, after = matrices(base), matrices(tuned)
    drawn = []
    for seed in (0, 0, 1):
        with in_state(base, tuned, ReversalState(what="random"), seed=seed):
            drawn.append({name: w - before[name] for name, w in matrices(base).items()})
    for name, change in drawn[0].items():
        true = after[name] - before[name]
        assert float(change.norm()) == pytest.approx(float(true.norm()), rel=1e-4)
        cosine = float((change * true).sum() / change.norm() / true.norm())
        assert abs(cosine) < 6 / true.numel() ** 0.5
        assert torch.equal(change, drawn[1][name])
        assert not torch.equal(change, drawn[2][name])


def test_where_only_matrices_were_tuned_full_rank_is_the_tuned_model(tiny: Callable[..., Any]) -> None:
    base, tuned = tiny("llama"), tiny("llama")
    low_rank = 0.3 * torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    for linear in linear_maps(tuned):
        if linear.name == "blocks.1.o":
            linear.write(linear.weight() + low_rank @ low_rank.T)
    expected = both_logits(tuned)[0]
    for r, close in ((1, False), (2, True), (FULL, True)):
        with in_state(base, tuned, ReversalState(what="kept", r=r), seed=0):
            assert torch.allclose(both_logits(base)[0], expected, atol=1e-3) == close
        with in_state(base, tuned, ReversalState(what="removed", r=r), seed=0):
            original = both_logits(tiny("llama"))[0]
            assert torch.allclose(both_logits(base)[0], original, atol=1e-3) == close


def test_states_that_are_none(pair: Any, tiny: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(MechsafetyError, match="'kept' with r = None"):
        ReversalState(what="kept")
    with pytest.raises(MechsafetyError, match="'mlp' with r = 4"):
        ReversalState(what="mlp", r=4)
    with pytest.raises(MechsafetyError, match="r = -1"):
        ReversalState(what="removed", r=-1)
    assert [s.label for s in reversal_states((1, 4))][-3:] == ["top 4 kept", "top 1 removed", "top 4 removed"]
    base, tuned = pair("llama")
    few = top_factors(weight_changes(base, tuned), rank=1)
    with (
        pytest.raises(MechsafetyError, match="1 singular directions given"),
        in_state(base, tuned, ReversalState(what="kept", r=2), seed=0, factors=few),
    ):
        pass
    with (
        pytest.raises(MechsafetyError, match="other parameters"),
        in_state(base, tiny("gpt2"), ReversalState(what="mlp"), seed=0),
    ):
        pass
    same_again = load_model(str(base.load_record.spec), dtype="float32", device="cpu")
    with (
        pytest.raises(MechsafetyError, match="the same in every matrix"),
        in_state(base, same_again, ReversalState(what="mlp"), seed=0),
    ):
        pass


def test_the_table_has_every_state_and_its_ends_are_the_models(pair: Any) -> None:
    base, tuned = pair("gpt2")
    groups = prompt_groups(list(small_prompts(2).report))
    settings: Any = {"judge": "rules", "max_new_tokens": 3, "seed": 0}
    factors = top_factors(weight_changes(base, tuned), rank=4)
    made = (
        reversal_rows(base, tuned, state, groups, factors=factors, **settings)
        for state in reversal_states((1, 4))
    )
    table = pd.DataFrame([row for rows in made for row in rows])
    assert tuple(table.columns) == REVERSAL_COLUMNS
    assert len(table) == 11 * 2
    assert table.groupby("state", sort=False)["r"].apply(lambda r: sorted(set(r.dropna()))).to_dict() == {
        **{what: [] for what in ("base", "tuned", "matrices", "others", "mlp", "rest", "random")},
        **{what: [1, 4] for what in ("kept", "removed")},
    }
    for state, model in (("base", base), ("tuned", tuned)):
        found = table[table["state"] == state].drop(columns=["state", "r"]).to_dict("records")
        assert found == outcome_rows(model, groups, **settings)
    with interpolated(base, tuned, 1.0):
        expected = outcome_rows(base, groups, **settings)
    rows = reversal_rows(base, tuned, ReversalState(what="tuned"), groups, **settings)
    assert [{k: v for k, v in row.items() if k not in ("state", "r")} for row in rows] == expected
