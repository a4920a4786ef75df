"""Self-judgement: scores are probabilities of the model's own words, controls are controls."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate
from mechsafety.experiments.selfjudgement.tables import calibration, calibration_errors, two_by_two
from mechsafety.generation.completions import generate
from mechsafety.judges.selfjudgement import (
    CONTENT_FREE,
    QUESTION,
    REVERSED,
    Exchange,
    _deranged,
    ask_logits,
    ask_words,
    greedy_replies,
    read_yes_no,
    self_judge,
    summarise,
)
from mechsafety.models.chat import render_chat, tokenize_prompts, tokenize_text
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.statistics import wilson


def table(scores: list[float], verdicts: list[str], *, shuffled: list[float] | None = None) -> pd.DataFrame:
    n = len(scores)
    return pd.DataFrame(
        {
            "system": "s",
            "arm": "original",
            "id": [f"p{i}" for i in range(n)],
            "score": scores,
            "shuffled": shuffled or scores,
            "length": [10 if v == "refusal" else 90 for v in verdicts],
            "verdict": verdicts,
        }
    )


def test_a_model_that_knows_has_auc_one_and_one_that_guesses_one_half() -> None:
    generator = random.Random(0)
    verdicts = ["refusal", "compliance"] * 60
    knows = [1.0 if v == "refusal" else -1.0 for v in verdicts]
    guesses = [generator.gauss(0, 1) for _ in verdicts]
    row = summarise(table(knows, verdicts, shuffled=guesses), seed=0).iloc[0]
    assert row["auc"] == 1.0
    assert row["agreement"] == 1.0
    assert row["auc_shuffled"] == pytest.approx(0.5, abs=0.12)
    assert row["auc_length"] == 1.0
    assert (row["n"], row["refusals"]) == (120, 60)


def test_one_class_is_undefined_and_degenerate_answers_are_left_out() -> None:
    only = summarise(table([1.0, 2.0], ["compliance", "compliance"]), seed=0).iloc[0]
    assert only["auc"] != only["auc"]
    assert only["n"] == 2
    mixed = summarise(table([1.0, -1.0, 5.0], ["refusal", "compliance", "degenerate"]), seed=0).iloc[0]
    assert (mixed["n"], mixed["refusals"], mixed["auc"]) == (2, 1, 1.0)
    none = summarise(table([5.0], ["degenerate"]), seed=0).iloc[0]
    assert none["n"] == 0
    assert none["agreement"] != none["agreement"]


@pytest.mark.parametrize("n", [2, 3, 10])
def test_shuffled_prompts_leave_none_at_its_place(n: int) -> None:
    items = [str(i) for i in range(n)]
    moved = _deranged(items, seed=1)
    assert sorted(moved) == items
    assert all(a != b for a, b in zip(items, moved, strict=True))
    assert moved == _deranged(items, seed=1)


def test_scores_depend_on_the_answer_and_on_the_prompt(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    same = [Exchange(id=str(i), prompt="bread", response="sorry no") for i in range(2)]
    a, b = self_judge(model, same, seed=0)
    assert a.score == pytest.approx(b.score, abs=1e-4)
    assert a.shuffled == pytest.approx(a.score, abs=1e-4)
    other = self_judge(model, [same[0], Exchange(id="1", prompt="the river", response="yes here")], seed=0)
    assert other[1].score != pytest.approx(a.score, abs=1e-3)
    assert other[0].shuffled != pytest.approx(other[0].score, abs=1e-3)
    assert other[0].length == len("sorry no")


# -- asking -----------------------------------------------------------------------------------------

EXCHANGES = [
    Exchange(id="a", prompt="how do i make bread", response="sorry i can not help with that"),
    Exchange(id="b", prompt="tell me about the river", response="here is the answer"),
    Exchange(id="c", prompt="write a list of fire", response="no"),
]


def plain_score(model: Any, prompt: str, answer: str, question: str) -> tuple[float, float]:
    """log P(Yes) - log P(No) and P(Yes) + P(No) from one plain forward pass of the module inside."""
    turns = [("user", prompt), ("assistant", answer), ("user", question)]
    ids = tokenize_text(model, render_chat(model, [{"role": r, "content": c} for r, c in turns]))
    with torch.inference_mode():
        p = torch.log_softmax(model.original_model(torch.tensor([ids])).logits[0, -1].double(), -1)
    yes, no = (model.tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))
    return float(p[yes] - p[no]), float(p[yes].exp() + p[no].exp())


def random_edit(model: Any) -> Ablate:
    generator = torch.Generator().manual_seed(3)
    return Ablate(torch.nn.functional.normalize(torch.randn(model.cfg.d_model, generator=generator), dim=0))


def test_scores_and_controls_are_log_probabilities_of_yes_and_no(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    asked = ask_logits(model, EXCHANGES, seed=0)
    for exchange, one in zip(EXCHANGES, asked, strict=True):
        score, mass = plain_score(model, exchange.prompt, exchange.response, QUESTION)
        assert (one.score, one.mass) == (pytest.approx(score, abs=1e-4), pytest.approx(mass, rel=1e-4))
        turned, _ = plain_score(model, exchange.prompt, exchange.response, REVERSED)
        assert one.reversed == pytest.approx(turned, abs=1e-4)
        nothing, _ = plain_score(model, exchange.prompt, CONTENT_FREE, QUESTION)
        assert one.content_free == pytest.approx(nothing, abs=1e-4)
        assert len({round(v, 3) for v in (score, turned, nothing)}) == 3
    short = self_judge(model, EXCHANGES, seed=0)
    assert [(s.id, s.score, s.shuffled, s.length) for s in short] == [
        (one.id, one.score, one.shuffled, one.length) for one in asked
    ]


def test_an_edit_on_the_judging_model_changes_its_scores_and_words(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    edit = random_edit(model)
    plain, edited = ask_logits(model, EXCHANGES, seed=0), ask_logits(model, EXCHANGES, edit=edit, seed=0)
    assert all(abs(a.score - b.score) > 1e-3 for a, b in zip(plain, edited, strict=True))
    replies = [[w.reply for w in ask_words(model, EXCHANGES, edit=e)] for e in (None, edit, None)]
    assert replies[0] != replies[1]
    assert replies[0] == replies[2]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("edited", [False, True])
def test_greedy_replies_are_those_of_generation(
    tiny_kept: Callable[..., Any], architecture: str, edited: bool
) -> None:
    model = tiny_kept(architecture)
    edit = random_edit(model) if edited else None
    texts = ["how do i make bread", "a", "tell me about the river and the garden of storm"]
    replies = greedy_replies(model, tokenize_prompts(model, texts), edit=edit, max_new_tokens=9)
    prompts = [Prompt(id=t, text=t, label="harmless") for t in texts]
    oracle = generate(model, prompts, edit=edit, max_new_tokens=9, seed=0)
    assert replies == [c.text for c in oracle]
    assert len(set(replies)) > 1
    assert greedy_replies(model, tokenize_prompts(model, texts), edit=edit, max_new_tokens=2) != replies


def test_greedy_replies_end_with_the_turn(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_kept("llama")
    context = tokenize_prompts(model, ["how do i make bread"])
    whole = greedy_replies(model, context, edit=None, max_new_tokens=8)[0].split()
    third = model.tokenizer.convert_tokens_to_ids(whole[2])
    monkeypatch.setattr("mechsafety.generation.continuations.stop_tokens", lambda _: frozenset({third}))
    assert (
        greedy_replies(model, context, edit=None, max_new_tokens=8)[0].split()
        == whole[: whole.index(whole[2])]
    )


def test_words_carry_both_questions(tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_kept("llama")
    asked = {QUESTION: [[1]] * 3, REVERSED: [[2]] * 3}
    monkeypatch.setattr(
        "mechsafety.judges.selfjudgement._contexts", lambda _m, _p, _a, question: asked[question]
    )
    monkeypatch.setattr(
        "mechsafety.judges.selfjudgement.greedy_replies",
        lambda _, contexts, edit: ["Yes." if c == [1] else "I think so" for c in contexts],
    )
    first, *_ = ask_words(model, EXCHANGES)
    assert (first.id, first.said, first.reply) == ("a", "yes", "Yes.")
    assert (first.said_reversed, first.reply_reversed) == ("unparsed", "I think so")


def test_greedy_replies_need_something_to_reply_to(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    with pytest.raises(MechsafetyError, match="need contexts"):
        greedy_replies(model, [], edit=None)
    with pytest.raises(MechsafetyError, match="above 0"):
        greedy_replies(model, [[1, 2]], edit=None, max_new_tokens=0)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("Yes.", "yes"),
        ("**No**, I did not decline.", "no"),
        ('"Yes," I declined', "yes"),
        ("No\nI answered it", "no"),
        ("yes - I declined", "yes"),
        ("Yes or No", "unparsed"),
        ("Yes, no", "unparsed"),
        ("Yes? Perhaps", "unparsed"),
        ("No problem", "unparsed"),
        ("No one did", "unparsed"),
        ("Nobody", "unparsed"),
        ("Yesterday.", "unparsed"),
        ("I think yes", "unparsed"),
        ("I did not", "unparsed"),
        ("", "unparsed"),
        ("<think>No.</think>Yes.", "yes"),
    ],
)
def test_only_a_plain_yes_or_no_is_read(reply: str, said: str) -> None:
    assert read_yes_no(reply) == said


# -- tables -----------------------------------------------------------------------------------------


def logit_rows(scores: Any, verdicts: list[str], **more: Any) -> pd.DataFrame:
    n = len(scores)
    zero = {"content_free": [0.0] * n, "reversed": [-s for s in scores], "shuffled": [0.0] * n}
    zero |= {f"untrained_{number}": [0.0] * n for number in (1, 2, 3)}
    columns = zero | {"mass": [0.5] * n, "length": [10 if v == "refusal" else 90 for v in verdicts]} | more
    fixed = {"system": "s", "judge_arm": "original", "response_arm": "edited", "form": "logit"}
    return pd.DataFrame(
        {"id": [f"p{i}" for i in range(n)], "score": scores, "verdict": verdicts, **columns}
    ).assign(**fixed)


def word_rows(said: list[str], turned: list[str], verdicts: list[str]) -> pd.DataFrame:
    fixed = {"system": "s", "judge_arm": "edited", "response_arm": "edited", "form": "text"}
    ids = [f"p{i}" for i in range(len(said))]
    return pd.DataFrame({"id": ids, "said": said, "said_reversed": turned, "verdict": verdicts}).assign(
        **fixed
    )


def drawn(n: int = 400, *, seed: int = 0, sharpness: float = 1.0) -> tuple[np.ndarray, list[str]]:
    """Scores, and verdicts drawn with P(refusal) = sigmoid(score / sharpness)."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(0, 1.5, n)
    refused = generator.random(n) < expit(scores)
    return sharpness * scores, ["refusal" if r else "compliance" for r in refused]


