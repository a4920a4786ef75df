"""Judges: their names, their cache, and how far they agree with people and with each other."""

from ..annotation.export import load_annotations as load_annotations
from ..annotation.labels import read_human_labels as read_human_labels
from ..core.verdict import Judge as Judge
from ..experiments.agreement.work import compare_judges as compare_judges
from ..experiments.selfjudgement.config import SelfJudgeConfig as SelfJudgeConfig
from ..experiments.selfjudgement.experiment import run_selfjudge as run_selfjudge
from .accepted import batched as batched
from .cache import VerdictCache as VerdictCache
from .injection import KnownItem as KnownItem
from .injection import injection_flip_rate as injection_flip_rate
from .judging import Verdicts as Verdicts
from .judging import verdict_table as verdict_table
from .registry import load_judge as load_judge
