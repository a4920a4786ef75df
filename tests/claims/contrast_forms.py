"""Forms on one contrast: a change, where it went, and whether it goes beyond a control."""

import re

from tests.claims.facts import WORDS, Change, Facts, Key, RealChange
from tests.claims.parsing import (
    AFTER_HOLM,
    QUANTITY,
    Context,
    Unsupported,
    check_interval,
    check_quantity,
    is_decimal,
    match_phrase,
    require,
    split_quantities,
)
from tests.claims.recomputed import ALPHA, flows
from tests.claims.rules import Decision, beyond, could_be_shown, decide
from tests.claims.spelled import NUMBER, P, is_p

HEADS = {
    "rise": "a rise in MEASURE",
    "fall": "a fall in MEASURE",
    "none": "no change in MEASURE shown",
    "equal": r"MEASURE equal within (?P<margin>[\d.]+)(?: (?P<unit>[\w ]+?))?",
    "not tested": r"change in MEASURE not tested \((?P<why>.+?)\)",
}
DIFFERENCE = (
    rf"(?: \((?P<difference>{NUMBER})(?: (?P<dunit>[^\[\];(]+))?(?: \[(?P<low>{NUMBER}), (?P<high>{NUMBER})\])?"
    rf"(?:; (?P<test>[\w' ]+), (?P<p>{P})(?:, {AFTER_HOLM})?(?:, alpha (?P<alpha>[\d.]+))?)?\))?"
)
FEW = r"(?:; no change of (?P<few>\d+(?: and \d+)?) items could be significant)?"


def change(body: str, of: Context) -> bool:
    """`a rise in MEASURE, STATE SHARE, STATE SHARE (...)` and its like."""
    for word, head in HEADS.items():
        for key, change in of.facts.changes.items():
            subject, measure = key[:2]
            states = "".join(
                rf", {re.escape(state)} (?P<{at}>{QUANTITY})"
                for state, at in zip(change.states, ("a", "b"), strict=True)
            )
            if subject == of.subject and (
                match := match_phrase(body, [measure], head + states + DIFFERENCE + FEW)
            ):
                _check_change(match, word, key, of.facts)
                return True
    return False


def _check_change(match: re.Match[str], word: str, key: Key, facts: Facts) -> None:
    part, change, found = match.groupdict(), facts.changes[key], decide(key, facts)
    require(word == found.word, f"{word}, but {found.word}")
    for text, state in zip((part["a"], part["b"]), found.states, strict=True):
        check_quantity(text, state)
    if word == "not tested":
        require(part["why"] in found.reasons, "another reason")
        require(part["difference"] is None, "a difference without a test")
        return
    share = _unit_of(change) == "%"
    if word == "equal":
        factor, unit = (100, "points") if share else (1, _unit_of(change))
        require(
            is_decimal(part["margin"], factor * (change.margin or 0)) and (part["unit"] or "") == unit,
            "margin",
        )
    require(part["difference"] is not None, "no difference")
    require((part["dunit"] or "") == ("points" if share else _unit_of(change)), "unit of the difference")
    check_interval(part["difference"], part["low"], part["high"], found.difference, points=share)
    check_test(part, found, facts.alpha)
    must_say = word == "none" and found.smallest >= facts.alpha
    require(part["few"] is not None or not must_say, "too few items, and not said")
    paired = not isinstance(change, Change) or change.paired
    few = str(found.n) if paired else " and ".join(str(state.n) for state in found.states)
    require(part["few"] in (None, few), f"{few} items")
    require(part["few"] is None or not could_be_shown(key, facts), "so many items could be significant")


def _unit_of(change: Change | RealChange) -> str:
    """``%`` of shares."""
    if isinstance(change, Change):
        return "%"
    return next((v.unit for v in (change.difference, change.before, change.after) if v), "")


def check_test(part: dict[str, str | None], found: Decision, alpha: float) -> None:
    """Refute a bracket whose test, p or correction are not those that were recomputed."""
    if found.p is None:
        require(part["p"] is None, "p without a test")
        return
    require(part["p"] is not None and is_p(part["p"], found.p, alpha), f"p is {found.p}")
    require(float(part["alpha"] or ALPHA) == alpha, f"the level is {alpha}")
    require("test" not in part or part["test"] in found.tests, f"the test is {found.tests}")
    check_holm(part, found, alpha)


