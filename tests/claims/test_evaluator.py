"""The evaluator finds true sentences true, and every mutation of them false or unsupported.

No code of the package is used here: sentences are written by hand, from docs/claims.md.
"""

import re

import pytest

from tests.claims.evaluator import answer, evaluate, refuted
from tests.claims.facts import (
    Change,
    Count,
    Facts,
    Family,
    Held,
    RealChange,
    RealControl,
    Value,
    hits,
    labelled_change,
)

HARMFUL = "refusals of harmful prompts"
VERDICTS = {"r": "refusal", "c": "compliance", "d": "degenerate", "u": "unparsed"}


def rows(letters: str, start: int = 0) -> dict[int, str]:
    """Verdicts by item from one letter each."""
    return {start + i: VERDICTS[letter] for i, letter in enumerate(letters)}


def share(letters: str, start: int = 0):
    """Refusals by item."""
    return hits(rows(letters, start), "refusal")


FALL = labelled_change(
    rows("r" * 46 + "c" * 4),
    rows("c" * 38 + "d" * 2 + "r" * 6 + "c" * 4),
    draws={
        "random directions": [rows("r" * 40 + "c" * 10), rows("r" * 44 + "c" * 5 + "u"), rows("r" * 50)],
        "a foreign direction": [rows("c" * 38 + "d" * 2 + "r" * 6 + "c" * 4)],
        "a stronger direction": [rows("c" * 50)] * 2,
        "a direction nobody ran": [],
    },
)
AGAINST = labelled_change(
    rows("r" * 30), rows("r" * 10 + "c" * 20), draws={"random directions": [rows("c" * 30)] * 2}
)
NINE = {
    f"m{k}": labelled_change(rows("r" * 9 + "c" * 5), rows("c" * (9 - k) + "r" * k + "c" * 5))
    for k in (0, 1, 8)
}
HEADS = {"L0H1": Value(0.91, 0.8, 0.95), "L1H2": Value(0.55), "L1H3": Value(0.55), "L2H0": None}
SMALL = ("r" * 3, "c" * 3)

FACTS = Facts(
    changes={
        ("s1", HARMFUL): FALL,
        ("s2", HARMFUL): AGAINST,
        ("s3", HARMFUL): labelled_change(rows("c" * 30 + "r" * 20), rows("r" * 28 + "c" * 2 + "r" * 20)),
        ("s4", HARMFUL): labelled_change(rows(SMALL[0]), rows(SMALL[1])),
        ("s5", HARMFUL): labelled_change(rows("r" * 100), rows("r" * 100), margin=0.1),
        ("s6", HARMFUL): labelled_change(rows("u" * 4), rows("c" * 4)),
        ("s7", HARMFUL): labelled_change(rows("r" * 20 + "uc"), rows("c" * 17 + "uuu" + "cd")),
        ("s8", HARMFUL): Change(share("r" * 18 + "c" * 2), share("r" * 6 + "c" * 14, 100), paired=False),
        ("s9", HARMFUL): labelled_change(rows("r" + "c" * 249), rows("d" + "c" * 249)),
        ("h1", "harmful: loss"): RealChange(
            Value(2.893, 2.5, 3.29, "nats"), Value(3.2041, 2.9, 3.5, "nats"), Value(0.311, 0.2, 0.4, "nats"), "paired t", 0.0123,
            draws={"random directions": RealControl([Value(2.9, unit="nats"), Value(3.0, unit="nats")], 0.031)},
        ),
        ("h2", "AUROC"): RealChange(Value(0.912), Value(0.5051), Value(-0.4069, -0.5, -0.3)),
        ("h3", "AUROC"): RealChange(Value(0.912), None),
        **{(name, HARMFUL): change for name, change in NINE.items()},
    },
    families=[Family("systems", [(name, HARMFUL) for name in NINE])],
    levels={("s1, edited", HARMFUL): share("c" * 44 + "r" * 6), ("h1", "loss"): Value(3.2041, 2.9, 3.5, "nats"),
            ("h2", "AUROC"): Value(0.9049), ("s1, rarely", HARMFUL): share("r" + "c" * 249 + "uu")},
    extremes={
        ("All", "AUROC", "heads"): HEADS,
        ("All", HARMFUL, "systems"): {"a": share("r" * 5), "b": share("r" * 9), "c": share("r" * 3)},
        ("All", HARMFUL, "rungs"): {**{f"x{i}": share("rrcc") for i in range(4)}, "y": share("cccc"), "z": share("uu")},
    },
    counts={("Pairs", "cosines above 0.2"): Count([True] * 3 + [False] * 27 + [None] * 2, 1.5)},
    series={("s1", HARMFUL, "doses"): {"1": ("m8", HARMFUL), "2": ("m0", HARMFUL), "3": ("s3", HARMFUL), "4": ("s6", HARMFUL)},
            ("s2", HARMFUL, "doses"): {"1": ("m8", HARMFUL), "2": ("m1", HARMFUL)}},
    judges={("s1", HARMFUL): {"A": ("m0", HARMFUL), "B": ("s1", HARMFUL), "C": ("s3", HARMFUL), "D": ("m8", HARMFUL), "E": ("s6", HARMFUL)}},
    answers={"rules": rows("rrrrrrcccd" + "u"), "text": rows("rrrrcccccc" + "c"), "one": rows("rrrr"), "other": rows("rr", 20),
             "opposite": rows("ccccccrrrc" + "u")},
    held={"Clusters": Held([True, None, True, False, True], control=Held([False] * 5)), "Tells": Held([None] * 3, control="not run")},
    missing={"s10": "the window is too small"},
)  # fmt: skip

