"""The results that docs/lab.md and docs/regions.md show: tables of finished runs in data/results, and text from them.

Each kept folder is a run folder that :func:`mechsafety.load_run` opens: the tables that the blocks need, and of the
manifest what findings read. No responses are kept.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.markdown import bullets, markdown_table
from mechsafety.claims import Claim
from mechsafety.claims.tables import CONTROL_COLUMNS, change_row
from mechsafety.core.wording import span
from mechsafety.experiments.anatomy.naming import state_name
from mechsafety.experiments.lab.config import SAFETY_TUNINGS
from mechsafety.experiments.lab.experiment import as_lab
from mechsafety.experiments.lab.findings import KINDS, TUNINGS
from mechsafety.experiments.ladder.contrasts import ladder_claims, rung_names
from mechsafety.experiments.regions.contrasts import freezing_claims, link_claims, removal_claims
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.result import Result
from mechsafety.runs.folder import RunFolder, read_run

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "data" / "results"
_VERDICTS = "verdicts"
_ANATOMY = "anatomy.csv"
_PLACE = re.compile(r"/(?:[^/\s:]+/)+")
_NAMING = frozenset({"system", "a", "b"})
"""Columns that name models, which may be folders."""
_ANSWERS = frozenset({"response", "prompt", "messages"})


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept of one run, and the blocks that are made from it, by name."""

    kind: str
    tables: tuple[str, ...]
    sections: tuple[str, ...] = ()
    """The manifest's sections besides its configuration."""
    blocks: Mapping[str, Callable[[Result], str]]


