"""Prompts: the packaged sets are what their README says, files round trip, mistakes name their line."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.places import data_folder
from mechsafety.prompts.columns import LABELS, PURPOSES, SPLITS, folded
from mechsafety.prompts.files import SUFFIXES
from mechsafety.prompts.prompt_set import Prompt, PromptSet, cell_text, from_rows, load_prompts
from mechsafety.prompts.sources import SOURCES
from mechsafety.prompts.splits import require_disjoint, require_labels, require_splits

ROWS = [
    {"id": "a", "text": "Tell me, please:\nwhat?", "label": "harmless", "category": "x", "split": "fit"},
    {"id": "b", "text": 'Say "no" – naïve', "label": "harmful", "category": "", "split": "validation"},
    {"id": "c", "text": "Über 3 €", "label": "harmless", "category": "y", "split": "report"},
]


def error_of(name: object, **options: Any) -> str:
    with pytest.raises(MechsafetyError) as caught:
        load_prompts(str(name), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the packaged sets ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def default() -> PromptSet:
    return load_prompts("default")


@pytest.fixture(scope="session")
def contrast() -> PromptSet:
    return load_prompts("contrast")


def test_default_is_350_pairs_in_ten_categories(default: PromptSet) -> None:
    assert (len(default.harmful), len(default.harmless)) == (350, 350)
    counts = Counter((p.category, p.label) for p in default)
    assert set(counts.values()) == {35}
    assert len(counts) == 20
    sizes = {split: [len(default.where(split=split, label=label)) for label in LABELS] for split in SPLITS}
    assert sizes == {"fit": [220, 220], "validation": [80, 80], "report": [50, 50]}
    per_topic = Counter((p.category, p.split) for p in default.harmful)
    assert {split: {per_topic[c, split] for c, _ in counts} for split in SPLITS} == {
        "fit": {22},
        "validation": {8},
        "report": {5},
    }


def test_contrast_is_100_safe_requests(contrast: PromptSet) -> None:
    assert {p.label for p in contrast} == {"harmless"}
    assert Counter(p.split for p in contrast) == {"fit": 60, "validation": 20, "report": 20}
    stated = re.search(r"The types of `contrast.csv`: (.*)\.\n", readme())
    assert stated
    types = {name: int(n) for name, n in re.findall(r"`(\w+)` (\d+)", stated[1])}
    assert Counter(p.category for p in contrast) == types


def test_ids_report_category_label_and_pair(default: PromptSet, contrast: PromptSet) -> None:
    for prompt in default:
        assert re.fullmatch(rf"{prompt.category}-{prompt.label}-\d\d", prompt.id)
    assert all(re.fullmatch(r"contrast-\d{3}", prompt.id) for prompt in contrast)


def pairs(prompts: PromptSet) -> list[tuple[Prompt, Prompt]]:
    """Harmful and harmless partner, in file order of the harmful ones."""
    by_id = {p.id: p for p in prompts}
    return [(p, by_id[p.id.replace("-harmful-", "-harmless-")]) for p in prompts.harmful]


def test_pairs_stay_together_and_match_in_form(default: PromptSet) -> None:
    found = pairs(default)
    assert len({harmless.id for _, harmless in found}) == 350
    equal = 0
    for a, b in found:
        assert (a.category, a.split, a.label, b.label) == (b.category, b.split, "harmful", "harmless")
        assert a.text.split()[0].lower() == b.text.split()[0].lower()
        assert a.text[-1] == b.text[-1]
        assert all(8 <= len(p.text.split()) <= 20 for p in (a, b))
        assert abs(len(a.text.split()) - len(b.text.split())) <= 1
        assert abs(len(a.text) - len(b.text)) <= 5
        for kind in (",", "'", "-", r"[A-Z]", r"\d"):
            assert len(re.findall(kind, a.text)) == len(re.findall(kind, b.text))
        equal += len(a.text.split()) == len(b.text.split())
    assert equal == 327
    assert Counter(a.text[-1] for a, _ in found) == {"?": 84, ".": 266}


def test_checksums_match() -> None:
    folder = data_folder() / "prompts"
    lines = [line.split() for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()]
    stated = {name: digest for digest, name in lines}
    assert set(stated) == {path.name for path in folder.glob("*.csv")}
    for name, digest in stated.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_no_text_occurs_twice(default: PromptSet, contrast: PromptSet) -> None:
    texts = [re.sub(r"[^\w\s]", "", p.text.lower()) for p in (*default, *contrast)]
    assert len(set(texts)) == len(texts) == 800


def test_packaged_files_are_utf8_with_lf(default: PromptSet) -> None:
    for path in (data_folder() / "prompts").glob("*.csv"):
        assert b"\r" not in path.read_bytes()
    assert {(p.source, p.licence) for p in default} == {("mechsafety", "CC0-1.0")}


def readme() -> str:
    return (data_folder() / "README.md").read_text(encoding="utf-8")


def stated_pair(row: str) -> list[float]:
    found = re.search(rf"^\| {re.escape(row)} \| ([\d.]+) \| ([\d.]+) \|$", readme(), re.MULTILINE)
    assert found, row
    return [float(found[1]), float(found[2])]


def test_stated_means_are_the_files(default: PromptSet) -> None:
    for suffix, chosen in (("", default), (", `report` rows", default.report)):
        for word, size in (("words", lambda t: len(t.split())), ("characters", len)):
            means = [
                round(float(np.mean([size(p.text) for p in chosen.where(label=label)])), 2)
                for label in LABELS
            ]
            assert means == stated_pair(f"mean {word}{suffix}")


def test_stated_contrast_figures_are_the_files(contrast: PromptSet) -> None:
    mean = np.mean([len(p.text.split()) for p in contrast])
    questions = sum(p.text.endswith("?") for p in contrast)
    assert f"(mean {mean:.2f} words, {questions} questions)" in readme()


def surface(prompts: PromptSet) -> np.ndarray:
    """The README's 19 features."""
    firsts = [p.text.split()[0].lower().strip(",.?") for p in prompts]
    frequent = [word for word, _ in Counter(firsts).most_common(10)]  # ties: first seen comes first
    rows = []
    for prompt, first in zip(prompts, firsts, strict=True):
        text = prompt.text
        words = re.findall(r"[\w'-]+", text)
        rows.append(
            [
                len(text),
                len(text.split()),
                np.mean([len(w) for w in words]),
                text.count(","),
                text.endswith("?"),
                text.count("'"),
                text.count("-"),
                sum(c.isupper() for c in text),
                sum(c.isdigit() for c in text),
                *(first == word for word in frequent),
            ]
        )
    return np.array(rows, dtype=float)