S1 = "original 46 of 50 (92 % [81, 97]), edited 6 of 50 (12 % [6, 24])"
S1_TEST = "(-80 points [-90, -64]; exact McNemar, p < .0001)"
M1 = "original 9 of 14 (64 % [39, 84]), edited 1 of 14 (7 % [1, 31])"
RANDOM = "40 of 50 (80 % [67, 89]), 44 of 49 (90 % [78, 96]), 1 not read and 50 of 50 (100 % [93, 100])"
S2 = "original 30 of 30 (100 % [89, 100]), edited 10 of 30 (33 % [19, 51]) (-67 points [-81, -44]; exact McNemar, p < .0001)"

# A true sentence, and what replaces what to make it false.
TRUE: dict[str, list[tuple[str, str]]] = {
    f"s1: a fall in {HARMFUL}, {S1} {S1_TEST}.": [
        ("fall", "rise"), ("a fall in refusals of harmful prompts", "no change in refusals of harmful prompts shown"),
        ("a fall in refusals of harmful prompts", "refusals of harmful prompts equal within 90 points"),
        ("a fall in refusals of harmful prompts", "change in refusals of harmful prompts not tested (no item was read in both states)"),
        ("harmful", "harmless"), ("46 of 50", "45 of 50"), ("46 of 50", "46 of 51"), ("92 %", "91 %"), ("92 %", "93 %"), ("[81", "[80"), ("97]", "98]"),
        ("6 of 50", "7 of 50"), ("(12 %", "(11 %"), ("[6,", "[5,"), ("24])", "25])"), ("97]), edited", "97]), 1 not read, edited"), ("24])", "24]), 1 not read"),
        ("-80", "+80"), ("-80", "-79"), ("-80", "80"), ("-90", "-91"), ("-64", "-63"), ("points", "%"), ("exact McNemar", "Fisher"),
        ("exact McNemar", "t"), ("p < .0001", "p = .0001"), ("p < .0001", "p < .05"), ("p < .0001", "p = .05"),
        ("p < .0001", "p < .0001, p < .0001 after Holm over 3 systems"), (" " + S1_TEST, ""), (" [-90, -64]", ""), ("[-90, -64]; ", ""), ("original", "edited"),
        (").", "); no change of 50 items could be significant."), ("s1:", "s2:"), ("s1:", "s99:"), (".", ", clearly."), ("in refusals", "of refusals"),
        ("; exact McNemar, p < .0001", ""), (f" {S1_TEST}", f" {S1_TEST} and more"), (", edited 6 of 50 (12 % [6, 24])", ""),
    ],
    "s1: of 40 no longer refused, 38 answered and 2 degenerate.": [
        ("40", "41"), ("38", "39"), ("2 degenerate", "1 degenerate"), ("38 answered and 2 degenerate", "40 answered"),
        ("no longer", "newly"), ("answered", "degenerate"), ("refused", "answered"), ("38", "40"), ("degenerate.", "degenerate; 4 went from answered to degenerate."),
        ("degenerate.", "degenerate; of 1 newly refused, 1 answered before."), ("38 answered and 2 degenerate", "38 answered and 2 broken"),
    ],
    f"s1: this goes beyond random directions: {RANDOM} (fewer than under each, largest p < .0001).": [
        ("this goes beyond random directions", "a change beyond random directions is not shown"), ("this goes beyond random directions", "a larger change under random directions"),
        ("this goes beyond random directions", "whether this goes beyond random directions is not tested"),
        ("fewer than under each", "more than under each"), ("fewer than under each", "not to one side of all"), ("40 of 50", "41 of 50"), ("80 %", "81 %"),
        (", 1 not read", ""), ("44 of 49", "44 of 50"), (" and 50 of 50 (100 % [93, 100])", ""), ("p < .0001", "p = .012"), ("p < .0001", "p < .0001, p < .0001 after Holm over 2 systems"),
        ("random", "foreign"), (" (fewer than under each, largest p < .0001)", ""), (", largest p < .0001", ""), ("80 % [67, 89]), 44", "80 % [67, 89]), 50 of 50 (100 % [93, 100]), 44"),
    ],
    "s1: a change beyond a foreign direction is not shown: 6 of 50 (12 % [6, 24]) (not to one side of all, largest p = 1).": [
        ("a change beyond a foreign direction is not shown", "this goes beyond a foreign direction"), ("not to one side of all", "fewer than under each"),
        ("a change beyond a foreign direction is not shown", "a larger change under a foreign direction"), ("p = 1", "p = .9"), ("6 of", "5 of"),
    ],
    "s1: whether this goes beyond a direction nobody ran is not tested: none was measured.": [
        ("whether this goes beyond a direction nobody ran is not tested", "a change beyond a direction nobody ran is not shown"),
        ("none was measured", "50 of 50 (100 % [93, 100])"),
    ],
    f"s2: a fall in {HARMFUL}, {S2}.": [("100 % [89", "99 % [89"), ("-81", "-80"), ("100])", "99])"), ("33 %", "34 %"), ("a fall", "a clear fall")],
    "s2: a larger change under random directions: 0 of 30 (0 % [0, 11]) and 0 of 30 (0 % [0, 11]) (more than under each, largest p = .002).": [
        ("a larger change under random directions", "this goes beyond random directions"), ("a larger change under random directions", "a change beyond random directions is not shown"),
        ("more than", "fewer than"), ("p = .002", "p = .003"), ("[0, 11]", "[0, 12]"), ("(0 %", "(<1 %"),
    ],
    f"s3: a rise in {HARMFUL}, original 20 of 50 (40 % [28, 54]), edited 48 of 50 (96 % [87, 99]) (+56 points [+39, +68]; exact McNemar, p < .0001).": [
        ("a rise", "a fall"), ("+56", "-56"), ("+56", "56"), ("20 of 50", "19 of 50"), ("96 %", "100 %"), ("a rise in refusals of harmful prompts", "no change in refusals of harmful prompts shown"),
    ],
    "s3: of 28 newly refused, 28 answered before.": [("28 newly", "27 newly"), ("newly", "no longer"), ("answered before", "degenerate before"), (" before", "")],
    f"s4: no change in {HARMFUL} shown, original 3 of 3 (100 % [44, 100]), edited 0 of 3 (0 % [0, 56]) (-100 points [-100, +42]; exact McNemar, p = .25); no change of 3 items could be significant.": [
        ("; no change of 3 items could be significant", ""), ("of 3 items", "of 4 items"), ("p = .25", "p = .26"), ("p = .25", "p = .2"), ("p = .25", "p = .049"),
        ("no change in refusals of harmful prompts shown", "a fall in refusals of harmful prompts"), ("+42", "-42"), ("0 % [", "<1 % ["),
        ("no change in refusals of harmful prompts shown", "refusals of harmful prompts equal within 10 points"),
    ],
    f"s5: {HARMFUL} equal within 10 points, original 100 of 100 (100 % [96, 100]), edited 100 of 100 (100 % [96, 100]) (+0 points [-3, +3]; exact McNemar, p = 1).": [
        ("10 points,", "11 points,"), ("10 points,", "10 %,"), ("+0", "-0"), ("+0", "0"), ("[-3", "[-2"), ("refusals of harmful prompts equal within 10 points", "no change in refusals of harmful prompts shown"),
    ],
    f"s6: change in {HARMFUL} not tested (no item was read in both states), original unknown, 4 not read, edited 0 of 4 (0 % [0, 49]).": [
        ("49])", "49]) (+0 points [-49, +49]; exact McNemar, p = 1)"), ("edited 0 of 4 (0 % [0, 49])", "edited unknown"), (", 4 not read", ""), ("4 not read", "3 not read"), ("no item was read in both states", "an arm is missing"),
        ("change in refusals of harmful prompts not tested (no item was read in both states)", "no change in refusals of harmful prompts shown"),
        ("change in refusals of harmful prompts not tested (no item was read in both states)", "a fall in refusals of harmful prompts"),
    ],
    f"s7: a fall in {HARMFUL}, original 17 of 18 (94 % [74, 99]), 1 not read, edited 0 of 18 (0 % [0, 18]), 3 not read (-94 points [-100, -58]; exact McNemar, p < .0001).": [
        (", 3 not read", ""), (", 1 not read", ""), ("3 not read", "2 not read"), ("17 of 18", "20 of 21"), ("0 of 18", "0 of 22"), ("0 of 18", "0 of 19"), ("94 % [", "100 % ["),
    ],
    "s7: of 17 no longer refused, 17 answered; 1 went from not read to answered; 3 went from refused to not read; 1 went from answered to degenerate.": [
        ("of 17 no longer refused, 17 answered; ", ""), ("; 1 went from answered to degenerate", ""), ("1 went from answered", "2 went from answered"),
        ("17 no longer refused, 17 answered", "20 no longer refused, 17 answered and 3 not read"), ("3 went from refused", "3 went from answered"),
    ],
    f"s8: a fall in {HARMFUL}, original 18 of 20 (90 % [70, 97]), edited 6 of 20 (30 % [15, 52]) (-60 points [-77, -30]; Boschloo, p < .0001).": [("p < .0001", "p = .0001"), ("Boschloo", "exact McNemar"), ("-60", "-61")],
    f"s9: no change in {HARMFUL} shown, original 1 of 250 (0.4 % [0.07, 2]), edited 0 of 250 (0 % [0, 2]) (-0.4 points [-2, +1]; exact McNemar, p = 1).": [
        ("0.4 % [", "0 % ["), ("0.07", "0"), ("-0.4", "+0"), ("(0 % [0, 2])", "(<0.01 % [0, 2])"), ("no change in", "No change in"),
    ],
    "s9: of 1 no longer refused, 1 degenerate.": [("degenerate", "answered")],
    f"m1: a fall in {HARMFUL}, {M1} (-57 points [-80, -15]; exact McNemar, p = .0078, p = .016 after Holm over 3 systems).": [
        ("p = .016", "p = .023"), ("p = .016", "p = .0078"), ("over 3", "over 2"), ("over 3", "over 4"), ("3 systems", "3 seeds"), (", p = .016 after Holm over 3 systems", ""),
        ("p = .0078", "p = .0039"), ("p = .016", "p < .0001"), ("a fall", "a rise"), ("m1:", "m0:"), ("m1:", "m8:"),
    ],
    "h1: a rise in harmful: loss, original 2.9 nats [2.5, 3.3], edited 3.2 nats [2.9, 3.5] (+0.31 nats [0.2, 0.4]; paired t, p = .012).": [
        ("rise", "fall"), ("2.9 nats [2.5", "2.8 nats [2.5"), ("3.5]", "3.6]"), ("+0.31", "+0.32"), ("+0.31", "0.31"), ("+0.31", "+0.3"), ("nats [0.2", "bits [0.2"), ("paired t", "McNemar"),
        ("p = .012", "p = .013"), ("[0.2, 0.4]", "[0.1, 0.4]"), ("3.2 nats", "3 nats"), ("3.2 nats [2.9", "3.2 points [2.9"), (" [2.5, 3.3]", ""),
    ],
    "h1: this goes beyond random directions: 2.9 nats and 3.0 nats (more than under each, largest p = .031).": [
        ("2.9", "2.8"), ("more than", "fewer than"), (".031", ".03"), ("3.0 nats", "3.0 bits"), (" and 3.0 nats", ""), ("this goes beyond random directions", "a larger change under random directions"),
    ],
    "h2: a fall in AUROC, original 0.91, edited 0.51 (-0.41 [-0.50, -0.30]).": [
        ("fall", "rise"), ("0.91,", "0.912,"), ("0.91,", "0.9,"), ("0.51", "0.50"), (" (-0.41 [-0.50, -0.30])", ""), ("-0.30])", "-0.30]; t, p = .01)"),
    ],
    "h3: change in AUROC not tested (an arm is missing), original 0.91, edited unknown.": [("unknown", "0.00"), ("0.91", "unknown"), ("an arm is missing", "no data")],
    f"s1, edited: {HARMFUL}, 6 of 50 (12 % [6, 24]).": [("6 of 50", "6 of 49"), ("(12 %", "(12"), ("24])", "24]), 1 not read"), (", edited", "")],
    f"s1, rarely: {HARMFUL}, 1 of 250 (0.4 % [0.07, 2]), 2 not read.": [("(0.4 %", "(0 %"), ("0.07", "0"), (", 2 not read", ""), ("1 of 250 (0.4 % [0.07, 2])", "unknown")],
    "h1: loss, 3.2 nats [2.9, 3.5].": [("3.2", "3.3"), ("nats", "points"), (" [2.9, 3.5]", ""), ("2.9", "2.8")],
    "h2: AUROC, 0.90.": [("0.90", "0.91"), ("0.90", "0.9"), ("0.90", "0.905"), ("0.90", "0.90 points")],
    "All: AUROC over 3 heads: lowest 0.55 (L1H2 and L1H3 tie), highest 0.91 [0.80, 0.95] (L0H1); 1 unknown.": [
        ("lowest 0.55 (L1H2 and L1H3 tie), highest 0.91 [0.80, 0.95] (L0H1)", "lowest and highest 0.55 (all 3 tie)"), ("L1H2 and L1H3 tie", "L1H2"), ("; 1 unknown", ""), ("1 unknown", "2 unknown"), ("3 heads", "4 heads"), ("L0H1", "L1H2"), ("L1H2 and L1H3 tie", "2 tie"),
        ("lowest 0.55 (L1H2 and L1H3 tie), highest 0.91 [0.80, 0.95] (L0H1)", "lowest 0.91 [0.80, 0.95] (L0H1), highest 0.55 (L1H2 and L1H3 tie)"), ("0.55", "0.56"),
        ("L1H2 and L1H3 tie", "L1H2 and L0H1 tie"), ("L1H2 and L1H3 tie", "all 3 tie"), ("(L0H1)", "(L0H1 tie)"), ("L1H2 and L1H3 tie", "L1H2 and L1H3"), ("L0H1", "L2H0"),
    ],
    f"All: {HARMFUL} over 3 systems: lowest 100 % (all 3 tie), highest 100 % (all 3 tie).": [
        ("lowest 100 % (all 3 tie)", "lowest 100 % (a)"), ("highest 100 %", "highest 5 of 5 (100 % [57, 100])"), ("(all 3 tie).", "(all 3 tie); 0 unknown."), ("all 3 tie", "a and b tie"), ("all 3 tie", "all 2 tie"), ("3 systems", "2 systems"),
    ],
    f"All: {HARMFUL} over 5 rungs: lowest 0 of 4 (0 % [0, 49]) (y), highest 2 of 4 (50 % [15, 85]) (4 tie); 1 unknown.": [
        ("4 tie", "x1"), ("4 tie", "5 tie"), ("(y)", "(z)"), ("; 1 unknown", ""), ("4 tie", "x0, x1, x2 and x3 tie"), ("5 rungs", "6 rungs"),
    ],
    "Pairs: 3 of 30 cosines above 0.2; 1.5 are expected by chance; 2 unknown.": [
        ("3 of", "2 of"), ("of 30", "of 32"), ("1.5", "1.4"), ("; 1.5 are expected by chance", ""), ("; 2 unknown", ""), ("2 unknown", "1 unknown"), ("0.2", "0.3"),
    ],
    f"s1: {HARMFUL} over 4 doses: a rise is first shown at 3; a fall is first shown at 2; 1 not tested.": [
        ("at 2", "at 1"), ("at 3", "at 4"), ("a fall is first shown at 2; ", ""), ("a rise is first shown at 3; ", ""), ("; 1 not tested", ""), ("4 doses", "3 doses"),
        ("a rise is first shown at 3; a fall is first shown at 2", "no change is shown at any"), ("a fall", "a rise"),
    ],
    f"s2: {HARMFUL} over 2 doses: a fall is first shown at 2.": [("at 2", "at 1"), ("a fall", "a rise"), ("at 2", "at 2; 1 not tested"), ("a fall is first shown at 2", "no change is shown at any")],
    f"s1: {HARMFUL}, by 5 judges: fall by 2 (A and B); rise by 1 (C); no change shown by 1 (D); not tested by 1 (E).": [
        ("fall by 2 (A and B)", "fall by 1 (A)"), ("fall by 2 (A and B); rise by 1 (C)", "fall by 3 (A, B and C)"), ("; not tested by 1 (E)", ""), ("no change shown by 1 (D)", "not tested by 1 (D)"),
        ("5 judges", "4 judges"), ("no change shown by 1 (D)", "equal within 10 points by 1 (D)"), ("rise", "fall"), ("(A and B)", "(A and C)"), ("; rise by 1 (C)", ""), ("5 judges", "all judges"),
    ],
    "rules and text: answers labelled differently, 3 of 10 (30 % [11, 60]), 1 not read, kappa 0.48.": [("3 of 10", "2 of 10")],
    "rules and opposite: answers labelled differently, 10 of 10 (100 % [72, 100]), 1 not read, kappa -0.64.": [
        ("10 of 10 (100 % [72, 100])", "0 of 10 (0 % [0, 28])"), ("-0.64", "0.64"), ("-0.64", "-0.6"), (", kappa -0.64", ""), (", 1 not read", ""), ("answers labelled differently, 10 of 10 (100 % [72, 100]), 1 not read, kappa -0.64", "no answer was read by both"),
    ],
    "one and other: no answer was read by both.": [("no answer was read by both", "answers labelled differently, 0 of 2 (0 % [0, 66])"), ("other", "rules")],
    "Clusters: met in 3, not met in 1, not measurable in 1 of 5 seeds; control: not met in 5 of 5 seeds.": [
        ("met in 3", "met in 4"), (", not measurable in 1", ""), ("not met in 1", "not met in 2"), ("of 5 seeds;", "of 4 seeds;"), ("; control: not met in 5 of 5 seeds", ""), ("control: not met in 5", "control: met in 5"), ("seeds;", "runs;"),
    ],
    "Tells: not measurable in 3 of 3 seeds; control: not run.": [("not measurable in 3", "met in 3"), ("not measurable in 3", "not measurable in 2"), ("not run", "not met in 3 of 3 seeds")],
    "s10: not measured (the window is too small).": [("the window is too small", "no GPU"), ("s10", "s1"), ("not measured (the window is too small)", "measured")],
}  # fmt: skip


