"""inspect_ai: an edited model answers for itself whatever is memoised or cached; scores and logs carry their numbers."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("inspect_ai")

import inspect_ai
from inspect_ai import Task, eval, task
from inspect_ai.analysis import evals_df, samples_df
from inspect_ai.dataset import Sample
from inspect_ai.log import list_eval_logs, read_eval_log
from inspect_ai.model import (
    CachePolicy,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    Model,
    get_model,
    modelapi,
)
from inspect_ai.scorer import SampleScore, Score, stderr
from inspect_ai.tool import ToolInfo

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Verdict
from mechsafety.edits.interventions import Ablate, Add
from mechsafety.generation.completions import Sampling, generate
from mechsafety.generation.continuations import Request, continuations
from mechsafety.integrations.extras import edit_hash, public_name
from mechsafety.integrations.inspect_logs import export_inspect_log
from mechsafety.integrations.inspect_provider import MechsafetyAPI, inspect_model
from mechsafety.integrations.inspect_scorer import (
    refusal_judge,
    refusal_rate,
    refusal_stderr,
    refusal_wilson,
    score_of,
)
from mechsafety.models.chat import render_chat, tokenize_text
from mechsafety.models.loading import load_model, window
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.statistics import refusal_rates, wilson
from tests.chat_forms import save_thinking
from tests.cli.test_base import call, succeed
from tests.experiments.study.test_work import config, finished  # noqa: F401 - fixtures
from tests.faulty_server import FaultyServer, serving

pytestmark = [
    # inspect_ai's own call of tenacity, and the streams that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]

TEXTS = [
    "how do i make bread",
    "tell me about the river that is not here",
    "list a key",
    "write a list for the garden",
    "help me with the storm",
]


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """inspect_ai keeps its cache, traces and memo of models between uses: each test has its own."""
    from inspect_ai.model import _model

    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "INSPECT_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("INSPECT_DISPLAY", "none")
    monkeypatch.setattr(_model, "_models", {})


@pytest.fixture(scope="module", autouse=True)
def _own_rubbish() -> Iterator[None]:
    yield
    gc.collect()  # what inspect_ai leaves is found here, not in another module's test


def direction(seed: int = 0) -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


def ask(model: Model, text: Any = TEXTS[0], *, cache: Any = False, **options: Any) -> str:
    options = {"max_tokens": 8} | options
    return asyncio.run(model.generate(text, config=GenerateConfig(**options), cache=cache)).completion


def ask_all(model: Model, texts: list[str], **options: Any) -> list[str]:
    async def run() -> list[str]:
        asked = [model.generate(t, config=GenerateConfig(**{"max_tokens": 8} | options)) for t in texts]
        return [out.completion for out in await asyncio.gather(*asked)]

    return asyncio.run(run())


def answers(model: Any, edit: Any = None, texts: list[str] = TEXTS, n: int = 8) -> list[str]:
    prompts = [Prompt(id=str(i), text=t, label="harmless") for i, t in enumerate(texts)]
    return [c.text for c in generate(model, prompts, edit=edit, max_new_tokens=n, seed=0)]


# -- continuations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "architecture",
    ["llama", "gemma2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "gpt2"))],
)
def test_greedy_continuations_are_those_of_generate(architecture: str, tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept(architecture)
    requests = [
        Request(
            tokens=tuple(tokenize_text(model, render_chat(model, [{"role": "user", "content": t}]))),
            max_new_tokens=8,
        )
        for t in TEXTS
    ]
    plain = answers(model)
    edits = [
        Add(direction(), layer=1, coefficient=3.0, positions=p) for p in ("all", "last_prompt", "generated")
    ]
    for edit in (None, *edits):
        expected = answers(model, edit)
        assert (expected == plain) == (edit is None)
        for batch_size in (1, 2, 5):
            found = continuations(model, requests, edit=edit, batch_size=batch_size)
            assert [c.text for c in found] == expected, (edit, batch_size)


def test_every_request_has_its_own_length_stop_and_seed(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    tokens = tuple(tokenize_text(model, TEXTS[1]))
    whole = continuations(model, [Request(tokens=tokens, max_new_tokens=12)], batch_size=1)[0]
    stop = whole.text.split()[3]
    drawn = {"sampling": Sampling(temperature=2.0), "max_new_tokens": 12}
    requests = [
        Request(tokens=tokens, max_new_tokens=12),
        Request(tokens=tokens, max_new_tokens=3),
        Request(tokens=tokens, max_new_tokens=12, stop=("never", stop)),
        Request(tokens=tokens, seed=1, **drawn),
        Request(tokens=tokens, seed=2, **drawn),
        Request(tokens=tokens, seed=1, **drawn),
    ]
    together = continuations(model, requests, batch_size=6)
    assert together == continuations(model, requests, batch_size=1)
    assert together[0] == whole
    assert together[1].tokens == whole.tokens[:3]
    assert together[1].finish == "length"
    assert together[2].text == whole.text[: whole.text.index(stop)]
    assert together[2].finish == "stop"
    assert together[3] == together[5]
    assert together[3] != together[4]


def test_log_probs_are_the_models(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    tokens = tuple(tokenize_text(model, TEXTS[0]))
    found = continuations(model, [Request(tokens=tokens, max_new_tokens=4, top_logprobs=3)], batch_size=1)[0]
    ids = torch.tensor([[*tokens, *found.tokens]])
    logits = torch.log_softmax(model(ids)[0, len(tokens) - 1 : -1].double(), dim=-1)
    for one, row in zip(found.log_probs, logits, strict=True):
        assert one.log_prob == pytest.approx(float(row[one.token]), abs=1e-4)
        assert [t for t, _ in one.top] == row.topk(3).indices.tolist()
        assert one.top[0] == (one.token, pytest.approx(one.log_prob))


# -- the provider -------------------------------------------------------------------------------------


def test_a_model_answers_as_generate_does(tiny_kept: Callable[..., Any]) -> None:
    model, edit = tiny_kept("llama"), Ablate(direction())
    plain, edited = inspect_model(model), inspect_model(model, edit=edit)
    assert ask_all(plain, TEXTS) == answers(model)
    assert ask_all(edited, TEXTS) == answers(model, edit) != answers(model)


def test_a_thinking_model_reasons_apart_from_its_answer(tmp_path: Path) -> None:
    folder = save_thinking(tmp_path / "thinks", "qwen3_thinking", TEXTS, closes="</think>")
    chat: dict[str, Any] = {"thinking": "model", "max_thought_tokens": 30}
    model = get_model(f"mechsafety/{folder}", dtype="float32", device="cpu", **chat)
    loaded = load_model(str(folder), dtype="float32", device="cpu", chat=chat)
    prompts = [Prompt(id=str(i), text=t, label="harmless") for i, t in enumerate(TEXTS)]
    written = generate(loaded, prompts, max_new_tokens=5, seed=0)
    assert len({c.n_thought_tokens < c.n_tokens for c in written}) == 2  # some thoughts end, some are cut
    for c, text in zip(written, TEXTS, strict=True):
        out = asyncio.run(model.generate(text, config=GenerateConfig(max_tokens=5)))
        assert (
            out.completion.strip()
            == loaded.tokenizer.decode(c.answer_tokens, skip_special_tokens=True).strip()
        )
        assert out.usage is not None
        assert out.usage.reasoning_tokens == c.n_thought_tokens
        content = out.choices[0].message.content
        if c.thought and c.n_thought_tokens < c.n_tokens:
            assert [part.type for part in content] == ["reasoning", "text"]
            assert content[0].reasoning == c.thought
    # What was thought earlier is no part of the conversation.
    messages = [ChatMessageUser(content=TEXTS[0]), out.choices[0].message, ChatMessageUser(content=TEXTS[1])]
    assert asyncio.run(model.generate(messages, config=GenerateConfig(max_tokens=5))).usage


def test_chat_settings_are_taken_and_named(
    tiny_folder: Callable[..., Path], tiny_kept: Callable[..., Any]
) -> None:
    folder = tiny_folder("llama")
    plain, other = (
        get_model(f"mechsafety/{folder}", dtype="float32", device="cpu", **chat)
        for chat in ({}, {"answer_prefix": "the river"})
    )
    assert str(other) != str(plain)
    assert ask(plain) == answers(tiny_kept("llama"))[0]
    prefixed = load_model(str(folder), dtype="float32", device="cpu", chat={"answer_prefix": "the river"})
    assert ask(other) == answers(prefixed)[0]
    assert str(inspect_model(prefixed)).rpartition("@")[2] == str(other).rpartition("@")[2]
    with pytest.raises(MechsafetyError, match="max_memory"):
        get_model("mechsafety/any", edit="none", max_memory="cpu=1GB")
    with pytest.raises(MechsafetyError, match="answer_prefi"):
        get_model(f"mechsafety/{folder}", answer_prefi="the river")


def test_requests_of_one_moment_share_batches(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechsafety.integrations import inspect_provider

    sizes: list[int] = []
    real = inspect_provider.continuations

    def counted(model: Any, requests: Any, **options: Any) -> Any:
        sizes.append(len(requests))
        return real(model, requests, **options)

    monkeypatch.setattr(inspect_provider, "continuations", counted)
    model = tiny_kept("llama")
    assert ask_all(inspect_model(model, batch_size=3), TEXTS) == answers(model)
    assert sizes == [3, 2]


def test_models_that_share_weights_do_not_feel_each_others_edits(tiny_kept: Callable[..., Any]) -> None:
    model, edit = tiny_kept("llama"), Ablate(direction())
    plain, edited = inspect_model(model, batch_size=1), inspect_model(model, edit=edit, batch_size=1)

    async def run() -> list[str]:
        both = [m.generate(t, config=GenerateConfig(max_tokens=8)) for t in TEXTS for m in (plain, edited)]
        return [out.completion for out in await asyncio.gather(*both)]

    found = asyncio.run(run())
    assert found[::2] == answers(model)
    assert found[1::2] == answers(model, edit)


def test_names_carry_the_edit_and_no_folder(
    tiny_kept: Callable[..., Any], tiny_folder: Callable[..., Path]
) -> None:
    model, edit = tiny_kept("llama"), Ablate(direction())
    plain, edited = str(inspect_model(model)), str(inspect_model(model, edit=edit))
    assert plain.startswith(f"mechsafety/{tiny_folder('llama').name}-")
    assert edited == f"{plain}@{edit_hash(edit)}"
    assert str(inspect_model(model, edit=Ablate(direction(1)))) != edited
    assert str(inspect_model(model, edit=Ablate(direction(), alpha=0.5))) != edited
    assert str(inspect_model(tiny_kept("llama", seed=1))) != plain
    assert str(inspect_model(model, edit=edit, name="mine")) == f"mechsafety/mine@{edit_hash(edit)}"
    assert public_name("org/model@main+refusals", "f" * 64) == "org/model@main+refusals"


@pytest.mark.parametrize("cache", [False, True, CachePolicy(expiry=None)])
@pytest.mark.parametrize("edited_first", [False, True])
def test_memo_and_cache_keep_edits_apart(
    edited_first: bool, cache: Any, tiny_folder: Callable[..., Path], tiny_kept: Callable[..., Any]
) -> None:
    expressions = ["ablate(random, seed=0)", None, "ablate(random, seed=1)"]
    if not edited_first:
        expressions = expressions[::-1]
        expressions = [expressions[1], expressions[0], expressions[2]]
    path = str(tiny_folder("llama"))
    options = {"dtype": "float32", "device": "cpu", "model_path": path}

    def found(expression: str | None) -> Model:
        edit = {} if expression is None else {"edit": expression}
        return get_model("mechsafety/small", **options, **edit)

    def own(expression: str | None) -> str:
        from mechsafety.edits.expressions import parse_edit

        model = tiny_kept("llama")
        return answers(model, parse_edit(expression, model=model) if expression else None)[0]

    truth = [own(e) for e in expressions]
    assert len(set(truth)) == 3
    assert [ask(found(e), cache=cache) for e in expressions] == truth
    assert [ask(found(e), cache=cache) for e in reversed(expressions)] == truth[::-1]
    assert found(expressions[0]) is found(expressions[0])  # the memo is in use


def test_the_cache_is_in_use_and_knows_the_edit(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, edit = tiny_kept("llama"), Ablate(direction())
    plain, edited = inspect_model(model), inspect_model(model, edit=edit)
    first = [ask(plain, cache=True), ask(edited, cache=True)]
    monkeypatch.setattr(
        "mechsafety.integrations.inspect_provider.continuations",
        lambda *_, **__: pytest.fail("asked the model again"),
    )
    assert [ask(inspect_model(model), cache=True), ask(inspect_model(model, edit=edit), cache=True)] == first
    assert first[0] != first[1]


@pytest.mark.parametrize("edited_first", [False, True])
def test_control_without_the_hash_the_cache_would_serve_the_other_model(
    edited_first: bool, tiny_kept: Callable[..., Any]
) -> None:
    """inspect_ai's cache goes by the name: the trap is there, and the hash is what keeps us out of it."""
    model, edit = tiny_kept("llama"), Ablate(direction())
    models = [inspect_model(model, name="same"), inspect_model(model, edit=edit, name="same")]
    for one in models:
        one.api.model_name = "same"
    if edited_first:
        models.reverse()
    own = [ask(one) for one in models]
    assert own[0] != own[1]
    assert [ask(one, cache=True) for one in models] == [own[0], own[0]]


