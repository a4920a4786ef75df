"""A run folder: its manifest, its tables, and the parts that let an interrupted run go on.

The only writer of results. Every file is written beside its place and moved there, so that a run killed
at any moment leaves whole files; the work between two parts is all that can be lost.

Parts are made from sources: models, adapters, files. What each source was (:class:`Provenance`) is kept in the
manifest, and a run whose sources are no longer what they were is not gone on with.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mechsafety.core.arguments import as_path
from mechsafety.core.days import today
from mechsafety.core.errors import MechsafetyError, RefusedRunError, way
from mechsafety.runs.atomic import SCRATCH, atomically
from mechsafety.runs.sources import Provenance, admitted, conflicts, differences, first_differences, only

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.json"
_PARTS = "parts"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_ID = "id"
_NAMES = frozenset({_ID, "system", "judge", "judge_a", "judge_b", "annotator"})
"""Columns that tables are joined by: text, also where it looks like a number or like nothing."""
_PACKAGES = (
    "mechsafety",
    "torch",
    "transformer-lens",
    "transformers",
    "peft",
    "datasets",
    "numpy",
    "scikit-learn",
    "statsmodels",
    "plotly",
)
_COMPUTING = tuple(name for name in _PACKAGES if name not in ("datasets", "plotly"))
"""The packages whose versions numbers may depend on."""


class RunFolder:
    """One run on disk. Made by :func:`open_run`."""

    def __init__(self, path: str | Path, *, allow_other_versions: bool = False) -> None:
        path = as_path(path)
        self.path = path
        self._allowed = allow_other_versions
        self._session = -1  # the last one in the manifest, unless open_run finds that of an earlier call

    @property
    def manifest(self) -> dict[str, Any]:
        try:
            stored = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        except ValueError:  # not JSON, not UTF-8
            stored = None
        if not isinstance(stored, dict) or not isinstance(stored.get("config"), dict):
            raise MechsafetyError(f"the manifest of run {str(self.path)!r} is damaged: name another folder")
        return stored

    def record(self, section: str, value: Any) -> None:
        """Put one section into the manifest, replacing what stood there."""
        self.write_text(MANIFEST, json.dumps(self.manifest | {section: value}, indent=2) + "\n")

    def record_item(self, section: str, key: str, value: Any) -> None:
        """Put one key into a section of the manifest."""
        self.record(section, self.manifest.get(section, {}) | {key: value})

    def require_source(self, name: str, made_from: Provenance) -> None:
        """Bind the run to a source that parts are made from: kept when it is first named, compared from then on.

        For a source that is there only when the run has begun; others are given to :func:`open_run`. Raises
        :class:`MechsafetyError` that names what differs.
        """
        self._require_sources({name: made_from})

    def _require_sources(self, made_from: Mapping[str, Provenance]) -> None:
        stored = self.manifest
        known = stored.get("sources", {})
        now = {name: dict(one.identity) for name, one in made_from.items()}
        if changed := differences({name: known[name] for name in now if name in known}, only(now, known)):
            raise RefusedRunError(
                f"run {str(self.path)!r} was made from something else ({first_differences(changed)}), and its parts do "
                f"not mix with new ones: name a new folder with {way('--out')}, or put back what was "
                "there; nothing was changed "
                "in it"
            )
        session = {
            "versions": computing_versions(),
            "sources": {name: dict(one.circumstance) for name, one in made_from.items()},
        }
        before = stored.get("sessions", [])
        found = admitted(session, before, first=self._session, allowed=self._allowed)
        if found is None:
            raise RefusedRunError(
                f"run {str(self.path)!r} was begun under other circumstances "
                f"({first_differences(conflicts(before[-1], session))}), which change digits: go on all the same with "
                f"{way('--allow-other-versions', 'allow_other_versions=True')}, which is recorded, or name a new "
                f"folder with {way('--out')}"
            )
        self._session, sessions = found
        sources = {**known, **now}
        if "sources" not in stored or sources != known or sessions != before:
            text = json.dumps(stored | {"sources": sources, "sessions": sessions}, indent=2) + "\n"
            self.write_text(MANIFEST, text)

    def circumstance(self, name: str) -> dict[str, Any]:
        """What may change numbers that are made from the source ``name`` in this session: versions, device, format."""
        session = self.manifest["sessions"][self._session]
        return {"versions": session["versions"], **session["sources"].get(name, {})}

    def part_path(self, *key: str, suffix: str = "parquet") -> Path:
        """Where the part named by ``key`` lies; names are made safe and stay distinct."""
        return self.path / _PARTS / Path(*(_safe(k) for k in key[:-1])) / f"{_safe(key[-1])}.{suffix}"

    def has_part(self, *key: str, suffix: str = "parquet") -> bool:
        return self.part_path(*key, suffix=suffix).is_file()

    def parts(self, *key: str, suffix: str = "parquet") -> list[Path]:
        """The files of all parts whose names begin with ``key``, in the order of their names.

        A file that a killed process had begun to write is none.
        """
        found = Path(self.path / _PARTS, *map(_safe, key)).rglob(f"*.{suffix}")
        return sorted(path for path in found if not path.name.startswith(SCRATCH))

    def part_files(self, *key: str) -> list[Path]:
        """The files of every format of the parts whose names are ``key`` or begin with it."""
        at = Path(self.path / _PARTS, *map(_safe, key))
        found = [*at.rglob("*"), *(at.parent.glob(f"{glob.escape(at.name)}.*") if key else ())]
        return sorted(p for p in found if p.is_file() and not p.name.startswith(SCRATCH))

    def read_part(self, *key: str) -> pd.DataFrame:
        import pandas as pd

        return pd.read_parquet(self.part_path(*key))

    def write_part(self, table: pd.DataFrame, *key: str) -> None:
        atomically(self.part_path(*key), lambda path: table.to_parquet(path, index=False))

    def read_json_part(self, *key: str) -> Any:
        return json.loads(self.part_path(*key, suffix="json").read_text(encoding="utf-8"))

    def write_json_part(self, value: Any, *key: str) -> None:
        text = json.dumps(value, indent=2) + "\n"
        atomically(self.part_path(*key, suffix="json"), lambda path: path.write_text(text, encoding="utf-8"))

    def write_table(self, table: pd.DataFrame, name: str) -> Path:
        """Write ``name`` (ending in .parquet or .csv) at the top of the run."""
        target = self.path / name
        if target.suffix == ".csv":
            safe = neutralised(table)
            atomically(target, lambda path: safe.to_csv(path, index=False, lineterminator="\n"))
        else:
            atomically(target, lambda path: table.to_parquet(path, index=False))
        return target

    def read_table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        path = self.path / name
        if not path.is_file():
            raise MechsafetyError(f"run {str(self.path)!r} has no {name}: did it finish? Run the study again")
        if path.suffix != ".csv":
            return pd.read_parquet(path)
        named = pd.read_csv(path, usecols=lambda column: column in _NAMES, dtype=str, keep_default_na=False)
        return pd.read_csv(path).assign(
            **{str(c): named[c] if c == _ID else named[c].map(_restored) for c in named}
        )

    def write_text(self, name: str, text: str) -> Path:
        target = self.path / name
        atomically(target, lambda path: path.write_text(text, encoding="utf-8"))
        return target

    def save(self, name: str, save: Callable[[Path], object]) -> Path:
        """Let ``save`` write a file of its own format at ``name``, atomically."""
        target = self.path / name
        atomically(target, save)
        return target


def finite(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as JSON can hold them: NaN and infinities become null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in facts.items()
    }


def neutralised(table: pd.DataFrame) -> pd.DataFrame:
    """Text cells that a spreadsheet would run as a formula get an apostrophe before them, as OWASP advises.

    Such cells begin with = + - @, a tab or the end of a line, and are no numbers. Ids are left alone, or a join by
    them would lose rows.
    """
    changed = {}
    for column in table.columns:
        if column == _ID:
            continue
        risky = table[column].map(_would_run).astype(bool)
        if risky.any():
            changed[column] = table[column].where(~risky, "'" + table[column].astype(str))
    return table.assign(**changed) if changed else table


def _would_run(cell: object) -> bool:
    return isinstance(cell, str) and cell.startswith(_FORMULA) and not _NUMBER.fullmatch(cell)


def _restored(name: str) -> str:
    bare = name.removeprefix("'")
    return bare if _would_run(bare) else name


@contextmanager
def open_run(
    path: str | Path,
    *,
    config: Mapping[str, Any],
    sources: Mapping[str, Provenance] | Callable[[], Mapping[str, Provenance]] = MappingProxyType({}),
    allow_other_versions: bool = False,
) -> Iterator[RunFolder]:
    """Begin or go on with the run in ``path``; one process at a time.

    ``sources`` are, by name, what its parts are made from; a function is called when the folder is known to be one for
    this run. Raises :class:`MechsafetyError` when the folder holds a run
    of another configuration or of other sources (with what differs), of other versions, devices or number formats
    (unless ``allow_other_versions``, which is recorded), of a version of mechsafety that kept no sources, something
    that is not a run, or is in use.
    """
    path = as_path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise MechsafetyError(f"{str(path)!r} is a file: name a folder for the run") from None
    except OSError as error:
        raise MechsafetyError(f"cannot make the run folder {str(path)!r}: {error.strerror}") from None
    if not (path / MANIFEST).is_file():
        _require_empty(path)
    try:
        lock = FileLock(path / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise MechsafetyError(f"run {str(path)!r} is in use by another process") from None
    except OSError as error:
        raise MechsafetyError(f"cannot write in the run folder {str(path)!r}: {error.strerror}") from None
    try:
        run = RunFolder(path, allow_other_versions=allow_other_versions)
        if (path / MANIFEST).is_file():
            _require_known_sources(run)
            _require_same(run, config)
        else:
            run.write_text(
                MANIFEST, json.dumps({"config": dict(config), "versions": versions()}, indent=2) + "\n"
            )
        run._require_sources(sources() if callable(sources) else sources)
        yield run
    finally:
        lock.release()


def read_run(path: str | Path) -> RunFolder:
    """A finished or unfinished run, for reading."""
    path = as_path(path)
    if not (path / MANIFEST).is_file():
        raise MechsafetyError(f"{str(path)!r} is not a run folder: it holds no {MANIFEST}")
    return RunFolder(path)


def versions() -> dict[str, str]:
    """Python's and the packages' versions."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def computing_versions() -> dict[str, str]:
    """The versions of the packages that numbers may depend on."""
    found = versions()
    return {name: found[name] for name in _COMPUTING}


