"""The published forms of abliteration, and this project's default, as recipes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import AnchorsUsed, Centring, Method, Positions
from mechsafety.directions.direction import Direction
from mechsafety.edits.interventions import Ablate, Edit, Orthogonalise


@runtime_checkable
class Build(Protocol):
    """Makes the edit from a direction, the strength alpha and the number of layers."""

    def __call__(self, direction: Direction, *, alpha: float, n_layers: int) -> Edit: ...


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a direction is found, chosen and removed.

    ``layer`` is a layer number, a fraction of the depth, or None: selected on the validation split by ``rule``, on the
    prompts that score beyond ``threshold`` (None: the middle of the class means). ``fit_on`` are the prompts that the
    direction is found on. ``final_norm``: the last layer is read after the final norm, as the last entry of Hugging
    Face's ``hidden_states``. ``build`` makes the edit from the direction, the strength alpha and the number of layers.
    """

    name: str
    about: str
    method: Method
    centring: Centring
    layer: int | float | None
    rule: str
    positions: Positions
    threshold: float | None = None
    fit_on: AnchorsUsed = "behaviour"
    final_norm: bool = False
    build: Build

    def layer_of(self, n_layers: int) -> int | None:
        """The layer it fixes in a model of ``n_layers``, or None when it selects one."""
        return int(n_layers * self.layer) if isinstance(self.layer, float) else self.layer


def _ablate(direction: Direction, *, alpha: float, n_layers: int) -> Edit:  # noqa: ARG001 - one form for all
    return Ablate(direction, alpha=alpha)


def _project_hidden_states(direction: Direction, *, alpha: float, n_layers: int) -> Edit:  # noqa: ARG001 - one form for all
    return Ablate(direction, alpha=alpha, sites=("resid_post",))


def _orthogonalise_all_but_first(direction: Direction, *, alpha: float, n_layers: int) -> Edit:
    return Orthogonalise(
        direction, alpha=alpha, layers=tuple(range(1, n_layers)), writers=("attn_out", "mlp_out")
    )


_DEFAULT = Recipe(
    name="default",
    about="mean difference at every post-instruction token, position and layer selected on the validation split, "
    "projected out at every block input, attention output and MLP output",
    method="mean_difference",
    centring="pooled",
    layer=None,
    rule="auto",
    positions="post_instruction",
    build=_ablate,
)

_CODE = replace(
    _DEFAULT,
    name="code",
    about="arXiv 2510.02768, released code: mean difference at layer int(0.6 n), W <- W - alpha v v^T W for "
    "the output maps of attention and MLP in every block but the first, embedding untouched",
    layer=0.6,
    positions="last_prompt",
    fit_on="labels",
    build=_orthogonalise_all_but_first,
)

RECIPES: dict[str, Recipe] = {
    "default": _DEFAULT,
    "paper": replace(
        _DEFAULT,
        name="paper",
        about="arXiv 2510.02768, text: first principal component of mean-centred activations at one layer, "
        "h <- h - alpha <h, v> v on every block's output",
        method="pca",
        positions="last_prompt",
        fit_on="labels",
        build=_project_hidden_states,
    ),
    "code": _CODE,
    # Unlike the paper's text: a difference of means instead of a principal component, a place outside the stream
    # that is edited, and the weights of all blocks but one instead of activations. Unlike the code itself: edited
    # weights are not rounded to bfloat16, and biases, which the paper's models have none of, would be edited too.
    "granular-release": replace(
        _CODE,
        name="granular-release",
        about="arXiv 2510.02768, as its released commands run: mean difference of all anchors after the final norm "
        "(layer fraction 1), W <- W - alpha v v^T W for the output maps of attention and MLP in every block but the "
        "first, embedding untouched",
        layer=1.0,
        fit_on="anchors",
        final_norm=True,
    ),
    "arditi": replace(
        _DEFAULT,
        name="arditi",
        about="arXiv 2406.11717: mean difference at every post-instruction token and layer, selected with the "
        "published bounds (KL 0.1), projected out at every block input, attention output and MLP output",
        rule="arditi",
        threshold=0.0,
    ),
}


def recipe(
    name: str,
    *,
    method: Method | None = None,
    centring: Centring | None = None,
    layer: int | None = None,
    positions: Positions | None = None,
    fit_on: AnchorsUsed | None = None,
) -> Recipe:
    """A recipe by name, with what the user chose instead of its own choices."""
    if name not in RECIPES:
        raise MechsafetyError(f"recipe {name!r} is not one of {', '.join(RECIPES)}")
    base = RECIPES[name]
    return replace(
        base,
        method=base.method if method is None else method,
        centring=base.centring if centring is None else centring,
        layer=base.layer if layer is None else layer,
        positions=base.positions if positions is None else positions,
        fit_on=base.fit_on if fit_on is None else fit_on,
    )
