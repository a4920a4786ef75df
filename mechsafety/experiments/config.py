"""What the configurations of experiments share: how models are loaded, and the seed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mechsafety.core.days import Day

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Config(BaseModel):
    """A checked, frozen configuration. Descriptions of its fields are the help texts of the command's options."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Config):
    """The configuration of an experiment that loads models."""

    template: str | None = Field(
        default=None, description="plain, or a Jinja file; the model's own when empty"
    )
    date: Day | None = Field(
        default=None,
        description="the day (2025-03-01) that templates with a date write; the day the run began when empty",
    )
    dtype: Dtype = Field(
        default="auto", description="number format; auto: bfloat16 where it is native, else float32"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, ...")
    seed: int = Field(default=0, ge=0, description="every random draw depends on it")

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of ``load_model``, but for the date, which the run pins."""
        return {"dtype": self.dtype, "device": self.device, "template": self.template}
