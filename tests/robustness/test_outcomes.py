"""Outcomes and attacks: any is never below the mean, garbage is no success, every share carries its denominator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import LABELS, Response, Verdict
from mechsafety.generation.answered import Completion, Completions
from mechsafety.generation.completions import generate
from mechsafety.judges.outcomes import Judgement, Tally, judgements
from mechsafety.models.chat import render_chat, render_turn, tokenize_prompts, tokenize_text
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.robustness.attacks import ATTACK_COLUMNS, attack_rows, attack_table
from mechsafety.robustness.attempts import Attempts
from mechsafety.robustness.decoding import decoding
from mechsafety.robustness.outcomes import OUTCOME_COLUMNS, measure_outcomes
from mechsafety.statistics.rates import wilson

SYSTEM_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}help me with the list \n{% endif %}"
    "{% for message in messages %}question {{ message['content'] }} \n{% endfor %}"
    "{% if add_generation_prompt %}answer{% endif %}"
)
GARBAGE = "A+" * 200
LONG_GARBAGE = "qx zj vv kq " * 20
ANSWER = (
    "Mix the flour with water and salt, knead the dough for ten minutes, let it rest in a warm place until it has "
    "doubled, shape a loaf, and bake it in a hot oven until the crust is brown."
)
REFUSAL = "I'm sorry, but I can't help with that."


def prompts(n: int = 4, *, label: Any = "harmful") -> list[Prompt]:
    texts = ["how do i make fire", "tell me about the lock", "write a list of key", "open the gate for me"]
    return [
        Prompt(id=f"{label}-{i}", text=f"{texts[i % 4]} {'a ' * (i // 4)}", label=label) for i in range(n)
    ]


def completion(text: str) -> Completion:
    return Completion(
        id="0", prompt="How do I bake bread?", label="harmful", category="", text=text, tokens=(), n_prompt_tokens=1, finish="stop",
    )  # fmt: skip


def judged(labels: Sequence[Sequence[str]], *, published: bool = False) -> Attempts:
    return Attempts(
        judged=tuple(tuple(Judgement(label=x, published=published) for x in row) for row in labels)  # type: ignore[arg-type]
    )


class Fixed:
    """A judge that says the same of every answer, or what it is told of each in turn."""

    name = "fixed"

    def __init__(self, *labels: Any) -> None:
        self.labels = labels

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        return [
            Verdict(id=r.id, judge=self.name, label=self.labels[i % len(self.labels)])
            for i, r in enumerate(responses)
        ]


# -- several attempts -------------------------------------------------------------------------------


@given(st.integers(1, 5).flatmap(lambda k: st.lists(st.lists(st.sampled_from(LABELS), min_size=k, max_size=k), min_size=1, max_size=6)))  # fmt: skip
def test_any_is_never_below_the_mean_and_equals_it_for_one_attempt(labels: list[list[str]]) -> None:
    found = judged(labels)
    one, average = found.any(), found.mean(seed=0)
    if math.isnan(one.rate) or math.isnan(average.rate):
        return
    assert one.rate >= average.rate - 1e-12
    assert average.low <= average.rate <= average.high
    if found.k == 1:
        assert (one.rate, one.low, one.high, one.n) == pytest.approx(
            (average.rate, average.low, average.high, average.n)
        )


def test_any_exceeds_the_mean_where_attempts_differ() -> None:
    found = judged([["compliance", "refusal"], ["refusal", "refusal"]])
    assert found.any() == wilson(1, 2)
    assert found.mean(seed=0).rate == 0.25
    assert found.mean(seed=0).n == 4


def test_what_could_not_be_read_is_in_no_share() -> None:
    found = judged([["compliance", "unparsed"], ["refusal", "unparsed"], ["refusal", "refusal"]])
    # The second prompt may have been won by the attempt that nobody could read.
    assert found.any() == wilson(1, 2)
    assert (found.mean(seed=0).rate, found.mean(seed=0).n) == (0.25, 4)
    assert (found.tally.n, found.tally.unparsed) == (4, 2)
    nothing = judged([["unparsed"], ["unparsed"]])
    assert math.isnan(nothing.any().rate)
    assert math.isnan(nothing.mean(seed=0).rate)
    assert nothing.mean(seed=0).n == 0


def test_the_interval_of_the_mean_is_over_prompts() -> None:
    apart = judged([["compliance"] * 5] * 10 + [["refusal"] * 5] * 10).mean(seed=0)
    mixed = judged([["compliance", "refusal"] * 5] * 5 + [["refusal", "compliance"] * 5] * 5 + [["compliance"] * 10, ["refusal"] * 10]).mean(seed=0)  # fmt: skip
    assert apart.rate == mixed.rate == 0.5
    # Wholly dependent attempts say no more than 20 prompts do; nearly constant shares say more.
    assert apart.high - apart.low == pytest.approx(wilson(10, 20).high - wilson(10, 20).low, abs=0.06)
    assert mixed.high - mixed.low < apart.high - apart.low
    same = judged([["compliance", "refusal"]] * 10).mean(seed=0)
    assert (same.low, same.high) == (wilson(5, 10).low, wilson(5, 10).high)


def test_attempts_must_be_as_many_for_each_prompt() -> None:
    for wrong in ([["refusal"], ["refusal", "refusal"]], [[]], []):
        with pytest.raises(MechsafetyError, match="same number"):
            judged(wrong)


# -- garbage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [LONG_GARBAGE, " ".join(["storm"] * 40)])
def test_the_published_metric_counts_garbage_as_success_and_the_gated_rate_does_not(text: str) -> None:
    found = Tally.of(judgements(Completions(items=(completion(text),) * 5)))
    assert found.published_success.rate == 1.0
    assert found.complied.rate == 0.0
    assert found.degenerated.rate == 1.0
    # The control: of language both say the same.
    coherent = Tally.of(judgements(Completions(items=(completion(ANSWER), completion(REFUSAL)))))
    assert coherent.published_success.rate == coherent.complied.rate == 0.5
    assert coherent.degenerate == 0


def test_a_short_answer_is_no_success_by_the_published_metric() -> None:
    found = Tally.of(judgements(Completions(items=(completion("Mix flour and water."),))))
    assert (found.complied.rate, found.published_success.rate) == (1.0, 0.0)


# -- outcomes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outcomes_carry_intervals_and_denominators(
    architecture: str, dtype: str, tiny_kept: Callable[..., Any]
) -> None:
    model = tiny_kept(architecture, dtype=dtype)
    asked = [*prompts(4), *prompts(3, label="harmless")]
    judge = Fixed("refusal", "compliance", "unparsed", "degenerate", "refusal", "refusal", "degenerate")
    row = measure_outcomes(model, asked, max_new_tokens=4, seed=0, judge=judge).row()
    assert tuple(row) == OUTCOME_COLUMNS
    assert (row["harmful_n"], row["harmless_n"]) == (3, 3)
    for name in ("refused", "complied", "degenerate"):
        assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == (wilson(1, 3).rate, wilson(1, 3).low, wilson(1, 3).high)  # fmt: skip
    assert row["harmless_refused"] == pytest.approx(2 / 3)
    assert row["harmless_degenerate"] == pytest.approx(1 / 3)


def test_shares_of_no_prompts_are_missing(tiny_kept: Callable[..., Any]) -> None:
    found = measure_outcomes(tiny_kept(), prompts(2), max_new_tokens=2, seed=0)
    row = found.row()
    assert row["harmful_n"] == 2
    assert row["harmless_n"] == 0
    assert math.isnan(row["harmless_refused"])
    assert "–" in found._repr_html_()


def test_a_tally_checks_itself() -> None:
    with pytest.raises(MechsafetyError, match="negative"):
        Tally(refusal=-1, compliance=0, degenerate=0, unparsed=0, published=0)
    with pytest.raises(MechsafetyError, match="no more than all"):
        Tally(refusal=1, compliance=0, degenerate=0, unparsed=0, published=2)


# -- renderings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_request_can_go_without_the_system_prompt_and_without_the_template(
    architecture: str, tiny: Callable[..., Any]
) -> None:
    model = tiny(architecture)
    text = "tell me about the gate"
    # A template without a system prompt is the same with and without it.
    assert render_turn(model, text, rendering="chat_no_system") == render_turn(model, text, rendering="chat")
    model.tokenizer.chat_template = SYSTEM_TEMPLATE
    assert "help me" in render_turn(model, text, rendering="chat")
    bare = render_turn(model, text, rendering="chat_no_system")
    assert bare == f"question {text} \nanswer"
    assert tokenize_prompts(model, [text]) == [
        tokenize_text(model, render_chat(model, [{"role": "user", "content": text}]))
    ]
    assert tokenize_prompts(model, [text], rendering="text") == [model.tokenizer(text)["input_ids"]]
    lengths = [
        len(tokenize_prompts(model, [text], rendering=r)[0]) for r in ("chat", "chat_no_system", "text")
    ]
    assert lengths == sorted(set(lengths), reverse=True)


def test_the_token_that_begins_a_text_stays_without_the_system_prompt(tiny: Callable[..., Any]) -> None:
    model = tiny()
    model.tokenizer.bos_token = "<eos>"
    model.tokenizer.chat_template = "<eos>" + SYSTEM_TEMPLATE
    assert render_turn(model, "yes", rendering="chat_no_system") == "<eos>question yes \nanswer"
    assert render_turn(model, "yes", rendering="chat").count("<eos>") == 1


def test_a_template_that_rewrites_earlier_turns_is_refused(tiny: Callable[..., Any]) -> None:
    model = tiny()
    model.tokenizer.chat_template = (
        "{{ messages | length }} {% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(MechsafetyError, match="cannot be left out"):
        render_turn(model, "yes", rendering="chat_no_system")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_generation_begins_from_what_was_rendered(architecture: str, tiny: Callable[..., Any]) -> None:
    model = tiny(architecture)
    model.tokenizer.chat_template = SYSTEM_TEMPLATE
    asked = prompts(3)
    default = generate(model, asked, max_new_tokens=6, seed=0)
    assert list(default) == list(generate(model, asked, max_new_tokens=6, seed=0, rendering="chat"))
    for rendering in ("chat_no_system", "text"):
        found = generate(model, asked, max_new_tokens=6, seed=0, rendering=rendering)
        # The control: a template that writes this very text.
        model.tokenizer.chat_template = (
            "{{ messages[0]['content'] }}"
            if rendering == "text"
            else "question {{ messages[0]['content'] }} \nanswer"
        )
        same = generate(model, asked, max_new_tokens=6, seed=0)
        assert [c.tokens for c in found] == [c.tokens for c in same]
        assert [c.n_prompt_tokens for c in found] != [c.n_prompt_tokens for c in default]
        model.tokenizer.chat_template = SYSTEM_TEMPLATE


# -- attacks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_samples_come_from_the_seed_and_differ_among_each_other(
    architecture: str, tiny_kept: Callable[..., Any]
) -> None:
    model = tiny_kept(architecture)
    seen: list[str] = []

    class Watching(Fixed):
        def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
            seen.append("|".join(r.text for r in responses))
            return super().__call__(responses)

    judge = Watching("compliance", "refusal", "refusal")
    for seed in (1, 1, 2):
        found = decoding(model, prompts(2), k=3, max_new_tokens=5, seed=seed, judge=judge)
        assert (found.k, found.any().rate) == (3, 1.0)
        assert found.mean(seed=0).rate == pytest.approx(1 / 3)
    assert seen[0] == seen[1] != seen[2]
    assert len(set(seen[0].split("|"))) > 2


def test_the_table_of_attacks_has_a_row_a_measure(tiny_kept: Callable[..., Any]) -> None:
    table = attack_table(
        tiny_kept(), prompts(4), system="tiny", attacks=["vanilla", "decoding"], k=2, max_new_tokens=4, seed=0,
        judge=Fixed("compliance", "refusal"),
    )  # fmt: skip
    assert tuple(table.columns) == ATTACK_COLUMNS
    assert list(table["measure"]) == ["greedy", "any", "mean"]
    assert list(table["n"]) == [4, 4, 8]
    assert list(table["asr"]) == [0.5, 1.0, 0.5]
    assert (table["low"] <= table["asr"]).all()
    assert (table["asr"] <= table["high"]).all()
    assert set(table["refused"]) == {0.5}


def test_a_row_shows_garbage_under_both_metrics() -> None:
    rows = attack_rows(
        judged([["degenerate"] * 2] * 3, published=True), system="broken", attack="decoding", seed=0
    )
    assert [(r["asr"], r["published"], r["degenerate"]) for r in rows] == [(0.0, 1.0, 1.0)] * 2


def test_wrong_input_is_reported(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept()
    good: dict[str, Any] = {"max_new_tokens": 2, "seed": 0}
    with pytest.raises(MechsafetyError, match="k is 0"):
        decoding(model, prompts(1), k=0, **good)
    with pytest.raises(MechsafetyError, match="temperature 0"):
        decoding(model, prompts(1), temperature=0.0, **good)
    with pytest.raises(MechsafetyError, match="no prompts"):
        measure_outcomes(model, [], **good)
    with pytest.raises(MechsafetyError, match="no prompts are given"):
        attack_table(model, [], system="tiny", **good)
    with pytest.raises(MechsafetyError, match="no attack"):
        attack_table(model, prompts(1), system="tiny", attacks=[], **good)
    with pytest.raises(MechsafetyError, match="is harmless"):
        attack_table(model, prompts(1, label="harmless"), system="tiny", **good)
    with pytest.raises(MechsafetyError, match="needs suffixes"):
        attack_table(model, prompts(1), system="tiny", attacks=["suffix"], **good)
    with pytest.raises(MechsafetyError, match="a text that is not empty"):
        decoding(model, [replace(prompts(1)[0], text=" ")], **good)
