"""The results that README and docs show: tables of finished runs in data/results, and the text made from them.

``python -m benchmarks.results RUN`` keeps the tables of a finished default study and writes the marked blocks of the
documents anew; without a run it only writes them. ``python -m benchmarks.results RUN NAME`` does the same for the
other runs (:mod:`benchmarks.kept_runs`): lab, lab-ladder, ladder, regions, attacks, freezing. A block stands between
``<!-- made: NAME -->`` and ``<!-- end -->``. A test holds that every block is what its tables give. No responses are
kept.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import kept_runs
from benchmarks.kept_runs import KEPT, ROOT
from benchmarks.markdown import bullets, markdown_table
from mechsafety.claims import decide
from mechsafety.claims.sentences import beyond, change
from mechsafety.claims.tables import CONTROL_COLUMNS, NOT_MEASURABLE, change_row, control_row
from mechsafety.core.wording import percent_between
from mechsafety.experiments.agreement.findings import by_judge_sentences, disagreement_sentences
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.study.findings import measured_systems, refusal_contrasts, study_findings
from mechsafety.judges.label_order import order_sentences
from mechsafety.plots.style import system_names
from mechsafety.statistics import PROMPT_LABELS

DOCUMENTS = ("README.md", "docs/results.md", "docs/lab.md", "docs/controls.md", "docs/regions.md")
CLAIMS = Path(__file__).parent / "controls.toml"
TABLES = (
    "verdicts",
    "random_verdicts",
    "rates",
    "controls",
    "judge_effects",
    "agreement",
    "label_order",
    "selfjudge",
)
_VERDICT_COLUMNS = ["system", "arm", "id", "label", "judge", "verdict"]
_FACTS = ("selection", "no_gap", "layer", "position")
_BLOCK = re.compile(r"(<!-- made: (?P<name>[a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Tables = Mapping[str, pd.DataFrame]


def keep(run: str | Path) -> None:
    """Keep what the blocks need of a finished study."""
    result = load_run(run)
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        table = result.tables[name]
        if name.endswith("verdicts"):
            table[_VERDICT_COLUMNS].to_csv(KEPT / f"{name}.csv", index=False)
        else:
            table.to_csv(KEPT / f"{name}.csv", index=False)
    systems = {
        name: {key: facts[key] for key in _FACTS if key in facts}
        for name, facts in measured_systems(result.manifest).items()
    }
    manifest = {"config": {"judges": list(result.config["judges"])}, "systems": systems}
    (KEPT / "manifest.json").write_text(
        json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def kept() -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables and the manifest that :func:`keep` wrote."""
    tables = {name: pd.read_csv(KEPT / f"{name}.csv", keep_default_na=True) for name in TABLES}
    return tables, json.loads((KEPT / "manifest.json").read_text(encoding="utf-8"))


def made() -> dict[str, str]:
    """Every block, by its name."""
    tables, manifest = kept()
    return {name: f"{make(tables, manifest)}\n" for name, make in _MAKERS.items()} | kept_runs.made()


def written(document: str, blocks: Mapping[str, str]) -> str:
    """The document with its blocks as ``blocks`` has them."""
    return _BLOCK.sub(lambda found: f"{found[1]}{blocks[found['name']]}{found[3]}", document)


# -- what the blocks hold -----------------------------------------------------------------------------


def _rates(tables: Tables, manifest: Mapping[str, Any]) -> str:
    rates, names = tables["rates"], system_names(measured_systems(manifest))
    mine = rates[rates["judge"] == manifest["config"]["judges"][0]]
    cells = ("arm", "label", "n", "refusal", "compliance", "degenerate")
    rows = [
        f"| {names[row['system']]} | {' | '.join(str(row[cell]) for cell in cells)} | "
        f"{percent_between(row['rate'], row['low'], row['high'])} |"
        for row in mine.to_dict(orient="records")
    ]
    head = "| system | arm | prompts | n | refusal | compliance | degenerate | refused [95 %] |"
    return "\n".join([head, "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |", *rows])