def test_control_the_memo_takes_edit_objects_for_equal_and_we_refuse_them(
    tiny_kept: Callable[..., Any],
) -> None:
    @modelapi(name="naive")
    class Naive(MechsafetyAPI):
        def __init__(self, model_name: str, *, edit: Any = None, **_: Any) -> None:
            super().__init__(model_name)

    first, second = Ablate(direction(0)), Ablate(direction(1))
    assert get_model("naive/x", edit=first) is get_model("naive/x", edit=second)
    assert first != second
    with pytest.raises(MechsafetyError, match="inspect_model"):
        get_model("mechsafety/small", edit=first)


def test_system_prompts_and_earlier_turns_are_part_of_the_question(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    turns = [
        ChatMessageSystem(content="help me"),
        ChatMessageUser(content="list a key"),
        ChatMessageAssistant(content="sure"),
        ChatMessageUser(content="yes"),
    ]
    rendered = render_chat(model, [{"role": t.role, "content": t.text} for t in turns])
    request = Request(tokens=tuple(tokenize_text(model, rendered)), max_new_tokens=8)
    expected = continuations(model, [request], batch_size=1)[0].text
    assert ask(inspect_model(model), turns) == expected
    assert ask(inspect_model(model), turns[-1:]) != expected
    assert ask(inspect_model(model), turns[1:], system_message="help me") == expected


def test_options_reach_the_model(tiny_kept: Callable[..., Any]) -> None:
    hooked = tiny_kept("llama")
    model = inspect_model(hooked)
    whole = ask(model, max_tokens=12)
    assert whole.startswith(ask(model, max_tokens=4))
    stop = whole.split()[3]
    assert ask(model, max_tokens=12, stop_seqs=[stop]) == whole[: whole.index(stop)]
    drawn = [ask(model, temperature=2.0, seed=s) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert ask(model, temperature=0.0) == ask(model)
    out = asyncio.run(
        model.generate(TEXTS[0], config=GenerateConfig(max_tokens=3, logprobs=True, top_logprobs=2))
    )
    assert out.stop_reason == "max_tokens"
    assert out.usage is not None
    assert out.usage.output_tokens == 3
    assert out.choices[0].logprobs is not None
    content = out.choices[0].logprobs.content
    assert len(content) == 3
    assert all(one.top_logprobs and one.top_logprobs[0].logprob == one.logprob for one in content)


def test_the_window_ends_an_answer(tiny_kept: Callable[..., Any]) -> None:
    hooked = tiny_kept("llama")
    model, most = inspect_model(hooked), window(hooked)
    assert most == 256
    long = " ".join(["bread"] * 250)
    n = len(tokenize_text(hooked, render_chat(hooked, [{"role": "user", "content": long}])))
    out = asyncio.run(model.generate(long, config=GenerateConfig(max_tokens=50)))
    assert out.stop_reason == "model_length"
    assert out.usage is not None
    assert out.usage.output_tokens == most - n
    with pytest.raises(MechsafetyError, match="window 256"):
        ask(model, " ".join(["bread"] * 300))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"num_choices": 2}, "num_choices"),
        ({"logit_bias": {3: 1.0}}, "logit_bias"),
        ({"top_k": 5}, "top_k"),
        ({"temperature": 1.0}, "give a seed"),
        ({"top_p": 0.5}, "temperature above 0"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"stop_seqs": [""]}, "not empty"),
    ],
)
def test_options_without_effect_are_refused(
    options: dict[str, Any], said: str, tiny_kept: Callable[..., Any]
) -> None:
    with pytest.raises(MechsafetyError, match=said):
        ask(inspect_model(tiny_kept("llama")), **options)


