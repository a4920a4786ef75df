"""Prose of the documents between their made blocks: what it says of a table is computed from that table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from benchmarks.results import ROOT
from mechsafety.core.verdict import Response
from mechsafety.judges.registry import load_judge
from tests.judged_families import REQUESTS, TRAPS, TURNED, TYPICAL, WRONG_NAMED
from tests.judged_natural import Judged

KEPT = ROOT / "data" / "results"
Statements = Iterator[str]
BEFORE = "last prompt token"


def document(name: str) -> str:
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


@cache
def table(name: str) -> pd.DataFrame:
    path = KEPT / name
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)


def _met(number: int, model: str, what: str) -> str:
    rows = table("lab/thresholds.csv")
    rows = rows[(rows["number"] == number) & (rows["model"] == model) & rows["what"].str.startswith(what)]
    return f"{(rows['state'] == 'met').sum()} of {len(rows)}"


def _readings(number: int, what: str, model: str | None = None) -> pd.DataFrame:
    rows = table("lab/controls.csv")
    rows = rows[(rows["number"] == number) & (rows["what"] == what)]
    return rows if model is None else rows[rows["model"] == model]


def _untrained(rows: pd.DataFrame) -> tuple[float, float]:
    rows = rows[rows["control"] == "untrained networks"]
    return float(rows["low"].min()), float(rows["high"].max())


def _in_every_seed(rows: pd.DataFrame) -> bool:
    return bool((rows.loc[rows["control"] == "untrained networks", "beyond"] == "yes").all())


def _short(x: float, digits: int = 2) -> str:
    return f"{x:.{digits}f}".removeprefix("0")


def lab_claims() -> Statements:
    auroc = _readings(4, f"AUROC of tau, {BEFORE}")
    low, high = map(_short, _untrained(auroc))
    yield f"At the last prompt token untrained networks reach an AUROC of {low} to {high} themselves"
    met = {m: _met(4, m, f"AUROC of tau, last layer, {BEFORE}") for m in ("dpo", "unlearn", "ssft")}
    assert met["dpo"] == met["unlearn"] == "3 of 3"
    assert all(_in_every_seed(auroc[auroc["model"] == m]) for m in ("dpo", "unlearn"))
    yield f"Claim 4 holds for DPO and unlearning, and in {met['ssft']} seeds for SSFT"
    over = _readings(4, "AUROC of tau, over the answer")
    assert not any(_in_every_seed(over[over["model"] == m]) for m in met)
    yield "Over the answer no tuning lies beyond them in every seed"
    sides = _readings(5, f"successful attacks on the safe side, {BEFORE}", "ssft")
    assert (sides.loc[sides["control"] == "untrained networks", "beyond"] == "no").all()
    own, drawn = (f"{100 * a:.0f} to {100 * b:.0f} %" for a, b in (_ends(sides["value"]), _untrained(sides)))
    yield (
        f"of its successful attacks {own} lie on the safe side at the last prompt token, of untrained networks' {drawn}"
    )
    assert _in_every_seed(_readings(5, "successful attacks on the safe side, last operand", "unlearn"))
    yield "It does in every seed for unlearning at the last operand"
    acts = _readings(6, f"||dW a|| unsafe over safe, last MLP output matrix, {BEFORE}")
    assert _in_every_seed(acts)
    own, drawn = (
        " to ".join(_short(x, 1) for x in ends) for ends in (_ends(acts["value"]), _untrained(acts))
    )
    yield (
        f"at the last prompt token dW acts on unsafe inputs {own} times as strongly as on safe ones, in untrained "
        f"networks {drawn} times"
    )
    assert _met(8, "dpo", "median sensitivity to unsafe") == "3 of 3"
    yield f"for unlearning in {_met(8, 'unlearn', 'median sensitivity to unsafe')} seeds"
    safe = table("lab/thresholds.csv").query(
        'what == "median sensitivity to safe inputs over the base model\'s"'
    )
    yield f"sensitivity to safe inputs falls in {(safe['value'] < 1).sum()} of {len(safe)} models"
    falls = table("lab/thresholds.csv").query(
        "what == 'largest fall of refusals between two alphas on [0, 1]'"
    )
    back = falls[falls["model"] == "unlearn"]
    assert (falls.loc[falls["model"] != "unlearn", "state"] == "met").all()
    yield f"unlearning falls back somewhere on it in {(back['state'] == 'not met').sum()} of {len(back)} seeds"


def _ends(values: pd.Series) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def lab_anatomy() -> Statements:
    rows = table("lab/anatomy.csv")

    def share(state: str, column: str, tuning: str | None = None) -> tuple[float, float]:
        of = rows[(rows["state"] == state) & (rows["tuning"].eq(tuning) if tuning else True)]
        return _ends(100 * of[column])

    low, high = share("alpha 2", "degenerate")
    yield f"{low:.0f} to {high:.0f} % of their answers to unsafe inputs are degenerate"
    assert share("removed 1", "refused", "ssft") == (0.0, 0.0)
    low, high = share("kept 1", "refused", "ssft")
    yield f"Without it no unsafe input is refused; with it alone {low:.0f} to {high:.0f} % are"
    ablated = rows[rows["state"] == "ablated"]
    assert (ablated["degenerate"] > ablated["complied"]).all()
    yield "most of what comes instead of a refusal is degenerate"


def lab_ladder() -> Statements:
    rows = table("lab-ladder/verdicts.parquet")
    rows = rows[rows["label"] == "harmful"]
    found = {}
    for system, of in rows.groupby("system", sort=False):
        states = {
            (kind, k): part.set_index("id")["verdict"]
            for (kind, k), part in of.groupby(["kind", "directions"])
        }
        before, after = states["unedited", 0], states["refusal", 1]
        lost = before.index[(before == "refusal") & (after.reindex(before.index) != "refusal")]
        found[system] = (int((after[lost] == "compliance").sum()), len(lost), int((after == "refusal").sum()))
    told = {s: f"{k} of {n}" for s, (k, n, _) in found.items()}
    assert max(found[s][0] for s in found if s not in ("raw", "score0", "metatags")) == 1
    yield f"answers {told['raw']}, score0 {told['score0']}, metatags {told['metatags']}, the others 1 or none"
    rest = max(kept for s, (*_, kept) in found.items() if s not in ("refusals", "metatags"))
    yield (
        f"`refusals` still refuses {found['refusals'][2]} of 100, metatags {found['metatags'][2]}, the other four "
        f"{rest} or fewer"
    )


def real_ladder() -> Statements:
    rows = table("ladder/survival.csv")
    at = rows.query("label == 'harmless' and kind == 'refusal' and directions == 8")["perplexity"]
    yield f"is {at.min():,.0f} to {at.max():,.0f}"
    broken = rows.query("label == 'harmful' and kind == 'refusal'")
    least, most = (broken[broken["directions"].isin(k)] for k in ((1, 2), (8,)))
    assert (least["degenerate"] * least["n"] <= 1.5).all()
    yield "Without one or two directions what comes instead of refusals is language, by the judge"
    named = most[most["degenerate"] > 0.5]["system"].str.removeprefix("smollm2-135m+")
    yield f"without eight, {' and '.join(f'`{name}`' for name in named)} are mostly degenerate"
    start = rows.query("label == 'harmful' and kind == 'unedited'").set_index("system")
    few = start.loc["smollm2-135m+dpo"]
    yield f"`dpo` refuses too little to be judged: {few['refused'] * few['n']:.0f} of {few['n']:.0f}."
    verdicts = table("ladder/verdicts.parquet").query("label == 'harmful'")
    largest = {}
    for rung, k in (("refusals", 1), ("rephrase", 1), ("metatags", 1), ("all", 4), ("unlearn", 1)):
        of = verdicts[(verdicts["system"] == f"smollm2-135m+{rung}") & (verdicts["directions"] == k)]
        refused = {
            key: part.set_index("id")["verdict"] == "refusal" for key, part in of.groupby(["kind", "draw"])
        }
        own = refused.pop(("refusal", 0))
        apart = [
            (int((r & ~own).sum()), int((own & ~r).sum())) for r in (d[own.index] for d in refused.values())
        ]
        largest[rung] = max(float(binomtest(a, a + b).pvalue) if a + b else 1.0 for a, b in apart)
    others = [largest[name] for name in ("refusals", "all", "unlearn")]
    yield f"the largest p over the three draws is {_short(largest['rephrase'], 3)} for `rephrase`"
    yield f"and {_short(min(others))} to {_short(max(others))} for `refusals`, `all` and `unlearn`"
    assert largest["metatags"] * 24 < 0.05


def markdown(name: str, first: str) -> pd.DataFrame:
    """The table of a document whose head begins so; every cell as text."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    body = [line for line in lines[at:] if line.startswith("|") or not line]
    end = body.index("") if "" in body else len(body)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in body[:end]]
    return pd.DataFrame(cells[2:], columns=cells[0])


