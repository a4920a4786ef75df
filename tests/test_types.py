"""The public hints reach users' type checkers; `make check` checks a user's script (tests/typed_script.py)."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "mechsafety" / "py.typed").is_file()


def test_the_script_that_is_checked_is_a_users_whole_work() -> None:
    lines = (ROOT / "tests" / "typed_script.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) >= 50