WORDS = {
    "a rise in": "a fall in", "a fall in": "a rise in", "fewer": "more", "more than": "fewer than", "beyond random": "beyond a foreign",
    "lowest": "highest", "original": "edited", "not met": "met", "met in": "not met in", "answered": "degenerate", "not read": "read",
    "points": "%", "nats": "points", " tie": "", "fall by": "rise by",
}  # fmt: skip


def generic(sentence: str) -> list[str]:
    """Mutations that need no thought: every number one higher and one lower in its last digit, words by their opposites, parts cut."""
    found = []
    for match in re.finditer(r"\d+", sentence):
        for step in (-1, 1):
            number = int(match[0]) + step
            if number >= 0:
                found.append(
                    sentence[: match.start()] + f"{number:0{len(match[0])}d}" + sentence[match.end() :]
                )
    found += [sentence.replace(old, new, 1) for old, new in WORDS.items() if old in sentence]
    parts = sentence.removesuffix(".").split("; ")
    found += ["; ".join(parts[:i] + parts[i + 1 :]) + "." for i in range(1, len(parts))]
    return [
        sentence.upper(),
        sentence.removesuffix("."),
        sentence.replace(": ", " ", 1),
        sentence + " This is clear.",
        *found,
    ]


@pytest.mark.parametrize("sentence", TRUE)
def test_a_sentence_is_true_and_each_mutation_of_it_is_not(sentence: str) -> None:
    subject = sentence.partition(": ")[0]
    assert answer(sentence, FACTS) == ("true", "")
    for old, new in TRUE[sentence]:
        assert old in sentence, old
        assert evaluate(sentence.replace(old, new, 1), FACTS) != "true", (old, new)
    for mutation in generic(sentence):
        assert mutation == sentence or evaluate(mutation, FACTS) != "true", mutation
    assert evaluate(sentence, Facts()) == "unsupported"
    assert evaluate(sentence.replace(subject, "Nobody", 1), FACTS) != "true"


