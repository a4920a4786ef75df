"""lm-eval's tasks on a model under an edit, as a table: what ``mechsafety evaluate`` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from html import escape
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import plotly.graph_objects as go

from mechsafety.core.errors import MechsafetyError, needs
from mechsafety.core.names import CONTEXTS_AT_ONCE
from mechsafety.core.values import Value
from mechsafety.edits.interventions import Edit
from mechsafety.experiments.edited import EditedExperiment
from mechsafety.experiments.evaluation.config import EvaluationConfig
from mechsafety.experiments.result import Result
from mechsafety.experiments.session import Session
from mechsafety.integrations.harness import EditedLM
from mechsafety.models.provenance import of_files
from mechsafety.pages.page import Block, Page
from mechsafety.plots.style import styled
from mechsafety.runs.folder import Provenance

with needs("lm-eval"):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_COLUMNS = ["model", "task", "filter", "metric", "value", "stderr", "n", "higher_is_better"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evaluation(Value):
    """Results of lm-eval's tasks: ``frame`` has a row for each (task, filter, metric).

    Its columns are ``model`` (with the edit's hash), ``task``, ``filter``, ``metric``, ``value``, ``stderr`` (NaN
    where lm-eval gives none), ``n`` and ``higher_is_better``. ``record`` holds the model, the edit with its
    SHA-256, the settings, and the tasks' and the package's versions.
    """

    frame: pd.DataFrame
    record: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row per task, filter and metric."""
        return self.frame.copy()

    def describe(self) -> str:
        return f"Evaluation({self.frame['task'].nunique()} tasks, {self.record['edit'] or 'no edit'})"

    def _repr_html_(self) -> str:
        edit = self.record["edit"] or "no edit"
        return f"<b>{escape(str(edit))}</b>{self.frame.round(4).to_html(index=False, border=0)}"