def check_holm(part: dict[str, str | None], found: Decision, alpha: float) -> None:
    """Refute a correction over another family, or a missing one."""
    if part["holm"] is None:
        require(found.over is None or found.members == 1, "a correction is left out")
        return
    require(found.over is not None and part["over"] == found.over, "no such family")
    require(int(part["members"]) == found.members, f"a family of {found.members}")
    require(is_p(part["holm"], found.corrected, alpha), f"corrected p is {found.corrected}")


CONTROL = {
    "beyond": "this goes beyond (?P<name>.+?)",
    "not shown": "a change beyond (?P<name>.+?) is not shown",
    "more": "a larger change under (?P<name>.+?)",
    "not tested": "whether this goes beyond (?P<name>.+?) is not tested",
}
SIDE = (
    r"(?: \((?P<side>fewer than under each|less than under each|lower than under each|more than under each|"
    rf"higher than under each|not to one side of all)(?:, largest (?P<p>{P})(?:, {AFTER_HOLM})?(?:, alpha (?P<alpha>[\d.]+))?)?\))?"
)
SIDES = {"fewer": -1, "less": -1, "lower": -1, "more": 1, "higher": 1, "not": 0}


def control(body: str, of: Context) -> bool:
    """`this goes beyond CONTROL: ...` and its like, of the change that `this` means."""
    for word, head in CONTROL.items():
        match = re.fullmatch(
            rf"{head}: (?P<draws>none was measured|{QUANTITY}(?:(?:, | and ){QUANTITY})*){SIDE}", body
        )
        if match:
            _check_control(match, word, of)
            return True
    return False


def _check_control(match: re.Match[str], word: str, of: Context) -> None:
    name, key = match["name"], of.key()
    if name not in of.facts.changes[key].draws:
        raise Unsupported(f"no control {name}")
    found = beyond(key, name, of.facts)
    require(word == found.word, f"{word}, but {found.word}")
    texts = [] if match["draws"] == "none was measured" else split_quantities(match["draws"])
    require(len(texts) == len(found.states), "not every draw")
    for text, state in zip(texts, found.states, strict=True):
        check_quantity(text, state)
    if word == "not tested":
        require(match["p"] is None and match["side"] is None, "a test where nothing was tested")
        return
    require(match["side"] is not None and SIDES[match["side"].split()[0]] == found.side, "side")
    if match["p"] is not None or found.side:  # draws on both sides have no p in common
        check_test(match.groupdict(), found, of.facts.alpha)


MOVES = (
    r"of (?P<n>\d+) no longer (?P<hit>[a-z]+), (?P<parts>\d.*)",
    r"of (?P<n>\d+) newly (?P<hit>[a-z]+), (?P<parts>\d.*?) before",
    r"(?P<k>\d+) went from (?P<a>[a-z ]+) to (?P<b>[a-z ]+)",
)


def moves(body: str, of: Context) -> bool:
    """Every move is said once, and one from or to what was not read as such."""
    matches = [
        next((m for p in MOVES if (m := re.fullmatch(p, clause))), None) for clause in body.split("; ")
    ]
    if None in matches:
        return False
    change = of.facts.changes[of.key()]
    if not isinstance(change, Change) or change.labels is None:
        raise Unsupported("no verdicts by item")
    words = {word: label for label, word in WORDS.items()}
    left = flows(*change.labels)
    for a, b, k in (move for match in filter(None, matches) for move in _said_moves(match)):
        require(a in words and b in words, "no such verdict")
        require(left.pop((words[a], words[b]), 0) == k > 0, f"another number went from {a} to {b}")
    require(not left, f"not said: {left}")
    return True


def _said_moves(match: re.Match[str]) -> list[tuple[str, str, int]]:
    """From, to and number of each move of a clause."""
    part = match.groupdict()
    if "k" in part:
        return [(part["a"], part["b"], int(part["k"]))]
    parts = [p.removesuffix(" before").partition(" ") for p in re.split(", | and ", part["parts"])]
    require(all(number.isdigit() and word for number, _, word in parts), "parts")
    require("not read" not in [word for _, _, word in parts], "what was not read is not known to have moved")
    require(sum(int(number) for number, _, _ in parts) == int(part["n"]), "the parts are not the whole")
    is_lost = match.re.pattern == MOVES[0]
    return [(part["hit"], word, int(k)) if is_lost else (word, part["hit"], int(k)) for k, _, word in parts]
