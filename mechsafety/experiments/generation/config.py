"""What one run of ``mechsafety generate`` does."""

from __future__ import annotations

from pydantic import Field

from mechsafety.core.names import RESPONSES_AT_ONCE
from mechsafety.experiments.config import ModelConfig
from mechsafety.prompts.prompt_set import Split


class GenerationConfig(ModelConfig):
    """What one generation run does; a part of its manifest."""

    model: str
    prompts: str = "default"
    split: Split = "report"
    limit: int | None = Field(default=None, ge=1)
    edit: str | None = None
    baked: bool = False
    max_new_tokens: int = Field(default=64, ge=1)
    batch_size: int = Field(default=RESPONSES_AT_ONCE, ge=1)
    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    truncate_prompts: bool = False
    escape_control_tokens: bool = False
