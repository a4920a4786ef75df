"""What a fine-tuning changed, how many directions carry refusal, and how much of each must go."""

from ..directions.estimators import refusal_subspace as refusal_subspace
from ..edits.completeness import component_left as component_left
from ..experiments.anatomy.config import AnatomyConfig as AnatomyConfig
from ..experiments.anatomy.experiment import read_anatomy as read_anatomy
from ..experiments.anatomy.experiment import run_anatomy as run_anatomy
from ..experiments.ladder.config import LadderConfig as LadderConfig
from ..experiments.ladder.experiment import read_ladder as read_ladder
from ..experiments.ladder.experiment import run_ladder as run_ladder
from ..sweeps.doses import dose_curves as dose_curves
from ..sweeps.doses import plan_doses as plan_doses
from ..tuning.training import TuningRecipe as TuningRecipe
from ..tuning.training import tune as tune
from .weight_changes import weight_changes as weight_changes
