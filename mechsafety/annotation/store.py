"""The labels of a run while people give them: one SQLite file in the run folder.

Events are only ever appended: a label, a skip, or an undo that names the event it takes back. Every event is on the
disk (WAL, ``synchronous=FULL``) before :meth:`Store.answer` returns, and several processes may write at once.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast, get_args

import pandas as pd
from filelock import FileLock

from mechsafety.annotation.labels import HUMAN_LABELS, responses_sha256
from mechsafety.annotation.sampling import Plan, draw_sample
from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError
from mechsafety.prompts.files import cell_text
from mechsafety.runs.folder import RunFolder

STORE = "annotations.sqlite"
Action = Literal["refusal", "compliance", "degenerate", "skip"]
ACTIONS: tuple[Action, ...] = get_args(Action)
RESPONSE_COLUMNS = ("system", "arm", "id", "prompt", "response")

_FORMAT = 1
_NAME = re.compile(r"[^\W_][\w .-]{0,39}")
_LOCKED_FOR = 10.0
"""Seconds to wait for another process that writes."""
_PAUSE = 120.0
"""Seconds between two answers above which the annotator was away; not counted in the pace."""
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE items (
    item INTEGER PRIMARY KEY, system TEXT NOT NULL, arm TEXT NOT NULL, id TEXT NOT NULL,
    stratum TEXT NOT NULL, inclusion_probability REAL NOT NULL, UNIQUE (system, arm, id)
);
CREATE TABLE annotators (name TEXT PRIMARY KEY, joined TEXT NOT NULL);
CREATE TABLE events (
    event INTEGER PRIMARY KEY AUTOINCREMENT, annotator TEXT NOT NULL REFERENCES annotators (name),
    item INTEGER NOT NULL REFERENCES items (item),
    action TEXT NOT NULL CHECK (action IN ('refusal', 'compliance', 'degenerate', 'skip', 'undo')),
    undoes INTEGER UNIQUE REFERENCES events (event), at TEXT NOT NULL
);
"""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where one annotator stands. ``item`` is the next to label, None at the end.

    ``postponed`` were skipped once and come again at the end, ``passed`` were skipped twice.
    """

    annotator: str
    item: int | None
    total: int
    counts: Mapping[str, int]
    postponed: int
    passed: int
    second_round: bool
    undoable: int | None
    seconds_left: float | None

    @property
    def labelled(self) -> int:
        return sum(self.counts.values())

    @property
    def left(self) -> int:
        return self.total - self.labelled - self.passed


class Outdated(MechsafetyError):
    """An answer to an item that is not the one to answer now: another page was quicker."""


def require_name(name: str) -> str:
    """An annotator's name without blanks around it, or a :class:`MechsafetyError`."""
    clean = name.strip()
    if not _NAME.fullmatch(clean):
        raise MechsafetyError(
            f"annotator {clean[:60]!r}: a name has 1 to 40 letters, digits, blanks, dots, dashes or "
            "underscores, and begins with a letter or digit"
        )
    return clean


def require_action(action: object) -> Action:
    """An answer as the page sends it, or a :class:`MechsafetyError`."""
    if action not in ACTIONS:
        raise MechsafetyError(f"answer {str(action)[:60]!r} is not one of {', '.join(ACTIONS)}")
    return cast("Action", action)


