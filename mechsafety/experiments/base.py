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
<<<<<<< HEAD


@dataclass(kw_only=True)
class Session:
    """One session of a run under way: its folder, the pinned day, and what parts have in common.

    ``home`` is the run's folder itself where ``run`` is a worker's copy of it. ``models`` are loaded one after another:
    the files of the next one are fetched while one works.
    """

    run: RunFolder
    day: str
    say: Progress
    loading: Mapping[str, Any]
    allow_other_versions: bool = False
    home: Path | None = None
    models: Sequence[str] = ()

    @property
    def shared_folder(self) -> Path:
        """Where folders lie that are no parts, such as models: on a disk that all workers have.

        Raises :class:`MechsafetyError` for a worker that has not.
        """
        if self.home is None:
            return self.run.path
        if not (self.home / MANIFEST).is_file():
            import platform

            raise MechsafetyError(
                f"the worker on {platform.node()} has no run folder {str(self.home)!r}, into which models are written: "
                f"name one on a disk that all machines share, from its root ({way('--out')})"
            )
        return self.home

    def load(self, spec: str, *, prompts: Sequence[Any] = (), judging: bool = False) -> TransformerBridge:
        """Load a model whose weights are still those that the run is bound to, and record it.

        ``prompts`` are those whose rendered form the manifest shows. A model that is there for ``judging`` alone has
        none of the chat settings, which are about the models that are studied.
        """
        loading = {name: value for name, value in self.loading.items() if not (judging and name == "chat")}
        for name, made_from in of_models(spec, **loading).items():
            self.run.require_source(name, made_from)  # hours may lie since the run was opened
        self.say(f"loading {spec}")
        model = load_model(spec, **loading, date=self.day)
        if spec in self.models[:-1]:
            fetch_ahead(self.models[self.models.index(spec) + 1])
        self.record_model(spec, model, prompts=prompts)
        if judging:
            self.run.record_item("models", spec, self.run.manifest["models"][spec] | {"judges": True})
        return model

    def record_model(self, spec: str, model: TransformerBridge, *, prompts: Sequence[Any] = ()) -> None:
        """Record a loaded model; ``prompts`` are those whose rendered form the manifest shows."""
        record = load_record(model)
        self.run.record_item("models", spec, record.as_dict() if record else {})
        if record and (how := record.chat.get("thinking", "")).startswith(NOT_OFF):
            self.say(f"{spec}: thinking {how}")
        if len(prompts):
            record_fed(self.run, spec, model, prompts)

    def part(self, *key: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The part named by ``key``, made first where it is missing."""
        if not self.run.has_part(*key):
            self.run.write_part(make(), *key)
        return self.run.read_part(*key)

    def json_part(self, *key: str, make: Callable[[], Any]) -> Any:
        """The same for a part that is kept as JSON."""
        if not self.run.has_part(*key, suffix="json"):
            self.run.write_json_part(make(), *key)
        return self.run.read_json_part(*key)

    def keep_answers(self, answers: pd.DataFrame, *key: str) -> None:
        """Keep answers, so that another judge can read them without generating them again.

        Columns: the experiment's ``answer_keys``, then id, label, prompt, response. The run's ``responses.parquet``
        joins what was kept under all keys.
        """
        self.run.write_part(answers, ANSWERS, *key)

    @contextmanager
    def timed(self, *keys: str) -> Iterator[None]:
        """Add the seconds of the block to the manifest's timings under ``keys``; parts that are there take none."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        if seconds > 0.05:
            timings = self.run.manifest.get("timings", {})
            place = timings
            for key in keys[:-1]:
                place = place.setdefault(key, {})
            place[keys[-1]] = round(place.get(keys[-1], 0.0) + seconds, 2)
            self.run.record("timings", timings)


@checked_methods
class Result:
    """A run of any experiment on disk: its tables, figures, findings and page.

    :func:`load_run` opens one. Tables are read when they are first asked for.

    Example::

        run = load_run("runs/regions")
        run.to_frame("tradeoff")
        run.figures()["region-tradeoff"].show()
    """

    def __init__(self, path: str | Path, experiment: type[Experiment[Any]]) -> None:
        self.run = read_run(as_path(path))
        self.experiment = experiment

    @property
    def path(self) -> Path:
        return self.run.path

    @property
    def manifest(self) -> dict[str, Any]:
        return self.run.manifest

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as the manifest has it."""
        return self.manifest["config"]

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables by name. Raises :class:`MechsafetyError` for a run that has none yet."""
        found = self.experiment.read_tables(self.run)
        if not found:
            raise MechsafetyError(f"run {str(self.path)!r} is not finished: give the same command again")
        return RunTables(found)

    def to_frame(self, name: str | None = None) -> pd.DataFrame:
        """The table ``name``, by default the first. Raises :class:`MechsafetyError` for one that the run lacks."""
        name = next(iter(self.tables)) if name is None else name
        if name not in self.tables:
            raise MechsafetyError(
                f"run {str(self.path)!r} has no table {name!r}: it has {', '.join(self.tables)}"
            )
        return self.tables[name]

    @property
    def short_tables(self) -> dict[str, pd.DataFrame]:
        """The tables but for those with one row per answer."""
        return {name: table for name, table in self.tables.items() if name not in self.experiment.long}

    @cached_property
    def _drawn(self) -> dict[str, go.Figure]:
        return self._draw()

    def _draw(self) -> dict[str, go.Figure]:
        added = self._added
        drawn = self.experiment.figures(self)
        return drawn if added is None else drawn | {judging.FIGURE: judging.figure(*added)}

    @cached_property
    def _added(self) -> tuple[pd.DataFrame, tuple[str, ...]] | None:
        """The rates of judges that were added to the run, and what distinguishes its states."""
        if not (self.path / judging.RATES).is_file():
            return None
        return self.run.read_table(judging.RATES), self.experiment.answer_keys

    def figures(self, **look: Unpack[Look]) -> dict[str, go.Figure]:
        """Every figure, by file name, with the options of :class:`~mechsafety.plots.look.Look`.

        Drawn once where no option is given.
        """
        if not look:
            return dict(self._drawn)
        with looking_at_all(**look):
            return self._draw()

    @drawn
    def plot(self, **_look: Unpack[Look]) -> go.Figure:
        """The first figure."""
        if not wanted():
            return next(iter(self._drawn.values()))
        with looking_at_all():
            return next(iter(self._draw().values()))

    @property
    def findings(self) -> list[str]:
        """What was found, in sentences."""
        return [*self.experiment.findings(self), *mixed_templates(self.manifest)]

    def save_figures(self, *, form: FigureFormat = "html", out: str | Path | None = None) -> list[Path]:
        """Write every figure into ``out`` (default: the run's ``figures``), as ``form``: html, png, svg or pdf.

        Returns the paths.
        """
        return write_figures(
            self.figures(), as_path(out) if out is not None else self.path / "figures", form=form
        )

    def responses(self) -> pd.DataFrame:
        """Every answer that the run keeps. Raises :class:`MechsafetyError` for a run that generates none."""
        if not (self.path / RESPONSES).is_file():
            raise MechsafetyError(f"run {str(self.path)!r} keeps no answers ({RESPONSES} is missing)")
        return self.run.read_table(RESPONSES)

    def rates_by_judge(self) -> pd.DataFrame:
        """Shares of each verdict by state, label and judge, of the judges that were added (:meth:`judge`)."""
        return self.experiment.rates_by_judge(self)

    def judge(
        self, *judges: str, say: Progress = lambda _: None, allow_other_versions: bool = False
    ) -> Result:
        """Let ``judges``, named one by one, read the run's answers; tables, figures and page are written again.

        Returns the run, opened anew. Raises :class:`MechsafetyError` for a run without answers, a judge that has read
        them already, and whatever loading a judge raises.
        """
        if not judges:
            raise MechsafetyError(
                'no judges are given: name them one by one, run.judge("rules", "degeneracy")'
            )
        self.experiment.with_judges(self, judges, say, allow_other_versions=allow_other_versions)
        found = type(self)(self.path, self.experiment)
        found.publish()
        return found

    def page(self) -> Page:
        """The page before it is HTML."""
        found, added = self.experiment.page(self, self.figures()), self._added
        found = replace(found, how=[*found.how, *template_lines(self.manifest)])
        if added is None:
            return found
        block = judging.block(added[0], self.figures()[judging.FIGURE])
        return replace(found, blocks=[*found.blocks, block])

    @property
    def report_path(self) -> Path:
        """Where the page stands once it is written."""
        return self.path / REPORT

    def report(self) -> Path:
        """Write the page, ``report.html``. Returns its path."""
        return self.run.write_text(REPORT, self.experiment.html(self))

    def publish(self) -> Path:
        """Write every figure as HTML, and the page. Returns its path."""
        self.save_figures()
        return self.report()

    def open(self) -> None:
        """Show the page in a browser."""
        path = self.path / REPORT
        webbrowser.open((path if path.is_file() else self.report()).resolve().as_uri())

    def __eq__(self, other: object) -> bool:
        """Whether both are the run in one folder."""
        return isinstance(other, Result) and self.path.resolve() == other.path.resolve()

    def __hash__(self) -> int:
        return hash(self.path.resolve())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, kind={self.experiment.kind!r})"

    def _repr_html_(self) -> str:
        found = "".join(f"<li>{escape(line)}</li>" for line in self.findings)
        shown = "".join(
            f"<h4>{escape(name)}</h4>{table.head(_SHOWN_ROWS).round(3).to_html(index=False, border=0)}"
            for name, table in self.short_tables.items()
        )
        return f"<b>{escape(self.experiment.kind.capitalize())}</b> in {escape(str(self.path))}<ul>{found}</ul>{shown}"


