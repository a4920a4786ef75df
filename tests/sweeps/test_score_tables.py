"""Recorded tables come in under either project's names, and what is wrong with one is said with its place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from mechsafety import cli
from mechsafety.core.errors import MechsafetyError
from mechsafety.sweeps.score_tables import read_score_table
from mechsafety.sweeps.selection import select, selection_stability

OURS = [
    {"position": -1, "layer": 1, "bypass": -1.5, "induce": 0.5, "kl": 0.05},
    {"position": -2, "layer": 2, "bypass": -2.5, "induce": 1.5, "kl": 0.15},
    {"position": -1, "layer": 9, "bypass": -9.0, "induce": 9.0, "kl": 0.01},
    {"position": -2, "layer": 3, "bypass": None, "induce": 1.0, "kl": 0.01},
]
THEIRS = {"bypass": "refusal_score", "induce": "steering_score", "kl": "kl_div_score"}


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.main, ["select", *map(str, arguments)])


@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_every_form_under_both_names_is_the_same_table(tmp_path: Path, suffix: str, theirs: bool) -> None:
    rows = [{THEIRS.get(k, k): v for k, v in row.items()} if theirs else row for row in OURS]
    table = read_score_table(write(rows, tmp_path / f"t.{suffix}"), n_layers=10)
    expected = pd.DataFrame(OURS).astype({"bypass": float})
    pd.testing.assert_frame_equal(table, expected)
    assert select(table, n_layers=10, rule="arditi").layer == 1
    assert select(table.assign(harmful=0.5, harmless=-1.0), n_layers=10).layer == 1


def test_command_prints_what_was_selected_and_dropped(tmp_path: Path) -> None:
    path = write(OURS, tmp_path / "t.json")
    unedited = ("--harmful", 0.5, "--harmless", -1)
    shown = json.loads(run(path, "--layers", 10, *unedited, "--json").stdout)
    assert {k: shown[k] for k in ("position", "layer", "kept", "total", "kl_bound")} == {
        "position": -1,
        "layer": 1,
        "kept": 1,
        "total": 4,
        "kl_bound": 0.1,
    }
    assert list(shown["dropped"].values()) == [1, 0, 1, 0, 0, 1]
    text = run(path, "--layers", 10, *unedited)
    assert text.exit_code == 0
    assert "Layer 1, position -1" in text.stdout
    assert "1 by layer >= 8, 1 by NaN, 1 by KL > 0.1" in text.stdout


# Published selections (arXiv 2406.11717): the counts a rule leaves, rebuilt from the row that was selected.
@pytest.mark.parametrize(
    ("n_layers", "positions", "kept", "chosen"),
    [
        (24, 5, 12, (-2, 15, -5.058, 1.651, 0.0658)),
        (18, 5, 13, (-2, 10, -14.419, 6.789, 0.0659)),
        (32, 6, 7, (-5, 20, -6.748, 1.639, 0.0472)),
        (32, 6, 5, (-1, 14, -5.617, 5.986, 0.0712)),
        (32, 5, 25, (-5, 12, -9.855, 7.676, 0.0588)),
    ],
)
def test_published_selections_replay(
    tmp_path: Path, n_layers: int, positions: int, kept: int, chosen: tuple[Any, ...]
) -> None:
    position, layer, bypass, induce, kl = chosen
    rows = []
    left = kept - 1
    for p in range(-positions, 0):
        for at in range(n_layers):
            passes = left > 0 and at < int(0.8 * n_layers) and (p, at) != (position, layer)
            left -= passes
            # The others that pass refuse a little, or are even above nought: they count as kept all the same.
            score = 0.5 if left % 2 else bypass + 1 + at / 100
            rows.append(
                {
                    "position": p,
                    "layer": at,
                    "refusal_score": score,
                    "steering_score": 1.0,
                    "kl_div_score": 0.05,
                }
                if passes
                else {
                    "position": p,
                    "layer": at,
                    "refusal_score": bypass - 1,
                    "steering_score": 1.0,
                    "kl_div_score": 0.7,
                }
            )
            if (p, at) == (position, layer):
                rows[-1] = {
                    "position": p,
                    "layer": at,
                    "refusal_score": bypass,
                    "steering_score": induce,
                    "kl_div_score": kl,
                }
    shown = json.loads(
        run(write(rows, tmp_path / "t.json"), "--layers", n_layers, "--rule", "arditi", "--json").stdout
    )
    assert (shown["position"], shown["layer"], shown["kept"]) == (position, layer, kept)
    assert shown["total"] == positions * n_layers


def test_mistakes_are_reported_with_their_place(tmp_path: Path) -> None:
    good = OURS[0]
    for rows, said in (
        (
            [{k: v for k, v in good.items() if k != "kl"}],
            r"item 1: no column for kl \(kl or kl_div_score\); have",
        ),
        ([good | {"layer": 1.5}], "item 1: layer is 1.5, a whole number is expected"),
        ([good | {"bypass": "low"}], "column 'bypass' holds 'low', which is no number"),
        ([good, good], "item 2: position -1, layer 1 stands already at item 1"),
        ([good | {"layer": 11}], r"layer 11 of a model with 10 layers"),
        (
            [good | {"system": "a"}, OURS[1] | {"system": "b"}],
            r"several systems \(a, b\); name one with --system",
        ),
        ([], "no rows"),
    ):
        with pytest.raises(MechsafetyError, match=said):
            read_score_table(write(rows, tmp_path / "t.json"), n_layers=10)
    both = [good | {"system": "a"}, good | {"system": "b", "layer": 2}]
    picked = read_score_table(write(both, tmp_path / "t.json"), n_layers=10, where={"system": "b"})
    assert list(picked["layer"]) == [2]
    for arguments, said in (
        ([tmp_path / "none.csv", "--layers", 3], "does not exist"),
        ([tmp_path / "t.json", "--layers", 0], "1 at least"),
        ([tmp_path / "t.json", "--layers", 10, "--system", "c"], "no rows with system 'c'"),
        (
            [tmp_path / "t.json", "--layers", 10, "--system", "a", "--rule", "best"],
            "rule 'best' is not one of",
        ),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert said in result.stderr
        assert "Traceback" not in result.output


def test_stability_is_the_share_of_resamples(tmp_path: Path) -> None:
    unedited = {"harmful": 5.0, "harmless": -5.0}
    table = pd.DataFrame(
        {"position": -1, "layer": [1, 2], "bypass": 0.0, "induce": 1.0, "kl": 0.05} | unedited
    )
    generator = np.random.default_rng(0)
    scores: dict[str, Any] = {
        "induce": np.ones((2, 20)),
        "kl": np.full((2, 20), 0.05),
        "n_layers": 10,
        "rule": "auto",
        "resamples": 300,
        "seed": 0,
    }
    # Equal in the mean: each is picked about half of the time; one clearly lower is picked always.
    noise = generator.normal(-3, 1, 20)
    close = selection_stability(table, bypass=np.stack([noise, noise[::-1]]), **scores)
    assert 0.3 < close["share"].max() < 0.7
    clear = selection_stability(table, bypass=np.stack([noise, noise - 1]), **scores)
    assert clear[["layer", "share"]].to_numpy().tolist() == [[2, 1.0]]
    none = selection_stability(table, bypass=np.full((2, 20), 4.0), **scores)
    assert none["layer"].isna().all()
    assert none["share"].tolist() == [1.0]
    assert math.isclose(float(close["share"].sum()), 1.0)
