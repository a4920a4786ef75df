"""Zero-shot accuracy through lm-eval: the mean over tasks, and a clear word where their data cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from mechsafety.core.errors import MechsafetyError
from mechsafety.integrations import zero_shot as module
from mechsafety.integrations.harness_runs import evaluate
from mechsafety.integrations.zero_shot import zero_shot
from tests.integrations.test_lm_eval import tasks  # noqa: F401 - a fixture


def test_accuracy_is_the_mean_over_tasks(tiny_kept: Callable[..., Any], tasks: Any) -> None:  # noqa: F811
    model = tiny_kept()
    plain = evaluate(model, ["ms_choices"], num_fewshot=0, task_manager=tasks).to_frame().set_index("metric")
    found = zero_shot(model, ["ms_choices"], seed=0, task_manager=tasks)
    assert found.accuracy == plain.loc["acc", "value"]
    assert found.stderr == pytest.approx(plain.loc["acc", "stderr"])
    assert list(found.to_frame()["n"]) == [12]
    assert list(zero_shot(model, ["ms_choices"], limit=5, seed=0, task_manager=tasks).to_frame()["n"]) == [5]
    assert "mean accuracy" in found._repr_html_()


def test_a_task_without_accuracy_is_refused(tiny_kept: Callable[..., Any], tasks: Any) -> None:  # noqa: F811
    with pytest.raises(MechsafetyError, match="no metric acc"):
        zero_shot(tiny_kept(), ["ms_choices", "ms_written"], seed=0, task_manager=tasks)
    with pytest.raises(MechsafetyError, match="no task 'no_such_task'"):
        zero_shot(tiny_kept(), ["no_such_task"], seed=0, task_manager=tasks)


def test_a_hub_that_cannot_be_reached_is_reported(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        try:
            raise ConnectionError("no route")
        except ConnectionError as error:
            raise RuntimeError("loading failed") from error

    monkeypatch.setattr(module, "evaluate", unreachable)
    with pytest.raises(MechsafetyError, match="go online once"):
        zero_shot(tiny_kept(), ["arc_easy"], seed=0)

    # The control: another fault keeps its own face.
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, "evaluate", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        zero_shot(tiny_kept(), ["arc_easy"], seed=0)
