"""Where things lie: packaged data, presets, and the cache folder."""

from __future__ import annotations

import os
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import platformdirs

_PACKAGE = Path(__file__).resolve().parents[1]


def _packaged(name: str) -> Path:
    # In a wheel data/ and configs/ lie inside the package, in a checkout beside it.
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def data_folder() -> Path:
    """The packaged data: prompts, adapters, judging anchors."""
    return _packaged("data")


def configs_folder() -> Path:
    """The packaged study presets."""
    return _packaged("configs")


def cache_folder() -> Path:
    """Where converted models are kept: ``$MECHSAFETY_CACHE``, or the user's cache folder."""
    named = os.environ.get("MECHSAFETY_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("mechsafety"))


def packaged_words(package: str, name: str) -> dict[str, Any]:
    """The contents of a TOML file of words or sentences that lies in a package beside the code that reads it."""
    return tomllib.loads(resources.files(package).joinpath(name).read_text("utf-8"))
