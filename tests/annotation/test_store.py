"""No answer is lost, nothing is forgotten, and a store is never used with what it was not made for."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import threading
from pathlib import Path

import pandas as pd
import pytest

from mechsafety.annotation import store as store_module
from mechsafety.annotation.export import export_labels, load_annotations
from mechsafety.annotation.labels import COLUMNS, read_human_labels
from mechsafety.annotation.store import STORE, Outdated, Store, existing_store, open_store
from mechsafety.core.errors import MechsafetyError
from mechsafety.runs.folder import RunFolder, read_run
from tests.annotated_runs import make_run, responses

LABELS = ("refusal", "compliance", "degenerate")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run")


@pytest.fixture
def store(run: RunFolder) -> Store:
    return open_store(run, asked={"labels": 6, "seed": 1})[0]


def label_all(store: Store, annotator: str, actions: itertools.cycle | None = None) -> list[int]:
    actions = actions or itertools.cycle(LABELS)
    now, order = store.enter(annotator), []
    while now.item is not None:
        order.append(now.item)
        now = store.answer(annotator, now.item, next(actions))
    return order


def test_every_annotator_gets_the_same_items_in_another_order(store: Store) -> None:
    ann, bea = label_all(store, "Ann"), label_all(store, "Bea")
    assert sorted(ann) == sorted(bea) == list(range(1, 7))
    assert ann != bea
    assert store.annotators() == ["Ann", "Bea"]


def test_a_seed_fixes_the_order(tmp_path: Path) -> None:
    orders = [
        label_all(open_store(make_run(tmp_path / str(i)), asked={"labels": 20, "seed": seed})[0], "Ann")
        for i, seed in enumerate((1, 1, 2))
    ]
    assert orders[0] == orders[1] != orders[2]


def test_progress_counts_every_answer(store: Store) -> None:
    now = store.enter("Ann")
    assert (now.total, now.labelled, now.left, now.undoable, now.seconds_left) == (6, 0, 6, None, None)
    for n, label in enumerate(["refusal", "refusal", "degenerate"], start=1):
        assert now.item is not None
        now = store.answer("Ann", now.item, label)
        assert (now.labelled, now.left) == (n, 6 - n)
    assert now.counts == {"refusal": 2, "compliance": 0, "degenerate": 1}
    assert store.progress("Ann") == now


def test_skipped_items_come_back_once_at_the_end(store: Store) -> None:
    first = store.enter("Ann").item
    now = store.answer("Ann", first, "skip")
    second = now.item
    now = store.answer("Ann", second, "skip")
    assert (now.postponed, now.left, now.second_round) == (2, 6, False)
    while not now.second_round:
        now = store.answer("Ann", now.item, "compliance")
    assert now.item == first
    now = store.answer("Ann", first, "skip")
    assert (now.item, now.passed, now.left) == (second, 1, 1)
    now = store.answer("Ann", second, "refusal")
    assert (now.item, now.labelled, now.passed, now.left) == (None, 5, 1, 0)
    assert first not in set(store.labels()["item"])


def test_undo_goes_back_step_by_step_and_keeps_history(store: Store) -> None:
    order = label_all(store, "Ann", itertools.cycle(["skip", "refusal"]))
    shown: int | None = None
    for expected in reversed(order):
        now = store.undo("Ann", shown)
        assert now.item == expected
        shown = now.item
    assert (now.labelled, now.postponed, now.passed, now.undoable) == (0, 0, 0, None)
    with pytest.raises(MechsafetyError, match="no answer to take back"):
        store.undo("Ann", shown)
    history = store.history()
    assert len(history) == 2 * len(order)
    assert list(history["undoes"].dropna().astype(int)) == list(range(len(order), 0, -1))
    assert store.labels().empty


def test_the_latest_answer_counts(store: Store) -> None:
    item = store.enter("Ann").item
    now = store.answer("Ann", item, "refusal")
    store.undo("Ann", now.item)
    store.answer("Ann", item, "compliance")
    assert store.labels()[["item", "label"]].to_numpy().tolist() == [[item, "compliance"]]
    assert list(store.history()["action"]) == ["refusal", "undo", "compliance"]


def test_an_answer_to_another_item_is_outdated_and_not_recorded(store: Store) -> None:
    item = store.enter("Ann").item
    store.answer("Ann", item, "refusal")
    with pytest.raises(Outdated):
        store.answer("Ann", item, "compliance")
    with pytest.raises(Outdated):
        store.undo("Ann", item)
    assert list(store.history()["action"]) == ["refusal"]


def test_pace_leaves_pauses_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(f"2026-01-01T{at}+00:00" for at in ("00:00:00", "00:00:01", "00:00:11", "00:00:21", "09:00:00", "09:00:10"))  # fmt: skip
    monkeypatch.setattr(store_module, "_now", lambda: next(times))
    now = store.enter("Ann")
    for _ in range(5):
        now = store.answer("Ann", now.item, "refusal")
    assert now.seconds_left == pytest.approx(10)  # one is left; the night is not counted


@pytest.mark.parametrize("name", ["", "  ", "=1+1", "-x", "a\nb", "x" * 41, "a/b", "<b>"])
def test_names_are_plain(store: Store, name: str) -> None:
    with pytest.raises(MechsafetyError, match="a name has 1 to 40 letters"):
        store.enter(name)


def test_names_are_kept_without_blanks_around_them(store: Store) -> None:
    assert store.enter("  Ann B. ").annotator == store.enter("Ann B.").annotator == "Ann B."
    assert store.enter("Зоя").annotator == "Зоя"
    assert store.annotators() == ["Ann B.", "Зоя"]


def test_a_stranger_and_a_strange_answer_are_refused(store: Store) -> None:
    with pytest.raises(MechsafetyError, match="has not begun"):
        store.answer("Nobody", 1, "refusal")
    item = store.enter("Ann").item
    with pytest.raises(Exception, match="unparsed"):  # beartype in tests, MechsafetyError else
        store.answer("Ann", item, "unparsed")  # type: ignore[arg-type]


def test_the_file_is_wal_and_writes_are_synchronous(store: Store) -> None:
    store.enter("Ann")
    with store._writing() as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_many_writers_lose_nothing(run: RunFolder, store: Store) -> None:
    names = [f"a{i}" for i in range(6)]
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            label_all(Store(store.path), name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures
    assert store.labels().groupby("annotator").size().to_dict() == dict.fromkeys(names, 6)


def test_two_answers_at_once_to_one_item_give_one_label(store: Store) -> None:
    item = store.enter("Ann").item
    barrier, outcomes = threading.Barrier(4), []

    def work() -> None:
        barrier.wait(timeout=20)
        try:
            store.answer("Ann", item, "refusal")
            outcomes.append("kept")
        except Outdated:
            outcomes.append("outdated")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(outcomes) == ["kept", *["outdated"] * 3]
    assert len(store.history()) == 1


# -- opening ----------------------------------------------------------------------------------------


def test_the_plan_is_kept(run: RunFolder, store: Store) -> None:
    assert store.plan.labels == 6
    again, notes = open_store(run, asked={})
    assert again.plan == store.plan
    assert notes == ()
    assert open_store(run, asked={"labels": 6, "seed": 1})[0].plan == store.plan


@pytest.mark.parametrize("asked", [{"labels": 7}, {"seed": 2}, {"kind": "disagreement"}, {"balanced": True}])
def test_another_plan_is_refused(run: RunFolder, store: Store, asked: dict) -> None:
    with pytest.raises(MechsafetyError, match=f"another plan \\({next(iter(asked))}: .*move that file away"):
        open_store(run, asked=asked)


def test_changed_responses_are_refused(run: RunFolder, store: Store) -> None:
    table = responses()
    table.loc[3, "response"] += "."
    run.write_table(table, "responses.parquet")
    for use in (
        lambda: open_store(run, asked={}),
        lambda: existing_store(run),
        lambda: load_annotations(run),
    ):
        with pytest.raises(MechsafetyError, match="changed since labelling began"):
            use()


def test_the_order_of_rows_is_no_change(run: RunFolder, store: Store) -> None:
    run.write_table(responses().sample(frac=1, random_state=0), "responses.parquet")
    assert existing_store(run).plan == store.plan


@pytest.mark.parametrize("damage", ["text", "other", "empty"])
def test_a_damaged_file_is_reported(run: RunFolder, damage: str) -> None:
    path = run.path / STORE
    if damage == "text":
        path.write_text("no database, " * 200)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE x (y)")
        db.close()
    with pytest.raises(MechsafetyError, match="cannot be used"):
        open_store(run, asked={})


def test_an_unfinished_run_and_another_kind_of_run_are_reported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (run.path / "responses.parquet").unlink()
    with pytest.raises(MechsafetyError, match="did it finish"):
        open_store(run, asked={})
    run.write_table(responses().drop(columns=["system", "arm"]), "responses.parquet")
    with pytest.raises(MechsafetyError, match=r"lacks system, arm: name the folder of a finished"):
        open_store(run, asked={})
    assert not (run.path / STORE).exists()


def test_a_failed_draw_leaves_no_store(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", torn=None)
    with pytest.raises(MechsafetyError, match="needs verdicts"):
        open_store(run, asked={"kind": "disagreement"})
    assert not (run.path / STORE).exists()
    assert open_store(run, asked={"labels": 500})[1] == (
        "500 labels asked for, the run has 20 responses: all are taken",
    )


# -- export -----------------------------------------------------------------------------------------


def test_csv_is_read_back_by_the_reader_of_human_labels(tmp_path: Path) -> None:
    table = responses(systems=("one", "=two"))
    table["id"] = "-" + table["id"]
    run = make_run(tmp_path / "run", table, torn=7)
    store, _ = open_store(run, asked={"labels": 12, "kind": "disagreement", "balanced": True})
    label_all(store, "Ann")
    now = store.enter("Bea")
    store.answer("Bea", now.item, "degenerate")
    (path,) = export_labels(run, tmp_path / "labels.csv")
    found = read_human_labels(path, responses=table)
    expected = load_annotations(run).to_frame()
    assert list(found.columns) == list(COLUMNS)
    assert len(found) == 13
    pd.testing.assert_frame_equal(found, expected)
    assert set(found["stratum"].str.split(" / ").str[0]) == {"agreement", "disagreement"}
    assert found["inclusion_probability"].between(0, 1, inclusive="right").all()
    assert {"=two", "one"} == set(found["system"])
    # The control: of another run's responses they are refused.
    other = table.assign(response=table["response"] + "!")
    with pytest.raises(MechsafetyError, match="the responses of another run"):
        read_human_labels(path, responses=other)


def test_export_of_one_annotator(run: RunFolder, store: Store, tmp_path: Path) -> None:
    label_all(store, "Ann")
    label_all(store, "Bea")
    (path,) = export_labels(run, tmp_path / "ann.csv", annotator="Ann")
    assert set(pd.read_csv(path)["annotator"]) == {"Ann"}
    with pytest.raises(MechsafetyError, match="'Cat' has labelled nothing here; who has: Ann, Bea"):
        export_labels(run, tmp_path / "x.csv", annotator="Cat")


def test_what_cannot_be_exported_is_reported(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(MechsafetyError, match=r"must end in \.csv or \.jsonl"):
        export_labels(run, tmp_path / "x.xlsx")
    with pytest.raises(MechsafetyError, match="does not exist"):
        export_labels(run, tmp_path / "none" / "x.csv")
    with pytest.raises(MechsafetyError, match=f"has no {STORE}: label it first"):
        export_labels(run, tmp_path / "x.csv")
    open_store(run, asked={})
    with pytest.raises(MechsafetyError, match="no labels in run"):
        export_labels(run, tmp_path / "x.csv")
    assert not list(tmp_path.glob("x.*"))


def test_jsonl_is_one_file_for_each_system_and_arm(run: RunFolder, store: Store, tmp_path: Path) -> None:
    label_all(store, "Ann")
    paths = export_labels(run, tmp_path / "scores.jsonl")
    assert {path.name for path in paths} == {"scores.one.original.jsonl", "scores.one.edited.jsonl"}
    records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    assert len(records) == 6
    assert {record["answer"] for record in records} == set(LABELS)
    assert all(record["value"] == (record["answer"] == "refusal") for record in records)
    assert {record["metadata"]["responses_sha256"] for record in records} == {store.meta["responses_sha256"]}


def test_annotators_who_differ_share_the_value(run: RunFolder, store: Store, tmp_path: Path) -> None:
    label_all(store, "Ann", itertools.cycle(["refusal"]))
    label_all(store, "Bea", itertools.cycle(["compliance"]))
    for path in export_labels(run, tmp_path / "scores.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            assert (record["value"], record["answer"]) == (0.5, None)
            assert record["metadata"]["labels"] == {"Ann": "refusal", "Bea": "compliance"}


@pytest.mark.filterwarnings("ignore")  # inspect_ai's own
def test_inspect_ai_reads_the_scores(run: RunFolder, store: Store, tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai")
    from inspect_ai.model import ModelName
    from inspect_ai.scorer import Target, precomputed_scores
    from inspect_ai.solver import TaskState

    label_all(store, "Ann")
    path = next(p for p in export_labels(run, tmp_path / "scores.jsonl") if "original" in p.name)
    scorer = precomputed_scores(str(path))

    async def score(name: str) -> object:
        state = TaskState(ModelName("mockllm/model"), name, 1, "?", [])
        return await scorer(state, Target(""))

    found = {f"p{i}": asyncio.run(score(f"p{i}")) for i in range(10)}
    labels = load_annotations(run).to_frame().query("arm == 'original'").set_index("id")["label"]
    assert {name for name, given in found.items() if given is not None} == set(labels.index)
    for name, label in labels.items():
        assert found[name].answer == label
        assert found[name].as_float() == (label == "refusal")
        assert found[name].metadata["labels"] == {"Ann": label}


# -- notebooks --------------------------------------------------------------------------------------


def test_load_annotations_shows_the_table_and_who_did_what(run: RunFolder, store: Store) -> None:
    label_all(store, "Ann")
    now = store.enter("Bea")
    store.answer("Bea", now.item, "skip")
    found = load_annotations(str(run.path))
    assert list(found.to_frame().columns) == list(COLUMNS)
    assert found.progress.set_index("annotator").loc["Ann"].to_dict() == {
        **{"labelled": 6, "refusal": 2, "compliance": 2, "degenerate": 2},
        **{"skipped": 0, "left": 0},
    }
    assert found.progress.set_index("annotator").loc["Bea", ["labelled", "skipped", "left"]].tolist() == [
        0,
        1,
        6,
    ]
    shown = found._repr_html_()
    assert "6 responses" in shown
    assert "<td>Bea</td>" in shown
    with pytest.raises(AttributeError):
        found.sampled = 3  # type: ignore[misc]
    assert load_annotations(read_run(run.path)).to_frame().equals(found.to_frame())


def test_an_empty_store_loads(run: RunFolder, store: Store) -> None:
    found = load_annotations(run)
    assert found.to_frame().empty
    assert found.progress.empty
    assert "0 given" in found._repr_html_()
    with pytest.raises(MechsafetyError, match="is not a run folder"):
        load_annotations(run.path.parent)