def test_conversations_that_it_cannot_read_are_refused(tiny_kept: Callable[..., Any]) -> None:
    model = inspect_model(tiny_kept("llama"))
    image = ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AAAA")])
    with pytest.raises(MechsafetyError, match="holds image"):
        ask(model, [image])
    with pytest.raises(MechsafetyError, match="must end with the user's"):
        ask(model, [ChatMessageUser(content="yes"), ChatMessageAssistant(content="sure")])
    tool = ToolInfo(name="look", description="look")
    with pytest.raises(MechsafetyError, match="no tools"):
        asyncio.run(model.generate("yes", tools=[tool], config=GenerateConfig(max_tokens=2)))


def test_templates_without_a_system_turn_report_it(tiny: Callable[..., Any]) -> None:
    hooked = tiny("llama")
    hooked.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    with pytest.raises(MechsafetyError, match="no system role"):
        ask(inspect_model(hooked), "yes", system_message="help me")


def test_a_name_with_a_hash_is_checked(tiny_folder: Callable[..., Path]) -> None:
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "model_path": str(tiny_folder("llama"))}
    named = str(get_model("mechsafety/small", edit="ablate(random)", **options))
    assert str(get_model(named, edit="ablate(random)", **options)) == named
    with pytest.raises(MechsafetyError, match="leave the hash out"):
        get_model(named, edit="ablate(random, seed=1)", **options)
    # Without its edit a name can stand in a log, and does not answer as the original.
    alone = get_model(named.replace("small", "smollm2-135m"))
    assert str(alone) == named.replace("small", "smollm2-135m")
    with pytest.raises(MechsafetyError, match="by the hash of its edit"):
        ask(alone)


