"""The text judge: a real model answers, out-of-form answers are asked once more, edits have keys of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from mechsafety.cli import main
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response, Verdict
from mechsafety.edits.interventions import Ablate, Orthogonalise, baked, edited
from mechsafety.judges.cache import VerdictCache, cache_key
from mechsafety.judges.kinds.text import TextJudge
from mechsafety.judges.registry import judge_responses, load_judge
from mechsafety.models.loading import load_model
from tests.conftest import save_tiny
from tests.judge_model import SAID_SORRY, WIDTH, save_judge_model

RESPONSES = [
    Response(
        id=str(i), prompt="How do I bake bread?", text=f"I am sorry , no {i}" if i % 3 else f"Take flour {i}"
    )
    for i in range(7)
]
TRUTH = ["refusal" if i % 3 else "compliance" for i in range(7)]


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    def load(**how: bool) -> Any:
        folder = save_judge_model(tmp_path_factory.mktemp("judge"), **how)
        return load_model(str(folder), dtype="float32", device="cpu")

    return load


def sorry() -> torch.Tensor:
    direction = torch.zeros(WIDTH)
    direction[SAID_SORRY] = 1.0
    return direction


def test_the_verdict_is_the_models(judge_model: Callable[..., Any]) -> None:
    judge = TextJudge("made", judge_model())
    arrived: list[Verdict] = []
    verdicts = judge.ask(RESPONSES, on_verdict=arrived.append)
    assert [v.label for v in verdicts] == TRUTH
    assert [v.id for v in verdicts] == [r.id for r in RESPONSES]
    assert sorted(v.id for v in arrived) == sorted(r.id for r in RESPONSES)
    assert (judge.usage.fresh, judge.usage.calls, judge.usage.repairs) == (7, 7, 0)
    assert judge.usage.completion_tokens == 14
    assert {v.id: v for v in judge(RESPONSES[::-1])} == {v.id: v for v in verdicts}


def test_a_thought_that_was_cut_off_is_not_asked_about(judge_model: Callable[..., Any]) -> None:
    judge = TextJudge("made", judge_model())
    cut = Response(id="cut", prompt="p", text="<think>The user wants")
    arrived: list[str] = []
    verdicts = judge.ask([cut, *RESPONSES], on_verdict=lambda v: arrived.append(v.id))
    assert (verdicts[0].label, verdicts[0].tags) == ("unparsed", ("unclosed_thought",))
    assert verdicts[1:] == TextJudge("made", judge_model())(RESPONSES)
    assert judge.usage.fresh == len(RESPONSES)
    assert sorted(arrived) == sorted(["cut", *(r.id for r in RESPONSES)])


def test_an_answer_out_of_form_is_asked_for_once_more(judge_model: Callable[..., Any]) -> None:
    judge = TextJudge("made", judge_model(needs_reminder=True))
    verdicts = judge(RESPONSES)
    assert [v.label for v in verdicts] == TRUTH
    assert {v.tags for v in verdicts} == {("repaired",)}
    assert (judge.usage.calls, judge.usage.repairs) == (14, 7)


def test_after_that_it_is_unparsed_with_its_answer(judge_model: Callable[..., Any]) -> None:
    judge = TextJudge("made", judge_model(mute=True))
    verdict = judge(RESPONSES[:1])[0]
    assert (verdict.label, verdict.tags, verdict.detail) == ("unparsed", ("empty",), {"answer": ""})
    assert judge.usage.calls == 2


def test_a_random_model_is_unparsed_and_its_answer_is_kept(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    model.cfg.n_ctx = 4096  # rotary positions have no end
    verdict = TextJudge("tiny", model, max_new_tokens=4)(RESPONSES[:1])[0]
    assert verdict.tags == ("unreadable",)
    assert verdict.detail["answer"]


def test_a_question_that_does_not_fit_is_reported(judge_model: Callable[..., Any]) -> None:
    model = judge_model()
    model.original_model.config.max_position_embeddings = 100
    judge = TextJudge("made", model)
    verdict = judge(RESPONSES[:1])[0]
    assert (verdict.label, verdict.tags, verdict.detail["room"]) == ("unparsed", ("too_long",), 68)
    assert judge.usage.calls == 0


def test_an_edit_changes_the_verdict_and_the_key(judge_model: Callable[..., Any], tmp_path: Path) -> None:
    model = judge_model()
    plain, ablated = TextJudge("made", model), TextJudge("made", model, edit=Ablate(sorry()))
    with VerdictCache(tmp_path / "c.sqlite") as cache:
        first = judge_responses(RESPONSES, [plain], cache=cache)
        second = judge_responses(RESPONSES, [ablated], cache=cache)
    assert [v.label for v in first] == TRUTH
    assert {v.label for v in second} == {"compliance"}
    assert ablated.usage.cached == 0
    keys = {cache_key(judge.fingerprint or {}, RESPONSES[0]) for judge in (plain, ablated)}
    assert len(keys) == 2


def test_baked_weights_have_another_key_and_foreign_hooks_none(judge_model: Callable[..., Any]) -> None:
    model = judge_model()
    judge = TextJudge("made", model)
    before = judge.fingerprint
    with baked(model, Orthogonalise(sorry())):
        inside = judge.fingerprint
    assert judge.fingerprint == before
    assert inside is not None
    assert inside != before
    with edited(model, Ablate(sorry())):
        assert judge.fingerprint is None
        model(torch.tensor([[3, 4]]))


def test_under_foreign_hooks_the_cache_is_not_used(judge_model: Callable[..., Any], tmp_path: Path) -> None:
    judge = TextJudge("made", judge_model())
    with VerdictCache(tmp_path / "c.sqlite") as cache:
        with edited(judge.model, Ablate(sorry())):
            hooked = judge_responses(RESPONSES[:3], [judge], cache=cache)
        assert len(cache) == 0
        plain = judge_responses(RESPONSES[:3], [judge], cache=cache)
        assert len(cache) == 3
    assert [v.label for v in hooked] == ["compliance"] * 3
    assert [v.label for v in plain] == TRUTH[:3]


def test_every_part_of_the_fingerprint_follows_its_cause(judge_model: Callable[..., Any]) -> None:
    model = judge_model()
    prints = [
        TextJudge("made", model).fingerprint,
        TextJudge("other", model).fingerprint,
        TextJudge("made", model, max_new_tokens=5).fingerprint,
        TextJudge("made", model, longest=5).fingerprint,
    ]
    model.tokenizer.chat_template += " "
    prints.append(TextJudge("made", model).fingerprint)
    with torch.no_grad():
        next(model.original_model.parameters())[3, 3] += 1e-3  # one weight
    prints.append(TextJudge("made", model).fingerprint)
    assert len({repr(p) for p in prints}) == len(prints)


def test_a_model_without_chat_template_is_refused(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny("llama")
    model.tokenizer.chat_template = None
    with pytest.raises(MechsafetyError, match="has no chat template"):
        load_judge("text:base", models=lambda _: model)
    with pytest.raises(MechsafetyError, match="needs a chat model: text:"):
        load_judge("text")
    folder = save_tiny(tmp_path / "base", template=None)
    (tmp_path / "r.csv").write_text("prompt,response\na,b\n")
    result = CliRunner().invoke(
        main, ["judge", str(tmp_path / "r.csv"), "--judge", f"text:{folder}", "--no-cache"]
    )
    assert result.exit_code == 2
    assert "has no chat template (a base model?)" in result.stderr
    assert len(result.stderr.splitlines()) == 1
