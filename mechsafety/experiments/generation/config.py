"""What one run of ``mechsafety generate`` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, model_validator

from mechsafety.core.errors import way
from mechsafety.core.names import RESPONSES_AT_ONCE
from mechsafety.experiments.backends import BackendConfig
from mechsafety.experiments.config import AnyPrompts, EditedConfig, FedConfig
from mechsafety.prompts.columns import Split


class GenerationConfig(EditedConfig, FedConfig):
    """What one generation run does; a part of its manifest."""

    headings: ClassVar[Mapping[str, str]] = {
        "edit": "Edit",
        "prompts": "Prompts",
        "baked": "Edit",
        "max_new_tokens": "Answers",
        "generation": "Answers by vLLM",
    }
    prompts: AnyPrompts = "default"
    split: Split = Field(default="report", description="which of its prompts")
    limit: int | None = Field(default=None, ge=1, description="at most N prompts of each label")
    baked: bool = Field(default=False, description="write the edit into the weights instead of hooking it on")
    max_new_tokens: int = Field(default=64, ge=1, description="length of the answers")
    batch_size: int = Field(default=RESPONSES_AT_ONCE, ge=1, description="responses generated at once")
    temperature: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="draw tokens; greedy without it"
    )
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus to draw from")
    generation: BackendConfig = Field(default=BackendConfig(), description="what generates")

    @model_validator(mode="after")
    def _companions(self) -> GenerationConfig:
        if self.edit is None and self.baked:
            raise ValueError(
                f"{way('--baked', 'baked')} writes an edit into the weights: name one with {way('--edit')}"
            )
        if self.top_p < 1 and self.temperature is None:
            raise ValueError(
                f"{way('--top-p', 'top_p')} {self.top_p:g} is about drawing tokens: give {way('--temperature')} too"
            )
        return self