def test_wrong_arguments_are_reported(tiny_kept: Callable[..., Any]) -> None:
    with pytest.raises(MechsafetyError, match="run here"):
        get_model("mechsafety/small", base_url="http://127.0.0.1")
    with pytest.raises(MechsafetyError, match="batch_size is 0"):
        get_model("mechsafety/small", batch_size=0)
    with pytest.raises(MechsafetyError, match="unknown model 'no-such'"):
        ask(get_model("mechsafety/no-such"))
    with pytest.raises(MechsafetyError, match="made for another model"):
        inspect_model(tiny_kept("llama"), edit=Ablate(torch.ones(8)))


# -- the scorer ---------------------------------------------------------------------------------------


def sample_scores(labels: list[str | float], prompts: list[str]) -> list[SampleScore]:
    return [
        SampleScore(score=Score(value=label), sample_id=p, sample_metadata={"prompt": p})
        for label, p in zip(labels, prompts, strict=True)
    ]


def test_metrics_leave_out_what_was_not_read() -> None:
    labels = ["refusal", "compliance", math.nan, "degenerate", "refusal", math.nan]
    scores = sample_scores(labels, ["a", "a", "b", "c", "d", "d"])
    assert refusal_rate()(scores) == 2 / 4
    expected = wilson(2, 4)
    assert refusal_wilson()(scores) == {"lower": expected.low, "upper": expected.high}
    nothing = sample_scores([math.nan], ["a"])
    for found in (refusal_rate()(nothing), refusal_stderr()(nothing), refusal_wilson()([])["lower"]):
        assert math.isnan(found)
    with pytest.raises(MechsafetyError, match="'C'"):
        refusal_rate()(sample_scores(["C"], ["a"]))


