"""What an experiment states: its configuration, what it reads, its work, its tables, figures, findings and page.

``running.py`` takes it through the steps of a run: check, open the folder, work part by part, write tables. What it
uses meanwhile is a :class:`~mechsafety.experiments.session.Session`; what it leaves in the folder is a
:class:`~mechsafety.experiments.result.Result`. ``registry.py`` lists the kinds of experiments.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from mechsafety.core.progress import Progress
from mechsafety.experiments import judging
from mechsafety.experiments.config import Config, FedConfig, ModelConfig
from mechsafety.experiments.result import Result
from mechsafety.experiments.session import Session
from mechsafety.models.provenance import of_models
from mechsafety.pages.page import Page, render_page
from mechsafety.prompts.fed import require_all_fit
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.folder import Provenance, RunFolder

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

C = TypeVar("C", bound=Config)
Read = tuple[PromptSet, int]
"""Prompts that a model reads, with the number of tokens that it may add to each."""


class Experiment(ABC, Generic[C]):
    """What one kind of run does, before, within and after its work.

    An instance has a checked configuration. What concerns a finished run alone is a class method, so that any run can
    be drawn and reported again.
    """

    kind: ClassVar[str]
    tables: ClassVar[Mapping[str, str]]
    """The files of the tables, by name."""
    answer_keys: ClassVar[tuple[str, ...]] = ()
    """The columns of ``responses.parquet`` that name, beside the prompt's id, the answering system and its state."""
    long: ClassVar[frozenset[str]] = frozenset()
    """Tables with one row per answer, which neither ``--json`` nor a notebook shows whole."""
    result_type: ClassVar[type[Result]] = Result
    """What a run of this kind is opened as."""
    loads_early: ClassVar[bool] = False
    """Whether :meth:`prepare` loads models: prompts are then checked against their windows before it."""
    stay: ClassVar[tuple[str, ...]] = ()
    """How the paths begin of files that a worker keeps to itself: large ones that it can make again."""
    may_change: ClassVar[tuple[str, ...]] = ()
    """Fields of the configuration that a call which goes on with a run may change: what depends on them is recorded."""

    def __init__(self, config: C) -> None:
        self.config = config

    @property
    def engine(self) -> str:
        """Where the work is done."""
        return "local"

    @property
    def threads(self) -> int:
        """Threads of torch in each process that works."""
        import torch

        return torch.get_num_threads()

    # -- before the work --------------------------------------------------------------------------------

    def require_fit(self, day: str) -> None:
        """Raise :class:`MechsafetyError` for a prompt that does not fit in the window of a model that reads it.

        No weights are loaded.
        """
        if reads := self.reads():
            loading = self.loading
            template, chat = loading.get("template"), loading.get("chat")
            require_all_fit(self.models(), reads, template=template, chat=chat, date=day, **self.feeding)

    def prepare(self, day: str, say: Progress) -> None:
        """Check what the run is bound to and only a loaded model shows; before the run's folder is made.

        ``day`` is the one that templates with a date write.
        """

    def prompt_sets(self) -> Sequence[PromptSet]:
        """The prompt sets as they were read, of which the run records how many prompts stand in them twice."""
        return ()

    def bound(self) -> Mapping[str, Any]:
        """What the run is bound to besides the configuration's fields, such as hashes of prompts."""
        return {}

    def models(self) -> Sequence[str]:
        """The models whose weights the run is bound to."""
        return ()

    def sources(self) -> Mapping[str, Provenance]:
        """What the run's parts are made from."""
        return of_models(*self.models(), **self.loading)

    def reads(self) -> Sequence[Read]:
        """What each of the models reads; checked against their windows before any weights are loaded."""
        return ()

    @property
    def loading(self) -> dict[str, Any]:
        return self.config.loading if isinstance(self.config, ModelConfig) else {}

    @property
    def feeding(self) -> dict[str, bool]:
        """What may be done to prompts before they are read."""
        return self.config.feeding if isinstance(self.config, FedConfig) else {}

    # -- the work -----------------------------------------------------------------------------------------

    @abstractmethod
    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        """Make what is missing and return every table, by its name in :attr:`tables`."""

    # -- after it -------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        """Every figure, by file name."""

    @classmethod
    @abstractmethod
    def findings(cls, result: Result) -> list[str]:
        """What was found, in sentences."""

    @classmethod
    def page(cls, result: Result, figures: Mapping[str, go.Figure]) -> Page:
        """The page, with figures that are already drawn; by default made by the ``page.py`` beside the experiment."""
        return importlib.import_module(f"{cls.__module__.rpartition('.')[0]}.page").page(result, figures)

    @classmethod
    def html(cls, result: Result) -> str:
        """The page as one file."""
        return render_page(result.page(), result.manifest)

    @classmethod
    def read_tables(cls, run: RunFolder) -> dict[str, pd.DataFrame]:
        """The tables that the run has, by name."""
        return {
            name: run.read_table(file) for name, file in cls.tables.items() if (run.path / file).is_file()
        }

    @classmethod
    def facts(cls, result: Result) -> dict[str, Any]:  # noqa: ARG003
        """What the command's ``--json`` has besides paths, findings and tables; replaces these where it names them.

        Tables in it become lists of rows.
        """
        return {}

    @classmethod
    def text(cls, result: Result) -> str:  # noqa: ARG003
        """The table that the command prints above the findings; empty where there is none."""
        return ""

    @classmethod
    def next_steps(cls, result: Result) -> list[str]:
        """Commands that go on from here."""
        return [f"mechsafety figures {result.path} --format png"]

    @classmethod
    def rates_by_judge(cls, result: Result) -> pd.DataFrame:
        """Shares of each verdict by state, label and judge."""
        return result.run.read_table(judging.RATES)

    @classmethod
    def with_judges(
        cls, result: Result, judges: Sequence[str], say: Progress, *, allow_other_versions: bool
    ) -> None:
        """Let ``judges`` read the answers that a finished run keeps, and write their tables.

        Raises :class:`MechsafetyError` for a run that keeps no answers.
        """
        judging.add_judges(
            result, judges, keys=cls.answer_keys, say=say, allow_other_versions=allow_other_versions
        )