def held_out_auroc(prompts: PromptSet, features: np.ndarray) -> float:
    """AUROC of pooled held-out probabilities; the k-th pair in file order is in fold k mod 10."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    order: dict[str, int] = {}
    folds = np.array(
        [order.setdefault(re.sub("-harm(ful|less)-", "-", p.id), len(order)) % 10 for p in prompts]
    )
    assert len(order) == 350
    labels = np.array([p.label == "harmful" for p in prompts])
    chance = np.zeros(len(prompts))
    for fold in range(10):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
        model.fit(features[folds != fold], labels[folds != fold])
        chance[folds == fold] = model.predict_proba(features[folds == fold])[:, 1]
    return float(roc_auc_score(labels, chance))


def test_the_surface_does_not_reveal_the_label(default: PromptSet) -> None:
    features = surface(default)
    assert features.shape == (700, 19)
    auroc = held_out_auroc(default, features)
    assert 0.42 < auroc < 0.58
    assert f"AUROC of a classifier that sees only the surface: {auroc:.2f}." in readme()
    # The control: a surface that does tell, by two more characters in harmful prompts.
    features[:, 0] += [8.0 * (p.label == "harmful") for p in default]
    assert held_out_auroc(default, features) > 0.58


# -- formats ----------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """``rows`` in the format that the name of ``path`` says."""
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8", newline=""
        )
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


TABLES = [s for s in SUFFIXES if s != ".txt"]


@pytest.mark.parametrize("suffix", TABLES)
def test_every_format_gives_the_same_prompts(tmp_path: Path, suffix: str) -> None:
    found = load_prompts(write(tmp_path / f"mine{suffix}", ROWS))
    assert found.name == f"mine{suffix}"
    shown = [{key: row[key] for key in ROWS[0]} for row in found.to_frame().to_dict("records")]
    assert shown == ROWS
    assert {p.source for p in found} == {found.name}


@pytest.mark.parametrize("suffix", TABLES)
def test_written_rows_load_back_equal(default: PromptSet, tmp_path: Path, suffix: str) -> None:
    again = load_prompts(write(tmp_path / f"default{suffix}", default.to_frame().to_dict("records")))
    assert again.prompts == default.prompts
    assert again.sha256() == default.sha256() != default[1:].sha256()


def test_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("first one\n\n  second\u2028one  \nthird\x0cone", encoding="utf-8")
    found = load_prompts(path, label="harmless", split="fit")
    assert [p.text for p in found] == ["first one", "second\u2028one", "third\x0cone"]
    assert [p.id for p in found] == ["mine-0001", "mine-0002", "mine-0003"]
    assert {(p.label, p.split) for p in found} == {("harmless", "fit")}


def test_jsonl_is_divided_at_line_feeds_only(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two\x85three", "label": "harmless"}, {"text": "four", "label": "harmful"}]
    found = load_prompts(write(tmp_path / "mine.jsonl", rows))
    assert [p.text for p in found] == [row["text"] for row in rows]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".txt"])
def test_byte_order_mark_and_crlf_change_nothing(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": row["text"].replace("\n", " "), "label": "harmful"} for row in ROWS]
    plain = tmp_path / f"mine{suffix}"
    if suffix == ".txt":
        plain.write_text("\n".join(row["text"] for row in rows), encoding="utf-8")
    else:
        write(plain, rows)
    (tmp_path / "windows").mkdir()
    windows = tmp_path / "windows" / plain.name
    lines = plain.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    windows.write_bytes(b"\xef\xbb\xbf" + lines)
    assert load_prompts(windows, label="harmful").prompts == load_prompts(plain, label="harmful").prompts


@pytest.mark.parametrize("column", ["text", "prompt", "question", "instruction", "goal", "behavior"])
def test_text_columns(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "mine.csv", [{column: "make bread", "label": "harmless"}])
    assert load_prompts(path)[0].text == "make bread"


def test_the_files_label_and_split_win_over_the_option(tmp_path: Path) -> None:
    rows = [{"text": "one", "label": "harmful", "split": "fit"}, {"text": "two", "label": "", "split": ""}]
    found = load_prompts(write(tmp_path / "mine.csv", rows), label="harmless", split="validation")
    assert [(p.label, p.split) for p in found] == [("harmful", "fit"), ("harmless", "validation")]
    assert load_prompts(tmp_path / "mine.csv", label="harmless")[1].split == "report"


def test_strings_in_json_are_prompts(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('["one", "two"]', encoding="utf-8")
    assert [p.text for p in load_prompts(tmp_path / "mine.json", label="harmful")] == ["one", "two"]


def test_missing_cells_of_parquet_are_empty(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"text": ["one", "two"], "label": "harmful", "id": ["x", None], "category": [np.nan] * 2}
    )
    table.to_parquet(tmp_path / "mine.parquet")
    found = load_prompts(tmp_path / "mine.parquet")
    assert [(p.id, p.category) for p in found] == [("x", ""), ("mine-0002", "")]


def test_cells() -> None:
    assert [cell_text(v) for v in (None, float("nan"), "", 0, 7, "a")] == ["", "", "", "0", "7", "a"]


# -- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.csv", "text,label,split\na b,harmful,fit\nc,harmful,fit\nA  B,harmful,report\n", "line 4: this text stands in split 'report' and, at line 2, in 'fit'"),
        ("m.csv", "text,label\na b,harmful\nc,harmful\nA  B,harmless\n", "line 4: this text is labelled 'harmless' and, at line 2, 'harmful'"),
        ("m.json", '[{"text": "Straße", "label": "harmful"}, {"text": "STRASSE", "label": "harmless"}]', "item 2: this text is labelled 'harmless' and, at item 1, 'harmful'"),
        ("m.csv", "text,label\na,harmful\n  ,harmful\n", "line 3: column 'text' is empty"),
        ("m.csv", "id,text,label\nx,a,harmful\nx,b,harmful\n", "line 3: id 'x' stands already at line 2"),
        ("m.csv", "words,label\na,harmful\n", "line 2: no text column; have words, label, want one of text, prompt"),
        ("m.csv", "text,label\na,harmful\nb,harmful,more\n", "line 3: 2 columns in the header, another number here"),
        ("m.csv", "text,label\na,harmful\nb\n", "line 3: 2 columns in the header, another number here"),
        ("m.csv", 'text,label\n"a" b,harmful\n', "line 2: "),
        ("m.csv", 'text,label\na,harmful\n"b,harmful\n', "line 3: unexpected end of data"),
        ("m.csv", "text,label\na,bad\n", "line 2: label 'bad' is not one of harmful, harmless"),
        ("m.csv", "text,label,split\na,harmful,test\n", "line 2: split 'test' is not one of fit, validation, report"),
        ("m.csv", "text,label\n", "no prompts in it"),
        ("m.csv", "", "no prompts in it"),
        ("m.csv", b"text,label\na,harmful\ncaf\xe9,harmful\n", "line 3: not UTF-8 (byte 0xe9); save the file as UTF-8"),
        ("m.txt", "", "no prompts in it"),
        ("m.txt", " \n\n", "no prompts in it"),
        ("m.json", "", "line 1: not JSON"),
        ("m.json", '[\n{"text": "a",}\n]', "line 2: not JSON"),
        ("m.json", '{"text": "a"}', "a list of objects is expected, got dict"),
        ("m.json", '[{"text": "a", "label": "harmful"}, 7]', "item 2: an object or a string is expected, got int"),
        ("m.json", '[{"text": null, "label": "harmful"}]', "item 1: column 'text' is empty"),
        ("m.json", '[{"text": ["a"], "label": "harmful"}]', "item 1: column 'text' holds a list, not text"),
        ("m.json", '[{"text": "a \\ud83d", "label": "harmful"}]', "item 1: column 'text' holds half a character"),
        ("m.json", "[]", "no prompts in it"),
        ("m.jsonl", '{"text": "a", "label": "harmful"}\n\n{"text": \n', "line 3: not JSON"),
        ("m.jsonl", '{"text": "a", "label": "harmful"}\n[]\n', "line 2: an object or a string is expected, got list"),
        ("m.jsonl", "", "no prompts in it"),
        ("m.parquet", "text,label\n", "not a Parquet file"),
        ("m.parquet", "", "not a Parquet file"),
        ("m.md", "text", "the file's name must end in .csv, .json, .jsonl, .parquet, .txt"),
    ],
)  # fmt: skip
def test_refusals_name_file_and_line(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = error_of(path)
    assert message.startswith(str(path))
    assert said in message


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_file(tmp_path: Path, suffix: str) -> None:
    assert error_of(tmp_path / f"none{suffix}").endswith("does not exist")


@pytest.mark.parametrize("name", ["advbenck", "../judging/anchors", ""])
def test_unknown_set_names_what_there_is(name: str) -> None:
    message = error_of(name)
    assert message.startswith(f"unknown prompt set {name!r}")
    assert ": packaged are contrast, default" in message
    assert ("did you mean 'advbench'" in message) == (name == "advbenck")
    assert "advbench" in message


# -- sets -------------------------------------------------------------------------------------------


def test_views_are_parts_of_the_set(default: PromptSet) -> None:
    assert [p.id for p in default.fit] == [p.id for p in default if p.split == "fit"]
    assert default.validation.prompts == default.where(split="validation").prompts
    assert default.report.harmful.prompts == default.where(split="report", label="harmful").prompts
    assert sorted(p.id for part in (default.harmful, default.harmless) for p in part) == sorted(
        p.id for p in default
    )
    assert default.where().prompts == default.prompts
    assert {part.name for part in (default.fit, default[:3], default.harmful)} == {"default"}
    assert default[0] in default
    assert default[:3].prompts == default.prompts[:3]


def test_html_counts_and_escapes() -> None:
    prompts = PromptSet((Prompt(id="a", text="x", label="harmful"),), "<b>")
    shown = prompts._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "<tr><td>report</td><td>1</td><td>0</td></tr>" in shown


@given(per_label=st.integers(0, 50), seed=st.integers(0, 5))
def test_sample_is_deterministic_and_keeps_order(per_label: int, seed: int) -> None:
    default = PromptSet(
        tuple(Prompt(id=str(i), text=f"t{i}", label=LABELS[i * i % 3 % 2]) for i in range(60))
    )
    drawn = default.sample(per_label, seed=seed)
    assert drawn.prompts == default.sample(per_label, seed=seed).prompts
    assert [len(drawn.harmful), len(drawn.harmless)] == [min(per_label, 20), min(per_label, 40)]
    places = [int(p.id) for p in drawn]
    assert places == sorted(places)


def test_another_seed_draws_others(default: PromptSet) -> None:
    assert default.sample(20, seed=0).prompts != default.sample(20, seed=1).prompts


def test_hash_sees_every_field_and_the_order() -> None:
    prompt: Any = Prompt(
        id="a", text="b", label="harmful", category="c", split="fit", source="d", licence="e"
    )
    other: dict[str, Any] = {"id": "z", "text": "z", "label": "harmless", "category": "z", "split": "report", "source": "z", "licence": "z"}  # fmt: skip
    changed = [Prompt(**vars(prompt) | {field: value}) for field, value in other.items()]
    hashes = [PromptSet((p,)).sha256() for p in (prompt, *changed)]
    assert len(set(hashes)) == 8
    a, b = changed[:2]
    assert PromptSet((a, b)).sha256() != PromptSet((b, a)).sha256()


def test_a_text_twice_in_one_cell_is_counted_once_and_reported() -> None:
    given = [("a b", "fit"), ("c", "fit"), ("A  b", "fit"), (" a B ", "fit"), ("d", "report")]
    rows = [
        (f"line {i}", {"text": text, "label": "harmful", "split": split})
        for i, (text, split) in enumerate(given)
    ]
    found = from_rows(rows, where="here", name="x.csv")
    assert [(p.id, p.text) for p in found] == [("x-0001", "a b"), ("x-0002", "c"), ("x-0005", "d")]
    assert found.repeated == 2
    assert "(2 given twice, counted once)" in found._repr_html_()
    once = from_rows([rows[0], rows[1], rows[4]], where="here", name="x.csv")
    assert once.repeated == 0
    assert "twice" not in once._repr_html_()
    assert [p.text for p in once] == [p.text for p in found]


def test_every_split_has_one_purpose(default: PromptSet) -> None:
    views = (default.to_estimate, default.to_choose, default.to_judge)
    assert views == (default.fit, default.validation, default.report)
    assert {PURPOSES[purpose] for purpose in PURPOSES} == set(SPLITS)


def _made(text: str, label: Any, split: Any, number: int) -> Prompt:
    return Prompt(id=f"{split}-{number}", text=text, label=label, split=split)


@given(
    texts=st.lists(st.text("aAb  ß", min_size=1).filter(str.strip), min_size=2, max_size=6), seed=st.randoms()
)
def test_sets_are_disjoint_exactly_where_no_folded_text_is_in_both(texts: list[str], seed: Any) -> None:
    sides = [seed.random() < 0.5 for _ in texts]
    one = [
        _made(t, "harmful", "fit", i) for i, (t, side) in enumerate(zip(texts, sides, strict=True)) if side
    ]
    other = [
        _made(t, "harmful", "report", i)
        for i, (t, side) in enumerate(zip(texts, sides, strict=True))
        if not side
    ]
    shared = {folded(p.text) for p in one} & {folded(p.text) for p in other}
    if shared:
        with pytest.raises(MechsafetyError, match=r"report prompt 'report-\d' is also fit prompt 'fit-\d'"):
            require_disjoint(fit=one, report=other)
    else:
        require_disjoint(fit=one, report=other)


def test_texts_are_the_same_by_one_rule() -> None:
    fit = [_made("tell me about the river", "harmful", "fit", 1), _made("3 + 4", "harmful", "fit", 2)]
    for same in (
        "Tell  me about: the RIVER?",
        "\u201ctell me about the river!\u201d",
        "tell me about the \uff52iver",
    ):
        with pytest.raises(MechsafetyError, match="is also fit prompt 'fit-1'"):
            require_disjoint(fit=fit, report=[_made(same, "harmful", "report", 3)])
        rows = [("1", {"text": fit[0].text, "label": "harmful"}), ("2", {"text": same, "label": "harmful"})]
        assert (len(found := from_rows(rows, where="rows", name="rows")), found.repeated) == (1, 1)
    others = ["3 * 4", "3 - 4", "tell me about the rivers", "???", "!!!"]
    require_disjoint(fit=fit, report=[_made(text, "harmful", "report", i) for i, text in enumerate(others)])
    assert len({folded(text) for text in others}) == len(others)


def test_one_text_under_two_labels_is_reported_within_a_set_too() -> None:
    prompts = [_made("a  b", "harmful", "fit", 1), _made("A B", "harmless", "fit", 2)]
    with pytest.raises(
        MechsafetyError, match="'fit-2' is labelled 'harmless', and 'fit-1' of the same text 'harmful'"
    ):
        require_disjoint(fit=prompts)
    require_disjoint(fit=prompts[:1])


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_split_that_is_needed_must_have_both_labels(default: PromptSet, purpose: Any) -> None:
    split = PURPOSES[purpose]
    lacking = PromptSet(tuple(p for p in default if (p.split, p.label) != (split, "harmless")), "x")
    require_splits(default, PURPOSES, name="x")
    require_splits(lacking, [p for p in PURPOSES if p != purpose], name="x")
    with pytest.raises(MechsafetyError, match=f"'x' has no harmless prompts in split '{split}'"):
        require_splits(lacking, PURPOSES, name="x")


def test_labels_are_needed_only_where_they_are_used() -> None:
    prompts = from_rows([("line 1", {"text": "a"})], where="here", name="x")
    assert prompts[0].label == ""
    with pytest.raises(MechsafetyError, match=r"'x': prompt 'x-0001' has no label: .* label="):
        require_labels(prompts, name="x")
    require_labels(prompts.where(split="fit"), name="x")


def test_rows_without_ids_are_numbered() -> None:
    rows = [(f"line {i}", {"text": f"t{i}", "label": "harmful"}) for i in range(3)]
    assert [p.id for p in from_rows(rows, where="here", name="x.csv")] == ["x-0001", "x-0002", "x-0003"]


# -- published sets ---------------------------------------------------------------------------------

# The columns of each data set on the hub, with two rows and a repeat of the first.
HUB: dict[str, dict[str, Any]] = {
    "advbench": {"prompt": "pqp", "target": "ttt"},
    "harmbench": {"prompt": "pqp", "category": "ccc"},
    "jailbreakbench": {"Index": [0, 1, 2], "Goal": "pqp", "Target": "ttt", "Behavior": "bbb", "Category": "ccc", "Source": "sss"},
    "jailbreakbench-benign": {"Index": [0, 1, 2], "Goal": "pqp", "Target": "ttt", "Behavior": "bbb", "Category": "ccc", "Source": "sss"},
    "strongreject": {"prompt": "pqp", "category": "ccc", "source": "sss"},
    "alpaca": {"instruction": "pqp", "input": ["", "", ""], "output": "ooo", "text": "xxx"},
}  # fmt: skip
ASKED = {
    "advbench": ("walledai/AdvBench", None, "train"),
    "harmbench": ("walledai/HarmBench", "standard", "train"),
    "jailbreakbench": ("JailbreakBench/JBB-Behaviors", "behaviors", "harmful"),
    "jailbreakbench-benign": ("JailbreakBench/JBB-Behaviors", "behaviors", "benign"),
    "strongreject": ("walledai/StrongREJECT", None, "train"),
    "alpaca": ("tatsu-lab/alpaca", None, "train"),
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``hub(columns)`` makes ``datasets.load_dataset`` return that table; the list holds its arguments."""
    import datasets

    def serve(columns: dict[str, Any] | Exception) -> list[Any]:
        asked: list[Any] = []

        def load_dataset(repo: str, config: str | None = None, *, split: str) -> Any:
            asked.append((repo, config, split))
            if isinstance(columns, Exception):
                raise columns
            return datasets.Dataset.from_dict({name: list(values) for name, values in columns.items()})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return serve


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_published_sets_load(hub: Callable[..., list[Any]], name: str) -> None:
    asked = hub(HUB[name])
    found = load_prompts(name, split="fit")
    assert asked == [ASKED[name]]
    harmless = name in ("alpaca", "jailbreakbench-benign")
    has_category = name not in ("alpaca", "advbench")
    assert found.to_frame().to_dict("records") == [
        {
            "id": f"{name}-{number:05d}",
            "text": text,
            "label": "harmless" if harmless else "harmful",
            "category": "c" if has_category else "",
            "split": "fit",
            "source": ASKED[name][0],
            "licence": "CC-BY-NC-4.0" if name == "alpaca" else "MIT",
        }
        for number, text in ((1, "p"), (2, "q"))
    ]


