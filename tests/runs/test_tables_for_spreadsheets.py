"""CSV files that a spreadsheet runs nothing of and that join with the other formats by their names."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest

from mechsafety.judges.files import judge_file, write_table
from mechsafety.runs.folder import neutralised, open_run

IDS = ["-5", "@x", "=1+1", "+7", "007", "NA", "null", "1e5", "'a", "plain"]
FORMULAS = ["=1+1", "+x", "-x", "@x", "\t=x", "\r=x", "\n=x", "-1+1", "+1e", "=-1"]
HARMLESS = ["-5", "+7", "-.5", "+1e-3", "3", "-2.5E+10", "a=b", "'=x", "", " =x"]


def cells(path: Path, column: str) -> list[str]:
    with path.open(encoding="utf-8", newline="") as stream:
        return [row[column] for row in csv.DictReader(stream)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_verdicts_join_with_their_responses_by_id(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame({"id": IDS, "prompt": "p", "response": "Sure, here is how."})
    table.to_parquet(tmp_path / "responses.parquet")
    out = tmp_path / f"verdicts{suffix}"
    judge_file(tmp_path / "responses.parquet", judges=["rules"], out=out)
    if suffix == ".csv":
        found = cells(out, "id")
    elif suffix == ".jsonl":
        found = [json.loads(line)["id"] for line in out.read_text(encoding="utf-8").splitlines()]
    else:
        found = list(pd.read_parquet(out)["id"])
    assert found == IDS


def test_only_what_a_spreadsheet_would_run_is_escaped() -> None:
    table = neutralised(pd.DataFrame({"response": [*FORMULAS, *HARMLESS]}))
    assert list(table["response"]) == [*(f"'{text}" for text in FORMULAS), *HARMLESS]


def test_a_run_reads_the_names_it_wrote(tmp_path: Path) -> None:
    table = pd.DataFrame({"system": IDS, "judge": IDS, "id": IDS, "text": "=x", "n": -1})
    with open_run(tmp_path / "run", config={}) as run:
        run.write_table(table, "t.csv")
        back = run.read_table("t.csv")
        for column in ("system", "judge", "id"):
            assert list(back[column]) == IDS
        assert cells(tmp_path / "run" / "t.csv", "id") == IDS
        assert cells(tmp_path / "run" / "t.csv", "judge")[1:3] == ["'@x", "'=1+1"]
        assert set(back["text"]) == {"'=x"}
        assert set(back["n"]) == {-1}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_other_formats_are_exact(tmp_path: Path, suffix: str) -> None:
    texts = [*FORMULAS, *HARMLESS]
    table = pd.DataFrame({"id": texts, "response": texts, "share": [1 / 3] * len(texts)})
    out = tmp_path / f"t{suffix}"
    write_table(table, out)
    if suffix == ".parquet":
        back = pd.read_parquet(out)
    else:
        back = pd.DataFrame([json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()])
    assert list(back["response"]) == list(back["id"]) == texts
    assert back["share"].to_numpy() == pytest.approx(1 / 3, rel=1e-14)
