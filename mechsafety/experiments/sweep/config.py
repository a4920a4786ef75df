"""What one run of ``mechsafety sweep`` does."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mechsafety.core.names import Centring, Dosage, Method
from mechsafety.experiments.config import ModelConfig


class SweepConfig(ModelConfig):
    """What one sweep does; a part of the run's manifest."""

    model: str
    prompts: str = "default"
    methods: tuple[Method, ...] = Field(default=("mean_difference",), min_length=1)
    centring: Centring = "pooled"
    positions: tuple[int, ...] | Literal["last", "post"] = "post"
    layers: tuple[int, ...] | None = None
    fit: int = Field(default=128, ge=2)
    validation: int = Field(default=32, ge=2)
    refusal_tokens: tuple[str, ...] | None = None
    rule: str = "auto"
    doses: tuple[Dosage, ...] = ()
    dose_prompts: int = Field(default=20, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)
    resamples: int = Field(default=200, ge=1)
    truncate_prompts: bool = False
    escape_control_tokens: bool = False