def _findings(tables: Tables, manifest: Mapping[str, Any]) -> str:
    return bullets(study_findings(tables, manifest))


def _headline(tables: Tables, manifest: Mapping[str, Any]) -> str:
    """Changes of refusals, and what random directions do; every sentence of it is among the findings."""
    harmful, harmless = (refusal_contrasts(tables, manifest, label=label) for label in PROMPT_LABELS)
    said: list[str] = []
    for system, contrast in harmful.items():
        claim = decide(contrast)
        said += [change(claim), *beyond(claim)]
        said += [change(decide(harmless[system]))] if system in harmless else []
    return bullets(said)


def _judges(tables: Tables, manifest: Mapping[str, Any]) -> str:
    primary = manifest["config"]["judges"][0]
    return bullets(
        [
            *by_judge_sentences(tables["judge_effects"]),
            *disagreement_sentences(tables["verdicts"], tables["agreement"], primary=primary),
            *order_sentences(tables["label_order"]),
        ]
    )


def _selfjudge(tables: Tables, manifest: Mapping[str, Any]) -> str:
    names = system_names(measured_systems(manifest))
    head = "| system | arm | answers | refusals | AUROC | of answers to other prompts | of shortness alone |"
    rows = [
        f"| {names[row['system']]} | {row['arm']} | {row['n']} | {row['refusals']} | {row['auc']:.2f} "
        f"[{row['low']:.2f}, {row['high']:.2f}] | {row['auc_shuffled']:.2f} | {row['auc_length']:.2f} |"
        for row in tables["selfjudge"].to_dict(orient="records")
    ]
    return "\n".join([head, "| --- | --- | ---: | ---: | ---: | ---: | ---: |", *rows])


def _claims(tables: Tables, manifest: Mapping[str, Any]) -> str:  # noqa: ARG001
    columns = ("experiment", "claim", "control", "fails", "test")
    rows = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))["claims"]
    cells = [[*(row[name] for name in columns[:4]), f"`{row['test'].rpartition('::')[2]}`"] for row in rows]
    return markdown_table(
        ("experiment", "claim", "control", "how the control can fail", "planted violation"), cells
    )


def _study_controls(tables: Tables, manifest: Mapping[str, Any]) -> str:
    """The claims of the default study, each beside what its control gives."""
    rows = [
        change_row(f"{contrast.subject}: the edit takes refusals away", decide(contrast), way="down")
        for contrast in refusal_contrasts(tables, manifest, label="harmful").values()
    ]
    names = system_names(measured_systems(manifest))
    for row in tables["selfjudge"].to_dict(orient="records"):
        claim = f"{names[row['system']]}, {row['arm']}: recognises its refusals"
        reading = f"AUROC {row['auc']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        for column, control in (("auc_shuffled", "another prompt shown"), ("auc_length", "shortness alone")):
            holds = "no" if row[column] >= row["auc"] else NOT_MEASURABLE
            rows.append(control_row(claim, reading, control, f"AUROC {row[column]:.2f}", holds))
        rows.append(
            control_row(claim, reading, "untrained networks", "not measured in a study", NOT_MEASURABLE)
        )
    return markdown_table(CONTROL_COLUMNS, [list(row.values()) for row in rows])


_MAKERS: dict[str, Callable[[Tables, Mapping[str, Any]], str]] = {
    "rates": _rates,
    "headline": _headline,
    "findings": _findings,
    "judges": _judges,
    "self judgement": _selfjudge,
    "claims": _claims,
    "study controls": _study_controls,
}


def main() -> None:
    match sys.argv[1:]:
        case []:
            pass
        case [run]:
            keep(run)
        case [run, name] if name in kept_runs.RUNS:
            kept_runs.keep(run, name)
        case _:
            sys.exit(f"usage: python -m benchmarks.results [RUN [{'|'.join(kept_runs.RUNS)}]]")
    blocks = made()
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(written(path.read_text(encoding="utf-8"), blocks), encoding="utf-8")


if __name__ == "__main__":
    main()