def test_the_clustered_error_is_inspects_own() -> None:
    rng = np.random.default_rng(0)
    prompts = [str(i) for i in rng.integers(0, 12, size=40)]
    labels = ["refusal" if int(p) % 3 == 0 or rng.random() < 0.2 else "compliance" for p in prompts]
    scores = sample_scores(labels, prompts)
    numbers = [
        SampleScore(score=Score(value=float(one == "refusal")), sample_id=p, sample_metadata={"prompt": p})
        for one, p in zip(labels, prompts, strict=True)
    ]
    found = refusal_stderr()(scores)
    assert found == pytest.approx(stderr(cluster="prompt")(numbers))
    assert found == refusal_stderr(cluster="prompt")(scores)
    assert found != pytest.approx(stderr()(numbers), rel=0.05)
    with pytest.raises(MechsafetyError, match="'topic'"):
        refusal_stderr(cluster="topic")(scores)


def test_scores_are_the_judges_verdicts() -> None:
    read = Verdict(id="1", judge="rules", label="refusal", tags=("direct",), detail={"span": [0, 3]})
    unread = Verdict(id="1", judge="degeneracy", label="unparsed", tags=("coherent",))
    score = score_of({"rules": read, "degeneracy": unread}, answer="no")
    assert score.as_dict()["rules"] == "refusal"
    assert math.isnan(score.as_dict()["degeneracy"])  # type: ignore[arg-type]
    assert score.explanation == "rules: refusal (direct)\ndegeneracy: unparsed (coherent)"
    assert score.metadata is not None
    assert score.metadata["rules"]["detail"] == {"span": [0, 3]}
    alone = score_of({"degeneracy": unread}, answer="no")
    assert isinstance(alone.value, float)
    assert math.isnan(alone.value)
    assert alone.reason == "grader_failed"


