"""A folder with a file for each label and part is one prompt set."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.prompts.prompt_set import load_prompts


def save_parts(folder: Path, *, train: int = 16, test: int = 3, column: str = "text") -> Path:
    """The four files that the authors of arXiv 2510.02768 split their prompts into, with texts of no meaning."""
    folder.mkdir(parents=True)
    for label in ("harmful", "harmless"):
        for part, n in (("train", train), ("test", test)):
            word = "fire" if label == "harmful" else "bread"
            texts = [f"make a {word} {part} {i}" for i in range(n)]
            pd.DataFrame({column: texts}).to_parquet(folder / f"{label}_{part}.parquet")
    return folder


@pytest.mark.parametrize("column", ["text", "Goal"])
def test_parts_become_splits(tmp_path: Path, column: str) -> None:
    found = load_prompts(save_parts(tmp_path / "data", column=column))
    assert [len(found.where(split=s, label="harmful")) for s in ("fit", "validation", "report")] == [14, 2, 3]  # type: ignore[arg-type]
    assert len(found) == 2 * 19
    assert {p.source for p in found.to_judge} == {"harmful_test.parquet", "harmless_test.parquet"}
    assert found.to_choose[0].text == "make a fire train 7"


def test_a_text_that_stands_twice_is_in_one_split(tmp_path: Path) -> None:
    folder = save_parts(tmp_path / "data")
    texts = [f"text {i}" for i in range(8)]
    pd.DataFrame({"text": [*texts, texts[7], texts[0]]}).to_parquet(folder / "harmful_train.parquet")
    found = load_prompts(folder)
    assert found.repeated == 2
    assert [p.text for p in found.to_choose.harmful] == ["text 7"]


def test_a_text_in_both_parts_is_refused(tmp_path: Path) -> None:
    folder = save_parts(tmp_path / "data")
    pd.DataFrame({"text": ["make a fire train 0"]}).to_parquet(folder / "harmful_test.parquet")
    with pytest.raises(MechsafetyError, match="splits must not overlap"):
        load_prompts(folder)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    folder = save_parts(tmp_path / "data")
    (folder / "harmless_test.parquet").unlink()
    with pytest.raises(MechsafetyError, match="holds no harmless_test"):
        load_prompts(folder)
