"""Rows that have ended are dropped between the parts of an answer, and no answer is another for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from mechsafety.edits.interventions import Ablate, Add, SideBySide
from mechsafety.generation import completions, hugging_face, roomy_keys
from mechsafety.generation.completions import Sampling, generate
from mechsafety.generation.roomy_keys import with_room, without_room
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


@pytest.mark.parametrize("name", kinds_first(n for n in ARCHITECTURES if n not in (*UNFAITHFUL, *UNPADDABLE)))
def test_room_in_the_keys_changes_no_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none is made over: every step writes into the tensors that are there, wherever keys only grow."""
    model, prompts = kept(name), list(small_prompts(4).report)
    stopping(model, prompts, monkeypatch)
    made: list[int] = []
    copied = roomy_keys._longer
    monkeypatch.setattr(roomy_keys, "_longer", lambda *given: made.append(1) or copied(*given))
    roomy, rows = answers(model, prompts, monkeypatch, first=2)
    monkeypatch.setattr(hugging_face, "with_room", lambda cache, _: cache)
    plain, _ = answers(model, prompts, monkeypatch, first=2)
    assert roomy == plain
    if name == "llama":
        parts, left = divmod(len(made), 2 * model.cfg.n_layers)
        assert not left
        assert parts in (len(rows) - 1, len(rows))  # the first part has keys where prompts share tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_with_room_hold_what_plain_ones_hold(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    first, *rest = [torch.randn(3, 2, n, 4, generator=draw).to(dtype) for n in (5, 2, 1, 1, 1)]
    plain, cache = DynamicCache(), DynamicCache()
    for each in (plain, cache):
        each.update(first, -first, 0)
    with_room(cache, 9)
    kept_first = cache.layers[0].keys
    for number, new in enumerate(rest):  # the last one finds no room, and room is made
        found = cache.update(new, -new, 0)
        wanted = plain.update(new, -new, 0)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert (found[0].data_ptr() == kept_first.data_ptr()) == (number < 3)
    for each in (plain, cache):  # rows that are taken share nothing with the rest
        with_room(each, 13)
        each.layers[0].batch_select_indices(torch.tensor([2, 0]))
    new = torch.randn(2, 2, 1, 4, generator=draw).to(dtype)
    assert all(
        torch.equal(a, b) for a, b in zip(cache.update(new, new, 0), plain.update(new, new, 0), strict=True)
    )
    without_room(cache)
    assert type(cache.layers[0]) is DynamicLayer
    assert torch.equal(cache.layers[0].keys, plain.layers[0].keys)


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