def test_the_table_of_logits_agrees_with_sklearn() -> None:
    scores, verdicts = drawn()
    free = np.random.default_rng(1).normal(0.5, 1, len(scores))
    row = two_by_two(logit_rows(scores, verdicts, content_free=free), seed=0).iloc[0]
    truth = np.array([v == "refusal" for v in verdicts])
    assert row["auc"] == pytest.approx(roc_auc_score(truth, scores))
    assert row["auc_content_free"] == pytest.approx(roc_auc_score(truth, scores - free))
    assert row["agreement"] == pytest.approx(np.mean((scores > 0) == truth))
    assert row["agreement_content_free"] == pytest.approx(np.mean((scores > free) == truth))
    assert row["brier"] == pytest.approx(brier_score_loss(truth, expit(scores)))
    assert row["brier_content_free"] == pytest.approx(brier_score_loss(truth, expit(scores - free)))
    assert row["brier_constant"] == pytest.approx(brier_score_loss(truth, np.full(len(truth), truth.mean())))
    assert row["majority"] == pytest.approx(max(truth.mean(), 1 - truth.mean()))
    assert row["low"] < row["auc"] < row["high"]
    assert row["agreement_low"] == pytest.approx(wilson(int(((scores > 0) == truth).sum()), 400).low)
    assert (row["auc_shuffled"], row["auc_length"], row["auc_untrained"]) == (0.5, 1.0, 0.5)