def _percent(values: pd.Series) -> str:
    return " to ".join(f"{100 * x:.0f} %" for x in dict.fromkeys((values.min(), values.max())))


def regions() -> Statements:
    rows = table("regions/tradeoff.csv")
    harmful = rows.assign(count=(rows["refused"] * rows["harmful_n"]).round().astype(int))

    def of(removal: str, setting: str, control: str) -> pd.DataFrame:
        return harmful[
            (harmful["removal"] == removal)
            & (harmful["setting"] == setting)
            & (harmful["control"] == control)
        ]

    whole = harmful[harmful["removal"] == "none"].iloc[0]
    spot = {control: of("set_difference", "p=8 q=5", control) for control in ("removed", "random", "matched")}
    (removed,), (random,) = spot["removed"]["count"], spot["random"]["count"]
    yield f"from {whole['count']} to {removed} of 50"
    yield f"As many random weights leave {random}, as many of the same size {' and '.join(map(str, spot['matched']['count']))}"
    yield f"Without {spot['removed']['share'].iloc[0]:.2%} of".replace("%", " %")
    kept = [
        (of(name, "p=8 q=5", c)["harmless_refused"] * 50).round().astype(int)
        for name, c in (("set_difference", "removed"), ("set_difference", "random"))
    ]
    yield f"go with them, from {50 * whole['harmless_refused']:.0f} to {kept[0].iloc[0]}; as many random weights leave {kept[1].iloc[0]}"
    wide = {control: of("set_difference", "p=5 q=5", control) for control in ("removed", "random", "matched")}
    yield f"At p = q = 5 matched removals leave {_percent(wide['matched']['refused'])} refused where random ones leave {_percent(wide['random']['refused'])}"
    yield f"{_percent(wide['removed']['complied'])} of the answers stay coherent, of theirs {_percent(wide['matched']['complied'])}"
    accuracy = harmful[(harmful["removal"] == "set_difference") & (harmful["control"] == "removed")][
        "accuracy"
    ]
    yield f"Accuracy falls from {_percent(pd.Series([whole['accuracy']]))} to between {_percent(accuracy).replace(' to ', ' and ')}"
    assert accuracy.max() < whole["accuracy"] - 0.05
    assert of("top_safety", "q=1", "removed")["degenerate"].min() == 1
    yield f"every answer is degenerate, and {_percent(of('top_safety', 'q=1', 'matched')['degenerate'])} where"
    assert (
        harmful[(harmful["removal"] == "orthogonal_projection") & (harmful["control"] == "removed")][
            "degenerate"
        ].min()
        == 1
    )
    subspaces = of("orthogonal_projection", "r_u=0.95 r_s=0.98", "matched")
    yield f"leave it {_percent(subspaces['refused'])} refused and {_percent(subspaces['complied'])} coherent"
    yield f"leaves {of('heads', 'heads=10', 'removed')['count'].iloc[0]} of 50 refused"
    yield f"with AUROC up to {table('regions/heads.csv')['auroc'].max():.2f}"
    structure = table("regions/structure.csv").query("q == 5").groupby(["method", "kind"])["jaccard"].mean()
    for method, name in (("snip", "SNIP share a mean Jaccard index"), ("wanda", "Wanda")):
        mine = structure[method]
        yield f"by {name} between {mine.min():.2f} ({mine.idxmin()}) and {mine.max():.2f} ({mine.idxmax()})".replace(
            "0.", "."
        )
    links = table("regions/link_effects.csv").set_index("state")
    counts = (links["refused"] * links["harmful_n"]).round().astype(int)
    yield (
        f"leaves {counts['ablated']} of 50 refused, removing the region {counts['removed']}, both "
        f"{counts['removed then ablated']}; a random removal and the ablation together leave {counts['random removed then ablated']}"
    )
    yield f"lie {links['relative_norm']['removed']:.2f} as far apart (random removal: {links['relative_norm']['random removed']:.2f})".replace(
        "0.", "."
    )


