"""Asking models about their own refusals."""

from __future__ import annotations

from pathlib import Path

from mechsafety.cli.base import Shown, command, run_and_show, run_options
from mechsafety.cli.options import config_options
from mechsafety.experiments.selfjudgement.config import SelfJudgeConfig


@command(
    "selfjudge", example="mechsafety selfjudge runs/default --limit 10 --form logit --out runs/selfjudge"
)
@config_options(SelfJudgeConfig)
@run_options("runs/NAME-selfjudge")
def _selfjudge(config: SelfJudgeConfig, out: Path | None, allow_other_versions: bool) -> Shown:
    """Ask each system of a finished study, with and without the edit, whether its answers were refusals.

    RUN is the study's folder. Each arm is asked about both arms' answers, with controls: another prompt, length alone,
    the question reversed, the answer N/A. An interrupted run goes on when the same command runs again.
    """
    from mechsafety.experiments.selfjudgement.experiment import SelfJudging

    folder = out or Path("runs") / f"{config.study.resolve().name}-selfjudge"
    return run_and_show(SelfJudging(config), folder, allow_other_versions=allow_other_versions)
