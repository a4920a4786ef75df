"""A small study of tiny models in the words that their tokenizer knows, for the tests of engines and servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechsafety.experiments.study.config import StudyConfig
from tests.prompt_sets import small_prompts, write_csv


def small_study(folder: Path, *systems: str | Path, per_split: int = 6, **more: Any) -> StudyConfig:
    """``systems`` on ``per_split`` prompts of each kind, which are written into ``folder``; ``more`` are fields."""
    csv = str(write_csv(small_prompts(per_split), folder / "small.csv"))
    fields: dict[str, Any] = {
        **{"systems": tuple(map(str, systems)), "prompts": csv, "anchors": csv},
        **{"max_new_tokens": 4, "batch_size": 4, "controls": 1, "layer": 2},
        **{"judges": ("rules",), "selfjudge": False, "dtype": "float32", "device": "cpu"},
    }
    return StudyConfig(**fields | more)
