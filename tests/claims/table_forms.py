"""Forms on a whole table: levels, extremes, counts, series, judges, claims over repetitions, what is missing."""

import re

from tests.claims.facts import UNREAD, Facts, Held, Value
from tests.claims.parsing import (
    NAMES,
    QUANTITY,
    Context,
    Refuted,
    Unsupported,
    check_names,
    check_quantity,
    is_decimal,
    match_phrase,
    require,
    whole,
)
from tests.claims.recomputed import disagreement
from tests.claims.rules import decide, number
from tests.claims.spelled import NUMBER, is_rounded


def missing(body: str, of: Context) -> bool:
    """`not measured (WHY)`."""
    match = re.fullmatch(r"not measured \((?P<why>.+)\)", body)
    if not match:
        return False
    if of.subject not in of.facts.missing:
        raise Refuted("it was measured")
    require(match["why"] == of.facts.missing[of.subject], "another reason")
    return True


def level(body: str, of: Context) -> bool:
    """`MEASURE, SHARE` or `MEASURE, VALUE`."""
    measures = [m for s, m in of.facts.levels if s == of.subject]
    match = match_phrase(body, measures, rf"MEASURE, (?P<quantity>{QUANTITY})")
    if not match:
        return False
    check_quantity(match["quantity"], of.facts.levels[of.subject, match["measure"]])
    return True


def extremes(body: str, of: Context) -> bool:
    """`MEASURE over 9 heads: lowest VALUE (NAME), highest VALUE (NAME); 1 unknown`: 9 are known."""
    tie = rf"(?:all \d+ tie|\d+ tie|{NAMES})"
    pattern = (
        rf"MEASURE over (?P<n>\d+) (?P<things>[\w ,-]+): (?:lowest (?P<low>{QUANTITY}) \((?P<lows>{tie})\), highest |"
        rf"(?P<all>(?:lowest and highest )?))(?P<high>{QUANTITY}) \((?P<highs>{tie})\)(?:; (?P<unknown>\d+) unknown)?"
    )
    measures = [m for s, m, _ in of.facts.extremes if s == of.subject]
    none = match_phrase(body, measures, r"MEASURE over 0 (?P<things>[\w ,-]+); (?P<unknown>\d+) unknown")
    match = none or match_phrase(body, measures, pattern)
    if not match:
        return False
    rows = of.facts.extremes.get((of.subject, match["measure"], match["things"]))
    if rows is None:
        raise Unsupported("no such things")
    known = {name: number(row) for name, row in rows.items() if number(row) is not None}
    require((0 if none else int(match["n"])) == len(known), f"{len(known)} are known")
    require(int(match["unknown"] or 0) == len(rows) - len(known), "unknown ones")
    require(match["unknown"] != "0", "0 unknown")
    if none:
        return True
    for quantity, names, bound in ((match["low"], match["lows"], min), (match["high"], match["highs"], max)):
        if quantity is None:
            require(min(known.values()) == max(known.values()), "they are not all equal")
            continue
        at = [name for name, value in known.items() if value == bound(known.values())]
        check_names(names, at, len(known))
        check_common(quantity, [whole(rows[name]) for name in at])
    return True


def check_common(text: str, rows: list) -> None:
    """Those that tie have the value, and counts and an interval only where these are the same of all."""
    if len(set(map(repr, rows))) == 1:
        check_quantity(text, rows[0])
        return
    value = float(number(rows[0]) or 0)
    unit = rows[0].unit if isinstance(rows[0], Value) else "%"
    check_quantity(text, Value(value, unit=unit, plain=isinstance(rows[0], Value) and rows[0].plain))


def count(body: str, of: Context) -> bool:
    """`3 of 30 THINGS; 1.5 are expected by chance; 2 unknown`: 30 are known."""
    match = re.fullmatch(
        r"(?P<k>\d+) of (?P<n>\d+) (?P<things>[^;]+?)(?:; (?P<chance>\d*\.?\d+) (?:is|are) expected by chance)?"
        r"(?:; (?P<unknown>\d+) unknown)?",
        body,
    )
    if not match:
        return False
    row = of.facts.counts.get((of.subject, match["things"]))
    if row is None:
        raise Unsupported("no such things")
    known = [outcome for outcome in row.outcomes if outcome is not None]
    require((int(match["k"]), int(match["n"])) == (sum(known), len(known)), f"{sum(known)} of {len(known)}")
    require((match["chance"] is None) == (row.expected is None), "what chance gives")
    require(match["chance"] is None or is_rounded(match["chance"], row.expected, (0.0,)), "what chance gives")
    require(
        int(match["unknown"] or 0) == len(row.outcomes) - len(known) and match["unknown"] != "0",
        "unknown ones",
    )
    return True


