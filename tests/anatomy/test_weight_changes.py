"""dW, its ranks, its alignment with the left null space of W_base, and its action: theorems and their controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsafety.anatomy.actions import ACTION_COLUMNS, RATIO_COLUMNS, action_tables
from mechsafety.anatomy.decompositions import effective_rank, left_null_spaces, singular, stable_rank
from mechsafety.anatomy.weight_changes import (
    CHANGE_COLUMNS,
    SPECTRUM_COLUMNS,
    TOP,
    WeightChange,
    change_tables,
    paired_maps,
    require_pair,
    weight_changes,
)
from mechsafety.core.errors import MechsafetyError
from mechsafety.regions.maps import linear_maps


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(gaussian(rows, columns, seed=seed)).Q


def with_change(base: Any, tuned: Any, name: str, change: Tensor) -> list[WeightChange]:
    """The tuned model is the base but for one map, which has ``change`` added."""
    for before, after in zip(linear_maps(base), linear_maps(tuned), strict=True):
        after.write(before.weight().float() + (change if before.name == name else 0))
    return weight_changes(base, tuned)


def row_of(table: Any, name: str, model: str = "tuned") -> Any:
    _, layer, kind = name.split(".")
    found = table[(table["model"] == model) & (table["layer"] == int(layer)) & (table["kind"] == kind)]
    assert len(found) == 1
    return found.iloc[0]


# -- decompositions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (9, 9)])
def test_singular_directions_are_those_of_the_whole_decomposition(shape: tuple[int, int]) -> None:
    matrix = gaussian(*shape)
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    found = singular(matrix, top=5)
    torch.testing.assert_close(found.values, s)
    torch.testing.assert_close(found.left * found.values[:5] @ found.right, u[:, :5] * s[:5] @ v[:5])
    # Columns of U, not its rows: the slip of the paper's code.
    assert (found.left.T @ u[:, :5]).diagonal().abs().min() > 1 - 1e-9
    if u.shape[0] == u.shape[1]:
        assert (found.left.T @ u[:5].T).diagonal().abs().min() < 0.9


def test_ranks_of_known_spectra() -> None:
    flat = torch.tensor([2.0, 2.0, 2.0, 2.0, 0.0])
    assert effective_rank(flat) == pytest.approx(4)
    assert stable_rank(flat) == pytest.approx(4)
    assert effective_rank(torch.tensor([3.0, 0.0])) == pytest.approx(1)
    tilted = torch.tensor([2.0, 1.0])
    assert stable_rank(tilted) == pytest.approx(1.25)
    assert effective_rank(tilted) == pytest.approx(math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2)))
    assert math.isnan(effective_rank(torch.zeros(3)))
    assert math.isnan(stable_rank(torch.zeros(3)))


def test_null_spaces_hold_the_rest_of_the_energy() -> None:
    left, right = orthonormal(20, 4, seed=1), orthonormal(10, 4, seed=2)
    matrix = (
        left * torch.tensor([8.0, 5.0, 3.0, 1.0]) @ right.T
    )  # energies 64, 25, 9, 1: shares .65, .90, .99
    spaces = left_null_spaces(matrix, energies=(50, 90, 95))
    assert {e: space.rank for e, space in spaces.items()} == {50: 19, 90: 17, 95: 17}
    assert spaces[50].chance == pytest.approx(math.sqrt(19 / 20))
    torch.testing.assert_close(spaces[90].alignment(left.double()), torch.tensor([0.0, 0, 0, 1]).double())
    with pytest.raises(MechsafetyError, match="zeros"):
        left_null_spaces(torch.zeros(4, 3), energies=(90,))


# -- pairs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_change_is_that_of_every_matrix(tiny: Callable[..., Any], architecture: str, dtype: str) -> None:
    base, tuned = tiny(architecture, dtype=dtype), tiny(architecture, dtype=dtype, seed=1)
    changes = weight_changes(base, tuned)
    maps = linear_maps(base)
    assert [(c.name, c.layer, c.kind, c.site) for c in changes] == [
        (m.name, m.layer, m.kind, m.site) for m in maps
    ]
    for change, before, after in zip(changes, maps, linear_maps(tuned), strict=True):
        assert change.matrix().dtype == torch.float32
        torch.testing.assert_close(change.matrix(), after.weight().float() - before.weight().float())
    kinds = {"up", "down"} | ({"gate"} if architecture == "llama" else set())
    assert {c.kind for c in weight_changes(base, tuned, mlp_only=True)} == kinds


def test_pairs_that_are_none(tiny: Callable[..., Any]) -> None:
    base = tiny("llama")
    with pytest.raises(MechsafetyError, match="the same in every matrix of the blocks"):
        weight_changes(base, tiny("llama"))
    with pytest.raises(MechsafetyError, match="one architecture and shape"):
        weight_changes(base, tiny("gpt2"))
    with pytest.raises(MechsafetyError, match=r"blocks.3.q is 32 x 32 in the one and missing"):
        paired_maps(
            linear_maps(base), [m for m in linear_maps(tiny("llama", seed=1)) if m.name != "blocks.3.q"]
        )
    attention = tiny("llama")
    o = next(m for m in linear_maps(attention) if m.name == "blocks.1.o")
    o.write(o.weight() + 1)
    assert len(weight_changes(base, attention)) == 28
    with pytest.raises(MechsafetyError, match="the same in every MLP matrix"):
        weight_changes(base, attention, mlp_only=True)
    with pytest.raises(MechsafetyError, match="32 x 32 weights before and"):
        WeightChange(base=linear_maps(base)[0], tuned=linear_maps(base)[1])


def test_only_parameters_may_differ(tiny: Callable[..., Any]) -> None:
    base, tuned = tiny("llama"), tiny("llama", seed=1)
    require_pair(base, tuned)
    with pytest.raises(MechsafetyError, match="given as base and as tuned"):
        require_pair(base, base)
    with pytest.raises(MechsafetyError, match="number format"):
        require_pair(base, tiny("llama", dtype="bfloat16", seed=1))
    with pytest.raises(MechsafetyError, match="other parameters"):
        require_pair(base, tiny("gpt2"))
    for name, buffer in tuned.named_buffers():
        if "inv_freq" in name:
            buffer.mul_(2)
    with pytest.raises(MechsafetyError, match="rotary"):
        require_pair(base, tuned)


# -- alignment --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "name"), [("llama", "blocks.1.down"), ("gpt2", "blocks.2.up")])
def test_a_planted_change_lies_inside_or_outside_the_null_space(
    tiny: Callable[..., Any], architecture: str, name: str
) -> None:
    base = tiny(architecture)
    linear = next(m for m in linear_maps(base) if m.name == name)
    full = torch.linalg.svd(linear.weight().float()).U
    space = left_null_spaces(linear.weight(), energies=(99,))[99]
    k = linear.d_out - space.rank
    right = orthonormal(linear.d_in, 3, seed=1)
    for vectors, expected in ((full[:, k : k + 3], 1.0), (full[:, :3], 0.0)):
        changes = with_change(base, tiny(architecture), name, vectors @ right.T)
        row = row_of(change_tables(changes, seed=0).changes, name)
        assert row["alignment_99"] == pytest.approx(expected, abs=2e-3)
        assert row["directions"] == 3
        assert row["effective_rank"] == pytest.approx(3, rel=1e-4)
        assert row["null_rank_99"] == linear.d_out - k
        assert row["chance_99"] == pytest.approx(math.sqrt(1 - k / linear.d_out))
    # The paper's slip: W_tuned instead of dW says little of a change that lies wholly in the null space.
    inside = linear.weight().float() + 0.1 * full[:, k : k + 3] @ right.T
    assert float(space.alignment(singular(inside, top=3).left).max()) < 0.5


def test_a_random_change_is_at_chance(tiny: Callable[..., Any]) -> None:
    base = tiny("llama")
    linear = next(m for m in linear_maps(base) if m.name == "blocks.0.down")
    found = []
    for seed in range(20):
        changes = with_change(
            base, tiny("llama"), linear.name, gaussian(linear.d_out, linear.d_in, seed=seed)
        )
        tables = change_tables([c for c in changes if c.name == linear.name], seed=seed)
        found.append(tables.changes.set_index("model"))
    for model in ("tuned", "random"):
        squares = torch.tensor([t.loc[model, "alignment_90"] ** 2 for t in found])
        error = float(squares.std()) / math.sqrt(len(squares))
        assert abs(float(squares.mean()) - found[0].loc[model, "chance_90"] ** 2) < 4 * error
        assert error < 0.02
    assert all(
        t.loc["random", "relative_norm"] == pytest.approx(t.loc["tuned", "relative_norm"]) for t in found
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tables_have_a_row_a_model_and_map(tiny: Callable[..., Any], dtype: str) -> None:
    base, tuned, control = (tiny("llama", dtype=dtype, seed=seed) for seed in (0, 1, 2))
    changes, others = weight_changes(base, tuned, mlp_only=True), weight_changes(base, control, mlp_only=True)
    tables = change_tables(changes, control=others, seed=0)
    assert tuple(tables.changes.columns) == CHANGE_COLUMNS
    assert tuple(tables.spectrum.columns) == SPECTRUM_COLUMNS
    assert len(tables.changes) == 3 * 12
    assert len(tables.spectrum) == tables.changes["directions"].sum() == 36 * TOP
    assert tables.spectrum[["projection_safe", "projection_unsafe"]].isna().all(axis=None)
    own = row_of(tables.changes, "blocks.2.gate", "control")
    matrix = next(c for c in others if c.name == "blocks.2.gate").matrix()
    weight = next(c for c in others if c.name == "blocks.2.gate").base.weight().float()
    assert own["relative_norm"] == pytest.approx(float(matrix.norm() / weight.norm()))
    again = change_tables(changes, control=others, seed=0)
    assert tables.changes.equals(again.changes)
    other = change_tables(changes, control=others, seed=1).changes
    drawn = tables.changes["model"] == "random"
    assert other[~drawn].equals(tables.changes[~drawn])
    assert not other[drawn].equals(tables.changes[drawn])
    with pytest.raises(MechsafetyError, match="of other maps"):
        change_tables(changes, control=others[1:], seed=0)


def test_a_map_that_did_not_change_has_no_directions(tiny: Callable[..., Any]) -> None:
    base = tiny("llama")
    changes = with_change(base, tiny("llama"), "blocks.0.q", gaussian(32, 32))
    tables = change_tables(changes[:2], seed=0)
    row = row_of(tables.changes, "blocks.0.k")
    assert row["relative_norm"] == 0.0
    assert row["directions"] == 0
    assert row[["effective_rank", "stable_rank", "alignment_90", "alignment_99"]].isna().all()
    assert set(tables.spectrum["kind"]) == {"q"}


def test_rounding_is_no_direction(tiny: Callable[..., Any]) -> None:
    base = tiny("llama", dtype="bfloat16")
    low_rank = gaussian(32, 2, seed=3) @ gaussian(2, 32, seed=4)
    changes = with_change(base, tiny("llama", dtype="bfloat16"), "blocks.0.q", low_rank)
    row = row_of(change_tables(changes[:1], seed=0).changes, "blocks.0.q")
    assert row["directions"] == 2  # of all 32 that rounding changes
    assert float(torch.linalg.matrix_rank(changes[0].matrix())) > 2


# -- action -----------------------------------------------------------------------------------------


def inputs_of(changes: Sequence[WeightChange], n: int, *, seed: int = 0) -> dict[str, Tensor]:
    return {c.site: gaussian(n, c.base.d_in, seed=seed) for c in changes}


def test_the_action_of_a_planted_change_is_the_formula(tiny: Callable[..., Any]) -> None:
    base, name = tiny("llama"), "blocks.1.down"
    linear = next(m for m in linear_maps(base) if m.name == name)
    u, v = orthonormal(linear.d_out, 1)[:, 0], orthonormal(linear.d_in, 1, seed=5)[:, 0]
    (change,) = (c for c in with_change(base, tiny("llama"), name, 3 * torch.outer(u, v)) if c.name == name)
    a = gaussian(6, linear.d_in)
    a[3:] = a[3:] - (a[3:] @ v)[:, None] * v  # what the change does not see
    groups = ["unsafe", "unsafe", "swap", "safe", "safe", "safe"]
    tables = action_tables([change], inputs={"tuned": {change.site: a}}, groups=groups, seed=0)
    assert tuple(tables.action.columns) == ACTION_COLUMNS
    assert tuple(tables.ratios.columns) == RATIO_COLUMNS
    own = tables.action[tables.action["model"] == "tuned"].set_index("group")
    expected = 3 * (a @ v).abs() / a.norm(dim=-1)
    assert own.loc["unsafe", "action"] == pytest.approx(float(expected[:2].mean()), rel=1e-4)
    assert own.loc["swap", "action"] == pytest.approx(float(expected[2]), rel=1e-4)
    assert own.loc["safe", "action"] == pytest.approx(0, abs=1e-5)
    assert own["n"].to_dict() == {"unsafe": 2, "swap": 1, "safe": 3}
    assert math.isnan(own.loc["swap", "low"])
    assert own.loc["unsafe", "low"] <= own.loc["unsafe", "action"] <= own.loc["unsafe", "high"]
    spectrum = change_tables([change], inputs={"tuned": {change.site: a}}, groups=groups, seed=0).spectrum
    first = spectrum[(spectrum["model"] == "tuned") & (spectrum["index"] == 0)].iloc[0]
    assert first["sigma"] == pytest.approx(3, rel=1e-5)
    assert first["projection_unsafe"] == pytest.approx(own.loc["unsafe", "action"], rel=1e-4)
    assert first["projection_safe"] == pytest.approx(0, abs=1e-5)


def test_a_random_change_acts_on_both_groups_alike_and_the_planted_one_does_not(
    tiny: Callable[..., Any],
) -> None:
    base, name = tiny("gpt2"), "blocks.1.down"
    linear = next(m for m in linear_maps(base) if m.name == name)
    v = orthonormal(linear.d_in, 1)[:, 0]
    (change,) = (
        c
        for c in with_change(base, tiny("gpt2"), name, torch.outer(orthonormal(linear.d_out, 1)[:, 0], v))
        if c.name == name
    )
    a = gaussian(80, linear.d_in, seed=7)
    a[:40] += 20 * v
    groups = ["unsafe"] * 40 + ["safe"] * 40
    given: Any = {"tuned": {change.site: a}, "control": {change.site: a}}
    tables = action_tables([change], control=[change], inputs=given, groups=groups, seed=0)
    ratios = tables.ratios.set_index("model")
    assert ratios.loc["tuned", "ratio"] > 5
    assert ratios.loc["tuned", "low"] > 1
    assert ratios.loc["control"].equals(ratios.loc["tuned"])
    assert 0.8 < ratios.loc["random", "ratio"] < 1.25
    again = action_tables([change], control=[change], inputs=given, groups=groups, seed=0)
    assert again.ratios.equals(tables.ratios)


def test_inputs_must_be_there_for_every_prompt(tiny: Callable[..., Any]) -> None:
    changes = weight_changes(tiny("llama"), tiny("llama", seed=1))[:2]
    inputs = {"tuned": inputs_of(changes, 3)}
    with pytest.raises(MechsafetyError, match="inputs of 3 prompts, and 2"):
        action_tables(changes, inputs=inputs, groups=["safe", "unsafe"], seed=0)
    with pytest.raises(MechsafetyError, match="no inputs of the control model"):
        action_tables(changes, control=changes, inputs=inputs, groups=["safe"] * 3, seed=0)
    alone = action_tables(changes, inputs=inputs, groups=["unsafe"] * 3, seed=0)
    assert len(alone.ratios) == 0
    assert len(alone.action) == 4
