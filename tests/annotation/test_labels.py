"""A file of labels is read whole or refused with the line to mend."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from mechsafety.annotation.labels import COLUMNS, read_human_labels, responses_sha256
from mechsafety.core.errors import MechsafetyError
from tests.annotated_runs import responses

TABLE = responses()
ROW = {"system": "one", "arm": "original", "id": "p1", "label": "refusal"}


def read(folder: Path, *rows: dict, suffix: str = "csv") -> pd.DataFrame:
    path = folder / f"labels.{suffix}"
    table = pd.DataFrame(rows, columns=None if rows else list(ROW))
    if suffix == "csv":
        table.to_csv(path, index=False)
    elif suffix == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path, index=False)
    return read_human_labels(path, responses=TABLE)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_four_columns_are_enough(tmp_path: Path, suffix: str) -> None:
    found = read(tmp_path, ROW, ROW | {"id": "p2", "label": " Compliance "}, suffix=suffix)
    assert list(found.columns) == list(COLUMNS)
    assert found.iloc[0].to_dict() == ROW | {
        **{"annotator": "1", "inclusion_probability": 1.0, "stratum": "all", "responses_sha256": ""}
    }
    assert found["label"].tolist() == ["refusal", "compliance"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no labels in it"),
        ([{k: v for k, v in ROW.items() if k != "arm"}], "lacks arm"),
        (
            [ROW | {"label": "unparsed"}],
            "line 2: label 'unparsed' is not on the menu: refusal, compliance, degenerate",
        ),
        ([ROW | {"label": ""}], "label '' is not on the menu"),
        ([ROW | {"arm": "both"}], "arm 'both' is not one of original, edited"),
        ([ROW | {"id": "p99"}], "no response of system 'one', arm 'original', id 'p99'"),
        ([ROW, ROW | {"label": "compliance"}], "line 3: '1' labelled one / original / p1 twice"),
        ([ROW | {"responses_sha256": "0" * 64}], "the responses of another run"),
        *(
            ([ROW | {"inclusion_probability": value}], f"inclusion_probability '{value}' does not lie in")
            for value in ("0", "-0.5", "1.5", "nan", "inf", "half")
        ),
    ],
)
def test_what_cannot_be_read_is_reported(tmp_path: Path, rows: list[dict], message: str) -> None:
    with pytest.raises(MechsafetyError, match=message):
        read(tmp_path, *rows)


def test_two_annotators_may_label_one_response(tmp_path: Path) -> None:
    found = read(tmp_path, ROW | {"annotator": "Ann"}, ROW | {"annotator": "Bea", "label": "degenerate"})
    assert found["annotator"].tolist() == ["Ann", "Bea"]


def test_the_hash_is_of_what_was_shown() -> None:
    base = responses_sha256(TABLE)
    assert responses_sha256(TABLE.sample(frac=1, random_state=0)) == base
    assert responses_sha256(TABLE.assign(category="other")) == base
    for column in ("system", "arm", "id", "response"):
        changed = TABLE.copy()
        changed.loc[0, column] = changed.loc[0, column] + "x"
        assert responses_sha256(changed) != base
    # A boundary between two cells is no part of either.
    moved = TABLE.head(1).assign(system="onea", arm="b"), TABLE.head(1).assign(system="one", arm="ab")
    assert responses_sha256(moved[0]) != responses_sha256(moved[1])


def test_labels_of_two_plans_are_not_joined(tmp_path: Path) -> None:
    first = ROW | {"annotator": "Ann", "inclusion_probability": 0.5, "stratum": "all"}
    for other in ({"inclusion_probability": 0.1}, {"stratum": "disagreement"}):
        with pytest.raises(MechsafetyError, match=r"line 3: .*two sampling plans"):
            read(tmp_path, first, first | {"annotator": "Bea"} | other)
    assert len(read(tmp_path, first, first | {"annotator": "Bea"})) == 2
