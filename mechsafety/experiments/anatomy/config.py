"""What a run of ``mechsafety anatomy`` does, and the names by which its parts, models and tables go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, FiniteFloat, field_validator, model_validator

from mechsafety.core.names import LINE_ALPHAS, TOP_RANKS
from mechsafety.experiments.config import ModelConfig, Option, SplitPrompts

Part = Literal["clusters", "weights", "sensitivity", "interpolation", "reversal", "links"]
PARTS: tuple[Part, ...] = get_args(Part)
"""In this order; each stands alone."""

Role = Literal["base", "tuned", "control"]
"""The model before the fine-tuning, after it, and after a benign fine-tuning that taught it no refusals."""

TABLES: Mapping[str, str] = {
    "separation": "separation.csv",
    "tau": "tau.parquet",
    "d_prime_changes": "d_prime_changes.csv",
    "attack_tau": "attack_tau.csv",
    "weight_changes": "weight_changes.csv",
    "spectrum": "spectrum.parquet",
    "action": "action.csv",
    "action_ratios": "action_ratios.csv",
    "sensitivity": "sensitivity.csv",
    "norms": "sensitivity.parquet",
    "interpolation": "interpolation.csv",
    "reversal": "reversal.csv",
    "links": "links.csv",
    "ablation": "ablation.csv",
    "verdicts": "verdicts.parquet",
}
"""The tables of a run, by name, and their files."""

PART_TABLES: Mapping[Part, tuple[str, ...]] = {
    "clusters": ("separation", "tau", "d_prime_changes", "attack_tau"),
    "weights": ("weight_changes", "spectrum", "action", "action_ratios"),
    "sensitivity": ("sensitivity", "norms"),
    "interpolation": ("interpolation",),
    "reversal": ("reversal",),
    "links": ("links", "ablation"),
}


def _whole_base(given: dict[str, Any]) -> str:
    return f"fluent:{given['base']}"


class AnatomyConfig(ModelConfig):
    """What one run does; a part of its manifest.

    The default ``judge``, ``fluent:BASE``, distinguishes an answer from the word salad of a model that was moved too
    far.

    Example:
        >>> ms.anatomy.AnatomyConfig(base="smollm2-135m", tuned="smollm2-135m+refusals").judge
        'fluent:smollm2-135m'
    """

    base: Annotated[str, Option(argument=True)]
    tuned: Annotated[str, Option(argument=True)]
    control: Annotated[str | None, Option(metavar="MODEL")] = Field(
        default=None, description="BASE after a fine-tuning that taught no refusals"
    )
    prompts: SplitPrompts = "default"
    attacks: Annotated[str | None, Option(metavar="SET")] = Field(
        default=None, description="harmful prompts; their category names the family"
    )
    judge: Annotated[str, Option(default="fluent:BASE")] = Field(
        default_factory=_whole_base, description="who reads the answers"
    )
    parts: Annotated[tuple[Part, ...], Option(metavar="P,P,...", many="commas")] = Field(
        default=PARTS, min_length=1, description="what to do"
    )
    maps: Literal["mlp", "all"] = Field(
        default="mlp",
        description="matrices whose change is taken apart in the part weights: the MLPs', or all of the blocks",
    )
    limit: int | None = Field(
        default=None, ge=2, description="at most N prompts of each label, split and family"
    )
    max_new_tokens: int = Field(default=32, ge=1, description="length of the answers that are judged")
    alphas: Annotated[tuple[FiniteFloat, ...], Option(metavar="A,A,...", many="commas")] = Field(
        default=LINE_ALPHAS,
        min_length=1,
        description="models on the line from BASE (0) to TUNED (1) and beyond",
    )
    ranks: Annotated[tuple[int, ...], Option(metavar="R,R,...", many="commas")] = Field(
        default=TOP_RANKS, description="how many singular directions of the change are kept, or removed"
    )

    @field_validator("parts")
    @classmethod
    def _in_order(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        return tuple(part for part in PARTS if part in parts)

    @field_validator("alphas", "ranks")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(values))

    @model_validator(mode="after")
    def _check(self) -> AnatomyConfig:
        if len({self.base, self.tuned, self.control}) < 3:
            raise ValueError(
                f"base {self.base!r}, tuned {self.tuned!r} and control {self.control!r} must be three different "
                "models: dW is what the fine-tuning changed"
            )
        if any(rank < 1 for rank in self.ranks):
            raise ValueError(f"ranks {self.ranks}: 1 or more")
        return self

    @property
    def models(self) -> dict[Role, str]:
        """The specs of the models that there are."""
        found: dict[Role, str] = {"base": self.base, "tuned": self.tuned}
        if self.control is not None:
            found["control"] = self.control
        return found