def test_of_untrained_networks_the_one_that_separates_best_stands_with_its_better_sign() -> None:
    scores, verdicts = drawn(200)
    truth = np.array([v == "refusal" for v in verdicts], dtype=float)
    noise = np.random.default_rng(2).normal(0, 1, (3, len(truth)))
    given = {"untrained_1": noise[0], "untrained_2": noise[1] - 2 * truth, "untrained_3": truth + noise[2]}
    row = two_by_two(logit_rows(scores, verdicts, **given), seed=0).iloc[0]
    assert row["auc_untrained"] == pytest.approx(roc_auc_score(truth, -given["untrained_2"]))
    assert row["p_untrained"] < 0.05  # it separates better than the model
    assert row["auc"] < row["auc_untrained"]
    missing = dict.fromkeys(given, [math.nan] * len(truth))
    row = two_by_two(logit_rows(scores, verdicts, **missing), seed=0).iloc[0]
    assert math.isnan(row["auc_untrained"])
    assert math.isnan(row["p_untrained"])


def test_the_reliability_curve_is_sklearns() -> None:
    scores, verdicts = drawn()
    curve = calibration(logit_rows(scores, verdicts))
    raw = curve[curve["kind"] == "raw"]
    truth = np.array([v == "refusal" for v in verdicts])
    rate, mean = calibration_curve(truth, expit(scores), n_bins=10)
    assert np.allclose(raw["rate"], rate)
    assert np.allclose(raw["mean_p"], mean)
    assert raw["n"].sum() == 400
    assert raw["refusals"].sum() == truth.sum()
    assert ((raw["low"] <= raw["rate"]) & (raw["rate"] <= raw["high"])).all()
    row = two_by_two(logit_rows(scores, verdicts), seed=0).iloc[0]
    weights = raw["n"].to_numpy() / 400
    assert row["ece"] == pytest.approx(float((weights * np.abs(rate - mean)).sum()))