Experiment.result_type = Result


def run_experiment(
    experiment: Experiment[Any],
    out: str | Path,
    *,
    say: Progress = lambda _: None,
    allow_other_versions: bool = False,
) -> Result:
    """Run ``experiment`` in the folder ``out``, or go on where it was interrupted.

    ``say`` receives one line per stage. Raises :class:`MechsafetyError` for whatever the experiment refuses, and for
    a folder that holds another run (:func:`open_run`).
    """
    out = as_path(out)
    day = pinned_date(out, getattr(experiment.config, "date", None))
    if _in_this_process(experiment, say):
        _run(experiment, out, day, say, allow_other_versions)
    else:
        from mechsafety.experiments.remote.driver import with_workers

        with with_workers(experiment, out, day, allow_other_versions=allow_other_versions) as remote:
            _run(remote, out, day, say, allow_other_versions)
    return experiment.result_type(out, type(experiment))


def _in_this_process(experiment: Experiment[Any], say: Progress) -> bool:
    config = experiment.config
    if not isinstance(config, EngineConfig) or not config.on_workers:
        return True
    if config.engine == "ray" or divided(experiment):
        return False
    say(f"{experiment.kind} has no tasks of its own, and runs in this process")
    return True


def _run(experiment: Any, out: Path, day: str, say: Progress, allow_other_versions: bool) -> None:
    """The steps of a run; ``experiment`` is one, or has its methods and lets workers do them."""
    started, config = time.perf_counter(), experiment.config
    if experiment.loads_early:
        experiment.require_fit(day)
    experiment.prepare(day, say)
    fields = config.model_dump(mode="json", exclude=set(ENGINE_FIELDS))
    asked = fields | {"kind": experiment.kind, **experiment.bound()}
    before = asked | _as_before(out, experiment.may_change)
    with open_run(
        out, config=before, sources=experiment.sources, allow_other_versions=allow_other_versions
    ) as run:
        if before != asked:
            run.record("config", asked)
        if hasattr(config, "date"):
            record_date(run, day)
        record_repeated(run, say, *experiment.prompt_sets())
        if not experiment.loads_early:
            experiment.require_fit(day)
        _record_threads(run, experiment)
        _require_keys(run, config)
        session = Session(
            run=run,
            day=day,
            say=say,
            loading=experiment.loading,
            allow_other_versions=allow_other_versions,
            models=list(experiment.models()),
        )
        for name, table in experiment.work(session).items():
            run.write_table(table, experiment.tables[name])
        if answers := run.parts(ANSWERS):
            run.write_table(pd.concat(map(pd.read_parquet, answers), ignore_index=True), RESPONSES)
        run.record_item("timings", "last_session_s", round(time.perf_counter() - started, 1))


