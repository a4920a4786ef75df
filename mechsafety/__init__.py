"""mechsafety: where a language model keeps its safety behaviour, and how much of it survives an edit.

Names load when they are first used, so that ``import mechsafety`` and ``mechsafety --help`` are quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mechsafety import anatomy_figures as anatomy_figures
    from mechsafety import figures as figures
    from mechsafety import judge_figures as judge_figures
    from mechsafety import lab_figures as lab_figures
    from mechsafety import ladder_figures as ladder_figures
    from mechsafety import region_figures as region_figures
    from mechsafety import statistics as statistics
    from mechsafety import sweep_figures as sweep_figures
    from mechsafety.activations import ResidualCache as ResidualCache
    from mechsafety.activations import residual_means as residual_means
    from mechsafety.activations import residual_stream as residual_stream
    from mechsafety.agreement_runs import compare_judges as compare_judges
    from mechsafety.anatomy_config import AnatomyConfig as AnatomyConfig
    from mechsafety.anatomy_runs import read_anatomy as read_anatomy
    from mechsafety.anatomy_runs import run_anatomy as run_anatomy
    from mechsafety.annotation.export import load_annotations as load_annotations
    from mechsafety.checkpoints import Comparison as Comparison
    from mechsafety.checkpoints import compare as compare
    from mechsafety.checkpoints import read_comparison as read_comparison
    from mechsafety.completeness import component_left as component_left
    from mechsafety.directions import Direction as Direction
    from mechsafety.directions import Directions as Directions
    from mechsafety.directions import find_directions as find_directions
    from mechsafety.directions import load_directions as load_directions
    from mechsafety.doses import dose_curves as dose_curves
    from mechsafety.doses import plan_doses as plan_doses
    from mechsafety.edit_expressions import parse_edit as parse_edit
    from mechsafety.edit_files import load_edit as load_edit
    from mechsafety.edit_files import save_edit as save_edit
    from mechsafety.errors import MechsafetyError as MechsafetyError
    from mechsafety.finetuning_attack import finetuned as finetuned
    from mechsafety.finetuning_attack import freezing_table as freezing_table
    from mechsafety.generation import Sampling as Sampling
    from mechsafety.generation import generate as generate
    from mechsafety.human_labels import read_human_labels as read_human_labels
    from mechsafety.injection import injection_flip_rate as injection_flip_rate
    from mechsafety.interventions import Ablate as Ablate
    from mechsafety.interventions import Add as Add
    from mechsafety.interventions import AffineAblate as AffineAblate
    from mechsafety.interventions import Orthogonalise as Orthogonalise
    from mechsafety.interventions import baked as baked
    from mechsafety.interventions import edited as edited
    from mechsafety.judges.cache import VerdictCache as VerdictCache
    from mechsafety.judges.registry import load_judge as load_judge
    from mechsafety.judging import judge as judge
    from mechsafety.judging import refusal_rates as refusal_rates
    from mechsafety.judging import verdict_table as verdict_table
    from mechsafety.lab_config import LabConfig as LabConfig
    from mechsafety.lab_ladder import run_lab_ladder as run_lab_ladder
    from mechsafety.lab_runs import read_lab as read_lab
    from mechsafety.lab_runs import run_lab as run_lab
    from mechsafety.ladder_config import LadderConfig as LadderConfig
    from mechsafety.ladder_runs import read_ladder as read_ladder
    from mechsafety.ladder_runs import run_ladder as run_ladder
    from mechsafety.layer_profile import logit_lens as logit_lens
    from mechsafety.layer_profile import profile_layers as profile_layers
    from mechsafety.models import load_model as load_model
    from mechsafety.prompts import load_prompts as load_prompts
    from mechsafety.region_config import RegionsConfig as RegionsConfig
    from mechsafety.region_examples import own_examples as own_examples
    from mechsafety.region_runs import run_regions as run_regions
    from mechsafety.regions.attribution import attribute as attribute
    from mechsafety.regions.lora_export import export_lora as export_lora
    from mechsafety.regions.maps import linear_maps as linear_maps
    from mechsafety.regions.overlap import jaccard_table as jaccard_table
    from mechsafety.regions.overlap import subspace_table as subspace_table
    from mechsafety.regions.pruning import random_pruning as random_pruning
    from mechsafety.regions.pruning import set_difference as set_difference
    from mechsafety.regions.pruning import top_pruning as top_pruning
    from mechsafety.regions.removal import removed as removed
    from mechsafety.regions.removal_files import load_removal as load_removal
    from mechsafety.regions.removal_files import save_removal as save_removal
    from mechsafety.regions.score_files import Attribution as Attribution
    from mechsafety.regions.subspaces import orthogonal_projection as orthogonal_projection
    from mechsafety.regions.subspaces import random_low_rank as random_low_rank
    from mechsafety.regions.subspaces import remove_top_ranks as remove_top_ranks
    from mechsafety.robustness.attacks import attack_table as attack_table
    from mechsafety.robustness.outcomes import outcomes as outcomes
    from mechsafety.robustness.utility import utility as utility
    from mechsafety.selection import nearest as nearest
    from mechsafety.selection import select as select
    from mechsafety.selfjudge_runs import SelfJudgeConfig as SelfJudgeConfig
    from mechsafety.selfjudge_runs import run_selfjudge as run_selfjudge
    from mechsafety.study import run_study as run_study
    from mechsafety.study_config import StudyConfig as StudyConfig
    from mechsafety.sweep_runs import SweepConfig as SweepConfig
    from mechsafety.sweep_runs import run_sweep as run_sweep
    from mechsafety.sweeps import sweep as sweep
    from mechsafety.tuning import TuningRecipe as TuningRecipe
    from mechsafety.tuning import tune as tune

_MODULES = frozenset(
    {
        "figures",
        "judge_figures",
        "region_figures",
        "statistics",
        "sweep_figures",
        "anatomy_figures",
        "ladder_figures",
        "lab_figures",
    }
)
_HOMES = {
    "Ablate": "interventions",
    "Add": "interventions",
    "AffineAblate": "interventions",
    "Direction": "directions",
    "Directions": "directions",
    "MechsafetyError": "errors",
    "Orthogonalise": "interventions",
    "ResidualCache": "activations",
    "Sampling": "generation",
    "StudyConfig": "study_config",
    "SweepConfig": "sweep_runs",
    "baked": "interventions",
    "Comparison": "checkpoints",
    "compare": "checkpoints",
    "component_left": "completeness",
    "load_judge": "judges.registry",
    "SelfJudgeConfig": "selfjudge_runs",
    "run_selfjudge": "selfjudge_runs",
    "injection_flip_rate": "injection",
    "VerdictCache": "judges.cache",
    "verdict_table": "judging",
    "read_human_labels": "human_labels",
    "load_annotations": "annotation.export",
    "compare_judges": "agreement_runs",
    "read_comparison": "checkpoints",
    "dose_curves": "doses",
    "edited": "interventions",
    "find_directions": "directions",
    "generate": "generation",
    "judge": "judging",
    "profile_layers": "layer_profile",
    "load_directions": "directions",
    "load_edit": "edit_files",
    "load_model": "models",
    "load_prompts": "prompts",
    "logit_lens": "layer_profile",
    "nearest": "selection",
    "parse_edit": "edit_expressions",
    "plan_doses": "doses",
    "refusal_rates": "judging",
    "residual_means": "activations",
    "residual_stream": "activations",
    "run_study": "study",
    "run_sweep": "sweep_runs",
    "save_edit": "edit_files",
    "select": "selection",
    "sweep": "sweeps",
    "Attribution": "regions.score_files",
    "attribute": "regions.attribution",
    "linear_maps": "regions.maps",
    "removed": "regions.removal",
    "set_difference": "regions.pruning",
    "top_pruning": "regions.pruning",
    "random_pruning": "regions.pruning",
    "orthogonal_projection": "regions.subspaces",
    "random_low_rank": "regions.subspaces",
    "remove_top_ranks": "regions.subspaces",
    "export_lora": "regions.lora_export",
    "save_removal": "regions.removal_files",
    "load_removal": "regions.removal_files",
    "jaccard_table": "regions.overlap",
    "subspace_table": "regions.overlap",
    "own_examples": "region_examples",
    "RegionsConfig": "region_config",
    "run_regions": "region_runs",
    "outcomes": "robustness.outcomes",
    "utility": "robustness.utility",
    "attack_table": "robustness.attacks",
    "finetuned": "finetuning_attack",
    "freezing_table": "finetuning_attack",
    "AnatomyConfig": "anatomy_config",
    "run_anatomy": "anatomy_runs",
    "read_anatomy": "anatomy_runs",
    "LadderConfig": "ladder_config",
    "run_ladder": "ladder_runs",
    "read_ladder": "ladder_runs",
    "LabConfig": "lab_config",
    "run_lab": "lab_runs",
    "read_lab": "lab_runs",
    "run_lab_ladder": "lab_ladder",
    "tune": "tuning",
    "TuningRecipe": "tuning",
}

__all__ = [
    "Ablate",
    "Add",
    "AffineAblate",
    "AnatomyConfig",
    "Attribution",
    "Comparison",
    "Direction",
    "Directions",
    "LabConfig",
    "LadderConfig",
    "MechsafetyError",
    "Orthogonalise",
    "RegionsConfig",
    "ResidualCache",
    "Sampling",
    "SelfJudgeConfig",
    "StudyConfig",
    "SweepConfig",
    "TuningRecipe",
    "VerdictCache",
    "__version__",
    "anatomy_figures",
    "attack_table",
    "attribute",
    "baked",
    "compare",
    "compare_judges",
    "component_left",
    "dose_curves",
    "edited",
    "export_lora",
    "figures",
    "find_directions",
    "finetuned",
    "freezing_table",
    "generate",
    "injection_flip_rate",
    "jaccard_table",
    "judge",
    "judge_figures",
    "lab_figures",
    "ladder_figures",
    "linear_maps",
    "load_annotations",
    "load_directions",
    "load_edit",
    "load_judge",
    "load_model",
    "load_prompts",
    "load_removal",
    "logit_lens",
    "nearest",
    "orthogonal_projection",
    "outcomes",
    "own_examples",
    "parse_edit",
    "plan_doses",
    "profile_layers",
    "random_low_rank",
    "random_pruning",
    "read_anatomy",
    "read_comparison",
    "read_human_labels",
    "read_lab",
    "read_ladder",
    "refusal_rates",
    "region_figures",
    "remove_top_ranks",
    "removed",
    "residual_means",
    "residual_stream",
    "run_anatomy",
    "run_lab",
    "run_lab_ladder",
    "run_ladder",
    "run_regions",
    "run_selfjudge",
    "run_study",
    "run_sweep",
    "save_edit",
    "save_removal",
    "select",
    "set_difference",
    "statistics",
    "subspace_table",
    "sweep",
    "sweep_figures",
    "top_pruning",
    "tune",
    "utility",
    "verdict_table",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"mechsafety.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'mechsafety' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mechsafety.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
