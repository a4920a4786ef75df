"""Rows of CSV, JSON, JSONL, Parquet and text files, each with the place it stands in."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet", ".txt")


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: None, or pandas' NaN, NA and NaT."""
    return (
        value is None
        or (isinstance(value, float) and value != value)
        or type(value).__name__ in ("NAType", "NaTType")
    )


def cell_text(value: object) -> str:
    """A cell as text; empty where it is missing (Parquet gives None or NaN)."""
    return "" if is_missing(value) else str(value)


def read_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a CSV, JSON, JSONL, Parquet or text file, with the place it stands in (``line 7``)."""
    path = as_path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise MechsafetyError(f"{path}: the file's name must end in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise MechsafetyError(f"file {str(path)!r} does not exist")
    return _READERS[path.suffix.lower()](path)


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise MechsafetyError(
            f"{path}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
        ) from None


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    # Not splitlines(), which also divides at characters that may stand in a prompt (U+2028, form feed).
    return enumerate(io.StringIO(_text(path), newline=None), start=1)


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import csv

    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        for row in reader:
            if None in row or any(value is None for value in row.values()):
                raise MechsafetyError(
                    f"{path}, line {reader.line_num}: {len(reader.fieldnames or [])} columns in the header, "
                    "another number here"
                )
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise MechsafetyError(f"{path}, line {reader.reader.line_num}: {error}") from None


def _object(value: object, at: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise MechsafetyError(f"{at}: an object or a string is expected, got {type(value).__name__}")
    return value


def _json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import json

    try:
        rows = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise MechsafetyError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(rows, list):
        raise MechsafetyError(
            f"{path}: a list of objects is expected, got {type(rows).__name__} (pandas writes one with "
            "table.to_json(path, orient='records'))"
        )
    for number, value in enumerate(rows, start=1):
        yield f"item {number}", _object(value, f"{path}, item {number}")


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import json

    for number, line in _numbered(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise MechsafetyError(f"{path}, line {number}: not JSON ({error.msg})") from None
        yield f"line {number}", _object(value, f"{path}, line {number}")


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise MechsafetyError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in _numbered(path):
        if line.strip():
            yield f"line {number}", {"text": line}


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".txt": _lines,
}
