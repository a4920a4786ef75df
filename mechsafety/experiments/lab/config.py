"""What runs of ``mechsafety lab`` do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from mechsafety.experiments.config import EngineConfig, Option

if TYPE_CHECKING:
    from mechsafety.lab.mixtures import Tuning

SAFETY_TUNINGS: tuple[Tuning, ...] = ("ssft", "dpo", "unlearn")
CONTROL: Tuning = "benign"
BASE = "base"
"""What the pretrained model is called in tables and folders."""


class LabConfig(EngineConfig):
    """One run of the lab; a part of its manifest. Each seed is a world, a model and a training of its own.

    Example:
        >>> ms.lab.LabConfig(preset="tiny", seeds=(0, 1, 2)).seeds
        (0, 1, 2)
    """

    preset: str = Field(default="tiny", description="size; see mechsafety lab presets")
    seeds: Annotated[tuple[int, ...], Option(metavar="N,N,...", many="commas")] = Field(
        default=(0,), min_length=1, description="one world and one model each"
    )
    device: str = Field(default="auto", description="where models are trained and run: auto, cpu, cuda, ...")

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str) -> str:
        from mechsafety.lab.presets import preset  # which loads torch

        return preset(name).name

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds {', '.join(map(str, seeds))}: each once, 0 or more")
        return seeds
