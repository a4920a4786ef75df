"""Names of systems: short, distinct wherever systems stand side by side, and the same everywhere."""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd
import pytest

from mechsafety.cli.regions import _folder
from mechsafety.core.verdict import LABELS
from mechsafety.experiments.agreement.figures import effect_forest
from mechsafety.experiments.audit.figures import judges_figure
from mechsafety.experiments.comparison.figures import cosine_matrix
from mechsafety.experiments.regions.config import RegionsConfig
from mechsafety.experiments.regions.page import region_chapters
from mechsafety.experiments.selfjudgement.figures import two_by_two_figure
from mechsafety.experiments.study.figures import outcome_bars, refusal_heatmap, self_judgement, study_figures
from mechsafety.plots.style import file_names, short_name, system_names
from mechsafety.runs.folder import open_run, read_run
from mechsafety.statistics import judge_effects, paired_tests, refusal_rates
from tests import region_tables
from tests.experiments.regions.test_page import write_regions

SFT, DPO = "/runs/sft/checkpoint-500", "/runs/dpo/checkpoint-500"
PAIR = [SFT, DPO]
HARD = [
    *PAIR,
    "checkpoint-500",
    "checkpoint-500/",
    "org/checkpoint-500",
    "a b",
    "a_b",
    "a:b",
    "A_B",
    "x/" + "y" * 60 + "/z",
    "x/" + "y" * 61 + "/z",
    "p" * 20 + "1" + "q" * 20,
    "p" * 20 + "2" + "q" * 20,
    "base+one/adapter",
    "base+two/adapter",
]


def verdicts(systems: list[str], *, refused: tuple[int, ...] = (9, 1), unparsed: int = 0) -> pd.DataFrame:
    """Ten harmful and ten harmless answers of each system and arm; the edited arm's last ones are unparsed."""
    rows = []
    for (system, k), arm, label in itertools.product(
        zip(systems, refused, strict=True), ("original", "edited"), ("harmful", "harmless")
    ):
        for i in range(10):
            verdict = LABELS[0] if i < k else LABELS[1]
            unread = arm == "edited" and i >= 10 - unparsed
            rows.append(
                {"system": system, "arm": arm, "id": f"{label}-{i}", "label": label, "judge": "rules"}
                | {"verdict": "unparsed" if unread else verdict}
            )
    return pd.DataFrame(rows)


def test_names_are_distinct_and_only_as_long_as_that_needs() -> None:
    assert system_names([*PAIR, "org/llama"]) == {
        SFT: "sft/checkpoint-500",
        DPO: "dpo/checkpoint-500",
        "org/llama": "llama",
    }
    for systems in (HARD, HARD[::-1]):
        names = system_names(systems)
        assert list(names) == systems
        assert len(set(names.values())) == len(systems)
    for system in HARD:
        assert system_names([system]) == {system: short_name(system)}
    assert short_name("/runs/sft/checkpoint-500/") == "checkpoint-500"


def test_file_names_are_safe_and_distinct_where_capitals_do_not_count() -> None:
    files = file_names(HARD)
    assert len({name.casefold() for name in files.values()}) == len(HARD)
    assert file_names(HARD[::-1]) == dict(reversed(files.items()))
    assert not any(c in name for name in files.values() for c in '/\\:*?"<>| ')
    assert file_names(["org/model"]) == {"org/model": "org_model"}
    (long,) = file_names(["é" * 300]).values()
    assert len(long.encode()) < 200


def test_bars_of_systems_with_one_last_part_stand_apart_and_are_whole() -> None:
    table = verdicts(PAIR)
    figure = outcome_bars(refusal_rates(table), paired_tests(table), judge="rules")
    heights: dict[float, float] = {}
    for bar in (trace for trace in figure.data if trace.type == "bar" and trace.xaxis == "x"):
        for place, share in zip(bar.x, bar.y, strict=True):
            heights[place] = heights.get(place, 0) + share
    assert list(heights.values()) == pytest.approx([1.0] * 4)
    shown = {a.text for a in figure.layout.annotations if a.xref == "x"}
    assert {"sft/checkpoint-500", "dpo/checkpoint-500"} <= shown


