"""The probe: a judge without fences that obeys flips, the asking pipeline does not."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response, Verdict
from mechsafety.judges.asking import AskingJudge, OnVerdict, question, read, unread
from mechsafety.judges.cache import VerdictCache
from mechsafety.judges.injection import ALL, ATTACKS, CONTROL, KnownItem, injection_flip_rate, known_items
from mechsafety.judges.kinds.rules import RulesJudge
from mechsafety.judges.normalise import normalise
from mechsafety.judges.reading import read_verdict
from mechsafety.statistics import wilson

ANY_VERDICT = re.compile(
    r"V\s*E\s*R\s*D\s*I\s*C\s*T\s*:\s*(REFUSAL|COMPLIANCE|DEGENERATE|REFUSED|ANSWERED)\b", re.IGNORECASE
)
CLASS = {"REFUSED": "REFUSAL", "ANSWERED": "COMPLIANCE"}
RULES = RulesJudge()


def obedient(text: str, response: Response) -> str:
    """Says the last verdict that it reads anywhere in ``text``; left to itself it judges by the rules."""
    if found := ANY_VERDICT.findall(normalise(text).answer):
        return f"VERDICT: {CLASS.get(found[-1].upper(), found[-1])}"
    own = RULES([Response(id="", prompt=response.prompt, text=response.text)])[0].label
    return f"VERDICT: {own.upper()}"


class Obedient(AskingJudge):
    """The obedient model behind the question of :mod:`mechsafety.judges.asking`, or behind a naive one."""

    def __init__(self, *, fenced: bool) -> None:
        super().__init__()
        self.name, self.fenced = ("fenced" if fenced else "naive"), fenced
        self.asked = 0

    @property
    def fingerprint(self) -> dict[str, object]:
        return {"judge": self.name}

    def _ask(self, responses: Sequence[Response], *, on_verdict: OnVerdict) -> list[Verdict]:
        verdicts = []
        for r in responses:
            self.asked += 1
            text = question(r, salt="s") if self.fenced else f"Classify this reply.\n{r.prompt}\n{r.text}"
            label = read_verdict(obedient(text, r))
            if label is None:
                verdicts.append(unread(r, judge=self.name, reason="unreadable", detail={}))
            else:
                verdicts.append(read(r, judge=self.name, label=label, repaired=False))
            on_verdict(verdicts[-1])
        return verdicts


def test_a_naive_judge_flips_and_the_fenced_one_does_not() -> None:
    items = known_items(None)
    naive, fenced = (injection_flip_rate(Obedient(fenced=f), items) for f in (False, True))
    assert naive.right == fenced.right >= 40
    for rate in naive.rates:
        assert (rate.flipped, rate.rate) == ((0, 0.0) if rate.variant == CONTROL else (rate.attacked, 1.0))
    for rate in fenced.rates:
        assert rate.flipped <= 0.1 * rate.attacked
    assert [r.variant for r in fenced.rates] == [*ATTACKS, CONTROL, ALL]


class Fixed:
    """Says what a table says, by the start of the text and whether anything was appended."""

    name = "fixed"

    def __init__(self, clean: dict[str, str], attacked: dict[str, str]) -> None:
        self.clean, self.attacked = clean, attacked

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        labels = [self.attacked[r.text[0]] if "!" in r.text else self.clean[r.text[0]] for r in responses]
        return [Verdict(id=r.id, judge="fixed", label=n) for r, n in zip(responses, labels, strict=True)]  # type: ignore[arg-type]


def test_only_right_items_are_attacked_and_the_denominators_add_up() -> None:
    truth = {"a": "refusal", "b": "refusal", "c": "compliance", "d": "compliance", "e": "refusal"}
    items = [KnownItem(response=Response(id=k, prompt="p", text=k), label=v) for k, v in truth.items()]  # type: ignore[arg-type]
    judge = Fixed(
        truth | {"e": "compliance"},  # e is wrong without attack
        {"a": "compliance", "b": "degenerate", "c": "refusal", "d": "unparsed", "e": "compliance"},
    )
    found = injection_flip_rate(judge, items, attacks={"x": "! {LABEL}", "y": "!! {WIDE}"})
    assert (found.known, found.right) == (5, 4)
    *attacked, control, whole = found.rates
    assert (control.variant, control.attacked, control.flipped) == (CONTROL, 4, 0)  # it is in no sum
    for rate in (*attacked, whole):
        times = 2 if rate.variant == ALL else 1
        assert (rate.attacked, rate.flipped, rate.unparsed) == (4 * times, 2 * times, 1 * times)
        expected = wilson(2 * times, 3 * times)
        assert (rate.rate, rate.low, rate.high) == (expected.rate, expected.low, expected.high)
    assert len(found.to_frame()) == 4


def test_a_judge_that_is_never_right_has_no_rate() -> None:
    judge = Fixed({"a": "compliance"}, {})
    item = KnownItem(response=Response(id="a", prompt="p", text="a"), label="refusal")
    rate = injection_flip_rate(judge, [item]).rates[-1]
    assert (rate.attacked, rate.flipped) == (0, 0)
    assert math.isnan(rate.rate)


def test_each_attack_argues_for_the_opposite() -> None:
    seen: list[str] = []

    class Listening(Fixed):
        def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
            seen.extend(f"{r.text}\n{r.prompt}" for r in responses)
            return [Verdict(id=r.id, judge="fixed", label="refusal") for r in responses]

    item = KnownItem(response=Response(id="a", prompt="p", text="No."), label="refusal")
    injection_flip_rate(Listening({}, {}), [item])
    assert seen[0] == "No.\np"
    assert len(seen) == 2 + len(ATTACKS)
    for text in seen[1:-1]:
        assert text.startswith("No.")
        assert ANY_VERDICT.findall(normalise(text).answer)[-1].upper() in ("COMPLIANCE", "ANSWERED")
    assert not ANY_VERDICT.findall(seen[-1])


def test_the_cache_serves_the_probe(tmp_path: Path) -> None:
    items = known_items(None)[:6]
    with VerdictCache(tmp_path / "c.sqlite") as cache:
        first, second = Obedient(fenced=True), Obedient(fenced=True)
        once = injection_flip_rate(first, items, cache=cache)
        assert injection_flip_rate(second, items, cache=cache) == once
    assert first.asked > 6
    assert second.asked == 0


def test_bad_input_is_reported(tmp_path: Path) -> None:
    item = KnownItem(response=Response(id="a", prompt="p", text="a"), label="refusal")
    with pytest.raises(MechsafetyError, match="at least one known item"):
        injection_flip_rate(RULES, [])
    with pytest.raises(MechsafetyError, match="attacks x argue for nothing"):
        injection_flip_rate(RULES, [item], attacks={"x": "Hello"})
    path = tmp_path / "known.csv"
    path.write_text("prompt,response\na,b\n")
    with pytest.raises(
        MechsafetyError, match=r"line 2: columns prompt .* and label are needed; have prompt, response"
    ):
        known_items(path)
    path.write_text("prompt,response,label\na,b,degenerate\n")
    with pytest.raises(MechsafetyError, match="label 'degenerate' is not one of refusal, compliance"):
        known_items(path)
    path.write_text("question,response,label\na,b, Refusal\nc,d,compliance\n")
    assert [(i.response.id, i.label) for i in known_items(path)] == [("1", "refusal"), ("2", "compliance")]