def selection() -> Statements:
    """Regret is what the pick's coherent compliance lacks of that of the best layer."""
    for row in markdown("docs/results.md", "system | pick").to_dict("records"):
        best, own = (
            int(re.findall(r"(\d+)%", row[c])[0])
            for c in ("best layer, its compliance", "coherent compliance")
        )
        assert best - own == int(row["regret"]), row["system"]
    yield "Regret is the coherent compliance that the pick lacks"


def _refused(rows: Sequence[Judged], judge: str = "rules") -> list[bool]:
    asked = [Response(id=str(i), prompt=row.prompt, text=row.answer) for i, row in enumerate(rows)]
    return [verdict.label == "refusal" for verdict in load_judge(judge)(asked)]


def _is_refusal(rows: Sequence[Judged]) -> list[bool]:
    return [row.label == "refusal" for row in rows]


def _of(rows: Sequence[Judged], *, refusals: bool) -> str:
    """How many of the answers read as refusals, or as anything else, the rules call refusals."""
    chosen = [row for row in rows if (row.label == "refusal") == refusals]
    return f"{sum(_refused(chosen))} of {len(chosen)}"


def written_answers() -> Statements:
    """The judge on written answers: every cell is computed from the tables of the tests."""
    turned, traps = TURNED["turned"], TRAPS["traps"]
    columns = {
        "first half": (turned[::2], traps[::2]),
        "second half": (turned[1::2], traps[1::2]),
        "third set": (TURNED["turned_held"], TRAPS["traps_held"]),
    }
    shown = markdown("docs/results.md", "set | first half").set_index("set")
    for name, (rows, harmless) in columns.items():
        found = {"answers": str(len(rows))}
        for judge in ("rules", "phrases:arditi"):
            found[f"kappa of `{judge}`"] = _short(cohen_kappa_score(_is_refusal(rows), _refused(rows, judge)))
        for arm in ("original", "edited"):
            found[f"sensitivity, {arm} answers"] = _of([r for r in rows if r.arm == arm], refusals=True)
        found["false alarms, both arms"] = _of(rows, refusals=False)
        found["false alarms on harmless requests"] = _of(harmless, refusals=False)
        assert shown[name].to_dict() == found
    named = markdown("docs/results.md", "set | false alarms").set_index("set")
    for label, rows in zip(named.index, WRONG_NAMED.values(), strict=True):
        assert label.endswith(f"({len(rows)})")
        hit, of = _of(rows, refusals=True).split(" of ")
        assert named.loc[label].tolist() == [_of(rows, refusals=False), f"{int(of) - int(hit)} of {of}"]
    typical = _is_refusal(TYPICAL)
    yield f"{sum(typical)} refusals and {len(typical) - sum(typical)} compliant answers by stand-ins"
    asked = [row._replace(prompt=request) for request in REQUESTS for row in TYPICAL]
    read, said = _is_refusal(asked), _refused(asked)
    right = [a == b for a, b in zip(read, said, strict=True)]
    share = {
        kind: sum(r for r, y in zip(right, read, strict=True) if y == kind) / read.count(kind)
        for kind in (True, False)
    }
    yield f"sensitivity {_short(share[True])}, specificity {_short(share[False])}, after mending on them"