def test_every_figure_distinguishes_systems_with_one_last_part() -> None:
    table = verdicts(PAIR)
    heat = refusal_heatmap(refusal_rates(table))
    assert len(heat.data[0].z[0]) == len(set(heat.layout.xaxis.ticktext)) == 4
    cells = pd.DataFrame(
        [
            {
                "system": s,
                "arm": arm,
                "auc": 0.8,
                "low": 0.7,
                "high": 0.9,
                "auc_shuffled": 0.5,
                "auc_length": 0.5,
            }
            for s in PAIR
            for arm in ("original", "edited")
        ]
    )
    assert len(set(self_judgement(cells).layout.xaxis.ticktext)) == 4
    forest = effect_forest(judge_effects(table))
    assert len({a.text for a in forest.layout.annotations}) == 4
    crossed = cells.assign(auc_labels_low=0.4, auc_labels_high=0.6)
    crossed = crossed.assign(
        form="logit", judge_arm=cells["arm"], response_arm=cells["arm"], auc_reversed=0.5, auc_untrained=0.5
    )
    assert len({a.text for a in two_by_two_figure(crossed).layout.annotations}) == 2
    pair = {"a": SFT, "b": DPO, "layer": 1, "cosine": 0.5, "low": 0.4, "high": 0.6}
    floors = {"ceiling_a": 0.9, "ceiling_b": 0.9, "harmless_floor": 0.1}
    matrix = cosine_matrix(pd.DataFrame([pair | floors]), layer=1)
    assert len(set(matrix.layout.xaxis.ticktext)) == 2
    audited = pd.DataFrame(
        [
            {"system": s, "label": "harmful", "judge": "rules", "change": -0.5, "low": -0.7, "high": -0.3}
            | {"p": 0.01, "p_holm": 0.02, "finding": "survives"}
            for s in PAIR
        ]
    )
    assert len(set(judges_figure(audited, label="harmful").layout.xaxis.ticktext)) == 2


def test_no_figure_of_a_study_is_dropped_for_its_file_name(tmp_path: Path) -> None:
    systems = ["a b", "a_b", "a:b"]
    table = verdicts(systems, refused=(9, 5, 1))
    sweep = [
        {"system": s, "position": -1, "layer": n, "auroc": 0.5, "bypass": 1.0, "induce": 1.0, "kl": 0.1}
        for s in systems
        for n in range(3)
    ]
    points = [
        {"system": s, "id": i, "label": ("harmful", "harmless")[i % 2], "pc1": i, "pc2": -i}
        | {"explained1": 0.5, "explained2": 0.2}
        for s in systems
        for i in range(4)
    ]
    facts = {
        "base_refusal_score": {"harmful": 1.0, "harmless": -1.0},
        "selection": {"layer": 1, "position": -1},
    }
    tables = {
        "rates": refusal_rates(table),
        "tests": paired_tests(table),
        "sweep": pd.DataFrame(sweep),
        "scatter": pd.DataFrame(points),
    }
    figures = study_figures(tables, dict.fromkeys(systems, facts))
    assert len(figures) == 2 + 2 * len(systems)
    for name in figures:
        (tmp_path / f"{name}.html").touch(exist_ok=False)
    titles = [f.layout.title.text for name, f in figures.items() if name.startswith("layer-sweep")]
    assert [title.rpartition(":")[0] for title in titles] == systems


def test_regions_runs_of_one_study_have_folders_and_chapters_of_their_own(tmp_path: Path) -> None:
    with open_run(tmp_path / "study", config={"kind": "study", "systems": PAIR}):
        pass
    for system in PAIR:
        folder = _folder(RegionsConfig(model=system), tmp_path / "study", None)
        write_regions(folder, {"tradeoff": region_tables.tradeoff()}, model=system)
    chapters = region_chapters(read_run(tmp_path / "study"))
    assert sorted(chapter.name for chapter in chapters) == ["dpo-checkpoint-500", "sft-checkpoint-500"]
    assert sorted(chapter.model for chapter in chapters) == ["dpo/checkpoint-500", "sft/checkpoint-500"]
    for chapter in chapters:
        assert chapter.block.figures[0].layout.title.text.startswith(f"{chapter.model}, ")
    lone = _folder(RegionsConfig(model=SFT), None, None)
    assert lone == Path("runs") / "checkpoint-500-regions"
