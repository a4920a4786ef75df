"""Safety-critical weights: score them, remove them, and measure what is left."""

from ..experiments.regions.config import RegionsConfig as RegionsConfig
from ..experiments.regions.experiment import run_regions as run_regions
from ..robustness.attacks import attack_table as attack_table
from ..robustness.benign import benign_choices as benign_choices
from ..robustness.benign import benign_passages as benign_passages
from ..robustness.finetuning import FinetuneRecipe as FinetuneRecipe
from ..robustness.finetuning import finetuned as finetuned
from ..robustness.freezing import freezing_table as freezing_table
from ..robustness.utility import base_distributions as base_distributions
from .attribution import score_weights as score_weights
from .links import direction_share as direction_share
from .maps import linear_maps as linear_maps
from .overlap import jaccard_table as jaccard_table
from .overlap import subspace_table as subspace_table
from .own_examples import examples_from_model as examples_from_model
from .pruning import matched_pruning as matched_pruning
from .pruning import random_pruning as random_pruning
from .pruning import set_difference as set_difference
from .pruning import top_pruning as top_pruning
from .removal import removed as removed
from .removal_files import load_removal as load_removal
from .removal_files import save_removal as save_removal
from .score_files import Attribution as Attribution
from .subspaces import orthogonal_projection as orthogonal_projection
from .subspaces import random_low_rank as random_low_rank
from .subspaces import remove_top_ranks as remove_top_ranks