def _require_empty(path: Path) -> None:
    # A run killed while it wrote its manifest leaves the lock and a scratch file.
    strangers = [p.name for p in path.iterdir() if p.name != ".lock" and not p.name.startswith(SCRATCH)]
    if strangers:
        raise MechsafetyError(
            f"{str(path)!r} is not a run folder (it holds {min(strangers)!r}): name a new or empty one"
        )


def _require_known_sources(run: RunFolder) -> None:
    # What a killed process leaves before its manifest names sources is no result.
    if "sources" in run.manifest or not _holds_results(run.path):
        return
    raise MechsafetyError(
        f"run {str(run.path)!r} was made by an older version of mechsafety, which did not record what it was made "
        f"from: name a new folder with {way('--out')} (reports and figures of the old one can still be written)"
    )


def _holds_results(path: Path) -> bool:
    return any(p.name not in (".lock", MANIFEST) and not p.name.startswith(SCRATCH) for p in path.iterdir())


def _require_same(run: RunFolder, config: Mapping[str, Any]) -> None:
    changed = differences(run.manifest["config"], json.loads(json.dumps(dict(config))))
    if changed:
        raise MechsafetyError(
            f"run {str(run.path)!r} has another configuration ({first_differences(changed)}): name another folder "
            f"with {way('--out')}, or give the old settings again"
        )


def _safe(name: str) -> str:
    clean = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("._") or "_"
    return (
        clean
        if clean == name and len(clean) <= 120
        else f"{clean[-120:]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    )


def pinned_date(path: str | Path, asked: str | None) -> str:
    """The day for which chat templates write a date in the run in ``path``.

    The one that the run has recorded, so that one that goes on reads the same prompts; else the one asked for, else
    today. :func:`record_date` keeps it.
    """
    path = as_path(path)
    recorded = RunFolder(path).manifest.get("date") if (path / MANIFEST).is_file() else None
    return str(recorded or asked or today())


def record_date(run: RunFolder, day: str) -> None:
    if run.manifest.get("date") != day:
        run.record("date", day)
