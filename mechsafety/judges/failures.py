"""What the errors of endpoints say, in the words of many providers: what is used up, whose fault, when to come back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from mechsafety.core.errors import MechsafetyError
from mechsafety.judges.pacing import duration

_SPENT = re.compile(r"insufficient[ _](?:quota|credit|balance|funds)", re.IGNORECASE)
_QUOTA = re.compile(
    rf"{_SPENT.pattern}|billing[ _]hard[ _]limit|out of credit"
    r"|exceeded your current quota|credit balance is too low|quota (?:is )?(?:exhausted|used up)",
    re.IGNORECASE,
)
_OF_THE_QUESTION = re.compile(
    r"content.?(?:filter|policy|management)|filtered|flagged|moderation|safety|usage polic|too (?:long|large)"
    r"|context.?(?:length|window)|maximum.{0,20}(?:context|length|tokens)",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(r"request (?:is )?too large", re.IGNORECASE)
_NAMED = (  # what an error is called where it comes with status 200
    (402, _SPENT),
    (401, re.compile(r"auth|api.?key|permission", re.IGNORECASE)),
    (404, re.compile(r"not.?found", re.IGNORECASE)),
    (429, re.compile(r"rate.?limit|too.?many|resource.?exhausted", re.IGNORECASE)),
    (503, re.compile(r"overloaded|unavailable|internal|server.?error", re.IGNORECASE)),
    (
        400,
        re.compile(
            r"invalid|filter|policy|context.?length|too.?long|unsupported|bad.?request", re.IGNORECASE
        ),
    ),
)
_LATER = re.compile(  # when to come back, where no header says it
    r"(?:retry|try again) (?:in|after) ((?:\d+(?:\.\d+)?(?:ms|h|m|s))+)|\"retryDelay\": *\"([\d.]+s)\"",
    re.IGNORECASE,
)


class UnusableError(MechsafetyError):
    """An endpoint that cannot be asked as it is named: nobody is there, or it does not know the key or the model."""


def is_spent(about: str, *, waits: bool) -> bool:
    """Whether an error with code and message ``about`` says that the quota is used up.

    ``waits``: it names a time to come back, so that only a word for money tells it from a limit a minute.
    """
    return (_SPENT if waits else _QUOTA).search(about) is not None


def is_of_the_question(about: str) -> bool:
    """Whether an error is about one question: a filter, or its length."""
    return _OF_THE_QUESTION.search(about) is not None


def is_too_large(about: str) -> bool:
    """Whether one question alone is more than a limit of rates allows, so that no wait helps."""
    return _TOO_LARGE.search(about) is not None


def named_status(code: str) -> int | None:
    """The HTTP status that the code or type of an error stands for."""
    return next((status for status, name in _NAMED if name.search(code)), None)


def asked_wait(headers: Mapping[str, str]) -> float:
    """Seconds that the headers of an error ask to wait; 0 where none says."""
    return duration(f"{headers.get('retry-after-ms', '')}ms") or retry_after(headers.get("retry-after"))


def said_wait(about: str) -> float:
    """The same of its message."""
    found = _LATER.search(about)
    return duration(found[1] or found[2]) if found else 0.0


def retry_after(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 if there is none that can be read."""
    if not header:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            moment = parsedate_to_datetime(header)
        except ValueError:
            return 0.0
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return seconds if seconds > 0 else 0.0  # NaN as well