def series(body: str, of: Context) -> bool:
    """The first dose at which a change is shown, of either direction: a later one of the other side may follow it."""
    first = r"a (?:rise|fall) is first shown at [^;]+?"
    pattern = rf"MEASURE over (?P<n>\d+) (?P<doses>[\w -]+): (?P<said>none tested|no change is shown at any|{first}(?:; {first})?)(?:; (?P<out>\d+) not tested)?"
    match = match_phrase(body, [m for s, m, _ in of.facts.series if s == of.subject], pattern)
    if not match:
        return False
    row = of.facts.series.get((of.subject, match["measure"], match["doses"]))
    if row is None:
        raise Unsupported("no such doses")
    words = {name: decide(key, of.facts).word for name, key in row.items()}
    require(int(match["n"]) == len(row), f"{len(row)} doses")
    out = list(words.values()).count("not tested")
    require((match["said"] == "none tested") == (out == len(row)), "tested ones")
    if out == len(row):
        require(match["out"] is None, "their number twice")
        return True
    require(int(match["out"] or 0) == out and match["out"] != "0", "not tested ones")
    firsts = {w: next((n for n, word in words.items() if word == w), None) for w in ("rise", "fall")}
    said = dict(re.findall(r"a (rise|fall) is first shown at ([^;]+)", match["said"]))
    require(said == {w: name for w, name in firsts.items() if name is not None}, f"first shown: {firsts}")
    return True


JUDGED = {"rise": "rise", "fall": "fall", "no change shown": "none", "not tested": "not tested"}


def by_judge(body: str, of: Context) -> bool:
    """`MEASURE, by 5 judges: fall by 2 (A and B); ...`."""
    match = match_phrase(
        body,
        [m for s, m in of.facts.judges if s == of.subject],
        r"MEASURE, by (?P<n>\d+) (?:judges?|judges and readings): (?P<said>.+)",
    )
    if not match:
        return False
    row = of.facts.judges[of.subject, match["measure"]]
    left = {judge: decide(key, of.facts).word for judge, key in row.items()}
    require(int(match["n"]) == len(row), f"{len(row)} judges")
    for clause in match["said"].split("; "):
        part = re.fullmatch(
            rf"(?P<word>[a-z ]+?|equal within (?P<margin>[\d.]+) [\w ]+) by (?P<n>\d+) \((?P<names>{NAMES})\)",
            clause,
        )
        if not part:
            raise Unsupported(f"no form: {clause}")
        word = "equal" if part["word"].startswith("equal") else JUDGED.get(part["word"])
        at = [judge for judge, of_judge in left.items() if of_judge == word]
        require(int(part["n"]) == len(at), f"{word} by {len(at)}")
        check_names(part["names"], at, None)
        margins = [of.facts.changes[row[judge]].margin or 0 for judge in at] if word == "equal" else []
        require(all(is_decimal(part["margin"], 100 * margin) for margin in margins), "margin")
        left = {judge: of_judge for judge, of_judge in left.items() if of_judge != word}
    require(not left, f"left out: {sorted(left)}")
    return True


def disagreeing(one: str, other: str, body: str, facts: Facts) -> bool:
    """`A and B: answers labelled differently, SHARE, kappa 0.41`."""
    if one not in facts.answers or other not in facts.answers:
        return False
    answers = [facts.answers[one], facts.answers[other]]
    if "calls a refusal" in body:
        answers = [
            {i: v if v in (UNREAD, "refusal") else "other" for i, v in said.items()} for said in answers
        ]
    share, kappa = disagreement(*answers)
    if body == "no answer was read by both":
        require(share.n == 0, f"{share.n} answers were read by both")
        return True
    match = re.fullmatch(
        rf"(?:answers labelled differently|answers that one calls a refusal and the other does not), (?P<share>{QUANTITY})(?:, kappa (?P<kappa>{NUMBER}|undefined|unknown))?",
        body,
    )
    if not match:
        return False
    require(share.n > 0, "no answer was read by both")
    check_quantity(match["share"], share)
    if kappa is None:
        require(match["kappa"] in (None, "undefined", "unknown"), "kappa of one class")
    else:
        require(
            match["kappa"] is not None and re.search(r"\d", match["kappa"]) is not None, "kappa is left out"
        )
        check_quantity(match["kappa"], Value(kappa))
    return True


def held(body: str, of: Context) -> bool:
    """`met in 2, not met in 1 of 3 seeds; control: RESULT`."""
    if of.subject not in of.facts.held:
        return False
    row = of.facts.held[of.subject]
    said, _, control = body.partition("; control: ")
    _check_held(said, row)
    require(bool(control) == (row.control is not None), "its control")
    if isinstance(row.control, Held):
        _check_held(control, row.control)
    require(not isinstance(row.control, str) or control == row.control, "its control")
    return True


def _check_held(text: str, row: Held) -> None:
    outcome = r"(?:met|not met|not measurable) in \d+"
    match = re.fullmatch(rf"(?P<said>{outcome}(?:, {outcome})*) of (?P<n>\d+) (?P<over>[\w ]+)", text)
    if not match:
        raise Unsupported("no form")
    said = {word: int(k) for word, k in re.findall(r"(not met|met|not measurable) in (\d+)", match["said"])}
    outcomes = {"met": True, "not met": False, "not measurable": None}
    counts = {word: row.outcomes.count(outcome) for word, outcome in outcomes.items()}
    require(int(match["n"]) == len(row.outcomes) and match["over"] == row.over, "of how many")
    require(
        {w: k for w, k in said.items() if k} == {w: k for w, k in counts.items() if k}, f"counts are {counts}"
    )
