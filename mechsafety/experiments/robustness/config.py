"""What one run of ``mechsafety robustness`` does."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from mechsafety.core.names import Attack
from mechsafety.experiments.config import AnyPrompts, EditedConfig, Option


class RobustnessConfig(EditedConfig):
    """What one run does; a part of its manifest."""

    attacks: Annotated[tuple[Attack, ...], Option(name="--attack")] = Field(
        default=("vanilla", "decoding"), min_length=1, description="what is tried"
    )
    prompts: AnyPrompts = "default"
    limit: int | None = Field(default=None, ge=1, description="at most N harmful report prompts")
    samples: Annotated[int, Option(metavar="K")] = Field(
        default=5, ge=1, description="samples of each prompt"
    )
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="of the samples")
    max_new_tokens: int = Field(default=64, ge=1, description="length of the answers")
    suffixes: int = Field(default=3, ge=1, description="suffixes to search")
    suffix_steps: int = Field(default=100, ge=1, description="steps of a search")
    suffix_width: int = Field(default=128, ge=1, description="candidates per step")

    @field_validator("attacks")
    @classmethod
    def _once(cls, attacks: tuple[Attack, ...]) -> tuple[Attack, ...]:
        return tuple(dict.fromkeys(attacks))
