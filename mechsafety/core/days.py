"""Days of the calendar, as configurations and run records write them."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator

from mechsafety.core.errors import MechsafetyError


def checked_day(text: str) -> str:
    """``text`` if it is a day such as 2025-03-01."""
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:
        raise MechsafetyError(f"date {text!r} is no day of the calendar: write it as 2025-03-01")
    return text


def _valid_day(given: Any) -> Any:
    if type(given) is datetime.date:  # what YAML makes of a day without quotes
        return given.isoformat()
    try:
        return checked_day(given) if isinstance(given, str) else given
    except MechsafetyError as error:
        raise ValueError(str(error)) from None


Day = Annotated[str, BeforeValidator(_valid_day)]
"""A day such as 2025-03-01, as a field of a configuration."""


def today() -> str:
    return datetime.date.today().isoformat()