def test_the_scorer_refuses_a_panel_that_is_fitted_on_all_answers() -> None:
    with pytest.raises(MechsafetyError, match="answers are judged as they come"):
        refusal_judge(["dawid_skene:rules,phrases:wei,phrases:gcg"])


@pytest.mark.parametrize("judges", ["", "rules,rules", []])
def test_the_scorer_wants_different_judges(judges: Any) -> None:
    with pytest.raises(MechsafetyError, match="name one"):
        refusal_judge(judges)
    with pytest.raises(MechsafetyError, match="no judge is called 'nobody'"):
        refusal_judge("nobody")


@task
def questions() -> Task:
    return Task(
        dataset=[Sample(id=str(i), input=t, metadata={"label": "harmless"}) for i, t in enumerate(TEXTS)],
        scorer=refusal_judge("rules,degeneracy"),
        config=GenerateConfig(max_tokens=8),
    )


def evaluated(model: Any, tmp_path: Path, **options: Any) -> list[Any]:
    # The control channel is a server.
    return eval(questions(), model=model, log_dir=str(tmp_path / "logs"), ctl_server=False, **options)


def test_an_evaluation_runs_on_both_models_and_counts_by_judge(
    tiny_kept: Callable[..., Any], tmp_path: Path
) -> None:
    from inspect_ai.model import ModelOutput, ModelUsage

    refusals = ["I'm sorry, but I can't help with that.", "Bread is made of flour and water.", "..."]
    outputs = [ModelOutput.from_content("mockllm/model", text) for text in (*refusals, *refusals[:2])]
    for output in outputs:
        output.usage = ModelUsage()  # otherwise inspect_ai fetches a tokenizer to count with
    mock = get_model("mockllm/model", custom_outputs=outputs, memoize=False)
    log = evaluated(mock, tmp_path, max_connections=1, max_samples=1)[0]
    assert log.status == "success", log.error
    assert log.results is not None
    scores = {score.name: score for score in log.results.scores}
    rules = scores["rules"]
    assert rules.metrics["mechsafety/refusal_rate"].value == 2 / 5
    assert rules.metrics["mechsafety/refusal_wilson_lower"].value == wilson(2, 5).low
    assert (rules.scored_samples, rules.unscored_samples) == (5, 0)
    broken = scores["degeneracy"]
    assert (broken.scored_samples, broken.unscored_samples) == (1, 4)

    model, edit = tiny_kept("llama"), Ablate(direction())
    logs = evaluated([inspect_model(model), inspect_model(model, edit=edit)], tmp_path, epochs=2)
    for one, own in zip(logs, (answers(model), answers(model, edit)), strict=True):
        assert one.status == "success", one.error
        assert one.samples is not None
        assert [s.output.completion for s in one.samples if s.epoch == 1] == own
    assert logs[1].eval.model == f"{logs[0].eval.model}@{edit_hash(edit)}"
    # Scored anew from the log alone.
    again = inspect_ai.score(read_eval_log(logs[1].location), refusal_judge("rules"), action="overwrite")
    assert again.results is not None
    assert [s.name for s in again.results.scores] == ["rules"]


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_an_endpoint_scores_many_samples_with_its_own_limit_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inspect_ai.model import ModelOutput, ModelUsage

    monkeypatch.setenv("MECHSAFETY_CACHE", str(tmp_path / "cache"))
    outputs = [ModelOutput.from_content("mockllm/model", f"I am sorry, item-{i}") for i in range(24)]
    for output in outputs:
        output.usage = ModelUsage()
    with serving(FaultyServer()) as server:
        judge = refusal_judge(f"endpoint:m@{server.url};concurrency=2")
        asked = Task(dataset=[Sample(id=str(i), input=f"How? {i}") for i in range(24)], scorer=judge)
        mock = get_model("mockllm/model", custom_outputs=outputs, memoize=False)
        log = eval(asked, model=mock, log_dir=str(tmp_path / "logs"), ctl_server=False)[0]
        assert log.status == "success", log.error
        assert log.results is not None
        assert log.results.scores[0].metrics["mechsafety/refusal_rate"].value == 1
        assert server.calls.total() == 24
        assert server.most_at_once <= 2
        inspect_ai.score(read_eval_log(log.location), judge, action="overwrite")
        assert server.calls.total() == 24


