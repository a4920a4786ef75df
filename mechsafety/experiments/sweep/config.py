"""What one run of ``mechsafety sweep`` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from mechsafety.core.names import DOSAGES, THOUGHT_END, Centring, Dosage, FitOn, Method, Search
from mechsafety.experiments.config import FedConfig, Option, whole_numbers


def _positions(text: str) -> str | tuple[int, ...]:
    return text if text in ("post", "last", THOUGHT_END) else whole_numbers(text, "--positions")


SweptPositions = Annotated[
    tuple[int, ...] | Literal["last", "post", "thought-end"],
    Option(metavar="post|last|thought-end|-2,-1", many="commas", parse=_positions),
]
"""Where directions are found: every token of the template after the request, the last one, the end of a thought."""


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))  # a blank before a word belongs to its token


class SweepConfig(FedConfig):
    """What one sweep does; a part of the run's manifest.

    Example:
        >>> ms.SweepConfig(model="smollm2-135m", positions=(-2, -1), layers=(10, 11, 12)).rule
        'auto'
    """

    headings: ClassVar[Mapping[str, str]] = {
        "prompts": "Prompts",
        "methods": "Directions",
        "fit": "Prompts",
        "refusal_tokens": "Selection",
        "doses": "Dose curves",
        "max_new_tokens": "Selection",
    }
    model: Annotated[str, Option(argument=True)]
    prompts: Annotated[str, Option(metavar="SET")] = Field(
        default="default", description="fit and validation prompts; report prompts for dose curves"
    )
    methods: Annotated[tuple[Method, ...], Option(name="--method")] = Field(
        default=("mean_difference",), min_length=1, description="how directions are estimated"
    )
    centring: Centring = Field(
        default="pooled", description="what principal components are centred on, for pca"
    )
    positions: SweptPositions = Field(
        default="post",
        description="every template token after the instruction, the last one, the end of the model's own thought, or "
        "named ones",
    )
    layers: Annotated[tuple[int, ...] | None, Option(metavar="A-B|A,B", many="commas", default="all")] = (
        Field(default=None, description="layers to score")
    )
    fit: int = Field(default=128, ge=2, description="fit prompts of each label")
    fit_on: FitOn = Field(
        default="behaviour",
        description="fit prompts that the model treats as their label says (behaviour), or all (labels)",
    )
    validation: Annotated[int, Option(name="--limit")] = Field(
        default=32, ge=2, description="validation prompts of each label"
    )
    refusal_tokens: Annotated[
        tuple[str, ...] | None,
        Option(metavar="A,B", many="commas", parse=_tokens, default="from the model's own refusals"),
    ] = Field(default=None, description="first tokens of refusals")
    rule: str = Field(default="auto", description="selection rule: auto or arditi")
    search: Search = Field(
        default="exhaustive",
        description="score every candidate on all prompts, or only those that can come among the first (auto)",
    )
    confirm: int = Field(
        default=5,
        ge=0,
        description="first candidates whose answers to validation prompts are read before one is taken (auto)",
    )
    doses: tuple[Literal["alpha", "directions", "layers", "all"], ...] = Field(
        default=(), description="dose curves of the selected direction"
    )
    dose_prompts: int = Field(default=20, ge=1, description="report prompts of each label, for dose curves")
    controls: int = Field(
        default=3, ge=0, le=200, description="matched random directions beside every dose; 0: none"
    )
    max_new_tokens: int = Field(default=32, ge=1, description="length of all answers")
    resamples: int = Field(
        default=200, ge=1, description="draws of the validation prompts, for the stability of the selection"
    )

    @field_validator("doses")
    @classmethod
    def _all(cls, doses: tuple[str, ...]) -> tuple[str, ...]:
        return DOSAGES if "all" in doses else tuple(dict.fromkeys(doses))

    @property
    def families(self) -> tuple[Dosage, ...]:
        """The dose curves, none of them ``all``."""
        return tuple(dose for dose in self.doses if dose != "all")
