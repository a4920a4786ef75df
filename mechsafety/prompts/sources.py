"""Published prompt sets, loaded by name through ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.core.places import packaged_words


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set on the hub and where its prompts stand.

    ``keep_if_empty`` names a column that must be empty (Alpaca's ``input``, HarmBench's context).
    """

    repo: str
    split: str
    text: str
    label: Literal["harmful", "harmless"]
    licence: str
    config: str | None = None
    category: str | None = None
    keep_if_empty: str | None = None


SOURCES = {
    name: Source(**entry) for name, entry in packaged_words("mechsafety.prompts", "sources.toml").items()
}


def load_source(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a published set in this project's columns."""
    import datasets

    source = SOURCES[name]
    try:
        table = datasets.load_dataset(source.repo, source.config, split=source.split)
    except Exception as error:
        raise MechsafetyError(
            f"prompt set {name!r} ({source.repo} on the hub) could not be loaded: {first_lines(error)}. "
            "Go online (set HF_TOKEN if the set is gated), or name a local file"
        ) from error
    columns = list(table.column_names or [])
    for column in (source.text, source.category, source.keep_if_empty):
        if column is not None and column not in columns:
            raise MechsafetyError(f"{source.repo}: no column {column!r}; it has {', '.join(columns)}")
    for number, row in enumerate(table, start=1):
        text = str(row[source.text] or "").strip()
        if source.keep_if_empty and row[source.keep_if_empty]:
            continue
        yield (
            f"row {number}",
            {
                "id": f"{name}-{number:05d}",
                "text": text,
                "label": source.label,
                "category": row[source.category] if source.category else "",
                "source": source.repo,
                "licence": source.licence,
            },
        )
