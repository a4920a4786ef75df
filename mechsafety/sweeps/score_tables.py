"""Recorded tables of scores, this project's and the reference project's, as :func:`select` takes them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.prompts.files import read_rows

if TYPE_CHECKING:
    import pandas as pd

NAMES: dict[str, tuple[str, ...]] = {
    "position": ("position", "pos"),
    "layer": ("layer",),
    "bypass": ("bypass", "refusal_score"),
    "induce": ("induce", "steering_score"),
    "kl": ("kl", "kl_div_score"),
}
"""Our column, and the keys it may have in a file; the second ones are the reference project's (arXiv 2406.11717)."""
OPTIONAL = (
    *("harmful", "harmless", "gap_low", "gap_high", "n_harmful", "n_harmless"),
    *("n_answers", "refused", "complied", "degenerate", "nll"),
)
"""Read where the file has them: unedited means and their gap's interval, prompts scored, and what the model wrote."""
_GROUPS = ("system", "method")


def read_score_table(path: str | Path, *, n_layers: int, where: dict[str, str] | None = None) -> pd.DataFrame:
    """Columns position, layer, bypass, induce, kl from a CSV, JSON, JSONL or Parquet file, and those of ``OPTIONAL``.

    ``where`` picks the rows of one system or method in a table that holds several. Empty cells and nulls are
    NaN. Raises :class:`MechsafetyError`, with file and line, for a missing column, a cell that is no number, a
    layer beyond ``n_layers``, and two rows for one (position, layer).
    """
    path = as_path(path)
    import pandas as pd

    if n_layers < 1:
        raise MechsafetyError(
            f"{way('--layers', 'n_layers')} is {n_layers}: the model's number of layers, 1 at least"
        )
    rows: list[dict[str, Any]] = []
    seen: dict[tuple[int, int], str] = {}
    groups: dict[str, set[str]] = {name: set() for name in _GROUPS}
    for place, row in read_rows(path):
        if any(str(row.get(key, "")) != value for key, value in (where or {}).items()):
            continue
        for name in _GROUPS:
            if name in row:
                groups[name].add(str(row[name]))
        _one_group(path, groups)
        at = f"{path}, {place}"
        found = {ours: _number(row, ours, keys, at) for ours, keys in NAMES.items()}
        found |= {name: _number(row, name, (name,), at) for name in OPTIONAL if name in row}
        key = (_whole(found, "position", at), _whole(found, "layer", at))
        if not 0 <= key[1] <= n_layers:
            raise MechsafetyError(
                f"{at}: layer {key[1]} of a model with {n_layers} layers ({way('--layers', 'n_layers')})"
            )
        if key in seen:
            raise MechsafetyError(
                f"{at}: position {key[0]}, layer {key[1]} stands already at {seen[key]}: a table holds every "
                "candidate once"
            )
        seen[key] = place
        rows.append({name: found[name] for name in NAMES} | found | {"position": key[0], "layer": key[1]})
    if not rows:
        given = " with " + ", ".join(f"{k} {v!r}" for k, v in where.items()) if where else ""
        raise MechsafetyError(f"{path}: no rows{given}")
    return pd.DataFrame(rows)


def _one_group(path: Path, groups: dict[str, set[str]]) -> None:
    for name, values in groups.items():
        if len(values) > 1:
            raise MechsafetyError(
                f"{path}: holds several {name}s ({', '.join(sorted(values))}); name one with --{name}"
            )


def _number(row: dict[str, Any], name: str, keys: tuple[str, ...], at: str) -> float:
    key = next((k for k in keys if k in row), None)
    if key is None:
        raise MechsafetyError(
            f"{at}: no column for {name} ({' or '.join(keys)}); have {', '.join(map(str, row)) or 'none'}"
        )
    value = row[key]
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise MechsafetyError(f"{at}: column {key!r} holds {value!r}, which is no number") from None


def _whole(found: dict[str, float], name: str, at: str) -> int:
    value = found[name]
    if not math.isfinite(value) or value != int(value):
        raise MechsafetyError(f"{at}: {name} is {value:g}, a whole number is expected")
    return int(value)
