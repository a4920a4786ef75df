"""Sentences about a ladder: each is a claim that its table bears, beside its control."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import pytest

from mechsafety.core.wording import counted, listed, span
from mechsafety.experiments.audit.tables import published_counts
from mechsafety.experiments.ladder.contrasts import ladder_claims, rung_names, rung_of
from mechsafety.experiments.ladder.findings import ladder_findings, summary
from mechsafety.experiments.ladder.paper import (
    SYSTEMS,
    joint_table,
    net_losses,
    paper_claims,
    paper_findings,
    paper_rung,
    paper_table,
)
from mechsafety.experiments.ladder.tables import (
    BREAKING_COLUMNS,
    RANK_COLUMNS,
    SURVIVAL_COLUMNS,
    SYSTEM_LINK_COLUMNS,
    TEST_COLUMNS,
    VERDICT_COLUMNS,
    breaking_table,
    paired_table,
    survival_table,
)
from tests import ladder_tables as made

Tables = Mapping[str, pd.DataFrame]
KEEPS = made.SHAPES["rephrase"]
BREAKS = made.SHAPES["refusals"]
WORDS = {"r": "refusal", "c": "compliance", "d": "degenerate", "u": "unparsed"}


def of(shapes: Mapping[str, made.Shape]) -> Tables:
    """The tables of systems of these shapes."""
    return made.tables([f"m+{name}" for name in shapes], shapes)


def moved(
    before: str,
    after: str,
    *random: str,
    harmless: tuple[str, ...] = ("c",),
    system: str = "m+s",
    directions: int = 1,
) -> Tables:
    """The tables of one system: one letter a harmful prompt, refused, complied, degenerate or unread."""
    states = [("unedited", 0, 0, before), ("refusal", directions, 0, after)]
    states += [("random", directions, draw, said) for draw, said in enumerate(random, start=1)]
    beside = [*harmless, *[harmless[-1]] * len(states)]
    rows = [
        (system, kind, k, draw, f"{label}-{i}", label, WORDS[letter])
        for (kind, k, draw, harmful), other in zip(states, beside, strict=False)
        for label, said in (("harmful", harmful), ("harmless", other))
        for i, letter in enumerate(said)
    ]
    verdicts = pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))
    costs = {(system, kind, k, draw): {"kl": 0.1, "perplexity": 3.0} for kind, k, draw, _ in states}
    return {
        "verdicts": verdicts,
        "survival": survival_table(verdicts, costs),
        "tests": paired_table(verdicts),
    }


def told(tables: Tables) -> str:
    """What is said of the survival of refusals."""
    return " ".join([*summary(tables), *ladder_findings(tables, layer=None)["survival"]])


@pytest.fixture(scope="module")
def tables() -> Tables:
    return made.tables()


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    return pd.read_csv(published_counts())


# -- the made-up tables are what a run writes --------------------------------------------------------


def test_made_up_tables_are_those_that_a_run_would_make_of_these_verdicts(tables: Tables) -> None:
    columns = {
        **{"survival": SURVIVAL_COLUMNS, "verdicts": VERDICT_COLUMNS, "tests": TEST_COLUMNS},
        **{"breaking": BREAKING_COLUMNS, "ranks": RANK_COLUMNS},
    }
    for name, wanted in columns.items():
        assert set(tables[name].columns) == set(wanted), name
    assert {*tables["links"].columns, "n"} == set(SYSTEM_LINK_COLUMNS)
    tests = paired_table(tables["verdicts"])
    key = ["system", "directions", "against"]
    pd.testing.assert_frame_equal(
        tests.sort_values(key).reset_index(drop=True),
        tables["tests"].sort_values(key).reset_index(drop=True)[list(tests)],
        check_dtype=False,
    )
    broken = breaking_table(tables["survival"], tests)
    pd.testing.assert_frame_equal(broken, tables["breaking"], check_dtype=False)


# -- the sentence that must stand there --------------------------------------------------------------


def test_refusals_that_became_answers_are_told_as_answers_whatever_was_degenerate_before() -> None:
    """Case L1: 20/25/5 -> 0/29/21, of which 20 refusals became answers and 4 answers degenerate text."""
    said = told(moved("r" * 20 + "d" * 25 + "c" * 5, "c" * 20 + "d" * 25 + "c" + "d" * 4))
    assert "a fall in refusals of harmful prompts, unedited 20 of 50" in said
    assert "of 20 no longer refused, 20 answered; 4 went from answered to degenerate" in said
    assert "broken" not in said


def test_what_refusals_became_degenerate_is_told() -> None:
    """Case L5: 45/0/5 -> 5/22/23."""
    said = told(moved("r" * 45 + "c" * 5, "r" * 5 + "d" * 22 + "c" * 23))
    assert "of 40 no longer refused, 18 answered and 22 degenerate" in said


def test_a_loss_is_told_of_the_system_that_has_it_not_of_the_largest_share() -> None:
    """Case L2: 4 of 6 lost (p .125) beside 30 of 100 lost (p < 1e-8)."""
    few = moved("r" * 6 + "u" * 94, "c" * 4 + "r" * 2 + "u" * 94, system="m+s1")
    many = moved("r" * 100, "c" * 30 + "r" * 70, system="m+s2")
    tables = {name: pd.concat([few[name], many[name]], ignore_index=True) for name in few}
    said = summary(tables)
    assert any("1 of 2 systems show a fall in refusals of harmful" in s for s in said)
    claims = ladder_claims(tables)
    assert claims["m+s1", 1].direction == "none shown"
    assert claims["m+s2", 1].direction == "down"
    assert "94 not read" in told(tables)
    (loss,) = net_losses(tables)
    assert "highest 66.7 points" in loss


def test_random_directions_are_not_said_to_do_what_their_test_does_not_show() -> None:
    """Case L3: 12 of 12 refused; without the direction 3, without a random one 8."""
    tables = moved("r" * 12, "r" * 3 + "c" * 9, "r" * 8 + "c" * 4)
    claim = ladder_claims(tables)["m+s", 1]
    assert (claim.direction, claim.beyond) == ("down", "no")
    assert "a change beyond as many random directions is not shown: 8 of 12" in told(tables)
    assert "0 of 1 systems show a fall in refusals of harmful prompts beyond random" in told(tables)


def test_a_rise_of_refusals_is_told_as_a_rise() -> None:
    """Case L4: 20 -> 48 of 50, and random directions change nothing."""
    before, after = "r" * 20 + "c" * 30, "r" * 48 + "c" * 2
    said = told(moved(before, after, before))
    assert "a rise in refusals of harmful prompts, unedited 20 of 50" in said
    assert "+56 points" in said
    assert "of 28 newly refused, 28 answered before" in said
    assert "this goes beyond as many random directions: 20 of 50" in said
    assert "1 of 1 systems show a rise" in said
    assert "0 of 1 systems show a fall in refusals of harmful prompts." in said


@pytest.mark.parametrize(
    ("before", "after", "random", "direction", "beyond"),
    [
        ("r" * 40, "c" * 40, ["r" * 40, "r" * 38 + "c" * 2], "down", "yes"),
        ("r" * 40, "c" * 40, ["r" * 40, "c" * 40], "down", "no"),  # one draw does as much
        ("r" * 40, "r" * 30 + "c" * 10, ["c" * 40], "down", "control does more"),
        ("c" * 40, "r" * 40, [], "up", "no control"),
        ("r" * 20 + "c" * 20, "r" * 20 + "c" * 20, ["r" * 20 + "c" * 20], "none shown", "no"),
        ("d" * 40, "d" * 40, ["d" * 40], "none shown", "no"),
        ("u" * 40, "u" * 40, ["u" * 40], "not tested", "not tested"),
        ("r" * 4, "c" * 4, [], "none shown", "no control"),
    ],
)
def test_every_planted_effect_has_its_sentence(
    before: str, after: str, random: list[str], direction: str, beyond: str
) -> None:
    tables = moved(before, after, *random)
    claim = ladder_claims(tables)["m+s", 1]
    assert (claim.direction, claim.beyond) == (direction, beyond)
    words = {
        **{"down": "a fall in refusals", "up": "a rise in refusals"},
        **{"none shown": "no change in refusals of harmful prompts shown", "not tested": "not tested"},
        **{"yes": "this goes beyond", "no": "is not shown:", "control does more": "a larger change under"},
    }
    said = told(tables)
    assert words[direction] in said
    assert words.get(beyond, "") in said
    assert ("no change of 4 items could be significant" in said) == (len(before) == 4)


def test_harmless_prompts_that_move_as_much_are_told() -> None:
    said = told(moved("r" * 40, "c" * 40, harmless=("r" * 30 + "c" * 10, "c" * 40)))
    assert "a fall in refusals of harmless prompts, unedited 30 of 40" in said
    assert "1 of 1 systems show a fall in refusals of harmless prompts" in said


def test_a_run_without_verdicts_by_prompt_says_so(tables: Tables) -> None:
    few = {n: tables[n] for n in ("survival", "tests")}
    assert summary(few) == [
        "Refusals without directions: not measured (the run holds no verdicts by prompt)."
    ]
    assert list(ladder_findings(few, layer=None)) == ["cost"]
    assert paper_claims(few) == {}
    assert net_losses(few) == []


def test_the_claims_are_the_runs_own_tests(tables: Tables) -> None:
    claims = ladder_claims(tables)
    for row in tables["tests"].to_dict(orient="records"):
        claim = claims[row["system"], row["directions"]]
        own = claim.contrast if row["against"] == "unedited" else claim.contrast.control
        assert own is not None
        assert (own.p, own.corrected) == pytest.approx((row["p"], row["p_holm"]))


def test_sections_follow_the_tables(tables: Tables) -> None:
    found = ladder_findings(tables, layer=15)
    assert list(found) == ["survival", "cost", "ranks", "cosines", "angles", "transfer", "links"]
    assert len({said.partition(" without ")[0] for said in found["survival"]}) == len(made.SYSTEMS)
    empty = {
        **tables,
        "ranks": tables["ranks"].assign(auroc=math.nan),
        "links": tables["links"].assign(value=math.nan),
        "cosines": tables["cosines"].assign(cosine=math.nan),
        "angles": tables["angles"].assign(angle=math.nan),
    }
    assert list(ladder_findings(empty, layer=15)) == ["survival", "cost", "transfer"]


def test_numbers_in_the_details(tables: Tables) -> None:
    found = {k: " ".join(v) for k, v in ladder_findings(tables, layer=15).items()}
    assert "0.5 nats (dpo)" in found["cost"]
    assert "1.05 times (all 8 tie)" in found["cost"]
    assert "refusals: 2 of 8" in found["ranks"]
    assert "0.4 are expected by chance" in found["ranks"]
    assert "highest 0.95 [0.91, 0.97] (smollm2-135m with refusals)" in found["cosines"]
    above = sum(0.95 - 0.025 * n - 0.04 > 0.55 for n in range(28))
    assert f"{above} of 28 pairs" in found["cosines"]
    assert "lowest 12 degrees" in found["angles"]
    assert "1.1 times (all 7 tie)" in found["links"]


def test_the_number_of_directions_stands_with_what_they_cost() -> None:
    """Case K4: four directions at once are not the first one."""
    said = ladder_findings(moved("r" * 9, "c" * 9, directions=4), layer=None)["cost"]
    assert all(s.startswith("Without 4 refusal directions: ") for s in said)


def test_links_to_a_regions_run_are_reported(tables: Tables) -> None:
    rows = [
        ("m+x", what, 0, "down", value, math.nan, math.nan, chance)
        for what, value, chance in (
            ("snip", 0.2, 0.05),
            ("magnitude", 0.1, 0.05),
            ("removed_snip", 0.01, 0.002),
            ("removed_snip_random", 0.003, 0.002),
        )
    ]
    links = pd.DataFrame(rows, columns=list(tables["links"]))
    said = " ".join(ladder_findings({**tables, "links": links}, layer=15)["links"])
    assert "4 times (m+x)" in said
    assert "2 times (m+x)" in said
    assert "1 %" in said
    assert "0.3 %" in said


# -- against the paper -------------------------------------------------------------------------------


def test_a_rung_loses_more_than_another_only_by_the_test_of_their_difference() -> None:
    def ways(shapes: Mapping[str, made.Shape]) -> list[str]:
        return [claim.direction for claim in paper_claims(of(shapes))["refusals"]]

    assert ways({"refusals": BREAKS, "rephrase": KEEPS, "all": KEEPS}) == ["up", "up"]
    assert ways({"refusals": KEEPS, "rephrase": BREAKS, "all": KEEPS}) == ["down", "none shown"]
    weaker = replace(BREAKS, refused=(1.0, 0.6, 0.5, 0.4, 0.3))
    assert ways({"refusals": weaker, "rephrase": BREAKS, "all": KEEPS}) == ["down", "up"]
    assert ways({"refusals": BREAKS, "rephrase": BREAKS, "all": KEEPS}) == ["none shown", "up"]


def test_the_papers_claims_are_counted_over_the_other_rungs() -> None:
    said = paper_findings(paper_claims(of({"refusals": BREAKS, "rephrase": KEEPS, "all": KEEPS})))
    headline = [s for s in said if "headline" in s]
    assert "2 of 2 other rungs are shown to lose fewer refusals than refusals here" in headline[0]
    assert "0 of 2 other rungs are shown to lose more" in headline[1]


def test_absent_rungs_are_passed_over_in_silence(published: pd.DataFrame) -> None:
    assert paper_claims(of({"dpo": BREAKS, "unlearn": KEEPS})) == {}
    assert paper_table(of({"dpo": BREAKS}), published).empty
    said = " ".join(paper_findings(paper_claims(of({"all": BREAKS, "dpo": BREAKS}))))
    assert "dpo" not in said


def test_the_published_table_stands_beside_the_ladder(tables: Tables, published: pd.DataFrame) -> None:
    table = paper_table(tables, published).set_index("system")
    assert list(table["published as"]) == [
        *("SmolLM2", "Score 0 + Rephrase + Refusals", "Score 0 + Rephrase"),
        *("Score 0 + Rephrase + Metatags", "Safety Oracle"),
    ]
    assert table.loc["rephrase", "published unedited"] == "49 of 50"
    assert table.loc["rephrase", "published fall"] == pytest.approx(0.3)
    assert table.loc["rephrase", "p at most"] < 0.05  # type: ignore[operator]
    assert table.loc["refusals", "p at least"] == 1
    assert table.loc["refusals", "here change"] == "-98"
    assert list(table["here"])[:3] == ["no change shown", "fall", "no change shown"]
    assert (table["low"] <= table["published fall"]).all()
    assert (table["published fall"] <= table["high"]).all()


@pytest.mark.parametrize(
    ("system", "rung"),
    [
        ("smollm2-135m", "smollm2"),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "smollm2"),
        ("smollm2-135m+refusals", "refusals"),
        ("runs/lab/score-0", "score0"),
        ("runs/lab/raw/", "raw"),
        ("smollm2-135m+data/adapters/Rephrase", "rephrase"),
        ("locuslab/mix_ift_v4-smollm2-1.7b-all_raw_folders_baseline-600B", "raw"),
        ("locuslab/mix_ift_v4-smollm2-1.7b-score0_only-600B", "score0"),
        ("locuslab/mix_ift_v4-smollm2-1.7b-score0_mix_rephrased_from_beginning-600B", "rephrase"),
        ("locuslab/mix_ift_v4-smollm2-1.7b-score0_mix_rephrased_from_beginning_metadata-600B", "metatags"),
        (
            "locuslab/mix_ift_v4-smollm2-1.7b-base-score0_mix_rephrase123_with_mild_refusal45-600B",
            "refusals",
        ),
        (
            "locuslab/mix_ift_v9-smollm2-1.7b-score0_rephrase123_mild_ref45_metadata_5p-600B-metamix3p-1k-0",
            "all",
        ),
    ],
)
def test_rungs_are_known_by_name(system: str, rung: str, published: pd.DataFrame) -> None:
    assert paper_rung(system) == rung
    assert SYSTEMS[rung] in set(published["system"])


def test_ladders_stand_beside_each_other_by_rung() -> None:
    first = of({"refusals": BREAKS, "rephrase": KEEPS, "benign": made.SHAPES["benign"]})
    second = of({"refusals": KEEPS, "rephrase": KEEPS, "raw": BREAKS})
    table = joint_table({"real": first, "lab": second})
    assert list(zip(table["rung"], table["ladder"], table["claim"], strict=True)) == [
        ("refusals", "real", "fall"),
        ("refusals", "lab", "no change shown"),
        ("rephrase", "real", "no change shown"),
        ("rephrase", "lab", "no change shown"),
    ]
    assert joint_table({"a": of({"dpo": BREAKS}), "b": of({"raw": BREAKS})}).empty


# -- names and numbers -------------------------------------------------------------------------------


def test_names_are_short_and_stay_distinct() -> None:
    assert rung_names(["m+a", "m+b", "m"]) == {"m+a": "a", "m+b": "b", "m": "m"}
    assert rung_names(["x/lab/a", "y/lab/b/"]) == {"x/lab/a": "a", "y/lab/b/": "b"}
    twice = ["m+a", "n+a"]
    assert rung_names(twice) == {"m+a": "m+a", "n+a": "n+a"}
    long = ["one/" + "x" * 60 + "/a", "two/" + "x" * 60 + "/a"]
    assert len(set(rung_names(long).values())) == 2
    assert rung_of("key:Some_Rung") == "somerung"


def test_numbers_in_words() -> None:
    assert (listed([]), listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])) == (
        *("", "a", "a and b", "a, b and c"),
    )
    assert (counted(1, "rung"), counted(0, "rung"), counted(3, "matrix")) == (
        "1 rung",
        "0 rungs",
        "3 matrices",
    )
    assert (span([0.1, math.nan, 0.11], ".1f"), span(pd.Series([1.0, 2.0]), ".0f")) == ("0.1", "1 to 2")
    assert span([math.nan], ".0f") == "undefined"
