"""README and docs show what the kept tables of the default study give, block by block."""

from __future__ import annotations

import tomllib
from functools import cache

import pytest

from benchmarks.results import _BLOCK, CLAIMS, DOCUMENTS, ROOT, kept, made, written


@cache
def blocks() -> dict[str, str]:
    """Every block by its name, made once."""
    return made()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_blocks_of_a_document_are_what_its_tables_give(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert [found["name"] for found in _BLOCK.finditer(text)]
    assert text == written(text, blocks())
    # The control: another number in a table is another document.
    others = {key: block.replace("1", "7") for key, block in blocks().items()}
    assert text != written(text, others)


def test_every_block_stands_in_some_document() -> None:
    texts = "".join((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    assert {found["name"] for found in _BLOCK.finditer(texts)} == blocks().keys()


def test_no_response_is_among_the_kept_tables() -> None:
    tables, _ = kept()
    assert not any({"response", "prompt"} & {*table.columns} for table in tables.values())


def test_every_experiment_has_claims_and_each_a_test_that_plants_a_violation() -> None:
    """The named test is there, and every kind of run that has findings makes some claim."""
    claims = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))["claims"]
    for claim in claims:
        path, _, name = claim["test"].partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), claim["test"]
    folders = {path.parent.name for path in (ROOT / "mechsafety" / "experiments").glob("*/findings.py")}
    kinds = {"selfjudgement": "selfjudge", "comparison": "compare"}
    assert {kinds.get(name, name) for name in folders} | {"robustness"} == {c["experiment"] for c in claims}
