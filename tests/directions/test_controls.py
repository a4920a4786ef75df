"""Control directions follow the activations, take away what the direction does, and depend on nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.controls import (
    CONTROL_COLUMNS,
    POOL,
    Control,
    control_bases,
    control_directions,
    control_table,
    energies,
    in_place_of,
    within_class_draws,
)
from mechsafety.directions.direction import Direction
from mechsafety.directions.estimators import refusal_subspace

WIDTH = 48
ASKED = {"n": 3, "seed": 0, "system": "a"}


def classes(
    n: int = 60, width: int = WIDTH, *, shift: float = 4.0, mean: float = 3.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Two classes in float32 whose variances fall off steeply, with a common mean and a difference between them."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(1, -1.5, width)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    x = (torch.randn(2 * n, width, generator=generator) * scale) @ turn + mean * turn[1]
    x[:n] += shift * torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    return x[:n], x[n:]


def difference(a: Tensor, b: Tensor) -> Tensor:
    return a.mean(0) - b.mean(0)


def apart(controls: list[Control]) -> list[float]:
    return [abs(math.log(c.energy / c.energy_direction)) for c in controls]


def units(controls: list[Control]) -> Tensor:
    return torch.stack([c.unit for c in controls])


def test_energy_is_the_share_that_a_projection_takes_away() -> None:
    a, b = classes()
    for control in control_directions(a, b, difference(a, b), **ASKED):
        x = torch.cat([a, b]).numpy().astype(np.float64)
        u = control.unit.numpy().astype(np.float64)
        assert np.linalg.norm(u) == pytest.approx(1.0, abs=1e-6)
        left = x - np.outer(x @ u, u)
        taken = 1 - (left**2).sum() / (x**2).sum()
        assert control.energy == pytest.approx(taken, rel=1e-5)
        d = difference(a, b).numpy().astype(np.float64)
        d /= np.linalg.norm(d)
        assert control.energy_direction == pytest.approx(((x @ d) ** 2).sum() / (x**2).sum(), rel=1e-5)
        assert control.cosine == pytest.approx(float(u @ d), abs=1e-6)
    # Over an orthonormal basis the shares add up to all there is.
    assert float(energies(torch.cat([a, b]), torch.eye(WIDTH)).sum()) == pytest.approx(1.0)


def test_draws_depend_on_seed_system_and_kind_alone() -> None:
    a, b = classes()
    v = difference(a, b)
    first = units(control_directions(a, b, v, **ASKED))
    assert torch.equal(units(control_directions(a, b, v, **ASKED)), first)
    torch.manual_seed(99)
    assert torch.equal(units(control_directions(a, b, v, **ASKED)), first)
    # More draws begin with the fewer; the direction's sign and length do not matter.
    more = control_directions(a, b, -7 * v, **{**ASKED, "n": 5})
    assert torch.equal(units(more)[:3], first)
    for other in ({"system": "b"}, {"seed": 1}, {"kind": "isotropic"}):
        drawn = units(control_directions(a, b, v, **{**ASKED, **other}))
        assert float((drawn @ first.T).abs().max()) < 0.999, other


def test_covariance_of_many_draws_is_that_within_classes() -> None:
    a, b = classes(n=40, width=8)
    drawn = within_class_draws(a, b, n=200_000, generator=torch.Generator().manual_seed(0)).numpy()
    held = [np.cov(x.numpy().astype(np.float64), rowvar=False) * (len(x) - 1) for x in (a, b)]
    within = sum(held) / (len(a) + len(b) - 2)
    scale = np.sqrt(np.outer(np.diag(within), np.diag(within)))
    assert np.abs((np.cov(drawn, rowvar=False) - within) / scale).max() < 0.02
    assert np.abs(drawn.mean(0) / np.sqrt(np.diag(within))).max() < 0.02
    # The control: the covariance of all prompts together holds the difference of the classes.
    pooled = np.cov(np.concatenate([a.numpy(), b.numpy()]), rowvar=False)
    assert np.abs((pooled - within) / scale).max() > 0.1


def test_draws_hold_nothing_of_the_difference_where_classes_do_not_vary_along_it() -> None:
    a, b = classes(shift=0.0)
    a, b = a.clone(), b.clone()
    a[:, 0], b[:, 0] = 30.0, -30.0
    axis = torch.eye(WIDTH)[0]
    for control in control_directions(a, b, axis, **ASKED):
        assert abs(control.cosine) < 1e-6
    # The control: draws from the covariance of all prompts lie along the difference.
    both = torch.cat([a, b])
    pooled = torch.randn(POOL, len(both), generator=torch.Generator().manual_seed(0)) @ (both - both.mean(0))
    assert float(torch.nn.functional.normalize(pooled, dim=-1)[:, 0].abs().median()) > 0.5


@pytest.mark.parametrize("factor", [1e-3, 4.0, 1e4])
def test_scaling_all_activations_changes_nothing(factor: float) -> None:
    a, b = classes()
    v = difference(a, b)
    plain = control_directions(a, b, v, **ASKED)
    scaled = control_directions(factor * a, factor * b, factor * v, **ASKED)
    assert [c.number for c in scaled] == [c.number for c in plain]
    torch.testing.assert_close(units(scaled), units(plain), atol=1e-6, rtol=0)
    assert [c.energy for c in scaled] == pytest.approx([c.energy for c in plain], rel=1e-5)


def test_a_rotation_of_the_residual_basis_rotates_the_matched_draws() -> None:
    a, b = classes()
    v = difference(a, b)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5))).Q
    plain = control_directions(a, b, v, **ASKED)
    turned = control_directions(a @ turn, b @ turn, v @ turn, **ASKED)
    assert [c.number for c in turned] == [c.number for c in plain]
    torch.testing.assert_close(units(turned), units(plain) @ turn, atol=1e-5, rtol=0)
    assert [c.energy for c in turned] == pytest.approx([c.energy for c in plain], rel=1e-4)
    # Isotropic draws are the same vectors in any basis.
    easier = {**ASKED, "kind": "isotropic"}
    assert torch.equal(
        units(control_directions(a, b, v, **easier)),
        units(control_directions(a @ turn, b @ turn, v, **easier)),
    )


@pytest.mark.parametrize("seed", range(5))
def test_matched_draws_are_nearer_in_energy_than_draws_at_random_and_isotropic_ones(seed: int) -> None:
    a, b = classes(seed=seed, shift=8.0)
    v = difference(a, b)
    matched = control_directions(a, b, v, **ASKED)
    every = control_directions(a, b, v, **{**ASKED, "n": POOL})
    assert sorted(c.number for c in every) == list(range(POOL))
    assert apart(every) == sorted(apart(every))
    assert [c.number for c in every[:3]] == [c.number for c in matched]
    assert np.mean(apart(matched)) < 0.3 * np.median(apart(every))
    at_random = sorted(every, key=lambda c: c.number)[:3]
    assert np.mean(apart(matched)) < np.mean(apart(at_random))
    # In anisotropic activations a direction of N(0, I) takes far less away than one of the activations'.
    isotropic = control_directions(a, b, v, **{**ASKED, "n": 50, "kind": "isotropic"})
    assert [c.number for c in isotropic] == list(range(50))
    assert np.median([c.energy for c in isotropic]) < np.median([c.energy for c in every]) / 3
    assert np.median(apart(isotropic)) > 3 * max(apart(matched))


def test_a_control_stands_at_the_directions_place_and_reads_where_it_writes() -> None:
    a, b = classes()
    v = difference(a, b)
    direction = Direction(vector=v, layer=7, position=-2, method="leace", threshold=3.0, covector=v.flip(0))
    control = control_directions(a, b, direction.vector, **ASKED)[0]
    there = in_place_of(direction, control.unit)
    assert (there.layer, there.position, there.covector) == (7, -2, None)
    torch.testing.assert_close(there.unit, control.unit)


def test_the_table_has_a_row_a_draw() -> None:
    a, b = classes()
    table = control_table(control_directions(a, b, difference(a, b), **ASKED))
    assert tuple(table.columns) == CONTROL_COLUMNS
    assert table["draw"].tolist() == [1, 2, 3]
    assert set(table["kind"]) == {"matched"}
    assert control_table([]).empty


@pytest.mark.parametrize("kind", ["matched", "isotropic"])
def test_bases_are_orthonormal_and_begin_with_the_control_of_the_direction(kind: str) -> None:
    a, b = classes()
    basis = refusal_subspace(a, b, k=6).float()
    found = control_bases(a, b, basis, **ASKED, kind=kind)
    ones = control_directions(a, b, basis[0], **ASKED, kind=kind)
    for control, one in zip(found, ones, strict=True):
        torch.testing.assert_close(control.rows @ control.rows.T, torch.eye(6), atol=1e-5, rtol=0)
        torch.testing.assert_close(control.rows[0], one.unit)
        assert control.energies[0] == pytest.approx(one.energy)
        assert control.energies == pytest.approx(energies(torch.cat([a, b]), control.rows).tolist(), rel=1e-4)
        assert control.energies_basis == pytest.approx(energies(torch.cat([a, b]), basis).tolist(), rel=1e-4)
    spans = [c.rows for c in found]
    assert float(torch.linalg.matrix_norm(spans[0] @ spans[1].T, 2)) < 0.9999
    # Nested: fewer rows of the basis have the first rows of the same control.
    fewer = control_bases(a, b, basis[:3], **ASKED, kind=kind)
    assert torch.equal(fewer[0].rows, found[0].rows[:3])


@pytest.mark.parametrize("seed", range(3))
def test_every_row_of_a_basis_is_nearer_in_energy_than_isotropic_ones(seed: int) -> None:
    a, b = classes(seed=seed)
    basis = refusal_subspace(a, b, k=6).float()

    def off(kind: str) -> np.ndarray:
        found = control_bases(a, b, basis, **ASKED, kind=kind)
        return np.array(
            [[abs(math.log(e / w)) for e, w in zip(c.energies, c.energies_basis, strict=True)] for c in found]
        )

    assert off("matched").mean() < 0.35
    assert off("isotropic").mean() > 3 * off("matched").mean()


def test_wrong_requests_are_named() -> None:
    a, b = classes(n=4)
    v = difference(a, b)
    with pytest.raises(MechsafetyError, match=r"'gaussian' is not one of matched, isotropic"):
        control_directions(a, b, v, **ASKED, kind="gaussian")
    with pytest.raises(MechsafetyError, match="1 harmful and 4 harmless prompts are too few"):
        control_directions(a[:1], b, v, **ASKED)
    with pytest.raises(MechsafetyError, match=f"0 to {POOL} are drawn"):
        control_directions(a, b, v, **{**ASKED, "n": POOL + 1})
    with pytest.raises(MechsafetyError, match="do not vary within classes"):
        control_directions(a[:1].repeat(4, 1), b[:1].repeat(4, 1), v, **ASKED)
    # Four prompts of each class vary in six dimensions once their means are out.
    basis = torch.linalg.qr(torch.randn(WIDTH, 7, generator=torch.Generator().manual_seed(0))).Q.T
    assert control_bases(a, b, basis[:6], **ASKED)[0].rows.shape == (6, WIDTH)
    with pytest.raises(
        MechsafetyError, match="7 control directions, but the activations vary in 6 dimensions"
    ):
        control_bases(a, b, basis, **ASKED)


def test_a_control_is_frozen() -> None:
    a, b = classes()
    control = control_directions(a, b, difference(a, b), **ASKED)[0]
    with pytest.raises(AttributeError):
        control.energy = 0.0  # type: ignore[misc]
    assert replace(control, number=5).number == 5