def evaluate(
    model: TransformerBridge,
    tasks: Sequence[str | dict[str, Any]],
    *,
    edit: Edit | None = None,
    batch_size: int = CONTEXTS_AT_ONCE,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    system: str | None = None,
    seed: int = 0,
    task_manager: TaskManager | None = None,
) -> Evaluation:
    """Run lm-eval's ``tasks`` (names, or configurations as dictionaries) on ``model`` under ``edit``.

    ``limit`` takes the first documents of each task only; ``chat`` renders each question in the model's chat
    template, after ``system`` if that is given. Most tasks fetch their data from the hub when they are first used.
    """
    if not tasks:
        raise MechsafetyError("no tasks: name one at least, for example arc_easy")
    if limit is not None and limit < 1:
        raise MechsafetyError(f"limit is {limit}; 1 at least")
    if system is not None and not chat:
        raise MechsafetyError("a system message goes with the chat template: set chat too")
    lm = EditedLM(model, edit, batch_size=batch_size, seed=seed)
    manager = task_manager or TaskManager()
    _require_known(tasks, manager)
    found = simple_evaluate(
        model=lm,
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=chat,
        system_instruction=system,
        task_manager=manager,
        log_samples=False,
        bootstrap_iters=1000,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    assert found is not None  # that is for other processes than the first
    results: dict[str, Any] = dict(found)
    settings = {
        "limit": limit,
        "num_fewshot": num_fewshot,
        "chat": chat,
        "system": system,
        "seed": seed,
        "batch_size": batch_size,
    }
    record = {
        **lm.get_model_info(),
        "settings": settings,
        "tasks": dict(results.get("versions", {})),
        "lm_eval": metadata.version("lm_eval"),
    }
    return Evaluation(frame=pd.DataFrame(_rows(lm.name, results), columns=_COLUMNS), record=record)


class LmEvaluation(EditedExperiment[EvaluationConfig]):
    """Most tasks fetch their data from the hub when they are first used; ``task_folder`` holds the user's own."""

    kind = "evaluate"
    tables: ClassVar[Mapping[str, str]] = MappingProxyType({"results": "results.csv"})

    def __init__(self, config: EvaluationConfig) -> None:
        super().__init__(config)
        if config.task_folder is not None and not Path(config.task_folder).is_dir():
            raise MechsafetyError(f"task folder {config.task_folder!r} does not exist")
        self.manager = TaskManager(include_path=config.task_folder)
        _require_known(config.tasks, self.manager)

    def sources(self) -> Mapping[str, Provenance]:
        return {**super().sources(), "lm-eval": _tasks(self.config)}

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        config = self.config
        session.record_model(config.model, self.model)
        session.say(f"tasks: {', '.join(config.tasks)}")
        found = evaluate(
            self.model,
            config.tasks,
            edit=self.edit,
            batch_size=config.batch_size,
            limit=config.limit,
            num_fewshot=config.num_fewshot,
            chat=config.in_template,
            system=config.system,
            seed=config.seed,
            task_manager=self.manager,
        )
        session.run.record("evaluation", found.record)
        return {"results": found.to_frame()}

    @classmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        """Every metric of every task, with its standard error."""
        table, figure = result.to_frame(), go.Figure()
        for metric, rows in table.groupby("metric", sort=False):
            error = {"type": "data", "array": rows["stderr"]}
            figure.add_scatter(
                x=rows["value"], y=rows["task"], name=str(metric), mode="markers", error_x=error
            )
        figure.update_yaxes(autorange="reversed", automargin=True)
        figure.update_xaxes(title="value")
        title = f"{table['task'].nunique()} tasks, {_named(result)}"
        height = 220 + 30 * table["task"].nunique()
        return {"results": styled(figure, title, "Bars: standard errors.", width=900, height=height)}

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        return [
            f"{row['task']}: {row['metric']} {row['value']:.4g}"
            + ("" if row["stderr"] != row["stderr"] else f", standard error {row['stderr']:.2g}")
            + f" ({row['filter']}, {row['n']} documents)."
            for row in result.to_frame().to_dict("records")
        ]

    @classmethod
    def page(cls, result: Result, figures: Mapping[str, go.Figure]) -> Page:
        block = Block(
            name="results", title="Results", figures=list(figures.values()), table=result.to_frame()
        )
        record = result.manifest["evaluation"]
        return Page(
            title="lm-eval's tasks",
            subtitle=_named(result),
            findings=result.findings,
            blocks=[block],
            how=[f"lm-eval {record['lm_eval']}", f"Settings: {record['settings']}"],
        )

    @classmethod
    def text(cls, result: Result) -> str:
        shown = result.to_frame().drop(columns=["model", "higher_is_better"]).round(4)
        return f"{_named(result)}\n\n{shown.to_string(index=False)}\n\nresults: {result.path / 'results.csv'}"

    @classmethod
    def facts(cls, result: Result) -> dict[str, Any]:
        return {
            "out": str(result.path / "results.csv"),
            "results": result.to_frame(),
            "record": result.manifest["evaluation"],
        }


def _named(result: Result) -> str:
    record = result.manifest["evaluation"]
    return f"{record['model_name']}, {record['edit'] or 'unedited'}"


def _tasks(config: EvaluationConfig) -> Provenance:
    """The user's own tasks, and the package that runs them."""
    own = [] if config.task_folder is None else [Path(config.task_folder)]
    return replace(of_files(*own), circumstance={"version": metadata.version("lm_eval")})


def _require_known(tasks: Sequence[str | dict[str, Any]], manager: TaskManager) -> None:
    known = set(manager.task_index)
    if unknown := [t for t in tasks if isinstance(t, str) and t not in known and not Path(t).is_file()]:
        near = get_close_matches(unknown[0], known, n=3)
        hint = f"; near it are {', '.join(near)}" if near else "; `lm-eval ls tasks` lists what there is"
        raise MechsafetyError(f"lm-eval knows no task {unknown[0]!r}{hint}")


def _rows(name: str, results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for task, found in results["results"].items():
        better = results.get("higher_is_better", {}).get(task, {})
        n = results.get("n-samples", {}).get(task, {}).get("effective", found.get("sample_len"))
        for key, value in found.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = found.get(f"{metric}_stderr,{kind}")
            yield {
                "model": name,
                "task": task,
                "filter": kind,
                "metric": metric,
                "value": float(value),
                "stderr": float(error) if isinstance(error, int | float) else float("nan"),
                "n": n,
                "higher_is_better": better.get(metric),
            }
