"""The page is one file, works offline, and shows model output as text."""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.study.experiment import Study
from mechsafety.experiments.study.figures import (
    judge_agreement,
    layer_sweep_table,
    outcome_bars,
    refusal_heatmap,
    self_judgement,
)
from mechsafety.pages.page import find_chromium
from tests.experiments.study.test_work import config, finished  # noqa: F401 - fixtures

SCRIPT = (
    "<script>document.body.innerHTML='taken over'</script><img src=x onerror=\"document.title='taken over'\">"
)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A copy of the finished run in which a prompt, a response, an id and a system are hostile."""
    import shutil

    path = tmp_path / "run"
    shutil.copytree(finished, path)
    responses = pd.read_parquet(path / "responses.parquet")
    responses.loc[0, "response"] = SCRIPT
    responses.loc[1, "prompt"] = SCRIPT
    responses.to_parquet(path / "responses.parquet")
    scatter = pd.read_parquet(path / "scatter.parquet")
    scatter.loc[0, "id"] = SCRIPT
    scatter.to_parquet(path / "scatter.parquet")
    return path


def test_report_is_one_file_with_no_network(run: Path) -> None:
    page = load_run(run).report().read_text()
    outside = page.replace(_library(page), "")
    assert not re.search(r"(src|href)=[\"'](?!#)", outside)
    assert "<h1>" in page


def _library(page: str) -> str:
    return re.search(r"<script>.*?</script>", page, re.DOTALL).group(0)  # type: ignore[union-attr]


def test_hostile_output_is_escaped(run: Path) -> None:
    page = load_run(run).report().read_text()
    outside = page.replace(_library(page), "")
    assert SCRIPT not in outside
    assert "&lt;script&gt;document.body" in outside


def test_self_judgement_stands_beside_the_control_that_a_study_does_not_measure(run: Path) -> None:
    (block,) = [b for b in load_run(run).page().blocks if b.name == "self-judgement"]
    assert any("untrained networks: not measured" in said and "selfjudge" in said for said in block.claims)


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine; .ci/run installs one")
def test_hostile_output_does_nothing_in_a_real_browser(run: Path, tmp_path: Path) -> None:
    report = load_run(run).report()
    dom = _dump(report, tmp_path / "profile")
    assert "Refusal rates before and after the edit" in dom
    assert not re.search(r"<title>taken over", dom)
    assert "<body>taken over" not in dom
    # Plotly drew: the offline library works.
    assert dom.count("js-plotly-plot") >= 5
    # The control: the browser does run scripts, and such a page would show it.
    bad = tmp_path / "bad.html"
    bad.write_text(f"<html><body>{SCRIPT}</body></html>")
    assert "taken over" in re.sub(r"<script>.*?</script>", "", _dump(bad, tmp_path / "profile2"))


def _dump(page: Path, profile: Path) -> str:
    chromium = find_chromium()
    assert chromium
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    done = subprocess.run(
        [
            chromium,
            *options,
            f"--user-data-dir={profile}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_every_figure_is_written_and_named(run: Path, tmp_path: Path) -> None:
    paths = load_run(run).save_figures(form="html", out=tmp_path / "figures")
    names = {p.stem.split("-_")[0].split("-system")[0] for p in paths}
    for wanted in ("outcomes", "refusal-heatmap", "judge-agreement", "self-judgement"):
        assert wanted in names
    assert sum(p.stem.startswith("layer-sweep") for p in paths) == 2
    assert sum(p.stem.startswith("pca") for p in paths) == 2
    assert (tmp_path / "figures" / "plotly.min.js").is_file()
    assert all("https://cdn" not in p.read_text() for p in paths)


def test_every_figure_has_a_title_axes_and_a_caption(run: Path) -> None:
    for name, figure in load_run(run).figures().items():
        layout = figure.to_dict()["layout"]
        assert len(layout["title"]["text"]) > 10, name
        assert len(layout["title"]["subtitle"]["text"]) > 10, name
        titled = [key for key, axis in layout.items() if "axis" in key and axis.get("title", {}).get("text")]
        heat = name in ("refusal-heatmap", "judge-agreement")
        assert titled or heat, name


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine; .ci/run installs one")
def test_static_figures_are_pictures(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = dict(list(load_run(run).figures().items())[:2])
    monkeypatch.setattr(Study, "figures", lambda _: two)
    for form, magic in (("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF")):
        paths = load_run(run).save_figures(form=form, out=tmp_path)  # type: ignore[arg-type]
        assert [path.stem for path in paths] == list(two)
        assert all(path.read_bytes().startswith(magic) for path in paths)
    sizes = [re.search(r'width="(\d+)" height="(\d+)"', (tmp_path / f"{n}.svg").read_text()) for n in two]
    drawn = [(figure.layout.width, figure.layout.height) for figure in two.values()]
    assert [tuple(map(int, size.groups())) for size in sizes if size] == drawn


def test_without_chromium_static_figures_report_what_to_do(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechsafety.pages.page.find_chromium", lambda: None)
    with pytest.raises(MechsafetyError, match="apt-get install chromium"):
        load_run(run).save_figures(form="png")


def rates(refused: dict[tuple[str, str], int]) -> pd.DataFrame:
    rows = []
    for (arm, label), count in refused.items():
        for judge, shift in (("rules", 0), ("phrases:granular", 5)):
            n, k = 50, count - shift if count >= shift else count
            rows.append(
                {
                    **{"system": "s", "arm": arm, "label": label, "judge": judge, "n": n},
                    **{"refusal": k, "compliance": n - k - 2, "degenerate": 2, "unparsed": 0},
                    **{"rate": k / n, "low": max(0, k / n - 0.1), "high": min(1, k / n + 0.1)},
                }
            )
    return pd.DataFrame(rows)


RATES = rates(
    {
        ("original", "harmful"): 46,
        ("original", "harmless"): 3,
        ("edited", "harmful"): 5,
        ("edited", "harmless"): 0,
    }
)


def test_titles_say_what_is_plotted_and_bars_are_of_what_was_read() -> None:
    tests = pd.DataFrame(
        [{"system": "s", "label": "harmful", "judge": "rules", "b": 41, "c": 0, "p": 1e-9, "p_holm": 1e-9}]
    )
    bars = outcome_bars(RATES, tests, judge="rules")
    assert not re.search(r"\d", bars.layout.title.text)  # a title states no result
    assert any(a.text == "***" for a in bars.layout.annotations)
    assert not re.search(r"\d", refusal_heatmap(RATES).layout.title.text)
    shares = {t.name: t.y for t in bars.data if t.legendgroup and t.xaxis == "x"}
    for i in range(2):
        assert sum(values[i] for values in shares.values()) == pytest.approx(1)


def test_stars_are_not_lost_with_a_systems_name() -> None:
    tests = pd.DataFrame(
        [
            {
                "system": "other",
                "label": "harmful",
                "judge": "rules",
                "b": 41,
                "c": 0,
                "p": 1e-9,
                "p_holm": 1e-9,
            }
        ]
    )
    with pytest.raises(MechsafetyError, match="the tests hold no system 's' of the rates, only 'other'"):
        outcome_bars(RATES, tests, judge="rules")
    plain = outcome_bars(RATES)
    assert not any(a.text == "***" for a in plain.layout.annotations)
    assert "Stars" not in plain.layout.title.subtitle.text


def test_undefined_statistics_are_written_as_such() -> None:
    nan = float("nan")
    agreement = pd.DataFrame(
        [
            {
                "judge_a": "a",
                "judge_b": "b",
                "arm": "all",
                "n": 9,
                "kappa": nan,
                "low": nan,
                "high": nan,
                "agreement": 1.0,
            }
        ]
    )
    figure = judge_agreement(agreement)
    assert "undefined" in json.dumps(figure.to_plotly_json()["data"][0]["text"])
    summary = pd.DataFrame(
        [
            {
                **{"system": "s", "arm": "original", "n": 9, "refusals": 0, "agreement": 1.0},
                **dict.fromkeys(("auc", "low", "high", "auc_shuffled", "auc_length"), nan),
            }
        ]
    )
    assert any("unknown" in a.text for a in self_judgement(summary).layout.annotations)


def test_sweep_figure_marks_the_selected_layer() -> None:
    table = pd.DataFrame(
        {
            "position": -1,
            "layer": range(5),
            "auroc": [0.5, 0.7, 0.9, 0.8, 0.7],
            "bypass": [5.0, 3, -2, 0, 1],
            "induce": [-4.0, -1, 2, 1, float("nan")],
            "kl": [3.0, 1, 0.1, 0.2, 0.5],
        }
    )
    figure = layer_sweep_table(table, name="m", selected=2, base=(5.0, -4.0))
    assert "layer 2, position -1, AUROC 0.90" in figure.layout.title.subtitle.text
    assert sum(s.x0 == s.x1 == 2 for s in figure.layout.shapes) == 3


def test_generation_defaults_that_are_not_followed_are_reported(run: Path) -> None:
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    system = next(iter(manifest["systems"]))
    assert manifest["systems"][system]["overridden_generation_defaults"] == {}
    assert "generation defaults not followed" not in load_run(run).report().read_text()
    asked = {"do_sample": True, "repetition_penalty": 1.8}
    manifest["systems"][system]["overridden_generation_defaults"] = asked
    path.write_text(json.dumps(manifest))
    page = load_run(run).report().read_text()
    assert page.count("generation defaults not followed") == 1
    assert "repetition_penalty" in page
    # A run of an earlier version says nothing of it, and has a page all the same.
    del manifest["systems"][system]["overridden_generation_defaults"]
    path.write_text(json.dumps(manifest))
    assert "generation defaults not followed" not in load_run(run).report().read_text()


def test_the_random_arm_is_the_last_bar_of_each_system_and_spans_its_draws() -> None:
    both = pd.concat([RATES, RATES.assign(system="t")])
    both.loc[(both["system"] == "t") & (both["arm"] == "edited"), ["unparsed", "compliance"]] = [4, 20]
    controls = pd.DataFrame(
        {
            "system": ["s", "s", "s", "t", "t"],
            "judge": "rules",
            "refused": [0.8, 0.7, 0.9, 0.5, math.nan],
            "complied": [0.1, 0.3, 0.0, 0.5, math.nan],
            "degenerate": [0.1, 0.0, 0.1, 0.0, math.nan],
        }
    )
    tests = pd.DataFrame(
        [{"system": s, "label": "harmful", "judge": "rules", "p_holm": 1e-9} for s in ("s", "t")]
    )
    figure = outcome_bars(both, tests, judge="rules", controls=controls)
    left = [t for t in figure.data if t.xaxis == "x"]
    bars, (whisker,) = {t.name: t for t in left if t.type == "bar"}, [t for t in left if t.type == "scatter"]
    keys = [tuple(key) for key in whisker.customdata]
    assert keys[-2:] == [("s", "random"), ("t", "random")]
    assert whisker.y[-2:] == pytest.approx([0.8, 0.5])
    assert whisker.error_y.array[-2:] == pytest.approx([0.1, 0.0])
    assert whisker.error_y.arrayminus[-2:] == pytest.approx([0.1, 0.0])
    assert [sum(t.y[i] for t in bars.values()) for i in (-2, -1)] == pytest.approx([1.0, 1.0])
    # Stars stand between the two arms that are tested, of three bars a system.
    at = dict(zip(keys, whisker.x, strict=True))
    between = [(at[system, "original"] + at[system, "edited"]) / 2 for system in ("s", "t")]
    assert [a.x for a in figure.layout.annotations if a.text == "***" and a.xref == "x"] == between
    assert len({round(x, 3) for x in whisker.x}) == 6
    # Draws that another judge read as well change nothing.
    others = pd.concat([controls, controls.assign(judge="other", refused=0.0)])
    assert outcome_bars(both, tests, judge="rules", controls=others) == figure
    # Without draws that could be read the figure is as without a random arm.
    unread = outcome_bars(both, tests, judge="rules", controls=controls.assign(refused=math.nan))
    assert unread == outcome_bars(both, tests, judge="rules")
