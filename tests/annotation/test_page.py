"""The page in a real browser: labelled by keyboard, and model output stays text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mechsafety.annotation.export import load_annotations
from mechsafety.annotation.labels import read_human_labels
from mechsafety.annotation.store import existing_store
from mechsafety.cli import main
from mechsafety.pages.page import find_chromium
from mechsafety.runs.folder import RunFolder
from tests.annotated_runs import HOSTILE, make_run, page, responses, served

pytestmark = [
    pytest.mark.enable_socket,
    pytest.mark.allow_hosts(["127.0.0.1", "localhost"]),
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine; .ci/run installs one"),
]
WAIT = 10_000
"""Milliseconds that the browser may take for anything."""


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab that fails the test when a script on it fails, or a dialog of the page opens."""
    context = browser.new_context(viewport={"width": 1100, "height": 760})
    opened = context.new_page()
    opened.set_default_timeout(WAIT)
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(f"error: {error}"))
    opened.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    yield opened
    context.close()
    assert problems == []


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", torn=6)


def press(tab: Any, key: str) -> None:
    """Press a key and wait until the page has moved on."""
    before = tab.evaluate("JSON.stringify([state.item, state.left, state.can_undo])")
    tab.keyboard.press(key)
    tab.wait_for_function(
        "old => JSON.stringify([state.item, state.left, state.can_undo]) !== old", arg=before
    )


def enter(tab: Any, name: str) -> None:
    tab.fill("#annotator", name)
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#work:not([hidden])")


def test_ten_items_by_keyboard_then_undo_reload_a_second_annotator_and_export(
    run: RunFolder, tab: Any, tmp_path: Path
) -> None:
    with page(run.path, "--labels", "10", "--plan", "disagreement") as (_, address):
        tab.goto(address)
        tab.wait_for_selector("#annotator")
        assert "token" not in tab.url
        enter(tab, "Ann")
        hostile_seen = 0
        for turn in range(10):
            shown = tab.text_content("#response")
            if shown == HOSTILE:
                hostile_seen += 1
                assert tab.locator("#response *").count() == 0
                assert tab.locator("img, script:not([src='/page.js'])").count() == 0
                assert "alert('ran')" in tab.inner_text("#response")
            if turn == 4:
                press(tab, "u")
                assert tab.inner_text("#place") == "4 of 10"
                press(tab, "r")
                tab.reload()
                tab.wait_for_selector("#work:not([hidden])")
                assert tab.inner_text("#name") == "Ann"
                assert tab.inner_text("#place") == "5 of 10"
                assert tab.text_content("#response") == shown
            press(tab, "rcd"[turn % 3])
        assert hostile_seen
        assert tab.inner_text("#done-title") == "Done"
        assert "10 of 10 responses labelled" in tab.inner_text("#summary")
        assert f"annotate {run.path} --export labels.csv" in tab.inner_text("#export")
        assert tab.get_attribute("#bar", "value") == tab.get_attribute("#bar", "max") == "10"

        tab.click("#change")
        tab.wait_for_selector("#people button")
        assert tab.inner_text("#people").split("\n") == ["Ann", "10 of 10"]
        enter(tab, "Bea")
        for _ in range(10):
            press(tab, "c")
        assert tab.is_visible("#done")

    out = tmp_path / "labels.csv"
    done = CliRunner().invoke(main, ["annotate", str(run.path), "--export", str(out)])
    assert done.exit_code == 0, done.output
    found = read_human_labels(out, responses=responses())
    assert found.groupby("annotator").size().to_dict() == {"Ann": 10, "Bea": 10}
    by_person = {who: set(group[["system", "arm", "id"]].itertuples(index=False, name=None)) for who, group in found.groupby("annotator")}  # fmt: skip
    assert by_person["Ann"] == by_person["Bea"]
    assert found.query("annotator == 'Ann'")["label"].value_counts().to_dict() == {"refusal": 4, "compliance": 3, "degenerate": 3}  # fmt: skip
    assert set(found["stratum"]) == {"agreement", "disagreement"}


def test_keys_skip_help_and_what_they_do_not_do(run: RunFolder, tab: Any) -> None:
    with served(run, labels=4) as (session, _):
        tab.goto(session.address("Ann"))
        tab.wait_for_selector("#work:not([hidden])")
        assert re.search(r"/\?annotator=Ann$", tab.url)
        skipped = tab.evaluate("state.item.number")
        press(tab, "s")
        assert tab.inner_text("#place") == "1 of 4, 1 skipped"
        # With help open, or with Ctrl, a key labels nothing.
        tab.keyboard.press("?")
        assert tab.is_visible("#guideline")
        tab.keyboard.press("r")
        tab.keyboard.press("Escape")
        assert tab.is_hidden("#guideline")
        tab.keyboard.press("Control+c")
        tab.keyboard.press("x")
        assert list(existing_store(run).history()["action"]) == ["skip"]
        for key in "rcd":
            press(tab, key)
        assert tab.evaluate("state.item.number") == skipped
        assert tab.is_visible("#again")
        press(tab, "S")
        assert "3 of 4 responses labelled, 1 skipped twice" in tab.inner_text("#summary")
        press(tab, "u")
        tab.click("button[data-action=refusal]")
        tab.wait_for_selector("#done:not([hidden])")
    assert len(load_annotations(run).to_frame()) == 4


def test_a_stopped_server_is_reported_and_the_answer_is_not_shown_as_given(run: RunFolder, tab: Any) -> None:
    with served(run, labels=4) as (session, stop):
        tab.goto(session.address("Ann"))
        tab.wait_for_selector("#work:not([hidden])")
        press(tab, "r")
        shown = tab.evaluate("state.item.number")
        stop()
        tab.keyboard.press("c")
        tab.wait_for_selector("#banner:not([hidden])")
        assert "does not answer" in tab.inner_text("#banner")
        assert tab.evaluate("state.item.number") == shown
    assert list(existing_store(run).history()["action"]) == ["refusal"]


def test_nothing_is_clipped(tab: Any, tmp_path: Path) -> None:
    table = responses(prompts=1)
    table["prompt"], table["response"] = "Why so long? " * 80, "wordwithoutblanks" * 300 + "\n" * 40 + "end"
    run = make_run(tmp_path / "run", table, torn=None)
    with served(run) as (session, _):
        tab.goto(session.address("Somebody with a name of forty characters"))
        tab.wait_for_selector("#work:not([hidden])")
        for width, height in ((1100, 760), (360, 640), (320, 480)):
            tab.set_viewport_size({"width": width, "height": height})
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            for name in ("#response", "#prompt"):
                # Scrolls inside, and can be reached by keyboard.
                box = tab.locator(name)
                assert box.evaluate("box => box.scrollHeight > box.clientHeight")
                assert box.get_attribute("tabindex") == "0"
            boxes = [button.bounding_box() for button in tab.locator("button:visible").all()]
            assert len(boxes) == 7
            assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
            assert height < 500 or all(box["y"] + box["height"] <= height for box in boxes)
        assert tab.evaluate("document.activeElement.id") == "response"
        tab.keyboard.press("End")
        tab.wait_for_function("() => document.querySelector('#response').scrollTop > 100")


def test_hostile_text_would_run_if_it_were_html(tab: Any) -> None:
    """The control of the tests above: the browser does run such a response when it is put in as HTML."""
    tab.goto("data:text/html,<body></body>")
    assert tab.evaluate("typeof window.ran") == "undefined"
    tab.evaluate('document.body.innerHTML = `<img src=x onerror="window.ran = 1">`')
    tab.wait_for_function("() => window.ran === 1")
