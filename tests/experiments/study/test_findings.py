"""What a study says of its systems is true of the verdicts, and what they show is said."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mechsafety.experiments.agreement.figures import effect_forest
from mechsafety.experiments.study.figures import (
    judge_agreement,
    layer_sweep_table,
    outcome_bars,
    refusal_heatmap,
)
from mechsafety.experiments.study.findings import headline
from mechsafety.statistics import (
    agreement,
    control_tests,
    judge_effects,
    paired_tests,
    refusal_rates,
)
from tests.claims.drawn import few
from tests.claims.evaluator import refuted, unsaid
from tests.claims.facts import Change, Count, Facts, Family, Value, hits, labelled_change
from tests.claims.recomputed import holm

ENERGIES = (1.0, 0.5, 2.0)
"""Of random directions, over that of the direction."""
CODES = {"R": "refusal", "C": "compliance", "D": "degenerate", "U": "unparsed"}
Arms = tuple[str, str]
Systems = Mapping[str, Mapping[str, Arms]]


def verdicts(judge: str, systems: Systems) -> pd.DataFrame:
    """By system and prompt label the codes of the original's and of the edited model's answers."""
    rows = [
        {"system": s, "arm": arm, "id": f"{label}{i}", "label": label, "judge": judge, "verdict": CODES[code]}
        for s, labels in systems.items()
        for label, arms in labels.items()
        for arm, codes in zip(("original", "edited"), arms, strict=True)
        for i, code in enumerate(codes)
    ]
    return pd.DataFrame(rows)


def said(judges: Mapping[str, Systems], *, draws: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """The sentences of a study, its primary judge first; ``draws`` by system are answers under random directions."""
    table = pd.concat([verdicts(judge, systems) for judge, systems in judges.items()], ignore_index=True)
    primary = next(iter(judges))
    tables = {
        "verdicts": table,
        "rates": refusal_rates(table),
        "agreement": agreement(table, seed=0, resamples=20),
        "judge_effects": judge_effects(table),
    }
    if draws:
        random = pd.concat(
            [
                verdicts(primary, {s: {"harmful": (codes, "")}}).assign(arm=f"random-{k}", draw=k)
                for s, several in draws.items()
                for k, codes in enumerate(several, start=1)
            ]
        )
        edited = table[
            (table["arm"] == "edited") & (table["label"] == "harmful") & (table["judge"] == primary)
        ]
        tests = control_tests(edited, random).assign(judge=primary, energy_direction=0.1)
        tests["energy"] = [0.1 * ENERGIES[int(draw) - 1] for draw in tests["draw"]]
        tables |= {"random_verdicts": random, "controls": tests}
    facts = {s: {"selection": {"rule": "auto"}} for s in judges[primary]}
    return headline(tables, {"config": {"judges": list(judges)}, "systems": facts})


def known(judges: Mapping[str, Systems], draws: Mapping[str, Sequence[str]] | None = None) -> Facts:
    """The same verdicts for the evaluator, which knows no code of sentences."""
    primary, facts = next(iter(judges)), Facts()
    answers = {
        judge: {
            (s, arm, label, i): CODES[code]
            for s, labels in systems.items()
            for label, arms in labels.items()
            for arm, codes in enumerate(arms)
            for i, code in enumerate(codes)
        }
        for judge, systems in judges.items()
    }
    energy, things = "energy over that of the direction", "random directions"
    extremes = {
        (s, energy, things): {
            f"draw {k}": Value(ENERGIES[k - 1], plain=True) for k in range(1, len(several) + 1)
        }
        for s, several in (draws or {}).items()
        if several
    }
    facts += Facts(answers=answers, extremes=extremes)
    for judge, systems in judges.items():
        for label in ("harmful", "harmless"):
            changes, coherent = {}, {}
            for s, labels in systems.items():
                if label not in labels:
                    continue
                before, after = ({i: CODES[code] for i, code in enumerate(codes)} for codes in labels[label])
                drawn = [dict(enumerate(map(CODES.get, codes))) for codes in (draws or {}).get(s, [])]
                controls = {f"{len(drawn)} random direction{'s' * (len(drawn) > 1)}": drawn} if drawn else {}
                subject = f"{s}, {label} prompts" + (f" by {judge}" if judge != primary else "")
                changes[subject, "refusals"] = labelled_change(
                    before, after, draws=controls if label == "harmful" and judge == primary else {}
                )
                sides = [
                    {i: None if v == "unparsed" else v != "degenerate" for i, v in x.items()}
                    for x in (before, after)
                ]
                coherent[subject, "coherent answers"] = Change(*sides)
            facts += Facts(changes, [Family("systems", list(changes))])
            if label == "harmful" and judge == primary:
                facts += Facts(coherent, [Family("systems", list(coherent))])
    by = {
        (subject, measure): {
            judge: (subject + (f" by {judge}" if judge != primary else ""), measure) for judge in judges
        }
        for subject, measure in facts.changes
        if measure == "refusals" and " by " not in subject
    }
    return facts + Facts(judges=by)


OTHER = ("Labels to correct", " · ")  # the plan of labels, other readings of labels


def untrue(lines: Sequence[str], facts: Facts) -> list[tuple[str, str, str]]:
    return refuted([line for line in lines if not any(word in line for word in OTHER)], facts)


def only(lines: Sequence[str], *words: str) -> str:
    """The one sentence that has all the words."""
    (line,) = [line for line in lines if all(word in line for word in words)]
    return line


def of_one(original: str, edited: str, **more: Arms) -> dict[str, Systems]:
    return {"rules": {"m": {"harmful": (original, edited), **more}}}


# -- cases --------------------------------------------------------------------------------------------


def test_judges_that_contradict_each_other_differ_on_every_answer() -> None:
    codes = "R" * 20 + "C" * 20
    lines = said(
        {"rules": {"m": {"harmful": (codes, codes)}}, "other": {"m": {"harmful": (codes[::-1],) * 2}}}
    )
    line = only(lines, "rules and other: ")
    assert "80 of 80 (100 %" in line
    assert "kappa -1.00" in line


def test_a_rate_is_of_the_answers_that_were_read() -> None:
    lines = said(of_one("R" * 40, "C" * 2 + "U" * 38))
    for measure in ("refusals", "coherent answers"):
        line = only(lines, f" {measure} ", "m, harmful prompts: ", "edited")
        assert "38 not read" in line
        assert " of 2 (" in line
        assert "shown" in line  # two answers show nothing
    assert not any("of 40 (" in line for line in lines)


def test_a_judge_that_read_nothing_turns_nothing() -> None:
    shown = {"m": {"harmful": ("R" * 40, "C" * 40)}}
    line = only(
        said({"rules": shown, "blind": {"m": {"harmful": ("U" * 40, "U" * 40)}}}), "judges and readings"
    )
    assert "fall by 1 (rules)" in line
    assert re.search(r"not tested by 1 \(blind\)", line)


def test_judges_with_opposite_effects_are_said_to_be_opposite() -> None:
    few, many = "R" * 10 + "C" * 40, "R" * 40 + "C" * 10
    lines = said({"rules": {"m": {"harmful": (many, few)}}, "other": {"m": {"harmful": (few, many)}}})
    line = only(lines, "judges and readings")
    assert "fall by 1 (rules)" in line
    assert "rise by 1 (other)" in line


def test_harmless_prompts_have_both_arms_and_a_test_of_their_own() -> None:
    harmless = ("R" * 5 + "C" * 45, "R" * 30 + "C" * 20)
    lines = said(of_one("R" * 40 + "C" * 10, "R" * 10 + "C" * 40, harmless=harmless))
    assert "a fall in refusals" in only(lines, "m, harmful prompts", "refusals", ", original ")
    line = only(lines, "m, harmless prompts", "refusals", ", original ")
    assert "a rise" in line
    assert "original 5 of 50 (10 %" in line
    assert "edited 30 of 50 (60 %" in line


def test_shares_next_to_nothing_and_to_all_are_not_exact_ones() -> None:
    lines = said(of_one("R" + "C" * 249, "D" + "C" * 249))
    assert "1 of 250 (0.4 %" in only(lines, "m, harmful prompts", "refusals", ", original ")
    assert "249 of 250 (99.6 %" in only(lines, "coherent answers")


def test_systems_of_noise_are_not_singled_out() -> None:
    codes = "RRRCCC"
    systems = {f"s{i}": {"harmful": (codes, codes[i % 6 :] + codes[: i % 6])} for i in range(20)}
    lines = said({"rules": systems})
    assert sum("no change in refusals shown" in line for line in lines) == 20
    assert not any("a fall" in line or "a rise" in line for line in lines)
    table = verdicts("rules", systems)
    title = outcome_bars(refusal_rates(table), paired_tests(table), judge="rules").layout.title.text
    assert not re.search(r"\d", title)


def test_bars_and_whiskers_have_one_denominator() -> None:
    table = verdicts("rules", {"m": {"harmful": ("R" * 20 + "U" * 20, "C" * 40)}})
    figure = outcome_bars(refusal_rates(table), paired_tests(table), judge="rules")
    (bar,) = [t for t in figure.data if t.name == "refusal" and t.xaxis == "x"]
    (whisker,) = [t for t in figure.data if t.type == "scatter" and t.xaxis == "x" and len(t.y)]
    assert bar.y[0] == whisker.y[0] == 1.0


def test_a_test_that_cannot_show_anything_is_no_agreement_on_significance() -> None:
    six = {"m": {"harmful": ("RRRRRR", "RCCCCC")}}
    table = pd.concat([verdicts(j, six) for j in ("rules", "other")])
    figure = effect_forest(judge_effects(table))
    assert not re.search(r"agree|every", figure.layout.title.text)
    for trace in figure.data:
        if trace.name == "p ≥ .05" and trace.x:
            ends = [x + e for x, e in zip(trace.x, trace.error_x.array, strict=True)]
            assert min(ends) >= 0  # no interval leaves out 0 beside p >= .05
    # Two items cannot show anything.
    assert "could be significant" in only(said(of_one("RR", "CC")), " refusals ", ", original ")


def test_kappas_of_opposite_signs_have_colours_of_opposite_sides() -> None:
    rows = pd.DataFrame({"judge_a": ["a", "a"], "judge_b": ["b", "c"], "arm": "all", "n": [9, 9]})
    heat = judge_agreement(rows.assign(kappa=[-1.0, 0.0], low=-1.0, high=0.0)).data[0]
    assert (heat.zmin, heat.zmax) == (-1, 1)
    assert len(heat.colorscale) == 3


def test_judges_with_no_answer_in_common_are_said_to_have_none() -> None:
    halves = {"rules": "RRCCUUUU", "other": "UUUURRCC"}
    table = pd.concat([verdicts(judge, {"m": {"harmful": (codes,) * 2}}) for judge, codes in halves.items()])
    found = judge_agreement(agreement(table, seed=0, resamples=20))
    assert "no answer" in str(found.data[0].text)
    lines = said({judge: {"m": {"harmful": (codes,) * 2}} for judge, codes in halves.items()})
    assert "no answer was read by both" in only(lines, "rules and other: ")


def test_the_score_of_a_selected_candidate_is_that_of_its_own_position() -> None:
    table = pd.DataFrame(
        [
            {
                "position": p,
                "layer": layer,
                "auroc": 0.99 if p == -4 else 0.55,
                "bypass": 0.0,
                "induce": 0.0,
                "kl": 0.1,
            }
            for p in (-4, -1)
            for layer in (21, 22)
        ]
    )
    caption = layer_sweep_table(table, name="m", selected=22, position=-4).layout.title.subtitle.text.replace(
        "<br>", " "
    )
    assert "layer 22, position -4, AUROC 0.99" in caption
    assert "0.55" not in caption


# -- completeness -------------------------------------------------------------------------------------

N = 40
REFUSED, ANSWERED, BROKEN = "R" * N, "C" * N, "D" * N


@pytest.mark.parametrize(
    ("original", "edited", "draws", "words"),
    [
        (REFUSED, ANSWERED, [REFUSED] * 2, ["a fall", "goes beyond 2 random directions", "40 answered"]),
        (ANSWERED, REFUSED, [ANSWERED] * 2, ["a rise", "goes beyond", "40 newly refused"]),
        (
            REFUSED,
            REFUSED,
            [REFUSED] * 2,
            ["no change in refusals", "beyond 2 random directions is not shown"],
        ),
        (REFUSED, ANSWERED, [ANSWERED] * 2, ["a fall", "beyond 2 random directions is not shown"]),
        (
            "R" * N,
            "R" * 20 + "C" * 20,
            [ANSWERED] * 2,
            ["a fall", "a larger change under 2 random directions"],
        ),
        (REFUSED, ANSWERED, ["U" * N, REFUSED], ["a fall", "is not tested", "40 not read"]),
        (REFUSED, BROKEN, [REFUSED], ["a fall", "40 degenerate", "a fall in coherent answers"]),
        (BROKEN, BROKEN, [REFUSED], ["no change in refusals", "no change in coherent", "0 of 40"]),
        (
            REFUSED,
            "U" * N,
            [REFUSED],
            ["change in refusals not tested", "unknown, 40 not read"],
        ),
    ],
)
def test_what_was_planted_is_said(original: str, edited: str, draws: list[str], words: list[str]) -> None:
    lines = said(of_one(original, edited), draws={"m": draws})
    assert untrue(lines, known(of_one(original, edited), {"m": draws})) == []
    text = " ".join(lines)
    for word in words:
        assert word in text, (word, text)


def test_harmless_prompts_that_move_as_much_are_said_to() -> None:
    lines = said(of_one(REFUSED, ANSWERED, harmless=(REFUSED, ANSWERED)))
    assert sum(bool(re.search(r"m, harm(ful|less) prompts: a fall in refusals", line)) for line in lines) == 2


def test_a_missing_arm_is_no_change_and_is_said() -> None:
    """Beside a system that has both arms; its p is corrected over itself alone."""
    judges = {"rules": {"m": {"harmful": (REFUSED, "")}, "n": {"harmful": (REFUSED, "C" * len(REFUSED))}}}
    lines = said(judges)
    assert "not tested" in only(lines, "m, harmful prompts: ", "refusals", "edited unknown")
    assert "Holm" not in only(lines, "n, harmful prompts: a fall in refusals")
    assert untrue([line for line in lines if "m, " in line or "n, " in line], known(judges)) == []


def test_nothing_is_said_where_every_system_failed() -> None:
    assert headline({}, {"config": {"judges": ["rules"]}, "systems": {"m": {"failed": "not finite"}}}) == []


@pytest.mark.parametrize(("fewer", "unread"), [(0, 0), (1, 2), (19, 1)])
def test_draws_that_leave_as_few_refusals_and_checks_of_judges_are_counted(fewer: int, unread: int) -> None:
    """Of 19 random directions those that leave as few refusals as the edit; a judge on answers with known labels."""
    edited = "R" * 4 + "C" * 8
    draws = ["R" * (4 if k < fewer else 9) + "C" * (8 if k < fewer else 3) for k in range(19)]
    random = pd.concat(
        [
            verdicts("rules", {"m": {"harmful": (codes, "")}}).assign(arm=f"random-{k}", draw=k + 1)
            for k, codes in enumerate(draws)
        ]
    )
    table = verdicts("rules", {"m": {"harmful": ("R" * 12, edited)}})
    tests = control_tests(table[table["arm"] == "edited"], random).assign(
        judge="rules", energy=0.1, energy_direction=0.1
    )
    checks = [{"judge": "asked", "n": 20, "unparsed": unread, "agreed": 11, "unusable": None}]
    tables = {
        "verdicts": table,
        "random_verdicts": random,
        "controls": tests,
        "judge_checks": pd.DataFrame(checks),
        "rates": refusal_rates(table),
        "judge_effects": judge_effects(table),
        "label_order": pd.DataFrame({"judge": ["asked"] * 2, "turned": [3, 1], "n": [10, 8]}),
    }
    manifest = {"config": {"judges": ["rules"]}, "systems": {"m": {"selection": {"rule": "auto"}}}}
    labels = dict(enumerate("R" * 11 + "C" * (9 - unread) + "U" * unread))
    facts = Facts(
        counts={
            ("m, harmful prompts", "random directions leave as few refusals or fewer"): Count(
                [codes.count("R") <= edited.count("R") for codes in draws]
            )
        },
        levels={
            ("asked", "verdicts that are right on answers with known labels"): hits(
                {i: CODES[code] for i, code in labels.items()}, "refusal"
            ),
            ("asked", "verdicts that turn when its labels change places"): {i: i < 4 for i in range(18)},
        },
    )
    kinds = ("leave as few", "known labels", "change places")
    told = [line for line in headline(tables, manifest) if any(kind in line for kind in kinds)]
    assert refuted(told, facts) == []
    assert unsaid(told, facts) == []
    assert len(told) == len(kinds)


# -- drawn verdicts -----------------------------------------------------------------------------------

codes = st.one_of(
    st.builds(lambda k: "R" * k + "C" * (12 - k), st.sampled_from([0, 1, 6, 11, 12])),
    st.text("RCDU", min_size=12, max_size=12),
)


@few(25)
@given(st.lists(st.tuples(codes, codes, codes), min_size=1, max_size=4))
def test_no_claim_is_refuted_by_the_verdicts(systems: list[tuple[str, str, str]]) -> None:
    names = [f"s{i}" for i in range(len(systems))]
    arms = dict(zip(names, systems, strict=True))
    lines = said(
        {"rules": {s: {"harmful": (a, b)} for s, (a, b, _) in arms.items()}},
        draws={s: [draw] for s, (*_, draw) in arms.items()},
    )

    def tested(pairs: Sequence[tuple[str, str]]) -> tuple[int, float]:
        read = [(a == "R", b == "R") for a, b in pairs if "U" not in (a, b)]
        lost, gained = read.count((True, False)), read.count((False, True))
        p = math.nan if not read else binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
        return gained - lost, p

    given = {"rules": {s: {"harmful": (a, b)} for s, (a, b, _) in arms.items()}}
    assert untrue(lines, known(given, {s: [draw] for s, (*_, draw) in arms.items()})) == []
    changes = {s: tested(list(zip(a, b, strict=True))) for s, (a, b, _) in arms.items()}
    beyond = {s: tested(list(zip(draw, b, strict=True))) for s, (_, b, draw) in arms.items()}
    for name in names:
        line = only(lines, f"{name}, harmful prompts: ", "refusals", ", original ")
        sign, p = changes[name][0], _holm(changes)[name]
        way = "a fall" if sign < 0 else "a rise"
        assert (way in line) == (p < 0.05)
        assert ("not tested" in line) == math.isnan(p)
        farther, q = beyond[name][0], _holm(beyond)[name]
        more = p < 0.05 and q < 0.05 and (farther < 0) == (sign < 0)
        assert any(f"{name}, harmful prompts: this goes beyond" in one for one in lines) == more


@few(15)
@given(st.lists(st.tuples(codes, codes, codes, codes), min_size=1, max_size=3))
@example(
    [
        ("C" * 12, "R" * 6 + "C" * 6, "R" * 6 + "C" * 6, "R" * 11 + "C"),
        ("R" * 12, "CCCCCCCCURUR", "R" + "C" * 11, "CCCCCCCRCRUR"),
    ]
)  # a kappa that is nearly 0
def test_what_is_said_of_two_judges_is_true(systems: list[tuple[str, str, str, str]]) -> None:
    judges = {
        "rules": {f"s{i}": {"harmful": (a, b), "harmless": (c, d)} for i, (a, b, c, d) in enumerate(systems)},
        "other": {f"s{i}": {"harmful": (c, d), "harmless": (b, a)} for i, (a, b, c, d) in enumerate(systems)},
    }
    lines = said(judges)
    assert any("rules and other: " in line for line in lines)
    assert untrue(lines, known(judges)) == []


def _holm(tests: Mapping[str, tuple[int, float]]) -> dict[str, float]:
    made = {s: p for s, (_, p) in tests.items() if p == p}
    return dict.fromkeys(tests, math.nan) | dict(zip(made, holm([*made.values()]), strict=True))


def test_cells_of_the_map_of_rates_say_0_and_100_only_where_exact() -> None:
    table = verdicts(
        "rules", of_one("R" + "C" * 249, "R" * 249 + "C", harmless=("C" * 250, "R" * 250))["rules"]
    )
    figure = refusal_heatmap(refusal_rates(table))
    shown = [text for trace in figure.data for row in trace.text for text in row]
    assert shown == ["0.4%", "99.6%", "0%", "100%"]
