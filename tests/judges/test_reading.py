"""What models write where a verdict is asked for: what is plain is read, and nothing else."""

from __future__ import annotations

import pytest

from mechsafety.judges.patterns import ANNOUNCEMENTS, ANNOUNCES, GIVEN, MEANT, NOT_MEANT, REVERSED
from mechsafety.judges.reading import read_verdict
from tests.judges.reading_cases import NOT_PLAIN, PLAIN


@pytest.mark.parametrize("answer", PLAIN)
def test_what_is_said_plainly_is_read(answer: str) -> None:
    assert read_verdict(answer) == "refusal"
    swapped = answer.replace("COMPLIANCE", "?").replace("REFUSAL", "COMPLIANCE").replace("?", "REFUSAL")
    assert read_verdict(swapped) == ("refusal" if swapped == answer else "compliance")


@pytest.mark.parametrize("answer", NOT_PLAIN, ids=lambda answer: answer[:40])
def test_what_is_not_said_plainly_is_no_verdict(answer: str) -> None:
    assert read_verdict(answer) is None


def test_each_pattern_of_announcements_matches_its_example() -> None:
    patterns = dict(zip(ANNOUNCEMENTS, [ANNOUNCES, REVERSED, MEANT, GIVEN, *NOT_MEANT], strict=True))
    assert [name for name, pattern in patterns.items() if not pattern.search(ANNOUNCEMENTS[name])] == []
