"""Rows that have ended are dropped between the parts of an answer, and no answer is another for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mechsafety.edits.interventions import Ablate, Add, SideBySide
from mechsafety.generation import completions, hugging_face
from mechsafety.generation.completions import Sampling, generate
from mechsafety.prompts.prompt_set import Prompt
from tests.architectures import ARCHITECTURES, UNFAITHFUL, UNPADDABLE, kinds_first
from tests.kept_models import kept
from tests.models.test_batched_alone import BARE, SYSTEM
from tests.prompt_sets import small_prompts

MOST = 24
STATES = ("mamba", "lfm2", "qwen3-next")
"""Of the kinds that run on every test run, those whose answers stay whole."""


def answers(
    model: Any, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch, *, first: int, **options: Any
) -> tuple[list[tuple[int, ...]], list[int]]:
    """The answers with parts of ``first`` tokens and then twice as many, and the rows of each part."""
    rows: list[int] = []
    real = hugging_face._generate

    def counted(module: Any, ids: Any, *rest: Any) -> Any:
        rows.append(len(ids))
        return real(module, ids, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(hugging_face, "_FIRST_PART", first)
        patch.setattr(hugging_face, "_generate", counted)
        done = generate(model, prompts, max_new_tokens=MOST, seed=0, **options)
    return [c.tokens for c in done], rows


def stopping(model: Any, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let answers end at different steps: at tokens that some of them hold early, and others late or never."""
    whole, _ = answers(model, prompts, monkeypatch, first=MOST)
    early, late = sorted(filter(None, whole), key=len)[-2:]
    stops = frozenset({1, early[min(1, len(early) - 1)], late[min(6, len(late) - 1)]})
    monkeypatch.setattr(completions, "stop_tokens", lambda _: stops)


@pytest.mark.parametrize("name", kinds_first(n for n in ARCHITECTURES if n not in (*UNFAITHFUL, *UNPADDABLE)))
def test_dropped_rows_change_no_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = kept(name), list(small_prompts(4).report)
    stopping(model, prompts, monkeypatch)
    whole, one = answers(model, prompts, monkeypatch, first=MOST)
    assert one == [len(prompts)]
    parts, rows = answers(model, prompts, monkeypatch, first=2)
    assert parts == whole
    # The control: answers end early, and rows are dropped then, unless a state forbids it.
    assert min(map(len, whole)) < 8
    if name in STATES:
        assert rows == [len(prompts)]
    elif name == "llama":
        assert rows[-1] < rows[0]


def test_each_group_keeps_its_edit_when_its_rows_end(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = tiny_kept("llama"), list(small_prompts(3).report)
    stopping(model, prompts, monkeypatch)
    edits = [Ablate(torch.randn(32, generator=torch.Generator().manual_seed(n))) for n in range(3)]
    n = len(prompts)
    options: dict[str, Any] = {"edit": SideBySide(tuple(edits)), "plan": [list(range(3 * n))]}
    together, rows = answers(model, prompts * 3, monkeypatch, first=2, **options)
    assert rows[-1] < rows[0]
    for number, edit in enumerate(edits):
        alone, _ = answers(model, prompts, monkeypatch, first=MOST, edit=edit)
        assert together[number * n : (number + 1) * n] == alone


def test_drawn_tokens_do_not_depend_on_when_others_end(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = tiny_kept("llama"), list(small_prompts(3).report)
    stopping(model, prompts, monkeypatch)
    _, rows = answers(model, prompts, monkeypatch, first=2, sampling=Sampling())
    assert rows == [len(prompts)]


@pytest.mark.parametrize(
    "positions",
    ["last_prompt", "generated", *(pytest.param(p, marks=pytest.mark.slow) for p in ("all", "prompt"))],
)
def test_edits_act_alike_where_first_tokens_run_once(positions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = kept("llama", template=SYSTEM + BARE), list(small_prompts(3).report)
    edits = [
        Add(
            torch.randn(32, generator=torch.Generator().manual_seed(n)),
            layer=1,
            coefficient=4.0,
            positions=positions,
        )
        for n in (0, 1)
    ]
    shared: list[int] = []
    real = hugging_face.run_prefix

    def counted(module: Any, tokens: Any, *rest: Any, rows: int) -> Any:
        shared.append(rows)
        return real(module, tokens, *rest, rows=rows)

    monkeypatch.setattr(hugging_face, "run_prefix", counted)
    n = len(prompts)
    options: dict[str, Any] = {"edit": SideBySide(tuple(edits)), "plan": [list(range(2 * n))]}
    together, _ = answers(model, prompts * 2, monkeypatch, first=4, **options)
    assert shared == [2]
    for number, edit in enumerate(edits):
        alone, _ = answers(model, prompts, monkeypatch, first=MOST, edit=edit, batch_size=1)
        assert together[number * n : (number + 1) * n] == alone
    assert shared == [2]  # a prompt alone runs whole
    # The control: the edit does something.
    assert answers(model, prompts, monkeypatch, first=MOST, batch_size=1)[0] != together[:n]
