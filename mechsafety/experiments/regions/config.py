"""What a run of ``mechsafety regions`` does, and the states of the model that it measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import Attack
from mechsafety.experiments.config import ModelConfig, Option, SplitPrompts

Part = Literal["structure", "sweep", "attacks", "links", "heads", "freezing"]
PARTS: tuple[Part, ...] = get_args(Part)
"""In this order; ``attacks``, ``links`` and ``freezing`` take the sweep's sweet spot, or, without the sweep, the first
set difference."""


def _pair(option: str, text: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise MechsafetyError(
            f"{option} {text!r}: two numbers with a comma between them, such as 1,1"
        ) from None
    return first, second


def _ranks(text: str) -> tuple[int | float, ...]:
    return tuple(
        int(value) if value >= 1 and value == int(value) else value for value in _pair("--projection", text)
    )


class RegionsConfig(ModelConfig):
    """What one run does; a part of its manifest. ``p`` and ``q`` are percent, ranks are counts or fractions.

    Example:
        >>> ms.regions.RegionsConfig(model="smollm2-135m+refusals", parts=("structure",)).method
        'snip'
    """

    headings: ClassVar[Mapping[str, str]] = {
        "examples": "Scores",
        "set_differences": "Removals",
        "controls": "Controls",
        "rank": "Overlap",
        "attacks": "Attacks",
        "limit": "Answers",
        "batch_size": "Scores",
    }
    model: Annotated[str, Option(argument=True)]
    prompts: SplitPrompts = "default"
    parts: Annotated[tuple[Part, ...], Option(name="--part")] = Field(
        default=("structure", "sweep", "links", "heads"), min_length=1, description="what to do"
    )
    examples: int = Field(default=128, ge=2, description="safety and utility examples, so many of each")
    response: Literal["full", "short"] = Field(default="full", description="whole refusals, or one sentence")
    method: Literal["snip", "wanda"] = Field(default="snip", description="scores that the sweep ranks by")
    loss: Literal["mean", "sum"] = Field(default="mean", description="per answer token, or per answer")
    positions: Literal["paper", "predictive"] = Field(
        default="paper", description="tokens whose activations the Gram matrices sum"
    )
    group: Literal["row", "matrix"] = Field(default="matrix", description="what weights are ranked in")
    set_differences: Annotated[
        tuple[tuple[float, float], ...],
        Option(name="--set-difference", metavar="P,Q", parse=partial(_pair, "--set-difference")),
    ] = Field(
        default=((1, 1), (0.5, 0.5), (3, 3), (5, 5), (8, 5)),
        min_length=1,
        description="top Q percent by safety without top P by utility",
    )
    projections: Annotated[
        tuple[tuple[int | float, int | float], ...],
        Option(name="--projection", metavar="RU,RS", parse=_ranks),
    ] = Field(
        default=((0.95, 0.98), (0.98, 0.99)),
        description="ranks of the orthogonal projection, counts or fractions",
    )
    top_safety: Annotated[tuple[float, ...], Option(metavar="Q")] = Field(
        default=(1.0,), description="top Q percent by safety alone"
    )
    pruned: Annotated[tuple[float, ...], Option(name="--prune", metavar="P")] = Field(
        default=(), description="lowest P percent by safety"
    )
    heads: int = Field(default=10, ge=1, description="how many of the best heads to prune")
    draws: int = Field(default=1, ge=1, description="calibration draws")
    controls: int = Field(default=1, ge=1, description="random controls of every removal, as many weights")
    matched_controls: int = Field(
        default=2, ge=0, description="random controls of every removal, as many and as large weights"
    )
    rank: int = Field(default=100, ge=1, description="dimensions of the subspaces that are compared")
    attacks: Annotated[tuple[Attack, ...], Option(name="--attack")] = Field(
        default=("vanilla", "decoding"), min_length=1, description="attacks on the model without its region"
    )
    finetuning: Annotated[tuple[int, ...], Option(metavar="N")] = Field(
        default=(10, 50, 100), min_length=1, description="benign examples to fine-tune on"
    )
    frozen: Annotated[tuple[float, ...], Option(metavar="P")] = Field(
        default=(67.0,), description="percent of the weights that are frozen in fine-tuning"
    )
    limit: int | None = Field(default=None, ge=2, description="at most so many report prompts of each label")
    max_new_tokens: int = Field(default=32, ge=1, description="length of the answers that are judged")
    answer_tokens: int = Field(
        default=48, ge=1, description="length of the answers that weights are scored on"
    )
    batch_size: int = Field(default=4, ge=1, description="examples in a batch of the attribution")

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
Control = Literal["model", "removed", "random", "matched"]


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
    ``removed`` for the removal, ``random`` for its random control and ``matched`` for one that is as large too.
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
        which = f"{'draw' if self.control == 'removed' else f'{self.control} control'} {self.draw + 1}"
        return f"{self.removal.replace('_', ' ')} {self.setting}, {which}"

    @property
    def key(self) -> str:
        return f"{self.removal} {self.setting} {self.control} {self.draw}"


def planned_states(config: RegionsConfig) -> list[State]:
    """The model first, then every removal with each calibration draw and the controls of the first.

    A control is like the first draw's removal: the same number of weights of every matrix, or the same rank. A matched
    one takes as large weights, or ranks of the same energy.
    """
    states = [State(removal="none", control="model")]
    if "sweep" in config.parts:
        for removal in _removals(config):
            states += _with_controls(removal, config, draws=config.draws)
    if "heads" in config.parts:
        heads = State(removal="heads", control="removed", values=(config.heads,))
        states += _with_controls(heads, config, draws=1)
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


def _with_controls(removal: State, config: RegionsConfig, *, draws: int) -> Iterator[State]:
    for draw in range(draws):
        yield replace(removal, draw=draw)
    for seed in range(config.controls):
        yield replace(removal, control="random", draw=seed)
    for seed in range(config.matched_controls):
        yield replace(removal, control="matched", draw=seed)
