"""Labels that people gave to the responses of a run: the file format that annotation writes and statistics read.

One row a label: ``system, arm, id`` name the response, ``annotator`` who labelled it, ``label`` is one of refusal,
compliance, degenerate. ``inclusion_probability`` is the chance with which the sampling plan drew the response (1
where everything was labelled), ``stratum`` the plan's stratum, ``responses_sha256`` the responses that were shown.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pandas as pd

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError
from mechsafety.prompts.files import cell_text, read_rows
from mechsafety.statistics.tables import ARMS

HUMAN_LABELS = ("refusal", "compliance", "degenerate")
NEEDED = ("system", "arm", "id", "label")
COLUMNS = (*NEEDED, "annotator", "inclusion_probability", "stratum", "responses_sha256")


def responses_sha256(responses: pd.DataFrame) -> str:
    """Hash of what was shown: every (system, arm, id, response), in any order of rows."""
    rows = responses[["system", "arm", "id", "response"]].astype(str).itertuples(index=False, name=None)
    digest = hashlib.sha256()
    for row in sorted(rows):
        for value in row:
            digest.update(value.encode("utf-8", errors="surrogatepass") + b"\x00")
    return digest.hexdigest()


def read_human_labels(path: str | Path, *, responses: pd.DataFrame) -> pd.DataFrame:
    """Labels of a CSV, JSONL or Parquet file that belong to ``responses`` (columns system, arm, id, response).

    Optional columns get their defaults: annotator ``"1"``, probability 1, stratum ``"all"``. Raises
    :class:`MechsafetyError` for missing columns, labels outside the menu, a response labelled twice by one annotator
    or drawn with two probabilities, responses that the run does not have, or a file made for other responses.

    Returns:
        One row per label.

    Example:
        >>> responses = ms.load_run("runs/study").tables["responses"]
        >>> responses[["system", "arm", "id"]].assign(label="refusal").to_csv("labels.csv", index=False)
        >>> labels = ms.judges.read_human_labels("labels.csv", responses=responses)
        >>> len(labels) == len(responses)
        True
    """
    path = as_path(path)
    if missing := [name for name in ("system", "arm", "id", "response") if name not in responses.columns]:
        raise MechsafetyError(
            f"the responses lack the columns {', '.join(missing)}: a run's are run.tables[...]"
        )
    known = set(responses[["system", "arm", "id"]].astype(str).itertuples(index=False, name=None))
    systems, ids = {system for system, _, _ in known}, {name for _, _, name in known}
    fingerprint = responses_sha256(responses)
    rows, seen = [], set()
    drawn: dict[tuple[str, str, str], tuple[float, str]] = {}
    for place, row in read_rows(path):
        if missing := [name for name in NEEDED if name not in row]:
            raise MechsafetyError(
                f"{path}, {place}: lacks {', '.join(missing)}; a file of labels has the columns {', '.join(NEEDED)}"
            )
        record = _record(row, where=f"{path}, {place}")
        if record["responses_sha256"] not in ("", fingerprint):
            raise MechsafetyError(
                f"{path}, {place}: these labels were given to the responses of another run; "
                "name the run that was annotated"
            )
        record["system"] = _as_known(record["system"], systems)
        record["id"] = _as_known(record["id"], ids)
        key = (record["system"], record["arm"], record["id"])
        if key not in known:
            raise MechsafetyError(
                f"{path}, {place}: the run has no response of system {key[0]!r}, arm {key[1]!r}, id {key[2]!r}; "
                "is this the file of another run?"
            )
        if (*key, record["annotator"]) in seen:
            raise MechsafetyError(
                f"{path}, {place}: {record['annotator']!r} labelled {' / '.join(key)} twice"
            )
        seen.add((*key, record["annotator"]))
        plan = (record["inclusion_probability"], record["stratum"])
        if drawn.setdefault(key, plan) != plan:
            raise MechsafetyError(
                f"{path}, {place}: {' / '.join(key)} has inclusion_probability and stratum {plan}, and {drawn[key]} in "
                "an earlier line; labels of two sampling plans cannot be joined"
            )
        rows.append(record)
    if not rows:
        raise MechsafetyError(f"{path}: no labels in it")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _as_known(name: str, known: set[str]) -> str:
    """A name of the run as the run has it: a spreadsheet, or an older export, may have put an apostrophe before it."""
    bare = name.removeprefix("'")
    return bare if name not in known and bare in known else name


def _record(row: dict[str, Any], *, where: str) -> dict[str, Any]:
    label = cell_text(row["label"]).strip().lower()
    if label not in HUMAN_LABELS:
        raise MechsafetyError(f"{where}: label {label!r} is not on the menu: {', '.join(HUMAN_LABELS)}")
    arm = cell_text(row["arm"])
    if arm not in ARMS:
        raise MechsafetyError(f"{where}: arm {arm!r} is not one of {', '.join(ARMS)}")
    written = cell_text(row.get("inclusion_probability")) or "1"
    try:
        probability = float(written)
    except ValueError:
        probability = math.nan
    if not 0 < probability <= 1:
        raise MechsafetyError(f"{where}: inclusion_probability {written!r} does not lie in (0, 1]")
    return {
        "system": cell_text(row["system"]),
        "arm": arm,
        "id": cell_text(row["id"]),
        "label": label,
        "annotator": cell_text(row.get("annotator")) or "1",
        "inclusion_probability": probability,
        "stratum": cell_text(row.get("stratum")) or "all",
        "responses_sha256": cell_text(row.get("responses_sha256")),
    }