def _require_keys(run: RunFolder, config: Any) -> None:
    """Raise MechsafetyError where a judge of a run that is not finished will be asked with a key that is not set."""
    named = getattr(config, "judges", None) or [getattr(config, "judge", None)]
    asked = [judge for judge in named if isinstance(judge, str) and "endpoint:" in judge]
    if asked and "last_session_s" not in run.manifest.get("timings", {}):
        from mechsafety.judges.panel import require_keys  # which loads numpy

        require_keys(asked)


def _record_threads(run: RunFolder, experiment: Any) -> None:
    """How many threads of torch work in a process: it may change the last digits, and what was made is gone on with."""
    now, before = {"engine": experiment.engine, "threads": experiment.threads}, run.manifest.get("engine", [])
    if now not in before:
        run.record("engine", [*before, now])


def _as_before(out: Path, fields: Sequence[str]) -> dict[str, Any]:
    """These fields of the configuration as the run in ``out`` has them, so that a change of them is no other run."""
    known = read_run(out).manifest["config"] if fields and (out / MANIFEST).is_file() else {}
    return {name: known[name] for name in fields if name in known}


def experiment_of(run: RunFolder) -> type[Experiment[Any]]:
    """The experiment that made ``run``. Raises :class:`MechsafetyError` for a kind that has none."""
    kind = str(run.manifest["config"].get("kind", "study"))
    if kind not in EXPERIMENTS:
        raise MechsafetyError(f"run {str(run.path)!r} is of kind {kind!r}, which load_run does not open")
    module, _, name = EXPERIMENTS[kind].partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)


def load_run(path: str | Path | RunFolder) -> Result:
    """Open the run of any experiment, finished or not.

    Raises :class:`MechsafetyError` for a folder that is none, and for a kind that this version does not know.

    Returns:
        The run: its tables, figures, findings and report.

    Example:
        >>> run = ms.load_run("runs/study")
        >>> run.config["kind"]
        'study'
        >>> sorted(run.figures())[:2]
        ['judge-agreement', 'judge-effects']
    """
    run = path if isinstance(path, RunFolder) else read_run(as_path(path))
    experiment = experiment_of(run)
    return experiment.result_type(run.path, experiment)
=======
>>>>>>> main
