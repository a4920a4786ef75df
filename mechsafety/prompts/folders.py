"""Prompt sets that lie in a folder as one file for each label and part, as those of arXiv 2510.02768 do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mechsafety.core.errors import MechsafetyError
from mechsafety.prompts.columns import LABELS, TEXT_COLUMNS, as_asked, folded
from mechsafety.prompts.prompt_set import SUFFIXES, PromptSet, cell_text, from_rows, read_rows

PARTS = ("train", "test")
_EVERY = 8  # of 250 prompts 31, about as many as the packaged set's studies validate on


def load_folder(folder: Path) -> PromptSet:
    """``harmful_train``, ``harmless_train``, ``harmful_test`` and ``harmless_test`` of a folder as one set.

    Each is a file that :func:`load_prompts` reads. Test prompts are report prompts; of the train prompts every eighth
    text is a validation prompt, the others are fit prompts. Raises :class:`MechsafetyError` for a missing file.
    """
    rows = (row for label in LABELS for part in PARTS for row in _rows(folder, label, part))
    return from_rows(rows, where=str(folder), name=folder.name)


def _rows(folder: Path, label: str, part: str) -> Iterator[tuple[str, dict[str, Any]]]:
    path = _file(folder, f"{label}_{part}")
    seen: dict[str, str] = {}
    for number, (place, given) in enumerate(read_rows(path), start=1):
        row = as_asked(given, at=f"{path.name}, {place}")
        text = folded(next((cell_text(row[column]) for column in TEXT_COLUMNS if column in row), ""))
        one_in_eight = "fit" if (len(seen) + 1) % _EVERY else "validation"
        split = "report" if part == "test" else seen.setdefault(text, one_in_eight)
        facts = {"id": f"{path.stem}-{number:04d}", "label": label, "split": split, "source": path.name}
        yield f"{path.name}, {place}", {**row, **facts}


def _file(folder: Path, stem: str) -> Path:
    found = next((path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()), None)
    if found is None:
        wanted = ", ".join(f"{label}_{part}" for label in LABELS for part in PARTS)
        raise MechsafetyError(
            f"prompt folder {str(folder)!r} holds no {stem} ({', '.join(SUFFIXES)}): a folder of prompts holds "
            f"{wanted}; or name one file"
        )
    return found