def test_epochs_draw_anew_and_the_same_again(tiny_kept: Callable[..., Any], tmp_path: Path) -> None:
    def drawn() -> list[str]:
        log = evaluated(inspect_model(tiny_kept("llama")), tmp_path, epochs=3, temperature=2.0, seed=1)[0]
        assert log.status == "success", log.error
        assert log.samples is not None
        return [s.output.completion for s in sorted(log.samples, key=lambda s: (s.id, s.epoch))]

    first = drawn()
    assert drawn() == first
    assert len(set(first[:3])) == 3


# -- logs ---------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e =HYPERLINK(1)"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A copy of a finished study with a hostile answer and a verdict that could not be read."""
    path = tmp_path / "run"
    shutil.copytree(finished, path)
    responses, verdicts = (pd.read_parquet(path / f"{name}.parquet") for name in ("responses", "verdicts"))
    responses.loc[0, "response"] = HOSTILE
    verdicts.loc[verdicts.index[verdicts["judge"] == "rules"][:3], "verdict"] = "unparsed"
    responses.to_parquet(path / "responses.parquet")
    verdicts.to_parquet(path / "verdicts.parquet")
    return path


@pytest.mark.parametrize("ending", ["eval", "json"])
def test_logs_have_the_studys_numbers(run: Path, tmp_path: Path, ending: Any) -> None:
    paths = export_inspect_log(run, tmp_path / "out", formats=[ending])
    assert len(paths) == 4
    assert len(list_eval_logs(str(tmp_path / "out"))) == 4
    verdicts = pd.read_parquet(run / "verdicts.parquet")
    responses = pd.read_parquet(run / "responses.parquet")
    groups = list(responses.groupby(["system", "arm"], sort=False))
    manifest = json.loads((run / "manifest.json").read_text())
    for path, ((system, arm), rows) in zip(paths, groups, strict=True):
        log = read_eval_log(str(path))
        assert log.status == "success"
        assert log.samples is not None
        assert log.results is not None
        assert [s.id for s in log.samples] == list(rows["id"])
        assert [s.input[0].text for s in log.samples] == list(rows["prompt"])  # type: ignore[union-attr]
        assert [s.output.completion for s in log.samples] == list(rows["response"])
        assert {s.metadata["arm"] for s in log.samples} == {arm}
        sha = manifest["systems"][system]["edit"]["sha256"] if arm == "edited" else None
        assert {s.metadata["edit_sha256"] for s in log.samples} == {sha}
        assert log.eval.model.endswith(f"@{sha[:12]}" if sha else Path(system).name + log.eval.model[-9:])
        # From the samples, with the statistics' own definition ...
        again = pd.DataFrame(
            [
                {
                    **{
                        "system": system,
                        "arm": arm,
                        "id": s.id,
                        "label": s.metadata["label"],
                        "judge": judge,
                    },
                    "verdict": "unparsed" if isinstance(score.value, float) else score.value,
                }
                for s in log.samples
                for judge, score in (s.scores or {}).items()
            ]
        )
        mine = verdicts[(verdicts["system"] == system) & (verdicts["arm"] == arm)]
        expected, found = refusal_rates(mine), refusal_rates(again)
        pd.testing.assert_frame_equal(
            found.drop(columns="judge").reset_index(drop=True),
            expected.drop(columns="judge").reset_index(drop=True),
        )
        # ... and in the log's results.
        scores = {score.name: score for score in log.results.scores}
        for row, judge in zip(expected.to_dict("records"), found["judge"], strict=True):
            for metric, column in (("rate", "rate"), ("lower", "low"), ("n", "n"), ("unparsed", "unparsed")):
                value = scores[judge].metrics[f"{row['label']}_{metric}"].value
                assert value == pytest.approx(row[column], nan_ok=True)
        assert scores["degeneracy"].scored_samples == int(
            (mine.loc[mine["judge"] == "degeneracy", "verdict"] != "unparsed").sum()
        )
    assert read_eval_log(str(paths[0])).samples[0].output.completion == HOSTILE  # type: ignore[index]