def keep(path: str | Path, name: str) -> None:
    """Keep what the blocks of the run called ``name`` need, from the finished run in ``path``."""
    what, run, folder = RUNS[name], read_run(path), KEPT / name
    files = load_run(path).experiment.tables
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for table in what.tables:
        if not (run.path / files[table]).is_file():
            continue
        rows = run.read_table(files[table]).drop(columns=_ANSWERS, errors="ignore")
        rows = rows.assign(**{name: rows[name].map(_without_places) for name in _NAMING & {*rows}})
        if files[table].endswith(".csv"):
            rows.to_csv(folder / files[table], index=False)
        else:
            rows.to_parquet(folder / files[table], index=False)
    manifest = {"config": _without_places(run.manifest["config"])}
    manifest |= {key: _without_places(run.manifest[key]) for key in what.sections if key in run.manifest}
    if what.kind == "lab":
        _unsafe_outcomes(run).to_csv(folder / _ANATOMY, index=False)
    if what.kind == "ladder":
        manifest["ladder"] |= {"compared": False}  # the comparison is a run of its own, which is not kept
    (folder / "manifest.json").write_text(
        json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def _without_places(value: Any) -> Any:
    """Paths, wherever they stand, cut to the names of their files and folders."""
    if isinstance(value, dict):
        return {_without_places(key): _without_places(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_places(one) for one in value]
    return _PLACE.sub("", value) if isinstance(value, str) else value


def made() -> dict[str, str]:
    """Every block of the runs that are kept, by its name."""
    there = {name: what for name, what in RUNS.items() if (KEPT / name).is_dir()}
    return {
        block: f"{make(load_run(KEPT / name))}\n"
        for name, what in there.items()
        for block, make in what.blocks.items()
    }


# -- the lab ------------------------------------------------------------------------------------------


def _lab_outcomes(run: Result) -> str:
    """Shares of inputs answered, and of unsafe ones refused, by model and kind: mean over seeds, lowest to highest."""
    cases = run.tables["cases"]
    columns = {
        "safe answered": cases[cases["kind"] == "safe"].assign(value=cases["correct"]),
        "unsafe refused": cases[cases["kind"] == "unsafe"].assign(value=cases["refused"]),
        **{
            f"{KINDS[kind]} answered": cases[cases["kind"] == kind].assign(value=cases["correct"])
            for kind in KINDS
            if kind not in ("safe", "unsafe")
        },
    }
    names = {"base": "pretrained", **TUNINGS}
    rows = [[names[model], *(_over_seeds(part, model) for part in columns.values())] for model in names]
    return markdown_table(["model", *columns], rows)


def _over_seeds(cases: pd.DataFrame, model: str) -> str:
    mine = cases[cases["model"] == model]
    by_seed = [
        float((part["value"] * part["n"]).sum() / part["n"].sum())
        for _, part in mine.groupby("seed", sort=False)
    ]
    low, high, mean = min(by_seed), max(by_seed), sum(by_seed) / len(by_seed)
    shown = f"{low:.2f}", f"{high:.2f}"
    return f"{mean:.2f}" if shown[0] == shown[1] else f"{mean:.2f} ({shown[0]} to {shown[1]})"


def _lab_summary(run: Result) -> str:
    """How many bounds and readings hold."""
    return bullets(sentence for sentence in run.findings if sentence.startswith("Lab: "))


def _lab_bounds(run: Result) -> str:
    """One row a bound: in how many seeds it is met."""
    rows = [
        [
            str(row["number"]),
            _model(row["model"]),
            row["what"],
            row["bound"],
            "reported" if math.isnan(row["met"]) else _of_seeds(row, "met"),
            span([row["lowest"], row["highest"]], ".3g"),
        ]
        for row in as_lab(run).held().to_dict("records")
    ]
    return markdown_table(["claim", "model", "what", "bound", "met in seeds", "lowest to highest"], rows)


def _lab_controls(run: Result) -> str:
    """One row a reading: its value, and each control with the seeds in which the reading lies beyond it."""
    table = as_lab(run).beyond()
    kinds = list(dict.fromkeys(table["control"]))
    rows = []
    for (number, model, what), part in table.groupby(["number", "model", "what"], sort=False):
        by_control = {row["control"]: row for row in part.to_dict("records")}
        cells = [
            f"{by_control[kind]['result']}; {_of_seeds(by_control[kind], 'beyond')}"
            if kind in by_control
            else ""
            for kind in kinds
        ]
        rows.append([str(number), _model(str(model)), str(what), str(part["value"].iloc[0]), *cells])
    return markdown_table(
        ["claim", "model", "reading", "value", *(f"{kind}; beyond in seeds" for kind in kinds)], rows
    )


def _of_seeds(row: Mapping[str, Any], state: str) -> str:
    if row["not measurable"] == row["seeds"]:
        return "not measurable"
    return f"{row[state]:.0f} of {row['seeds']}"


def _model(name: str) -> str:
    return "pretrained" if name == "base" else name


def _unsafe_outcomes(run: RunFolder) -> pd.DataFrame:
    """What becomes of unsafe inputs under each state that the anatomies measured, by seed and tuning."""
    rows = []
    for seed in run.manifest["config"]["seeds"]:
        for tuning in SAFETY_TUNINGS:
            anatomy = read_run(run.path / f"seed-{seed}" / "anatomy" / tuning)
            for table in ("reversal", "ablation", "interpolation"):
                found = anatomy.read_table(f"{table}.csv")
                mine = found[(found["group"] == "unsafe") & (found.get("model", "tuned") == "tuned")]
                state = mine["state"] if "state" in mine else mine["alpha"].map("alpha {:g}".format)
                if "r" in mine:
                    state = state + mine["r"].map(lambda r: "" if math.isnan(r) else f" {r:g}")
                rows.append(
                    mine[["n", "refused", "complied", "degenerate"]].assign(
                        seed=seed, tuning=tuning, state=state
                    )
                )
    return pd.concat(rows, ignore_index=True).drop_duplicates(["seed", "tuning", "state"])


_STATES: Mapping[str, str] = {
    "alpha 1.5": "base + 1.5 dW",
    "alpha 2": "base + 2 dW",
    **{state: state_name(state, math.nan) for state in ("tuned", "mlp", "rest", "random")},
    "kept 1": state_name("kept", 1.0),
    "removed 1": state_name("removed", 1.0),
    **{state: state_name(state, math.nan) for state in ("ablated", "random_ablated")},
}


def _lab_anatomy(run: Result) -> str:
    """Unsafe inputs refused and degenerate under each state, lowest to highest over seeds."""
    table = pd.read_csv(run.path / _ANATOMY)
    rows = []
    for state, name in _STATES.items():
        cells = [table[(table["state"] == state) & (table["tuning"] == tuning)] for tuning in SAFETY_TUNINGS]
        rows.append([name, *(f"{_ends(mine['refused'])}{_broken(mine['degenerate'])}" for mine in cells)])
    return markdown_table(["unsafe inputs refused", *(TUNINGS[tuning] for tuning in SAFETY_TUNINGS)], rows)


# -- ladders ------------------------------------------------------------------------------------------


def _survival(run: Result) -> str:
    """Refusals of harmful prompts, and degenerate answers, by directions removed; random ones as lowest to highest."""
    table = run.tables["survival"]
    harmful = table[table["label"] == "harmful"]
    names = rung_names(list(dict.fromkeys(table["system"])))
    counts = sorted(n for n in set(harmful["directions"]) if n)
    rows = []
    for system, part in harmful.groupby("system", sort=False):
        unedited = part[part["kind"] == "unedited"].iloc[0]
        harmless = table[(table["label"] == "harmless") & (table["system"] == system)]
        cells = [
            str(names[str(system)]),
            f"{unedited['refused']:.2f}",
            f"{harmless[harmless['kind'] == 'unedited']['refused'].iloc[0]:.2f}",
        ]
        for kind in ("refusal", "random"):
            for n in counts:
                mine = part[(part["directions"] == n) & (part["kind"] != "unedited")]
                mine = mine[(mine["kind"] == "random") == (kind == "random")]
                cells.append(_ends(mine["refused"]) + _broken(mine["degenerate"]))
        rows.append(cells)
    head = [f"without {n}" for n in counts]
    return markdown_table(
        ["system", "refused", "harmless refused", *head, *(f"{one} at random" for one in head)],
        rows,
    )


def _ends(values: pd.Series) -> str:
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low} to {high}"


def _broken(values: pd.Series) -> str:
    return f" ({_ends(values)} degenerate)" if values.max() > 0 else ""


def _findings(run: Result) -> str:
    return bullets(run.findings)


# -- regions ------------------------------------------------------------------------------------------


def _tradeoff(run: Result) -> str:
    """One row a removal and kind of control; ranges are over draws."""
    table = run.tables["tradeoff"]
    measures = {
        "refused": "refused",
        "coherent": "complied",
        "degenerate": "degenerate",
        "harmless refused": "harmless_refused",
        "right answers": "accuracy",
    }
    rows = []
    for (removal, setting, control), part in table.groupby(["removal", "setting", "control"], sort=False):
        cells = [
            str(removal).replace("_", " "),
            str(setting),
            "" if control == "model" else str(control),
            f"{part['share'].mean():.2%}",
        ]
        cells += [_ends(part[column]) for column in measures.values()]
        low, high = part["perplexity"].min(), part["perplexity"].max()
        rows.append([*cells, span([low, high], ",.3g" if high >= 1e5 else ",.0f")])
    return markdown_table(["removal", "setting", "what", "weights", *measures, "perplexity"], rows)


# -- claims beside their controls ---------------------------------------------------------------------


def _control_table(what: str, claims: Iterable[Claim], way: str = "down") -> str:
    rows = [change_row(f"{claim.contrast.subject}: {what}", claim, way=way) for claim in claims]
    return markdown_table(CONTROL_COLUMNS, [list(row.values()) for row in rows])


def _region_controls(run: Result) -> str:
    claims = [*removal_claims(run.tables, "harmful").values(), *link_claims(run.tables)]
    return _control_table("refusals fall", (one for several in claims for one in several))


def _freezing_controls(run: Result) -> str:
    return _control_table(
        "compliance is lower", (one for several in freezing_claims(run.tables) for one in several)
    )


def _ladder_controls(run: Result) -> str:
    """Each system at the fewest directions."""
    claims = ladder_claims(run.tables)
    fewest = min(k for _, k in claims)
    return _control_table("refusals fall", (claim for (_, k), claim in claims.items() if k == fewest))


RUNS: Mapping[str, Kept] = {
    "lab": Kept(
        kind="lab",
        tables=("cases", "thresholds", "controls"),
        blocks={
            "lab outcomes": _lab_outcomes,
            "lab summary": _lab_summary,
            "lab bounds": _lab_bounds,
            "lab controls": _lab_controls,
            "lab anatomy": _lab_anatomy,
        },
    ),
    "lab-ladder": Kept(
        kind="ladder",
        tables=("survival", _VERDICTS, "tests"),
        sections=("ladder",),
        blocks={
            "lab ladder": _survival,
            "lab ladder findings": _findings,
            "lab ladder controls": _ladder_controls,
        },
    ),
    "ladder": Kept(
        kind="ladder",
        tables=("survival", _VERDICTS, "tests"),
        sections=("ladder",),
        blocks={
            "ladder": _survival,
            "ladder findings": _findings,
            "ladder controls": _ladder_controls,
        },
    ),
    "regions": Kept(
        kind="regions",
        tables=("tradeoff", "structure", "subspaces", "links", "link_effects", "heads", _VERDICTS),
        sections=("sweet_spot",),
        blocks={"regions": _tradeoff, "region controls": _region_controls},
    ),
    "attacks": Kept(kind="regions", tables=("attacks", _VERDICTS), blocks={"attacks findings": _findings}),
    "freezing": Kept(
        kind="regions",
        tables=("freezing", _VERDICTS),
        blocks={"freezing findings": _findings, "freezing controls": _freezing_controls},
    ),
}