def test_the_calibration_error_separates_calibrated_from_overconfident_scores() -> None:
    good = two_by_two(logit_rows(*drawn()), seed=0).iloc[0]
    bold = two_by_two(logit_rows(*drawn(sharpness=5.0)), seed=0).iloc[0]
    assert good["ece"] < 2 * good["ece_floor"]
    assert bold["ece_low"] > 3 * bold["ece_floor"]
    assert bold["brier"] > good["brier"]
    assert bold["auc"] == good["auc"]
    assert good["brier_low"] < good["brier"] < good["brier_high"]


def test_the_floor_of_the_calibration_error_is_what_perfect_probabilities_show() -> None:
    generator = np.random.default_rng(5)
    p = generator.random(60)
    outcomes = (generator.random((60, 60)) < p).astype(float)
    found = [calibration_errors(p, y, clusters=np.arange(60), seed=0)[0].value for y in outcomes]
    floor = calibration_errors(p, outcomes[0], clusters=np.arange(60), seed=0)[2]
    assert np.mean(found) == pytest.approx(floor, rel=0.1)
    assert floor > 0.05
    with pytest.raises(MechsafetyError, match="0 to 1"):
        calibration_errors(np.array([1.5]), np.array([1.0]), clusters=np.array([0]), seed=0)
    empty = calibration_errors(np.array([]), np.array([]), clusters=np.array([]), seed=0)
    assert all(math.isnan(v) for v in (empty[0].value, empty[1].value, empty[2]))


def test_repeated_prompts_widen_the_intervals() -> None:
    scores, verdicts = drawn(60)
    rows = logit_rows(np.repeat(scores, 4), list(np.repeat(verdicts, 4)))
    apart = two_by_two(rows, seed=0).iloc[0]
    together = two_by_two(rows.assign(id=np.repeat([f"p{i}" for i in range(60)], 4)), seed=0).iloc[0]
    for low, high in (("low", "high"), ("brier_low", "brier_high")):
        assert together[high] - together[low] > 1.4 * (apart[high] - apart[low])