class Store:
    """The open store of a run. Made by :func:`open_store`."""

    def __init__(self, path: str | Path) -> None:
        path = as_path(path)
        self.path = path

    @property
    def meta(self) -> dict[str, str]:
        with self._reading() as db:
            return dict(db.execute("SELECT key, value FROM meta"))

    @property
    def plan(self) -> Plan:
        return _plan_of(self.meta)

    def items(self) -> pd.DataFrame:
        """What is labelled: item, system, arm, id, stratum, inclusion_probability."""
        with self._reading() as db:
            return pd.read_sql_query("SELECT * FROM items ORDER BY item", db)

    def annotators(self) -> list[str]:
        with self._reading() as db:
            return [name for (name,) in db.execute("SELECT name FROM annotators ORDER BY joined, name")]

    def enter(self, annotator: str) -> Progress:
        """Let an annotator begin or go on."""
        name = require_name(annotator)
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO annotators VALUES (?, ?)", (name, _now()))
            return self._progress(db, name)

    def progress(self, annotator: str) -> Progress:
        with self._reading() as db:
            return self._progress(db, annotator)

    def answer(self, annotator: str, item: int, action: Action) -> Progress:
        """Record a label or a skip of the item that is shown; on the disk when this returns.

        Raises :class:`Outdated` when another item is to be answered now.
        """
        with self._writing() as db:
            self._require_current(db, annotator, item)
            self._append(db, annotator, item, action, None)
            return self._progress(db, annotator)

    def undo(self, annotator: str, item: int | None) -> Progress:
        """Take back the annotator's latest answer while ``item`` (None: the end) is shown. History stays."""
        with self._writing() as db:
            now = self._require_current(db, annotator, item)
            if now.undoable is None:
                raise MechsafetyError("there is no answer to take back")
            (taken,) = db.execute("SELECT item FROM events WHERE event = ?", (now.undoable,)).fetchone()
            self._append(db, annotator, taken, "undo", now.undoable)
            return self._progress(db, annotator)

    def labels(self) -> pd.DataFrame:
        """The labels that count, one row an annotator and item: annotator, label, and the item's columns."""
        rows = []
        with self._reading() as db:
            for (name,) in db.execute("SELECT name FROM annotators ORDER BY joined, name").fetchall():
                rows += [
                    (item, name, actions[-1])
                    for item, actions in sorted(_by_item(_standing(db, name)).items())
                    if actions[-1] != "skip"
                ]
        given = pd.DataFrame(rows, columns=["item", "annotator", "label"])
        return given.merge(self.items(), on="item", how="left", validate="many_to_one")

    def history(self) -> pd.DataFrame:
        """Every event, undone ones too: event, annotator, item, action, undoes, at."""
        with self._reading() as db:
            return pd.read_sql_query("SELECT * FROM events ORDER BY event", db)

    # -- inside -------------------------------------------------------------------------------------

    def _progress(self, db: sqlite3.Connection, annotator: str) -> Progress:
        if db.execute("SELECT 1 FROM annotators WHERE name = ?", (annotator,)).fetchone() is None:
            raise MechsafetyError(f"annotator {annotator!r} has not begun: enter the name on the first page")
        (seed,) = db.execute("SELECT value FROM meta WHERE key = 'seed'").fetchone()
        items = [item for (item,) in db.execute("SELECT item FROM items")]
        standing = _standing(db, annotator)
        by_item = _by_item(standing)
        fresh = [item for item in _order(items, int(seed), annotator) if item not in by_item]
        postponed = [item for item, actions in by_item.items() if actions == ["skip"]]
        passed = sum(actions == ["skip", "skip"] for actions in by_item.values())
        counts = Counter(actions[-1] for actions in by_item.values())
        left = len(fresh) + len(postponed)
        return Progress(
            annotator=annotator,
            item=next(iter([*fresh, *postponed]), None),
            total=len(items),
            counts={label: counts[label] for label in HUMAN_LABELS},
            postponed=len(postponed),
            passed=passed,
            second_round=not fresh and bool(postponed),
            undoable=standing[-1][0] if standing else None,
            seconds_left=_pace(standing, left),
        )

    def _require_current(self, db: sqlite3.Connection, annotator: str, item: int | None) -> Progress:
        now = self._progress(db, annotator)
        if now.item != item:
            raise Outdated("this item was answered already, perhaps on another page; here is the next")
        return now

    @staticmethod
    def _append(db: sqlite3.Connection, annotator: str, item: int, action: str, undoes: int | None) -> None:
        db.execute(
            "INSERT INTO events (annotator, item, action, undoes, at) VALUES (?, ?, ?, ?, ?)",
            (annotator, item, action, undoes, _now()),
        )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with _sqlite(self.path), closing(_connect(self.path)) as db:
            yield db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with _sqlite(self.path), closing(_connect(self.path)) as db:
            # Immediate: what is read here still holds when it is written.
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.rollback()
                raise
            db.commit()


def open_store(run: RunFolder, *, asked: Mapping[str, Any]) -> tuple[Store, tuple[str, ...]]:
    """The store of ``run``, made by the plan ``asked`` for on first use; and notes about the sample.

    ``asked`` holds fields of :class:`Plan`; those left out are the defaults, or what the store has. Raises
    :class:`MechsafetyError` when the store has another plan, or the run's responses changed since.
    """
    responses = read_shown(run)
    path, notes = run.path / STORE, ()
    if not path.is_file():
        try:
            with FileLock(run.path / "annotations.lock"):
                if not path.is_file():
                    notes = _create(run, responses, Plan(**asked))
        except OSError as error:
            raise MechsafetyError(f"cannot write in {str(run.path)!r}: {error.strerror}") from None
    store = Store(path)
    meta = store.meta
    stored = asdict(_plan_of(meta))
    if changed := [f"{k}: {stored[k]!r} -> {v!r}" for k, v in asked.items() if stored[k] != v]:
        raise MechsafetyError(
            f"{path} was begun with another plan ({'; '.join(changed)}): leave these options out to go on, "
            "or move that file away to begin again"
        )
    if meta["responses_sha256"] != responses_sha256(responses):
        raise MechsafetyError(
            f"the responses of run {str(run.path)!r} changed since labelling began: restore responses.parquet, "
            f"or move {STORE} away to begin again"
        )
    return store, notes


