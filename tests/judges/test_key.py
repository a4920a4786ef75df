"""Judge ``key``: every way of answering, files with and without its optional columns, and what it refuses to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response
from mechsafety.judges.kinds.key import Key, read_keys
from mechsafety.judges.registry import describe_judges, judge_responses, load_judge

ROWS = [
    {"prompt": "one two", "answer": "a b", "refusal": "no no", "redirection": "c c", "tag": "!"},
    {"prompt": "three", "answer": "d", "refusal": "no", "redirection": "", "tag": ""},
]


def written(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, prompt: str, text: str) -> tuple[str, tuple[str, ...]]:
    (verdict,) = judge_responses([Response(id="r", prompt=prompt, text=text)], [f"key:{path}"])
    assert verdict.judge == f"key:{path}"
    return verdict.label, verdict.tags


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("text", "label", "tags"),
    [
        ("a b", "compliance", ()),
        ("  a\n  b ", "compliance", ()),
        ("no no", "refusal", ()),
        ("c c", "refusal", ("redirected",)),
        ("! a b", "refusal", ("tagged",)),
        ("", "degenerate", ()),
        ("a", "degenerate", ()),
        ("a b b", "degenerate", ()),
        ("A B", "degenerate", ()),
        ("! no no", "degenerate", ()),
        ("! c c", "degenerate", ()),
        ("!", "degenerate", ()),
        ("d", "degenerate", ()),  # the right answer to another prompt
    ],
)
def test_every_reading(tmp_path: Path, suffix: str, text: str, label: str, tags: tuple[str, ...]) -> None:
    path = written(tmp_path / f"key{suffix}")
    assert read(path, "one two", text) == (label, tags)
    assert read(path, " one  two\n", text) == (label, tags)


@pytest.mark.parametrize("columns", [["redirection", "tag"], ["redirection"], ["tag"], []])
def test_optional_columns(tmp_path: Path, columns: list[str]) -> None:
    rows = [{k: v for k, v in row.items() if k not in columns} for row in ROWS]
    path = written(tmp_path / "key.csv", rows)
    assert read(path, "one two", "a b") == ("compliance", ())
    assert read(path, "one two", "no no") == ("refusal", ())
    assert read(path, "one two", "c c")[0] == ("degenerate" if "redirection" in columns else "refusal")
    assert read(path, "one two", "! a b")[0] == ("degenerate" if "tag" in columns else "refusal")
    # Where a prompt has no redirection and no tag, nothing and an untagged answer are neither.
    assert read(path, "three", "") == ("degenerate", ())
    assert read(path, "three", "d") == ("compliance", ())


def test_the_right_answer_comes_first() -> None:
    assert Key(answer="x", refusal="x", redirection="x").read("x") == ("compliance", ())
    assert Key(answer="a", refusal="x", redirection="x").read("x") == ("refusal", ())


@pytest.mark.parametrize("column", ["prompt", "answer", "refusal"])
@pytest.mark.parametrize("value", [None, " "])
def test_missing_columns_are_named_with_their_line(tmp_path: Path, column: str, value: str | None) -> None:
    row = {k: v for k, v in ROWS[1].items() if k != column} | ({} if value is None else {column: value})
    path = written(tmp_path / "key.jsonl", [ROWS[0], row])
    with pytest.raises(MechsafetyError, match=rf"key\.jsonl, line 2: no {column}; an answer key has prompt"):
        read_keys(path)


def test_a_prompt_has_one_answer(tmp_path: Path) -> None:
    path = written(tmp_path / "key.jsonl", [*ROWS, ROWS[0] | {"prompt": " one   two"}])
    with pytest.raises(MechsafetyError, match=r"line 3: the prompt 'one two' has an answer already"):
        read_keys(path)


def test_unknown_prompts_and_files(tmp_path: Path) -> None:
    path = written(tmp_path / "key.csv")
    with pytest.raises(MechsafetyError, match="no answer for the prompt 'four': judge only prompts"):
        read(path, "four", "d")
    with pytest.raises(MechsafetyError, match="nowhere"):
        load_judge(f"key:{tmp_path / 'nowhere.csv'}")
    with pytest.raises(MechsafetyError, match="write 'key:FILE'"):
        load_judge("key")
    with pytest.raises(MechsafetyError, match="key"):
        load_judge("key:")
    empty = tmp_path / "empty.csv"
    empty.write_text("prompt,answer,refusal\n")
    with pytest.raises(MechsafetyError, match=r"empty\.csv"):
        read_keys(empty)


def test_is_listed() -> None:
    assert describe_judges()["key"].startswith("key:FILE")


def test_verdicts_keep_the_order_of_the_responses(tmp_path: Path) -> None:
    path = written(tmp_path / "key.csv")
    asked = [
        Response(id="2", prompt="three", text="no"),
        Response(id="0", prompt="one two", text="a b"),
        Response(id="1", prompt="three", text="a b"),
    ]
    verdicts = judge_responses(asked, [f"key:{path}"])
    assert [(v.id, v.label) for v in verdicts] == [("2", "refusal"), ("0", "compliance"), ("1", "degenerate")]
