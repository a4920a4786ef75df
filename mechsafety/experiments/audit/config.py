"""What one run of ``mechsafety audit`` does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mechsafety.experiments.config import Config, Option


class AuditConfig(Config):
    """The files of an audit and how its comparisons are corrected."""

    files: Annotated[tuple[str, ...], Option(argument=True)] = ()
    published: bool = Field(default=False, description="the counts of arXiv 2510.02768, as without FILES")
    primary: Annotated[str | None, Option(metavar="JUDGE")] = Field(
        default=None, description="judge that the others are compared with, by default the first of the files"
    )
    alpha: float = Field(default=0.05, description="error rate of the verdicts")
    family: Literal["all", "judge"] = Field(
        default="all",
        description="correct over all comparisons, or over the systems under one judge and label",
    )
    seed: int = Field(default=0, description="for the bootstrap of kappa")
