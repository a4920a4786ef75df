"""Random control directions: what the removal of a direction that means nothing in particular does.

A direction of a random draw from N(0, I) lies where activations hardly vary, so that its removal takes almost nothing
away and is no control of one that takes much. The draws here follow the activations themselves, and those that are
kept take away about as much as the direction does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.direction import Direction, cosine

if TYPE_CHECKING:
    import pandas as pd

ControlKind = Literal["matched", "isotropic"]
"""Draws from N(0, S), nearest in energy of a pool; or from N(0, I), the easier control."""
CONTROL_KINDS: tuple[ControlKind, ...] = get_args(ControlKind)
POOL = 200
"""How many draws there are to choose the matched ones from."""
CONTROL_COLUMNS = ("draw", "kind", "seed", "number", "energy", "energy_direction", "cosine")
_NOTHING = 1e-6  # of a draw's length: what is left of one that lies in the span of earlier rows


@dataclass(frozen=True, kw_only=True)
class Control:
    """One random direction. ``number`` is its place in the pool, from 0; ``seed`` that of the run.

    ``energy`` and ``energy_direction`` are the shares of the activations' mean square that projecting out the draw and
    the direction take away (:func:`energies`); ``cosine`` is between the two.
    """

    unit: Float[Tensor, " d_model"]
    kind: ControlKind
    seed: int
    number: int
    energy: float
    energy_direction: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class ControlBasis:
    """As many random directions as a basis has, orthonormal rows; ``energies`` and ``energies_basis`` row by row."""

    rows: Float[Tensor, "k d_model"]
    kind: ControlKind
    seed: int
    number: int
    energies: tuple[float, ...]
    energies_basis: tuple[float, ...]


def control_directions(
    harmful: Float[Tensor, "a d_model"],
    harmless: Float[Tensor, "b d_model"],
    direction: Float[Tensor, " d_model"],
    *,
    n: int = 3,
    seed: int = 0,
    system: str = "model",
    kind: str = "matched",
) -> list[Control]:
    """``n`` random directions at the place where ``direction`` was found, the nearest in energy first.

    ``harmful`` and ``harmless`` are the residual stream at its position and layer. S is their covariance within
    classes: each class's own mean is taken out first, for else the draws would hold the very difference of the classes
    that they are the control of. A draw is a random normal combination of the centred activations, which has
    covariance S without S being formed; of :data:`POOL` such draws the ``n`` nearest in ``|log ratio|`` of energy
    are kept (ties by number). ``isotropic`` ones are the first ``n`` draws from N(0, I). The draws are set by ``seed``,
    the name of the ``system`` and the kind alone; for a rotated residual stream the matched ones are the rotated ones.

    Raises :class:`MechsafetyError` for another kind, more draws than the pool has, under two prompts of a class,
    activations that do not vary within classes, unlike widths, and a direction that is zero.

    Arguments:
        kind: matched, or isotropic for draws from N(0, I).

    Returns:
        The draws, each with its unit vector [d_model], its energy and its cosine with the direction.

    Example:
        >>> harmful, harmless = cache.select("harmful")[:, 0, 2], cache.select("harmless")[:, 0, 2]
        >>> controls = ms.control_directions(harmful, harmless, direction.unit, n=3)
        >>> [control.unit.shape == direction.unit.shape for control in controls]
        [True, True, True]
        >>> all(control.cosine < 1 for control in controls)
        True
    """
    source = _Source(harmful, harmless, kind=kind, seed=seed, system=system)
    return source.directions(direction, n)


def control_bases(
    harmful: Float[Tensor, "a d_model"],
    harmless: Float[Tensor, "b d_model"],
    basis: Float[Tensor, "k d_model"],
    *,
    n: int,
    seed: int,
    system: str,
    kind: str = "matched",
) -> list[ControlBasis]:
    """``n`` random bases with as many orthonormal rows as ``basis``, whose first row is the direction.

    The first rows are the draws of :func:`control_directions` for the first row of ``basis``. Row i of each is the one
    of a pool of its own (:data:`POOL` draws again) that, once the rows before it are projected out and what is left has
    length 1, is nearest in energy to row i of ``basis``; of an isotropic one it is the next draw, whatever its energy.
    The first j rows are thus the control of the first j rows of ``basis``.

    Raises :class:`MechsafetyError` as :func:`control_directions`, and for more rows than the activations have
    dimensions within classes.
    """
    source = _Source(harmful, harmless, kind=kind, seed=seed, system=system)
    return source.bases(basis, n)


def in_place_of(direction: Direction, unit: Float[Tensor, " d_model"]) -> Direction:
    """A random direction at the place of ``direction``, to be removed in the same way.

    Of an oblique eraser (LEACE) it is the control of the written direction: it is read where it is written.
    """
    return replace(direction, vector=unit, threshold=0.0, covector=None)


def energies(
    activations: Float[Tensor, "prompt d_model"], units: Float[Tensor, "k d_model"]
) -> Float[Tensor, " k"]:
    """Mean of (u . h)^2 over prompts, as a share of the mean |h|^2: what a projection takes away of it."""
    whole = activations.double().square().sum(-1).mean()
    along = (activations.double() @ units.double().T).square().mean(0)
    return along / whole if whole > 0 else along


def within_class_draws(
    harmful: Float[Tensor, "a d_model"],
    harmless: Float[Tensor, "b d_model"],
    *,
    n: int,
    generator: torch.Generator,
) -> Float[Tensor, "n d_model"]:
    """``n`` draws from N(0, S) in float64, S the covariance within classes (divisor: prompts - 2); S is not formed."""
    centred = _centred(harmful, harmless)
    weights = torch.randn(n, len(centred), generator=generator, dtype=torch.float64)
    return weights @ centred / math.sqrt(len(centred) - 2)


def control_table(controls: Sequence[Control]) -> pd.DataFrame:
    """One row per draw, numbered from 1; columns: :data:`CONTROL_COLUMNS`."""
    import pandas as pd

    rows = [
        {"draw": draw, **{name: getattr(control, name) for name in CONTROL_COLUMNS[1:]}}
        for draw, control in enumerate(controls, start=1)
    ]
    return pd.DataFrame(rows, columns=list(CONTROL_COLUMNS))


class _Source:
    """The draws of one place in one system."""

    def __init__(self, harmful: Tensor, harmless: Tensor, *, kind: str, seed: int, system: str) -> None:
        if kind not in CONTROL_KINDS:
            raise MechsafetyError(f"control {kind!r} is not one of {', '.join(CONTROL_KINDS)}")
        if min(len(harmful), len(harmless)) < 2:
            raise MechsafetyError(
                f"{len(harmful)} harmful and {len(harmless)} harmless prompts are too few to draw control directions "
                "from: 2 of each at least"
            )
        self.kind: ControlKind = cast("ControlKind", kind)
        self.seed, self.system = seed, system
        self._classes = harmful, harmless
        self._all = torch.cat([harmful, harmless]).double()
        if kind == "matched" and not _varies(harmful, harmless):
            raise MechsafetyError(
                "activations do not vary within classes here, so that there is nothing to draw control directions from"
            )

    def directions(self, direction: Tensor, n: int) -> list[Control]:
        if not 0 <= n <= POOL:
            raise MechsafetyError(f"{n} control directions: 0 to {POOL} are drawn")
        if not float(direction.norm()):
            raise MechsafetyError("direction is zero: it has no energy that a random direction could match")
        unit = torch.nn.functional.normalize(direction.detach().cpu().double(), dim=0)
        aim = float(energies(self._all, unit[None])[0])
        pool = self._pool("")
        found = energies(self._all, pool)
        return [
            Control(
                unit=pool[at].float(),
                kind=self.kind,
                seed=self.seed,
                number=at,
                energy=float(found[at]),
                energy_direction=aim,
                cosine=float(cosine(pool[at], unit)),
            )
            for at in self._nearest(found, aim)[:n]
        ]

    def bases(self, basis: Tensor, n: int) -> list[ControlBasis]:
        units = torch.nn.functional.normalize(basis.detach().cpu().double(), dim=-1)
        aims = energies(self._all, units)
        return [
            self._basis(control, draw, aims)
            for draw, control in enumerate(self.directions(units[0], n), start=1)
        ]

    def _basis(self, first: Control, draw: int, aims: Tensor) -> ControlBasis:
        rows = first.unit.double()[None] / first.unit.double().norm()
        pool = self._pool(f" {draw}")
        for aim in aims[1:].tolist():
            left = pool - (pool @ rows.T) @ rows
            left = (
                left - (left @ rows.T) @ rows
            )  # again: the first time leaves rounding of the parts taken out
            usable = left.norm(dim=-1) > _NOTHING
            if not bool(usable.any()):
                raise MechsafetyError(
                    f"{len(aims)} control directions, but the activations vary in {len(rows)} dimensions within "
                    "classes: ask for fewer directions, or give more prompts"
                )
            left = torch.nn.functional.normalize(left[usable], dim=-1)
            at = self._nearest(energies(self._all, left), aim)[0]
            rows = torch.cat([rows, left[at][None]])
            pool = torch.cat([pool[usable][:at], pool[usable][at + 1 :]])
        return ControlBasis(
            rows=rows.float(),
            kind=self.kind,
            seed=self.seed,
            number=first.number,
            energies=tuple(energies(self._all, rows).tolist()),
            energies_basis=tuple(aims.tolist()),
        )

    def _pool(self, use: str) -> Tensor:
        """Unit draws in float64; ``use`` keeps apart the pools of one system."""
        named = f"{self.seed}\x1f{self.system}\x1f{self.kind}{use}"
        digest = hashlib.sha256(named.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        if self.kind == "matched":
            drawn = within_class_draws(*self._classes, n=POOL, generator=generator)
        else:
            drawn = torch.randn(POOL, self._all.shape[1], generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(drawn, dim=-1)

    def _nearest(self, found: Tensor, aim: float) -> list[int]:
        """The draws by ``|log ratio|`` of energies; isotropic ones in the order in which they were drawn."""
        if self.kind == "isotropic":
            return list(range(len(found)))
        tiny = torch.finfo(torch.float64).tiny
        apart = (found.clamp(min=tiny).log() - math.log(max(aim, tiny))).abs()
        return torch.argsort(apart, stable=True).tolist()


def _centred(harmful: Tensor, harmless: Tensor) -> Tensor:
    return torch.cat([one.double() - one.double().mean(0) for one in (harmful, harmless)])


def _varies(harmful: Tensor, harmless: Tensor) -> bool:
    """Whether more is left than the rounding of float32 once the classes' means are out."""
    size = torch.cat([harmful, harmless]).double().norm()
    return bool(_centred(harmful, harmless).norm() > 1e-6 * size)