def test_words_are_counted_with_what_could_not_be_read() -> None:
    said = ["yes", "yes", "no", "no", "unparsed", "yes", "no"]
    turned = ["no", "yes", "yes", "unparsed", "no", "no", "no"]
    verdicts = ["refusal", "compliance", "compliance", "refusal", "refusal", "degenerate", "compliance"]
    row = two_by_two(word_rows(said, turned, verdicts), seed=0).iloc[0]
    assert (row["n"], row["readable"], row["refusals"]) == (7, 6, 3)
    assert (row["unparsed"], row["reversed_unparsed"]) == (1, 1)
    assert row["agreement"] == pytest.approx(3 / 5)
    assert row["majority"] == pytest.approx(3 / 5)
    assert row["auc"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert row["yes"] == pytest.approx(2 / 5)
    assert (row["both_yes"], row["both_no"]) == (pytest.approx(1 / 4), pytest.approx(1 / 4))
    assert row["auc_reversed"] == pytest.approx(roc_auc_score([1, 0, 0, 1, 0], [1, 0, 0, 1, 1]))
    assert math.isnan(row["ece"])


def test_the_reversed_question_separates_a_yes_bias_from_a_judgement() -> None:
    verdicts = ["refusal", "compliance"] * 20
    knows = ["yes" if v == "refusal" else "no" for v in verdicts]
    turned = ["no" if k == "yes" else "yes" for k in knows]
    insight = two_by_two(word_rows(knows, turned, verdicts), seed=0).iloc[0]
    habit = two_by_two(word_rows(["yes"] * 40, ["yes"] * 40, verdicts), seed=0).iloc[0]
    assert (insight["agreement"], insight["auc"], insight["both_yes"]) == (1.0, 1.0, 0.0)
    assert (habit["agreement"], habit["auc"], habit["both_yes"]) == (0.5, 0.5, 1.0)
    shifted = logit_rows([3.0, 1.0] * 20, verdicts, reversed=[1.0, 3.0] * 20)
    biased = two_by_two(shifted, seed=0).iloc[0]
    assert (biased["auc"], biased["auc_reversed"], biased["both_yes"]) == (1.0, 1.0, 1.0)
    assert biased["agreement"] == 0.5


def test_scores_that_are_no_numbers_count_as_unparsed() -> None:
    scores = [1.0, -1.0, math.nan, math.inf, 2.0]
    verdicts = ["refusal", "compliance", "refusal", "compliance", "degenerate"]
    table = logit_rows(scores, verdicts, reversed=[math.nan, 1.0, 0.0, 0.0, 0.0], shuffled=[math.nan] * 5)
    row = two_by_two(table, seed=0).iloc[0]
    assert (row["n"], row["readable"], row["unparsed"], row["reversed_unparsed"]) == (5, 4, 2, 1)
    assert (row["agreement"], row["auc"]) == (1.0, 1.0)
    assert math.isnan(row["auc_shuffled"])
    assert calibration(table).query("kind == 'raw'")["n"].sum() == 2


def test_nothing_to_judge_is_undefined_not_zero() -> None:
    row = two_by_two(logit_rows([1.0, 2.0], ["degenerate", "unparsed"]), seed=0).iloc[0]
    assert (row["n"], row["readable"]) == (2, 0)
    undefined = [
        "agreement",
        "majority",
        "auc",
        "yes",
        "both_yes",
        "ece",
        "ece_floor",
        "brier",
        "brier_constant",
    ]
    assert row[undefined].isna().all()
    assert calibration(logit_rows([1.0], ["degenerate"])).empty
    one = two_by_two(logit_rows([1.0, -1.0], ["refusal", "refusal"]), seed=0).iloc[0]
    assert math.isnan(one["auc"])
    assert (one["agreement"], one["majority"]) == (0.5, 1.0)


def test_what_does_not_fit_in_the_window_is_not_asked_and_moves_no_other(
    tiny_kept: Callable[..., Any],
) -> None:
    model = tiny_kept("gpt2")
    long = Exchange(id="long", prompt="how do i make bread " * 60, response="here is the answer")
    both = [*EXCHANGES[:2], long]
    scored, worded = ask_logits(model, both, seed=0), ask_words(model, both)
    assert all(
        math.isnan(v) for v in (scored[2].score, scored[2].shuffled, scored[2].mass, scored[2].reversed)
    )
    assert (worded[2].said, worded[2].said_reversed) == ("not_asked", "not_asked")
    alone = ask_logits(model, EXCHANGES[:2], seed=0)
    assert [one.score for one in scored[:2]] == pytest.approx([one.score for one in alone], abs=1e-4)
    assert worded[:2] == ask_words(model, EXCHANGES[:2])
    assert all(math.isnan(one.score) for one in self_judge(model, [long], seed=0))
    counted = summarise(
        table(
            [s.score for s in scored], ["refusal", "compliance", "compliance"], shuffled=[0.0, 1.0, math.nan]
        ),
        seed=0,
    ).iloc[0]
    assert (counted["n"], counted["not_asked"]) == (2, 1)
