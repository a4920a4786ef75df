"""What one run of ``mechsafety selfjudge`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from mechsafety.core.days import Day
from mechsafety.core.names import QUESTION_FORMS, QuestionForm
from mechsafety.experiments.config import Dtype, EngineConfig, Option


class SelfJudgeConfig(EngineConfig):
    """What one run of self-judgement does; a part of its manifest. Empty fields are the study's.

    Example:
        >>> ms.judges.SelfJudgeConfig(study="runs/study", forms=("logit",)).forms
        ('logit',)
    """

    study: Annotated[Path, Option(argument=True, metavar="RUN")]
    systems: Annotated[tuple[str, ...], Option(name="--system", metavar="S")] = Field(
        default=(), description="one of the study's systems; all of them when empty."
    )
    limit: int | None = Field(default=None, ge=1, description="at most N prompts of each label")
    forms: Annotated[tuple[QuestionForm, ...], Option(name="--form")] = Field(
        default=QUESTION_FORMS, min_length=1, description="by log-probability, or in words"
    )
    dtype: Dtype | None = Field(default=None, description="number format; the study's when empty")
    device: str | None = Field(default=None, description="where models run; the study's when empty")
    date: Annotated[Day | None, Option(metavar="DAY")] = Field(
        default=None, description="the day that templates with a date write; the study's when empty"
    )
    seed: int | None = Field(
        default=None, ge=0, description="every random draw depends on it; the study's when empty"
    )
