"""What one run of ``mechsafety selfjudge`` does."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mechsafety.core.days import Day
from mechsafety.core.names import QUESTION_FORMS, QuestionForm
from mechsafety.experiments.config import Config, Dtype


class SelfJudgeConfig(Config):
    """What one run of self-judgement does; a part of its manifest. Empty fields are the study's."""

    study: Path
    systems: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)
    forms: tuple[QuestionForm, ...] = Field(default=QUESTION_FORMS, min_length=1)
    dtype: Dtype | None = None
    device: str | None = None
    date: Day | None = None
    seed: int | None = Field(default=None, ge=0)
