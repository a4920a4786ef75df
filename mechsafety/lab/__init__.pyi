"""The synthetic world: models that are trained, tuned for safety, attacked and taken apart."""

from ..experiments.lab.config import LabConfig as LabConfig
from ..experiments.lab.experiment import read_lab as read_lab
from ..experiments.lab.experiment import run_lab as run_lab
from ..experiments.lab.ladder import run_lab_ladder as run_lab_ladder
