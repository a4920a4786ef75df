"""What one run of ``mechsafety evaluate`` does."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from mechsafety.core.names import CONTEXTS_AT_ONCE
from mechsafety.experiments.config import EditedConfig, Option


class EvaluationConfig(EditedConfig):
    """What one evaluation does; a part of its manifest."""

    tasks: Annotated[tuple[str, ...], Option(many="commas", metavar="NAMES")] = Field(
        min_length=1, description="lm-eval's tasks, with commas between them"
    )
    task_folder: Annotated[str | None, Option(metavar="FOLDER")] = Field(
        default=None, description="where tasks of your own lie (YAML)"
    )
    limit: int | None = Field(default=None, ge=1, description="the first N documents of each task")
    num_fewshot: int | None = Field(default=None, ge=0, description="examples shown before each")
    in_template: Annotated[bool, Option(name="--chat")] = Field(
        default=False, description="ask in the model's chat template"
    )
    system: Annotated[str | None, Option(metavar="TEXT")] = Field(
        default=None, description="system message, with --chat"
    )
    batch_size: int = Field(default=CONTEXTS_AT_ONCE, ge=1, description="contexts run at once")

    @field_validator("tasks", mode="before")
    @classmethod
    def _named(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in tasks if name)
