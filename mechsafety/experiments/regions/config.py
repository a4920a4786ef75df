"""What a run of ``mechsafety regions`` does, and the states of the model that it measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pydantic import Field, model_validator

from mechsafety.experiments.config import ModelConfig

Part = Literal["structure", "sweep", "attacks", "links", "heads", "freezing"]
PARTS: tuple[Part, ...] = get_args(Part)
"""In this order; ``attacks``, ``links`` and ``freezing`` take the sweep's sweet spot, or, without the sweep, the first
set difference."""


class RegionsConfig(ModelConfig):
    """What one run does; a part of its manifest. ``p`` and ``q`` are percent, ranks are counts or fractions."""

    model: str
    prompts: str = "default"
    parts: tuple[Part, ...] = Field(default=("structure", "sweep", "links", "heads"), min_length=1)
    examples: int = Field(default=128, ge=2)
    response: Literal["full", "short"] = "full"
    method: Literal["snip", "wanda"] = "snip"
    loss: Literal["mean", "sum"] = "mean"
    positions: Literal["paper", "predictive"] = "paper"
    group: Literal["row", "matrix"] = "matrix"
    set_differences: tuple[tuple[float, float], ...] = Field(
        default=((1, 1), (0.5, 0.5), (3, 3), (5, 5), (8, 5)), min_length=1
    )
    projections: tuple[tuple[int | float, int | float], ...] = ((0.95, 0.98), (0.98, 0.99))
    top_safety: tuple[float, ...] = (1.0,)
    pruned: tuple[float, ...] = ()
    heads: int = Field(default=10, ge=1)
    draws: int = Field(default=1, ge=1)
    controls: int = Field(default=3, ge=1)
    rank: int = Field(default=100, ge=1)
    attacks: tuple[Literal["vanilla", "decoding", "suffix"], ...] = Field(
        default=("vanilla", "decoding"), min_length=1
    )
    finetuning: tuple[int, ...] = Field(default=(10, 50, 100), min_length=1)
    frozen: tuple[float, ...] = (67.0,)
    limit: int | None = Field(default=None, ge=2)
    max_new_tokens: int = Field(default=32, ge=1)
    answer_tokens: int = Field(default=48, ge=1)
    batch_size: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _check(self) -> RegionsConfig:
        for p, q in self.set_differences:
            if not (0 < p <= 100 and 0 < q <= 100):
                raise ValueError(f"p={p:g} q={q:g}: both are percent, above 0 and at most 100")
        for share in (*self.top_safety, *self.pruned, *self.frozen):
            if not 0 < share <= 100:
                raise ValueError(f"{share:g} is no percent above 0 and at most 100")
        return self


Family = Literal["none", "set_difference", "orthogonal_projection", "top_safety", "pruning", "heads"]
Control = Literal["model", "removed", "random"]


VALUES: dict[Family, tuple[str, ...]] = {
    "none": (),
    "set_difference": ("p", "q"),
    "orthogonal_projection": ("r_u", "r_s"),
    "top_safety": ("q",),
    "pruning": ("p",),
    "heads": ("heads",),
}
"""What the values of a removal's setting are called: p and q are percent, r_u and r_s ranks."""


@dataclass(frozen=True, kw_only=True)
class State:
    """One state of the model that is measured: what is removed, by which calibration draw or random seed.

    ``values`` are the setting's, in the order of :data:`VALUES`. ``control`` is ``model`` for the model as it is,
    ``removed`` for the removal, ``random`` for its matched random control.
    """

    removal: Family
    control: Control
    draw: int = 0
    values: tuple[int | float, ...] = ()

    @property
    def named(self) -> dict[str, int | float]:
        return dict(zip(VALUES[self.removal], self.values, strict=True))

    @property
    def setting(self) -> str:
        """``p=1 q=1``: the same for a removal and its controls."""
        return " ".join(f"{name}={value:g}" for name, value in self.named.items())

    def describe(self) -> str:
        if self.control == "model":
            return "the model as it is"
        which = f"random control {self.draw + 1}" if self.control == "random" else f"draw {self.draw + 1}"
        return f"{self.removal.replace('_', ' ')} {self.setting}, {which}"

    @property
    def key(self) -> str:
        return f"{self.removal} {self.setting} {self.control} {self.draw}"


def planned_states(config: RegionsConfig) -> list[State]:
    """The model first, then every removal with each calibration draw and the controls of the first.

    A control is matched to the first draw's removal: the same number of weights of every matrix, or the same rank.
    """
    states = [State(removal="none", control="model")]
    if "sweep" in config.parts:
        for removal in _removals(config):
            states += _with_controls(removal, draws=config.draws, controls=config.controls)
    if "heads" in config.parts:
        heads = State(removal="heads", control="removed", values=(config.heads,))
        states += _with_controls(heads, draws=1, controls=config.controls)
    return states


def _removals(config: RegionsConfig) -> Iterator[State]:
    settings: dict[Family, Sequence[tuple[int | float, ...]]] = {
        "set_difference": config.set_differences,
        "top_safety": [(q,) for q in config.top_safety],
        "orthogonal_projection": config.projections,
        "pruning": [(p,) for p in config.pruned],
    }
    for removal, several in settings.items():
        for values in several:
            yield State(removal=removal, control="removed", values=tuple(values))


def _with_controls(removal: State, *, draws: int, controls: int) -> Iterator[State]:
    for draw in range(draws):
        yield replace(removal, draw=draw)
    for seed in range(controls):
        yield replace(removal, control="random", draw=seed)
