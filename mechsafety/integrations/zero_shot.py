"""Mean zero-shot accuracy over lm-eval's tasks: what Wei et al. (arXiv 2402.05162) call utility."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.core.errors import MechsafetyError, first_lines, needs
from mechsafety.core.names import CONTEXTS_AT_ONCE
from mechsafety.core.values import Value
from mechsafety.edits.interventions import Edit
from mechsafety.integrations.harness_runs import evaluate

with needs("lm-eval"):
    from lm_eval.tasks import TaskManager

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PAPER_TASKS = ("boolq", "rte", "hellaswag", "winogrande", "arc_challenge", "openbookqa")
"""The six of the paper. Their data come from the hub."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ZeroShot(Value):
    """``accuracy`` is the plain mean over tasks, ``stderr`` its standard error, the tasks being independent.

    ``frame`` has one row per task: task, accuracy, stderr, n.
    """

    accuracy: float
    stderr: float
    frame: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """One row per task: task, accuracy, stderr, n."""
        return self.frame.copy()

    def describe(self) -> str:
        return f"ZeroShot(accuracy={self.accuracy:.3f}, stderr={self.stderr:.3f}, {len(self.frame)} tasks)"

    def _repr_html_(self) -> str:
        shown = self.frame.round(4).to_html(index=False, border=0)
        return f"<b>mean accuracy {self.accuracy:.3f} (standard error {self.stderr:.3f})</b>{shown}"


def zero_shot(
    model: TransformerBridge,
    tasks: Sequence[str | dict[str, Any]] = PAPER_TASKS,
    *,
    limit: int | None = None,
    edit: Edit | None = None,
    batch_size: int = CONTEXTS_AT_ONCE,
    seed: int,
    task_manager: TaskManager | None = None,
) -> ZeroShot:
    """lm-eval's ``acc`` of each task without examples, on ``model`` under ``edit``, and the mean over tasks.

    ``limit`` takes the first documents of each task only. Raises :class:`MechsafetyError` where a task's data cannot
    be fetched (``mechsafety.robustness.utility`` needs no network) and for a task that has no accuracy.
    """
    try:
        found = evaluate(
            model,
            tasks,
            edit=edit,
            batch_size=batch_size,
            limit=limit,
            num_fewshot=0,
            seed=seed,
            task_manager=task_manager,
        )
    except MechsafetyError:
        raise
    except Exception as error:
        if not _is_unreachable(error):
            raise
        raise MechsafetyError(
            f"the data of {', '.join(map(str, tasks))} cannot be fetched from the hub ({first_lines(error)}): go "
            "online once, so that they are cached, or use the packaged questions, "
            "mechsafety.robustness.benign_choices()"
        ) from None
    rows = found.to_frame()[found.to_frame()["metric"] == "acc"]
    if without := sorted(set(found.to_frame()["task"]) - set(rows["task"])):
        raise MechsafetyError(f"task {without[0]!r} has no metric acc: its accuracy cannot be averaged")
    table = rows.rename(columns={"value": "accuracy"})[["task", "accuracy", "stderr", "n"]].reset_index(
        drop=True
    )
    return ZeroShot(
        accuracy=float(table["accuracy"].mean()),
        stderr=math.sqrt(float((table["stderr"] ** 2).sum(skipna=False))) / len(table),
        frame=table,
    )


def _is_unreachable(error: BaseException) -> bool:
    """Whether the hub, or the network, is what failed: the packages raise what their cause raised, wrapped."""
    current: BaseException | None = error
    while current is not None:
        names = {kind.__name__ for kind in type(current).__mro__}
        if names & {"ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "TimeoutException"}:
            return True
        current = current.__cause__ or current.__context__
    return False
