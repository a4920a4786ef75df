"""What one run of ``mechsafety robustness`` does."""

from __future__ import annotations

from pydantic import Field, field_validator

from mechsafety.core.names import Attack
from mechsafety.experiments.config import ModelConfig


class RobustnessConfig(ModelConfig):
    """What one run does; a part of its manifest."""

    model: str
    edit: str | None = None
    attacks: tuple[Attack, ...] = Field(default=("vanilla", "decoding"), min_length=1)
    prompts: str = "default"
    limit: int | None = Field(default=None, ge=1)
    samples: int = Field(default=5, ge=1)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    max_new_tokens: int = Field(default=64, ge=1)
    suffixes: int = Field(default=3, ge=1)
    suffix_steps: int = Field(default=100, ge=1)
    suffix_width: int = Field(default=128, ge=1)

    @field_validator("attacks")
    @classmethod
    def _once(cls, attacks: tuple[Attack, ...]) -> tuple[Attack, ...]:
        return tuple(dict.fromkeys(attacks))
