"""Judges by name, and the contract that every response gets one verdict."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Judge, Response, Verdict
from mechsafety.judges.registry import (
    available_judges,
    describe_judges,
    judge_responses,
    judge_sources,
    load_judge,
)

LIGHT = ["rules", "degeneracy", "phrases:granular", "phrases:arditi", "phrases:wei", "phrases:gcg"]


def responses(n: int) -> list[Response]:
    return [Response(id=f"r{i}", prompt="Name a fruit.", text="Pear." * (i + 1)) for i in range(n)]


class Scripted:
    """A judge that answers whatever ids it was told to."""

    name = "scripted"

    def __init__(self, ids: Sequence[str], *, signed: str = "scripted") -> None:
        self.ids, self.signed = ids, signed

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        return [Verdict(id=i, judge=self.signed, label="compliance") for i in self.ids]


@pytest.mark.parametrize("spec", LIGHT)
def test_loads_by_name(spec: str) -> None:
    judge = load_judge(spec)
    assert isinstance(judge, Judge)
    assert judge.name == spec


def test_lists_judges_and_no_support_code() -> None:
    names = available_judges()
    assert {"rules", "degeneracy", "phrases"} <= set(names)
    assert not {
        "normalise",
        "verdict",
        "registry",
        "patterns",
    } & set(names)
    assert names == sorted(names)
    about = describe_judges()
    assert list(about) == names
    assert all(text and "\n" not in text for text in about.values())


@pytest.mark.parametrize(
    "spec", ["", "nothing", "Rules", "../rules", "normalise", "registry", "os", "rules.RULES"]
)
def test_an_unknown_name_lists_the_known_ones(spec: str) -> None:
    with pytest.raises(MechsafetyError, match=r"there are: .*degeneracy.*phrases.*rules"):
        load_judge(spec)


@pytest.mark.parametrize(
    "spec", ["rules:strict", "degeneracy:x", "phrases", "phrases:", "phrases:nobody", "rules:"]
)
def test_wrong_arguments_are_refused(spec: str) -> None:
    with pytest.raises(MechsafetyError, match="write "):
        load_judge(spec)


def test_judges_that_need_no_model_ask_for_none() -> None:
    def source(spec: str) -> object:
        raise AssertionError(spec)

    for spec in LIGHT:
        load_judge(spec, models=source)(responses(2))


@given(
    st.integers(0, 8),
    st.lists(st.sampled_from(LIGHT), unique=True, min_size=1),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_as_many_out_as_in_and_in_any_order(n: int, specs: list[str], random: object) -> None:
    asked = responses(n)
    verdicts = judge_responses(asked, specs)
    assert [(v.judge, v.id) for v in verdicts] == [(s, r.id) for s in specs for r in asked]
    shuffled = list(asked)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = judge_responses(shuffled, specs)
    assert {(v.judge, v.id): v for v in again} == {(v.judge, v.id): v for v in verdicts}


def test_takes_ready_judges_and_restores_the_order() -> None:
    verdicts = judge_responses(responses(3), [Scripted(["r2", "r0", "r1"]), "rules"])
    assert [v.id for v in verdicts] == ["r0", "r1", "r2"] * 2


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (["r0"], "missing ids 'r1'"),
        (["r0", "r1", "r2"], "unasked or repeated ids 'r2'"),
        (["r0", "r0"], "missing ids 'r1', unasked or repeated ids 'r0'"),
        (["r0", "r1", "r1"], "repeated ids 'r1'"),
        ([], "missing ids 'r0', 'r1'"),
    ],
)
def test_a_judge_that_miscounts_is_refused(ids: list[str], says: str) -> None:
    with pytest.raises(MechsafetyError, match=says):
        judge_responses(responses(2), [Scripted(ids)])


def test_a_judge_signs_its_own_name() -> None:
    with pytest.raises(MechsafetyError, match="signed 'other'"):
        judge_responses(responses(2), [Scripted(["r0", "r1"], signed="other")])


def test_duplicates_are_refused() -> None:
    with pytest.raises(MechsafetyError, match=r"response ids must be unique.*'r0'"):
        judge_responses([*responses(2), *responses(1)], ["rules"])
    with pytest.raises(MechsafetyError, match=r"judge names must be unique.*'rules'"):
        judge_responses(responses(2), ["rules", load_judge("rules")])


def test_judges_load_without_torch() -> None:
    code = (
        "import sys; from mechsafety.judges.files import judge_file;"
        "from mechsafety.judges.registry import available_judges, load_judge; available_judges();"
        "[load_judge(s) for s in ('rules', 'degeneracy', 'phrases:wei')]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("oracle", "no judge is called 'oracle'"),
        ("rules:x", "takes no argument"),
        ("phrases:oracle", "needs a published list"),
        ("logit", "needs a model"),
        ("majority:rules", "at least 2 members"),
        ("majority:rules,oracle", "no judge is called 'oracle'"),
        ("dawid_skene:rules,phrases:wei,majority:rules", "panels do not nest"),
        ("majority:rules,endpoint:m@http://h/v1;concurrency=many", "write a whole number"),
    ],
)
def test_a_judge_that_cannot_be_made_is_refused_where_its_sources_are_asked_for(spec: str, says: str) -> None:
    # Which is before the work of a run.
    with pytest.raises(MechsafetyError, match=says):
        judge_sources(spec)
    assert judge_sources("majority:rules,phrases:wei") == {}
