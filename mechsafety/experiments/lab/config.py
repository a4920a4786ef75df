"""What runs of ``mechsafety lab`` do."""

from __future__ import annotations

from pydantic import Field, field_validator

from mechsafety.experiments.config import Config
from mechsafety.lab.mixtures import Tuning
from mechsafety.lab.presets import preset

SAFETY_TUNINGS: tuple[Tuning, ...] = ("ssft", "dpo", "unlearn")
CONTROL: Tuning = "benign"
BASE = "base"
"""What the pretrained model is called in tables and folders."""


class LabConfig(Config):
    """One run of the lab; a part of its manifest. Each seed is a world, a model and a training of its own."""

    preset: str = "tiny"
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str) -> str:
        return preset(name).name

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds {', '.join(map(str, seeds))}: each once, 0 or more")
        return seeds