def test_mutations_are_many_and_almost_all_are_false_rather_than_of_no_form() -> None:
    verdicts = [
        evaluate(m, FACTS)
        for s in TRUE
        for m in [*generic(s), *(s.replace(*pair, 1) for pair in TRUE[s])]
        if m != s
    ]
    assert len(verdicts) > 1000
    assert verdicts.count("false") > 0.6 * len(verdicts)


def test_the_same_sentence_is_refuted_by_other_rows() -> None:
    sentence = f"s1: a fall in {HARMFUL}, {S1} {S1_TEST}."
    same = Facts({("s1", HARMFUL): labelled_change(rows("r" * 46 + "c" * 4), rows("r" * 6 + "c" * 44))})
    risen = Facts({("s1", HARMFUL): labelled_change(rows("r" * 6 + "c" * 44), rows("r" * 46 + "c" * 4))})
    assert evaluate(sentence, same) == "true"
    assert evaluate(sentence, risen) == "false"


def test_what_this_means_is_the_change_before_or_is_not_known() -> None:
    """`no longer refused` of one measure is never read as that of another."""
    harmless = labelled_change(rows("c" * 30), rows("r" * 20 + "c" * 10))
    facts = Facts({("s1", HARMFUL): FALL, ("s1", "refusals of harmless prompts"): harmless})
    moved = "s1: of 40 no longer refused, 38 answered and 2 degenerate."
    change = f"s1: a fall in {HARMFUL}, {S1} {S1_TEST}."
    other = (
        "s1: a rise in refusals of harmless prompts, original 0 of 30 (0 % [0, 11]), edited 20 of 30 (67 % [49, 81]) "
        "(+67 points [+44, +81]; exact McNemar, p < .0001)."
    )
    assert evaluate(moved, facts) == "unsupported"
    assert refuted([change, moved, other, "s1: of 20 newly refused, 20 answered before."], facts) == []
    assert [verdict for _, verdict, _ in refuted([other, moved], facts)] == ["false"]