def existing_store(run: RunFolder) -> Store:
    """The store of a run that people have begun to label."""
    path = run.path / STORE
    if not path.is_file():
        raise MechsafetyError(
            f"run {str(run.path)!r} has no {STORE}: label it first with mechsafety annotate {run.path}"
        )
    return open_store(run, asked={})[0]


def read_shown(run: RunFolder) -> pd.DataFrame:
    """The run's responses: system, arm, id, prompt, response."""
    responses = run.read_table("responses.parquet")
    if missing := [name for name in RESPONSE_COLUMNS if name not in responses.columns]:
        raise MechsafetyError(
            f"responses.parquet of run {str(run.path)!r} lacks {', '.join(missing)}: "
            "name the folder of a finished study"
        )
    return responses[list(RESPONSE_COLUMNS)]


def texts(responses: pd.DataFrame) -> dict[tuple[str, str, str], tuple[str, str]]:
    """(prompt, response) by (system, arm, id)."""
    return {
        (str(system), str(arm), str(name)): (cell_text(prompt), cell_text(response))
        for system, arm, name, prompt, response in responses.itertuples(index=False, name=None)
    }


def _create(run: RunFolder, responses: pd.DataFrame, plan: Plan) -> tuple[str, ...]:
    verdicts = run.read_table("verdicts.parquet") if (run.path / "verdicts.parquet").is_file() else None
    sample = draw_sample(responses, verdicts, plan=plan)
    meta = {"format": _FORMAT, **asdict(plan), "responses_sha256": responses_sha256(responses)}

    def save(path: Path) -> None:
        with _sqlite(run.path / STORE), closing(_connect(path)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(_SCHEMA)
            db.execute("BEGIN")
            db.executemany("INSERT INTO meta VALUES (?, ?)", [(k, str(v)) for k, v in meta.items()])
            rows = sample.items[["item", "system", "arm", "id", "stratum", "inclusion_probability"]]
            db.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", rows.astype(object).values.tolist())
            db.commit()

    run.save(STORE, save)
    return sample.notes


def _plan_of(meta: Mapping[str, str]) -> Plan:
    kind: Any = meta["kind"]
    return Plan(
        kind=kind, labels=int(meta["labels"]), seed=int(meta["seed"]), balanced=meta["balanced"] == "True"
    )


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_LOCKED_FOR, isolation_level=None)
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    return db


@contextmanager
def _sqlite(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise MechsafetyError(
            f"{path} cannot be used ({error}): is the disk full or read-only, or the file damaged? "
            "Labels that were given are kept"
        ) from None


def _standing(db: sqlite3.Connection, annotator: str) -> list[tuple[int, int, str, str]]:
    """The annotator's answers that were not taken back: (event, item, action, at), oldest first."""
    return db.execute(
        "SELECT event, item, action, at FROM events AS e WHERE annotator = ? AND action <> 'undo' "
        "AND NOT EXISTS (SELECT 1 FROM events AS u WHERE u.undoes = e.event) ORDER BY event",
        (annotator,),
    ).fetchall()


def _by_item(standing: list[tuple[int, int, str, str]]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for _, item, action, _ in standing:
        found.setdefault(item, []).append(action)
    return found


def _order(items: list[int], seed: int, annotator: str) -> list[int]:
    """The annotator's own order. Hashes, not a generator: the same in every version of every library."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}\0{annotator}\0{item}".encode()).digest())


def _pace(standing: list[tuple[int, int, str, str]], left: int) -> float | None:
    """Seconds that ``left`` items take at the median pace of the latest answers; None while it is not known."""
    times = [datetime.fromisoformat(at) for *_, at in standing[-31:]]
    gaps = [(b - a).total_seconds() for a, b in pairwise(times)]
    worked = [gap for gap in gaps if 0 <= gap <= _PAUSE]
    return statistics.median(worked) * left if len(worked) >= 3 else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