def limits_of_the_judge() -> Statements:
    """What the README says of the third set, from the table that the documents hold of it."""
    rows = TURNED["turned_held"]
    yield f"Of {len(rows)} hard answers"
    yield f"kappa {_short(cohen_kappa_score(_is_refusal(rows), _refused(rows)))}"
    for arm, sentence in (
        ("edited", "misses {} of {} refusals as edited models give them"),
        ("original", "{} of {} of original ones"),
    ):
        hit, of = map(int, _of([r for r in rows if r.arm == arm], refusals=True).split(" of "))
        yield sentence.format(of - hit, of)


SOURCES: list[tuple[str, Callable[[], Statements]]] = [
    ("docs/lab.md", lab_claims),
    ("docs/lab.md", lab_anatomy),
    ("docs/lab.md", lab_ladder),
    ("docs/lab.md", real_ladder),
    ("docs/regions.md", regions),
    ("docs/results.md", selection),
    ("docs/results.md", written_answers),
    ("README.md", limits_of_the_judge),
]


@pytest.mark.parametrize(("name", "said"), SOURCES, ids=[said.__name__ for _, said in SOURCES])
def test_the_prose_says_what_the_table_holds(name: str, said: Callable[[], Statements]) -> None:
    text, found = document(name), list(said())
    assert found
    assert [sentence for sentence in found if sentence not in text] == []


def test_another_number_in_the_table_is_another_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with other tables the documents would say what is not so."""
    read = pd.read_csv
    table.cache_clear()
    monkeypatch.setattr(
        pd, "read_csv", lambda path: read(path).replace({"alpha 2": "alpha 0", "alpha 0": "alpha 2"})
    )
    try:
        assert any(sentence not in document("docs/lab.md") for sentence in lab_anatomy())
    finally:
        table.cache_clear()
