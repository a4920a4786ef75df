"""Prompts as people have them: texts, conversations, tables, files, by one way into a :class:`PromptSet`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from mechsafety.core.arguments import shown
from mechsafety.core.errors import MechsafetyError
from mechsafety.prompts.columns import LABELS, TEXT_COLUMNS, as_asked, content_id
from mechsafety.prompts.files import SUFFIXES
from mechsafety.prompts.prompt_set import (
    Prompt,
    PromptSet,
    from_rows,
    load_named,
    packaged_sets,
    require_one_place,
)
from mechsafety.prompts.sources import SOURCES

if TYPE_CHECKING:
    import datasets
    import pandas as pd

    PromptsLike: TypeAlias = (
        str
        | Path
        | Prompt
        | Sequence[Prompt]
        | Sequence[str]
        | Sequence[Mapping[str, Any]]
        | Sequence[Sequence[Mapping[str, str]]]
        | pd.DataFrame
        | datasets.Dataset
    )
else:
    PromptsLike = Any
"""A prompt, several, messages, rows, a table, a file or a set; see :func:`as_prompts`."""

Row = tuple[str, dict[str, Any]]
"""A row with the place it stands in (``row 7``)."""
_GIVEN = "given"
ALLOWED = (
    "a text, a list of texts, messages, rows or Prompts, a DataFrame, a datasets.Dataset, a PromptSet, the path of a "
    "file, or the name of a set"
)


def as_prompts(data: Any, *, empty: bool = False) -> Sequence[Prompt]:
    """``data`` as prompts, in its order, those that are there twice too.

    A str is a prompt, unless it names a set or a file of a kind that is read. A list of {role, content} is one
    conversation, a list of such lists several; other mappings are rows, as :func:`mechsafety.load_prompts` takes
    them. Where rows have no id it is made from what is asked. Lists of Prompt and PromptSets are left as they are.

    Raises :class:`MechsafetyError` for anything else, and, unless ``empty`` is allowed, for no prompts.
    """
    if isinstance(data, Prompt):
        return (data,)
    if isinstance(data, PromptSet) or _all_prompts(data):
        found = cast("Sequence[Prompt]", data)
    elif (place := _named(data)) is not None:
        found = load_named(place)
    else:
        found = _in_order(data)
    if not len(found) and not empty:
        raise MechsafetyError(f"no prompts are given: {ALLOWED}")
    return found


def as_prompt_set(data: Any, *, empty: bool = False) -> PromptSet:
    """:func:`as_prompts` as a set: unique ids, no text in two splits or under two labels."""
    found = as_prompts(data, empty=empty)
    if isinstance(found, PromptSet):
        return found
    seen: dict[str, Prompt] = {}
    for prompt in found:
        require_one_place(prompt, seen.setdefault(prompt.folded, prompt), _GIVEN)
    return PromptSet(tuple(found), _GIVEN)


def one_prompt(data: Any) -> Prompt:
    """The only prompt of ``data``; see :func:`as_prompts`. Raises :class:`MechsafetyError` for several."""
    found = as_prompts(data)
    if len(found) != 1:
        raise MechsafetyError(f"one prompt is needed here, got {len(found)}: give one of them")
    return found[0]


def rows_of(data: Any) -> tuple[list[Row], str]:
    """The rows of a table or list, with their places, and what it is called."""
    pandas, numpy = sys.modules.get("pandas"), sys.modules.get("numpy")
    if pandas is not None and isinstance(data, pandas.DataFrame):
        records = cast("pd.DataFrame", data).to_dict(orient="records")
        return [
            (f"row {place}", {str(k): v for k, v in row.items()})
            for place, row in zip(data.index, records, strict=True)
        ], "DataFrame"
    if hasattr(data, "column_names") and isinstance(data, Mapping):
        raise MechsafetyError(
            f"a DatasetDict holds several tables: give one of them, data[{next(iter(data), '')!r}]"
        )
    if hasattr(data, "column_names") and hasattr(data, "features"):
        return [(f"row {number}", row) for number, row in enumerate(_dataset_rows(data))], "Dataset"
    if (pandas is not None and isinstance(data, pandas.Series)) or (
        numpy is not None and isinstance(data, numpy.ndarray)
    ):
        data = data.ravel().tolist() if getattr(data, "ndim", 1) == 2 and 1 in data.shape else data.tolist()
    if isinstance(data, str):
        data = [data]
    if isinstance(data, Mapping) and data:
        data = _of_columns(data)
    if not isinstance(data, Iterable) or isinstance(data, bytes | Mapping):
        raise MechsafetyError(f"prompts are {shown(data)}: {ALLOWED} is needed")
    items = list(data)
    if items and all(_is_message(item) for item in items):
        items = [items]
    return [(f"item {number}", _row(item, number)) for number, item in enumerate(items, start=1)], "list"


def _dataset_rows(data: Any) -> Iterator[dict[str, Any]]:
    """The rows of a ``datasets.Dataset``; classes by their names."""
    named = {name: kind for name, kind in (data.features or {}).items() if hasattr(kind, "int2str")}
    for row in data:
        yield {
            name: named[name].int2str(value)
            if name in named and isinstance(value, int) and value >= 0
            else value
            for name, value in row.items()
        }


def _of_columns(data: Mapping[Any, Any]) -> list[Mapping[Any, Any]]:
    """A mapping as rows: of prompts by label; of columns, as a slice of a dataset is one; else it is a row, or a
    message, itself.
    """
    if set(data) <= set(LABELS) and all(map(_is_column, data.values())):
        return [
            {**_row(item, number), "label": label}
            for label, items in data.items()
            for number, item in enumerate(items, start=1)
        ]
    columns = [value for value in data.values() if _is_column(value)]
    if len(columns) < len(data) or ("messages" in data and _is_message(next(iter(columns[0]), None))):
        return [data]
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in data.items())
        raise MechsafetyError(f"columns of unlike lengths: {lengths}")
    return [dict(zip(data, values, strict=True)) for values in zip(*columns, strict=True)]


def _is_column(value: Any) -> bool:
    if isinstance(value, Sequence):
        return not isinstance(value, str | bytes)
    return hasattr(value, "to_numpy") or getattr(value, "ndim", None) == 1


def _row(item: Any, number: int) -> dict[str, Any]:
    if isinstance(item, str):
        if not item.strip():
            raise MechsafetyError(f"prompt {number} is empty: a text is needed")
        return {"text": item}
    if isinstance(item, Prompt):
        return dict(vars(item))
    if isinstance(item, Mapping):
        return {str(key): value for key, value in item.items()}
    if isinstance(item, list | tuple) and item and all(isinstance(one, str) for one in item):
        raise MechsafetyError(f"prompt {number} is a list of {len(item)} texts: give all texts in one list")
    if isinstance(item, list | tuple):
        return {"messages": list(item)}
    raise MechsafetyError(f"prompt {number} is {shown(item)}: a text, messages, a row or a Prompt is needed")


def with_ids(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows with ids made from what is asked, where they have none; the same text again gets a number behind it."""
    seen: Counter[str] = Counter()
    for place, given in rows:
        row = dict(as_asked(given, at=place))
        if row.get("id") not in (None, "") and row["id"] == row["id"]:
            yield place, row
            continue
        column = next((name for name in ("messages", *TEXT_COLUMNS) if row.get(name) is not None), None)
        asked = str(row if column is None else row[column])
        identity = content_id(asked)
        seen[identity] += 1
        again = f"-{seen[identity]}" if seen[identity] > 1 else ""
        yield place, {**row, "id": identity + again}


def _in_order(data: Any) -> PromptSet:
    """Rows as a set that keeps those whose text was there before."""
    rows, kind = rows_of(data)
    if not rows:
        return PromptSet((), _GIVEN)
    return from_rows(with_ids(rows), where=kind, name=_GIVEN, keep_repeated=True)


def _named(data: Any) -> str | Path | None:
    """``data`` where it names a file, a folder or a set."""
    if isinstance(data, Path):
        return data
    if not isinstance(data, str) or "\n" in data:
        return None
    known = data in packaged_sets() or data in SOURCES
    is_path = Path(data).suffix.lower() in SUFFIXES and " " not in data.strip()
    return data if known or is_path or _exists(data) else None


def _exists(name: str) -> bool:
    try:
        return bool(name.strip()) and Path(name).expanduser().exists()
    except OSError:  # too long for a name
        return False


def _all_prompts(data: Any) -> bool:
    return isinstance(data, list | tuple) and all(isinstance(item, Prompt) for item in data) and bool(data)


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and {"role", "content"} <= set(item)
