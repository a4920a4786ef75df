"""What one run of ``mechsafety selfjudge`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from mechsafety.core.days import Day
from mechsafety.experiments.config import Config
from mechsafety.judges.selfjudgement import FORMS, Form


class SelfJudgeConfig(Config):
    """What one run of self-judgement does; a part of its manifest. Empty fields are the study's."""

    study: Path
    systems: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1)
    forms: tuple[Form, ...] = Field(default=FORMS, min_length=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    device: str | None = None
    date: Day | None = None
    seed: int | None = Field(default=None, ge=0)