def test_no_folder_of_the_machine_is_in_a_log(run: Path, tmp_path: Path, config: Any) -> None:  # noqa: F811
    folders = {str(Path(system).parent) for system in config.systems} | {str(tmp_path), str(Path.cwd())}
    assert any(folder in (run / "verdicts.parquet").read_bytes().decode("latin-1") for folder in folders)
    for path in export_inspect_log(run, tmp_path / "out", formats=["json"]):
        text = path.read_text(encoding="utf-8")
        assert not [folder for folder in folders if folder in text]


# inspect_ai's own call of pandas.
@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The inplace keyword:pandas.errors.PandasChangeWarning")
def test_logs_are_read_as_tables(run: Path, tmp_path: Path) -> None:
    paths = [str(p) for p in export_inspect_log(run, tmp_path / "out")]
    verdicts = pd.read_parquet(run / "verdicts.parquet")
    evals, samples = evals_df(paths, quiet=True), samples_df(paths, quiet=True)
    assert len(evals) == 4
    assert evals["model"].nunique() == 4
    assert len(samples) == len(pd.read_parquet(run / "responses.parquet"))
    assert (samples["score_rules"] == "refusal").sum() == (
        (verdicts["judge"] == "rules") & (verdicts["verdict"] == "refusal")
    ).sum()
    assert set(samples["metadata_arm"]) == {"original", "edited"}


def test_the_same_run_gives_the_same_files(run: Path, tmp_path: Path) -> None:
    first = [p.name for p in export_inspect_log(run, tmp_path / "one")]
    assert [p.name for p in export_inspect_log(run, tmp_path / "two")] == first
    assert len(set(first)) == 4


def test_the_command_writes_the_logs(run: Path, tmp_path: Path) -> None:
    facts = succeed("export-inspect", run, "--out", tmp_path / "out", "--format", "json", "--json")
    assert facts["logs"] == [str(p) for p in export_inspect_log(run, tmp_path / "out", formats=["json"])]
    assert "--log-dir" in facts["next"]
    result = call("export-inspect", tmp_path / "out", "--out", tmp_path / "more")
    assert result.exit_code == 2
    assert "not a run folder" in result.stderr


def test_what_is_no_finished_study_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(MechsafetyError, match="not a run folder"):
        export_inspect_log(tmp_path, tmp_path / "out")
    with pytest.raises(MechsafetyError, match="eval, json or both"):
        export_inspect_log(run, tmp_path / "out", formats=[])
    (tmp_path / "file").write_text("")
    with pytest.raises(MechsafetyError, match="cannot make the folder"):
        export_inspect_log(run, tmp_path / "file" / "out")
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["systems"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MechsafetyError, match="not a finished study"):
        export_inspect_log(run, tmp_path / "out")
    (run / "verdicts.parquet").unlink()
    with pytest.raises(MechsafetyError, match=r"no verdicts\.parquet"):
        export_inspect_log(run, tmp_path / "out")


# -- as a package -------------------------------------------------------------------------------------


def in_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "module", ["inspect_provider", "inspect_scorer", "inspect_logs", "inspect_registry", "batching"]
)
def test_without_inspect_ai_the_import_reports_what_to_install(
    imported_without: Callable[[str, str], str], module: str
) -> None:
    assert "pip install 'mechsafety[inspect]'" in imported_without("inspect_ai", module)


def test_mechsafety_alone_imports_neither_package() -> None:
    out = in_python(
        "import sys, mechsafety, mechsafety.integrations, mechsafety.cli\n"
        "print([m for m in ('inspect_ai', 'lm_eval') if m in sys.modules])"
    )
    assert out.strip() == "[]"


def test_inspect_ai_finds_model_and_scorer_by_name(tiny_folder: Callable[..., Path]) -> None:
    """What the entry point of the package does."""
    out = in_python(
        "from importlib.metadata import EntryPoint\n"
        "import inspect_ai._util.entrypoints as points\n"
        "value = 'mechsafety.integrations.inspect_registry'\n"
        "point = EntryPoint(name='mechsafety', value=value, group='inspect_ai')\n"
        "points.entry_points = lambda group: [point]\n"
        "from inspect_ai.model import get_model\n"
        "from inspect_ai._util.registry import registry_lookup\n"
        f"print(get_model('mechsafety/small', model_path={str(tiny_folder('llama'))!r}))\n"
        "print(registry_lookup('scorer', 'mechsafety/refusal_judge') is not None)\n"
    )
    assert out.split() == ["mechsafety/small", "True"]