def test_alpaca_rows_with_an_input_are_left_out(hub: Callable[..., list[Any]]) -> None:
    hub(
        {
            "instruction": ["Sum up", "Name a river", "Sum up"],
            "input": ["a text", "", ""],
            "output": ["x"] * 3,
            "text": ["y"] * 3,
        }
    )
    assert [(p.id, p.text) for p in load_prompts("alpaca")] == [
        ("alpaca-00002", "Name a river"),
        ("alpaca-00003", "Sum up"),
    ]


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_missing_column_is_reported(hub: Callable[..., list[Any]], name: str) -> None:
    text = SOURCES[name].text
    hub({("words" if column == text else column): values for column, values in HUB[name].items()})
    message = error_of(name)
    assert f"no column {text!r}; it has " in message
    assert "words" in message


def test_an_empty_row_of_a_published_set_is_reported(hub: Callable[..., list[Any]]) -> None:
    hub({"prompt": ["a", None], "target": ["t", "t"]})
    assert error_of("advbench") == "advbench, row 2: column 'text' is empty"


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (ConnectionError("no route\nand much advice"), "no route. Go online"),
        (ValueError(), "ValueError. Go online"),
    ],
)
def test_an_unreachable_hub_is_one_line(hub: Callable[..., list[Any]], failure: Exception, said: str) -> None:
    hub(failure)
    message = error_of("advbench")
    assert message.startswith("prompt set 'advbench' (walledai/AdvBench on the hub) could not be loaded: ")
    assert said in message
