"""Thoughts and answers with budgets apart, row by row: what the plain loop gives, in every batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate, Add
from mechsafety.generation.completions import generate
from mechsafety.generation.continuations import Request, continuations
from mechsafety.generation.resumable import resumable_responses
from mechsafety.generation.side_by_side import generate_under_each
from mechsafety.judges.judging import judge
from mechsafety.judges.normalise import normalise
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import load_model
from mechsafety.models.turn_ends import stop_tokens
from mechsafety.regions.own_examples import examples_from_model
from mechsafety.runs.folder import open_run
from mechsafety.tuning.rungs import own_answers
from tests.chat_forms import save_thinking
from tests.prompt_sets import small_prompts

PROMPTS = small_prompts(6).report
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))
MARKS = {
    "qwen3_thinking": {"closes": "</think>"},
    "qwen3": {"opens": "<think>", "closes": "</think>"},
}


@pytest.fixture(scope="module", params=list(MARKS))
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = request.param
    return save_thinking(tmp_path_factory.mktemp(name), name, [p.text for p in PROMPTS], **MARKS[name])


BUDGETS = pytest.mark.parametrize(
    ("folder", "n_thought", "n_answer"),
    [
        ("qwen3", 30, 4),
        ("qwen3_thinking", 3, 6),
        pytest.param("qwen3_thinking", 30, 4, marks=pytest.mark.slow),
        pytest.param("qwen3", 3, 6, marks=pytest.mark.slow),
    ],
    indirect=["folder"],
)


def thinking(folder: Path, n: int) -> Any:
    chat = {"thinking": "model", "max_thought_tokens": n}
    return load_model(str(folder), dtype="float32", device="cpu", chat=chat)


def plain(model: Any, ids: Sequence[int], n_thought: int, n_answer: int) -> tuple[list[int], int]:
    """The plain loop: a token at a time, from the whole sequence. Tokens, and how many of them are thought."""
    opens, close = model.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    stops = stop_tokens(model)
    out: list[int] = []
    thinks, n = opens in ids, 0

    def thought() -> int:
        blank = itertools.takewhile(
            lambda t: t in model.tokenizer.convert_tokens_to_ids(["\n", "\n\n"]), out[n:]
        )
        return len(out) if thinks else n + len(list(blank)) if n else 0

    with torch.inference_mode():
        while True:
            if len(out) == n_thought if thinks else len(out) - n == n_answer:
                return out, thought()
            token = int(model.original_model(torch.tensor([[*ids, *out]])).logits[0, -1].argmax())
            if token in stops:
                return out, thought()
            out.append(token)
            if len(out) == 1 and token == opens:
                thinks = True
            if thinks and token == close:
                thinks, n = False, len(out)


@cache
def expected_of(folder: Path, n_thought: int, n_answer: int) -> list[tuple[list[int], int]]:
    """What the plain loop gives for each prompt."""
    model = thinking(folder, n_thought)
    sequences = tokenize_prompts(model, [p.text for p in PROMPTS])
    return [plain(model, ids, n_thought, n_answer) for ids in sequences]


@BUDGETS
def test_budgets_are_those_of_the_plain_loop(folder: Path, n_thought: int, n_answer: int) -> None:
    model, expected = thinking(folder, n_thought), expected_of(folder, n_thought, n_answer)
    assert n_thought < 30 or {n == len(tokens) for tokens, n in expected} == {True, False}
    for batch_size in (len(PROMPTS), 3, 1):
        done = generate(model, PROMPTS, max_new_tokens=n_answer, seed=0, batch_size=batch_size)
        assert [(list(c.tokens), c.n_thought_tokens) for c in done] == expected
    slow = generate(model, PROMPTS[:4], max_new_tokens=n_answer, seed=0, fast_path=False)
    assert [(list(c.tokens), c.n_thought_tokens) for c in slow] == expected[:4]


@BUDGETS
def test_continuations_have_the_budgets_of_the_plain_loop(
    folder: Path, n_thought: int, n_answer: int
) -> None:
    model = thinking(folder, n_thought)
    sequences = tokenize_prompts(model, [p.text for p in PROMPTS])
    expected = expected_of(folder, n_thought, n_answer)
    assert n_thought < 30 or {n == len(tokens) for tokens, n in expected} == {True, False}
    requests = [Request(tokens=tuple(ids), max_new_tokens=n_answer) for ids in sequences]
    found = continuations(model, requests, batch_size=5)
    assert [(list(c.tokens), c.n_thought_tokens) for c in found] == expected
    written = generate(model, PROMPTS, max_new_tokens=n_answer, seed=0)
    for one, c in zip(found, written, strict=True):
        assert one.finish == c.finish
        assert one.text.strip() == model.tokenizer.decode(c.answer_tokens, skip_special_tokens=True).strip()
        assert one.thought == c.thought or "</think>" in one.text
    # The control: what is no rendered turn opens no thought by the template.
    bare = Request(tokens=tuple(tokenize_prompts(model, ["a river"], rendering="text")[0]), max_new_tokens=3)
    (found_bare,) = continuations(model, [bare], batch_size=1)
    assert found_bare.n_thought_tokens == 0
    assert len(found_bare.tokens) <= 3


def test_stop_strings_end_answers_and_no_thoughts(folder: Path) -> None:
    model = thinking(folder, 30)
    sequences = tokenize_prompts(model, [p.text for p in PROMPTS])
    requests = [Request(tokens=tuple(ids), max_new_tokens=6) for ids in sequences]
    whole = continuations(model, requests, batch_size=8)
    row = next(n for n, c in enumerate(whole) if c.thought and len(c.text.split()) > 2)
    inside, stop = whole[row].thought.split()[0], whole[row].text.split()[1]
    (same,) = continuations(model, [replace(requests[row], stop=(inside + " never",))], batch_size=1)
    assert same == whole[row]
    (cut,) = continuations(model, [replace(requests[row], stop=(stop,))], batch_size=1)
    assert cut.thought == whole[row].thought
    assert cut.text == whole[row].text[: whole[row].text.index(stop)]
    if inside not in whole[row].text:
        (kept,) = continuations(model, [replace(requests[row], stop=(inside,))], batch_size=1)
        assert kept == whole[row]


@pytest.mark.parametrize(
    "folder", ["qwen3", pytest.param("qwen3_thinking", marks=pytest.mark.slow)], indirect=True
)
def test_edits_side_by_side_think_as_each_alone(folder: Path) -> None:
    model, edits = thinking(folder, 12), [Ablate(VECTOR), Add(VECTOR, layer=1, coefficient=2.0)]
    asking: dict[str, Any] = {"max_new_tokens": 3, "seed": 0}
    together = generate_under_each(model, PROMPTS, edits, batch_size=8, **asking)
    alone = [generate(model, PROMPTS, edit=edit, batch_size=1, **asking) for edit in edits]
    assert [list(each) for each in together] == [list(each) for each in alone]
    assert list(together[0]) != list(together[1])


def test_a_resumed_run_thinks_the_same(folder: Path, tmp_path: Path) -> None:
    model = thinking(folder, 12)

    class StoppedError(Exception):
        pass

    with open_run(tmp_path / "run", config={}) as run:

        def answer(key: str) -> pd.DataFrame:
            return resumable_responses(
                run,
                model,
                PROMPTS,
                key=(key,),
                edit=None,
                max_new_tokens=3,
                seed=0,
                batch_size=3,
                sampling=None,
                say=lambda _: None,
            )

        whole, keep = answer("whole"), run.write_part

        def stop(*given: Any) -> None:
            keep(*given)
            raise StoppedError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "write_part", stop)
            with pytest.raises(StoppedError):
                answer("stopped")
        pd.testing.assert_frame_equal(answer("stopped"), whole)
    assert len(set(whole.n_thought_tokens)) > 1


def test_judges_read_the_answer_and_keep_the_thought(folder: Path) -> None:
    done = generate(thinking(folder, 12), PROMPTS, max_new_tokens=3, seed=0)
    for c in done:
        prepared = normalise(c.text)
        inside = c.n_thought_tokens == c.n_tokens
        assert prepared.unclosed == inside
        assert not (inside and prepared.answer)
        assert c.answer.strip() == prepared.answer
        assert prepared.thought == c.thought
    table = judge(done, ["rules", "degeneracy"]).to_frame().set_index(["judge", "id"]).verdict
    cut_off = [c.id for c in done if c.n_thought_tokens == c.n_tokens]
    assert cut_off
    assert {table[j, i] for i in cut_off for j in ("rules", "degeneracy")} == {"unparsed"}


def test_what_is_made_of_answers_alone_refuses_a_model_that_is_left_thinking(folder: Path) -> None:
    model = thinking(folder, 12)
    with pytest.raises(MechsafetyError, match="knows no thoughts"):
        examples_from_model(model, PROMPTS, kind="utility", n=1, seed=0)
    with pytest.raises(MechsafetyError, match="knows no thoughts"):
        own_answers(model, PROMPTS, answer_tokens=4, seed=0, label="answers")


def test_prompts_leave_room_for_the_thought(folder: Path) -> None:
    generate(thinking(folder, 100), PROMPTS, max_new_tokens=4, seed=0)
    with pytest.raises(MechsafetyError, match="do not fit"):
        generate(thinking(folder, 250), PROMPTS, max_new_tokens=4, seed=0)
