"""A section of the page: what was wanted, what was found, and how it was measured."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import torch

from mechsafety.runs.folder import versions

_NUMBER_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One figure that this project sets itself. ``met`` is None where nothing is set."""

    what: str
    wanted: str
    found: str
    met: bool | None


@dataclass(frozen=True, kw_only=True)
class Section:
    """What one benchmark found, with the date and the machine it was measured on."""

    name: str
    title: str
    body: str
    checks: tuple[Check, ...] = ()
    quick: bool = False
    date: str = field(default_factory=lambda: datetime.datetime.now(tz=datetime.UTC).date().isoformat())
    machine: str = field(default_factory=lambda: machine())

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Section:
        stored = json.loads(path.read_text())
        checks = tuple(Check(**check) for check in stored.pop("checks"))
        return cls(**stored, checks=checks)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """Processor, number formats, threads, memory and versions, in one line."""
    found = versions()
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = re.findall(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    held = [flag for flag in _NUMBER_FLAGS if re.search(rf"\b{flag}\b", text)]
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    packages = ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers", "transformer-lens"))
    return (
        f"{names[0] if names else 'unknown processor'} ({', '.join(held) or 'no vector flags read'}), "
        f"{torch.get_num_threads()} threads, {psutil.virtual_memory().total / 1e9:.0f} GB memory{gpu}; {packages}"
    )
