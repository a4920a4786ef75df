"""lm-eval's tasks on a model under an edit, as a table: what ``mechsafety evaluate`` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import Field

from mechsafety.core.errors import MechsafetyError, needs
from mechsafety.edits.expressions import read_expression
from mechsafety.edits.interventions import Edit, digest, require_fits
from mechsafety.experiments.config import ModelConfig
from mechsafety.integrations.harness import DEFAULT_BATCH, EditedLM
from mechsafety.models.loading import load_model
from mechsafety.models.provenance import of_files, of_models
from mechsafety.runs.folder import Provenance, open_run, pinned_date, record_date

with needs("lm-eval"):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_COLUMNS = ["model", "task", "filter", "metric", "value", "stderr", "n", "higher_is_better"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of lm-eval's tasks: ``table`` has a row for each (task, filter, metric).

    Its columns are ``model`` (with the edit's hash), ``task``, ``filter``, ``metric``, ``value``, ``stderr`` (NaN
    where lm-eval gives none), ``n`` and ``higher_is_better``. ``record`` holds the model, the edit with its
    SHA-256, the settings, and the tasks' and the package's versions. ``path`` is the run folder if there is one.
    """

    table: pd.DataFrame
    record: dict[str, Any]
    path: Path | None = None

    def _repr_html_(self) -> str:
        edit = self.record["edit"] or "no edit"
        return f"<b>{escape(str(edit))}</b>{self.table.round(4).to_html(index=False, border=0)}"


def evaluate(
    model: TransformerBridge,
    tasks: Sequence[str | dict[str, Any]],
    *,
    edit: Edit | None = None,
    batch_size: int = DEFAULT_BATCH,
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
    return Evaluation(table=pd.DataFrame(_rows(lm.name, results), columns=_COLUMNS), record=record)


class EvaluationConfig(ModelConfig):
    """What one evaluation does; a part of its manifest."""

    model: str
    tasks: tuple[str, ...] = Field(min_length=1)
    task_folder: str | None = None
    edit: str | None = None
    limit: int | None = Field(default=None, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    chat: bool = False
    system: str | None = None
    batch_size: int = Field(default=DEFAULT_BATCH, ge=1)


def run_evaluation(
    config: EvaluationConfig, out: Path, *, say: Callable[[str], None], allow_other_versions: bool = False
) -> Evaluation:
    """Evaluate in the folder ``out``: the manifest with the record, and ``results.csv``.

    ``task_folder`` holds tasks of the user's own (YAML). Raises :class:`MechsafetyError` for a wrong edit, an
    unknown task, and whatever loading raises.
    """
    asked_edit = read_expression(config.edit) if config.edit is not None else None
    if config.task_folder is not None and not Path(config.task_folder).is_dir():
        raise MechsafetyError(f"task folder {config.task_folder!r} does not exist")
    manager = TaskManager(include_path=config.task_folder)
    _require_known(config.tasks, manager)
    loading = config.loading
    sources = of_models(config.model, **loading) | {"lm-eval": _tasks(config)}
    say(f"loading {config.model}")
    day = pinned_date(out, config.date)
    model = load_model(config.model, **loading, date=day)
    edit = asked_edit.for_model(model) if asked_edit is not None else None
    if edit is not None:
        require_fits(model, edit)
    asked = config.model_dump(mode="json") | {
        "kind": "evaluate",
        "edit_sha256": digest(edit) if edit is not None else None,
    }
    with open_run(out, config=asked, sources=sources, allow_other_versions=allow_other_versions) as run:
        record_date(run, day)
        say(f"tasks: {', '.join(config.tasks)}")
        found = evaluate(
            model,
            config.tasks,
            edit=edit,
            batch_size=config.batch_size,
            limit=config.limit,
            num_fewshot=config.num_fewshot,
            chat=config.chat,
            system=config.system,
            seed=config.seed,
            task_manager=manager,
        )
        run.write_table(found.table, "results.csv")
        run.record("evaluation", found.record)
        return replace(found, path=run.path)


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
