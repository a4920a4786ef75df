"""The logit judge: calibrated margins, a threshold fitted on written anchors, honest tags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response
from mechsafety.generation.fixed_batches import separate_log_probs
from mechsafety.generation.scoring import option_log_probs
from mechsafety.judges.kinds import logit
from mechsafety.judges.kinds.logit import ORDER, LogitJudge, MarginThreshold, fit_threshold, load_anchors
from mechsafety.judges.registry import judge_responses

RESPONSES = [
    Response(id="a", prompt="make bread", text="sorry can not help with that"),
    Response(id="b", prompt="make bread", text="sure here is an answer"),
    Response(id="c", prompt="make bread", text="A+A+A+A+A+A+A+A+A+A+A+A+A+A+A+A+A+A+A+A"),
]


def test_threshold_has_the_best_balanced_accuracy() -> None:
    margins = [-3.0, -2.0, -1.0, 0.5, 1.0, 2.0]
    perfect = fit_threshold(margins, [False, False, False, True, True, True])
    assert -1.0 < perfect.value < 0.5
    assert (perfect.accuracy, perfect.auroc, perfect.n) == (1.0, 1.0, 6)
    noisy = fit_threshold(margins, [False, True, False, True, False, True])
    best = max(
        sum(
            (m > cut) == truth
            for m, truth in zip(margins, [False, True, False, True, False, True], strict=True)
        )
        for cut in (-2.5, -1.5, 0.0, 0.7, 1.5)
    )
    assert noisy.accuracy == pytest.approx(best / 6)
    with pytest.raises(MechsafetyError, match="refusals and compliances"):
        fit_threshold(margins, [True] * 6)


def test_anchors_are_balanced_and_read_as_labelled_by_the_rules() -> None:
    anchors = load_anchors()
    labels = [a["label"] for a in anchors]
    assert labels.count("refusal") == labels.count("compliance") == 24
    responses = [Response(id=a["id"], prompt=a["prompt"], text=a["response"]) for a in anchors]
    agreed = [
        v.label == label for v, label in zip(judge_responses(responses, ["rules"]), labels, strict=True)
    ]
    assert sum(agreed) >= 44


def test_verdicts_follow_the_margin_and_the_order_does_not_matter(tiny_kept: Callable[..., Any]) -> None:
    judge = LogitJudge("tiny", tiny_kept("llama"))
    forward = {v.id: v for v in judge(RESPONSES)}
    backward = {v.id: v for v in judge(RESPONSES[::-1])}
    assert forward["c"].label == "degenerate"
    for identity in ("a", "b"):
        verdict = forward[identity]
        margin, threshold = verdict.detail["margin"], verdict.detail["threshold"]
        assert verdict.label == ("refusal" if margin > threshold else "compliance")  # type: ignore[operator]
        assert backward[identity].detail["margin"] == pytest.approx(margin, abs=1e-4)
        assert 0 <= verdict.detail["mass"] <= 1  # type: ignore[operator]
    assert judge.name == "logit:tiny"


LENGTHS = [
    Response(
        id=str(n),
        prompt="make bread",
        text=" ".join(["sure here", "sorry can not", "the river"][n % 3] for _ in range(n + 1)),
    )
    for n in range(11)
]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_verdict_does_not_depend_on_the_others_in_the_call(
    tiny_kept: Callable[..., Any], kind: str, dtype: str
) -> None:
    judge = LogitJudge("tiny", tiny_kept(kind, dtype=dtype))
    together = judge(LENGTHS)
    assert [judge([r])[0] for r in LENGTHS[::3]] == together[::3]
    mixed = [LENGTHS[i] for i in (7, 2, 10, 0, 5, 9, 1, 3, 8, 6, 4)]
    assert sorted(judge(mixed), key=lambda v: int(v.id)) == together
    assert judge(LENGTHS[:5]) == together[:5]
    assert len({str(v.detail) for v in together}) > 8  # the control: they are not all the same


def test_the_scores_are_those_of_whole_contexts(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    items = [[[*range(3, 13), *[5] * n, 7, 8], [*range(3, 13), *[5] * n, 8, 7, 9]] for n in range(1, 12)]
    items.append([[9, 9, 9], [9, 9, 8]])  # another beginning
    options = [[7], [8, 9]]
    got = separate_log_probs(model, items, options, beginning=list(range(3, 13)))
    for found, contexts in zip(got, items, strict=True):
        alone = [option_log_probs(model, [c], options, share_prefix=False)[0] for c in contexts]
        torch.testing.assert_close(found, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_a_verdict_that_turns_with_the_order_is_tagged(tiny_kept: Callable[..., Any]) -> None:
    judge = LogitJudge("tiny", tiny_kept("llama"))
    responses = LENGTHS[:4]
    orders = judge.margins([(r.prompt, r.text) for r in responses]).orders
    assert all(first != second for first, second in orders)
    for cut, tagged in ((sum(orders[0]) / 2, True), (max(orders[0]) + 1, False)):
        judge._threshold = MarginThreshold(value=cut, auroc=1.0, accuracy=1.0, n=2)
        verdict = judge(responses[:1])[0]
        assert (ORDER in verdict.tags) == tagged
        assert [verdict.detail[k] for k in ("refused_first", "answered_first")] == pytest.approx(
            orders[0], abs=1e-4
        )


def test_calibration_shifts_every_margin_alike(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = LogitJudge("tiny", tiny_kept("llama"))
    pairs = [("make bread", "sorry no"), ("the river", "sure here"), ("bread", "yes")]
    before = judge.margins(pairs).margins
    monkeypatch.setattr(logit, "_CONTENT_FREE", "storm")
    shifts = [a - b for a, b in zip(before, judge.margins(pairs).margins, strict=True)]
    assert shifts == pytest.approx([shifts[0]] * 3, abs=1e-4)
    assert abs(shifts[0]) > 1e-3
    assert len({round(m, 3) for m in before}) == 3


def test_low_mass_is_tagged(tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    judge = LogitJudge("tiny", tiny_kept("llama"))
    monkeypatch.setattr(logit, "LEAST_MASS", 1.1)
    assert "low_mass" in judge(RESPONSES[:1])[0].tags
    monkeypatch.setattr(logit, "LEAST_MASS", 0.0)
    assert "low_mass" not in judge(RESPONSES[:1])[0].tags


def test_models_are_asked_for_by_name_and_once(tiny_kept: Callable[..., Any]) -> None:
    asked: list[str] = []

    def source(spec: str, /) -> Any:
        asked.append(spec)
        return tiny_kept("llama")

    verdicts = judge_responses(RESPONSES, ["logit:some/model"], models=source)
    assert asked == ["some/model"]
    assert {v.judge for v in verdicts} == {"logit:some/model"}
    with pytest.raises(MechsafetyError, match="needs a model"):
        judge_responses(RESPONSES, ["logit"])


def test_a_question_beyond_the_window_is_reported(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_kept("gpt2")
    judge = LogitJudge("tiny", model)
    long = Response(id="long", prompt="make " + "bread river " * 100, text="sure here is an answer")
    alone = judge(RESPONSES[:2])
    verdicts = judge([RESPONSES[0], long, RESPONSES[1]])
    assert (verdicts[1].label, verdicts[1].tags) == ("unparsed", ("too_long",))
    assert [verdicts[0].label, verdicts[2].label] == [
        v.label for v in alone
    ]  # the others are judged as without it
    monkeypatch.setattr(model.original_model.config, "n_positions", 64)
    with pytest.raises(
        MechsafetyError, match="do not fit in the model's window: judge with a model that reads more"
    ):
        LogitJudge("tiny", model)(RESPONSES)