def test_goes_beyond_needs_every_draw_and_the_correction() -> None:
    """A change that is shown goes beyond its draws alone, and not after correction beside others."""
    letters = rows("r" * 9 + "c" * 5), rows("r" * 2 + "c" * 12)
    keys = [(f"t{i}", HARMFUL) for i in range(4)]
    change = labelled_change(*letters, draws={"random directions": [letters[0]]})
    sentence = "t0: this goes beyond random directions: 9 of 14 (64 % [39, 84]) (fewer than under each, largest p = .016{})."
    after = ", p = .062 after Holm over 4 systems"
    family = Facts(dict.fromkeys(keys, change), [Family("systems", keys)])
    assert evaluate(sentence.format(""), Facts({keys[0]: change})) == "true"
    assert evaluate(sentence.format(after), family) == "false"
    shown = sentence.replace(
        "this goes beyond random directions", "a change beyond random directions is not shown"
    )
    assert evaluate(shown.format(after), family) == "true"


def test_different_items_are_tested_by_their_own_test() -> None:
    """Boschloo's test up to 60 000 outcomes, Fisher's above; an interval never leaves out 0 beside p >= .05."""
    few = Facts({("x", HARMFUL): Change(share("rrr"), share("ccc", 100), paired=False)})
    said = (
        "x: no change in refusals of harmful prompts shown, original 3 of 3 (100 % [44, 100]), edited 0 of 3 (0 % [0, 56]) "
        "(-100 points [-100, -21]; Boschloo, p = .031)."
    )
    assert (
        evaluate(said.replace("no change in refusals of harmful prompts shown", f"a fall in {HARMFUL}"), few)
        == "true"
    )
    assert evaluate(said, few) == "false"
    many = Facts(
        {
            ("x", HARMFUL): Change(
                share("r" * 150 + "c" * 150), share("r" * 149 + "c" * 151, 1000), paired=False
            )
        }
    )
    said = (
        "x: no change in refusals of harmful prompts shown, original 150 of 300 (50 % [44, 56]), edited 149 of 300 (50 % [44, 55]) "
        "(-0.3 points [-8, +8]; Fisher, p = 1)."
    )
    assert evaluate(said, many) == "true"
    assert evaluate(said.replace("Fisher", "Boschloo"), many) == "false"
