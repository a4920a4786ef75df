"""Answers of a server are our own, or are not taken; the server is a stub with vLLM's interface, on loopback.

vLLM itself needs a GPU and an environment of its own: it is not run here.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from starlette.responses import JSONResponse

import mechsafety as ms
from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate, Add, AffineAblate, Orthogonalise
from mechsafety.generation.answered import Completion
from mechsafety.generation.served import agreement_of, served_name, spread
from mechsafety.judges.call_options import CallOptions
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import load_model
from mechsafety.models.turn_ends import stop_tokens
from mechsafety.regions.maps import linear_maps
from mechsafety.regions.removal import Pruning, removed
from mechsafety.runs.folder import read_run
from mechsafety.serving.server import VllmServer, serve_command
from tests.cli.test_base import call, succeed
from tests.faulty_server import serving
from tests.prompt_sets import small_prompts, write_csv
from tests.serving.stub import VllmStub

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"])]

NEW = 6
EDIT = "ablate(random, seed=3)"
FAST = CallOptions(timeout=20.0, tries=2, first_wait=0.01, longest_wait=0.02)


@pytest.fixture(autouse=True)
def _tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHSAFETY_ENDPOINT_TRIES", "2")


@pytest.fixture
def direction() -> torch.Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``mechsafety export`` wrote and printed, and the command that generates, without an address."""
    from tests.conftest import save_tiny

    base = tmp_path_factory.mktemp("served")
    folder = save_tiny(base / "tiny", "llama")
    prompts = write_csv(small_prompts(), base / "prompts.csv")
    how = ["--device", "cpu", "--dtype", "float32"]
    facts = succeed("export", folder, "--edit", EDIT, *how, "--out", base / "edited", "--json")
    generate = ["generate", folder, "--prompts", prompts, "--edit", EDIT, *how]
    return facts | {"generate": [*generate, "--max-new-tokens", NEW, "--batch-size", 4], "model": folder}


@pytest.fixture
def stub(exported: dict[str, Any]) -> Iterator[VllmStub]:
    """What the printed command would serve."""
    words = shlex.split(exported["serve"])
    assert words[:3] == ["vllm", "serve", exported["folder"]]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options["--dtype"] == "float32"
    assert options["--generation-config"] == "vllm"
    with serving(VllmStub(words[2], options["--served-model-name"])) as running:
        yield running


def served(exported: dict[str, Any], stub: VllmStub, out: Path, *more: object) -> list[object]:
    return [*exported["generate"], "--backend", "vllm", "--server", stub.url, "--out", out, *more]


def table_of(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "responses.parquet")


def other(_body: dict[str, Any], choice: dict[str, Any]) -> None:
    """From the second token on, another answer."""
    choice["token_ids"] = [choice["token_ids"][0], *(30 for _ in choice["token_ids"][1:])]


# -- the run --------------------------------------------------------------------------------------------


def test_served_answers_are_those_of_this_process(
    exported: dict[str, Any], stub: VllmStub, tmp_path: Path
) -> None:
    succeed(*exported["generate"], "--baked", "--out", tmp_path / "own")
    succeed(*served(exported, stub, tmp_path / "served"))
    own, theirs = table_of(tmp_path / "own"), table_of(tmp_path / "served")
    pd.testing.assert_frame_equal(own, theirs)  # the control: an unedited model answers otherwise
    succeed(*exported["generate"][:4], *exported["generate"][6:], "--out", tmp_path / "unedited")
    assert list(table_of(tmp_path / "unedited")["response"]) != list(own["response"])
    manifest = read_run(tmp_path / "served").manifest
    agreement = manifest["served"].pop("agreement")
    assert manifest["served"] == {"address": stub.url, "model": stub.name, "used": True, "reason": ""}
    assert (agreement["prompts"], agreement["equal"], agreement["share"]) == (8, 8, 1.0)
    assert manifest["edit"]["as"] == "weights"
    assert any("8 of 8" in line for line in ms.load_run(tmp_path / "served").findings)
    # Each of 12 prompts once, and 8 to compare; what is sent are the ids that this process feeds.
    assert len(stub.bodies) == 20
    model = load_model(str(exported["model"]), device="cpu", dtype="float32")
    fed = {tuple(s) for s in tokenize_prompts(model, [p.text for p in small_prompts().report])}
    assert {tuple(body["prompt"]) for body in stub.bodies} == fed
    first = stub.bodies[0]
    assert (first["max_tokens"], first["temperature"], first["n"], first["top_k"]) == (NEW, 0.0, 1, 0)
    assert set(first["stop_token_ids"]) == stop_tokens(model)
    # A finished run asks for nothing.
    succeed(*served(exported, stub, tmp_path / "served"))
    assert len(stub.bodies) == 20


def test_a_server_that_answers_otherwise_is_not_used(
    exported: dict[str, Any], stub: VllmStub, tmp_path: Path
) -> None:
    succeed(*exported["generate"], "--baked", "--out", tmp_path / "own")
    stub.twist = other
    result = call(*served(exported, stub, tmp_path / "served"))
    assert result.exit_code == 0
    assert f"server {stub.url} is not used: its greedy answers to 8 prompts" in result.stderr
    pd.testing.assert_frame_equal(table_of(tmp_path / "own"), table_of(tmp_path / "served"))
    record = read_run(tmp_path / "served").manifest["served"]
    assert not record["used"]
    assert record["agreement"]["share"] < 0.8 == record["agreement"]["least"]
    assert any(record["reason"] in line for line in ms.load_run(tmp_path / "served").findings)
    assert len(stub.bodies) == 8
    # The same server is used where less is asked for, and its answers are then its own.
    succeed(*served(exported, stub, tmp_path / "lenient", "--least-agreement", 0))
    assert list(table_of(tmp_path / "lenient")["response"]) != list(table_of(tmp_path / "own")["response"])


@pytest.mark.parametrize("sampled", [False, True])
def test_a_server_that_ends_half_way_loses_nothing(
    exported: dict[str, Any], stub: VllmStub, tmp_path: Path, sampled: bool
) -> None:
    drawn = ["--temperature", 1.5, "--seed", 4] if sampled else []
    succeed(*served(exported, stub, tmp_path / "whole", *drawn))
    whole, stub.bodies = list(stub.bodies), []
    if sampled:
        assert len({body["seed"] for body in whole[8:]}) == 12
        assert {body["temperature"] for body in whole[8:]} == {1.5}
        assert {body["temperature"] for body in whole[:8]} == {0.0}  # greedy answers are compared

    def down(_body: Any, _choice: Any) -> JSONResponse | None:
        return JSONResponse({"error": {"message": "out"}}, status_code=503) if len(stub.bodies) > 12 else None

    stub.twist = down
    assert call(*served(exported, stub, tmp_path / "cut", *drawn)).exit_code == 2
    assert len(read_run(tmp_path / "cut").parts("batches")) == 1
    done = {tuple(body["prompt"]) for body in stub.bodies[8:12]}
    stub.twist, stub.bodies = lambda *_: None, []
    succeed(*served(exported, stub, tmp_path / "cut", *drawn))
    again = {tuple(body["prompt"]) for body in stub.bodies}  # calls of the first session may come late
    assert len(again) == 8
    assert not again & done
    pd.testing.assert_frame_equal(table_of(tmp_path / "cut"), table_of(tmp_path / "whole"))


# -- what is refused ----------------------------------------------------------------------------------------


def replaced(**fields: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda _body, choice: choice.update(fields)


TWISTS: dict[str, tuple[Any, str]] = {
    "fewer choices": (lambda *_: JSONResponse({"choices": []}), "returns 0 choices for a prompt where 1"),
    "no ids": (replaced(token_ids=None), "returns no token ids, which are compared: vLLM 0.10.2"),
    "unknown token": (replaced(token_ids=[9, 4000]), "another vocabulary .token 4000 of 160"),
    "other prompt": (replaced(prompt_token_ids=[1]), "another vocabulary .a prompt that it was not sent"),
    "aborted": (replaced(finish_reason="abort"), "of 6 tokens with the reason 'abort'"),
    "cut short": (replaced(token_ids=[9], finish_reason="length"), "after 1 of 6 tokens with the reason"),
    "rejected": (
        lambda *_: JSONResponse({"error": {"message": "token id out of vocabulary"}}, status_code=400),
        "token id out of vocabulary",
    ),
    "elsewhere": (
        lambda *_: JSONResponse({}, status_code=307, headers={"location": "http://127.0.0.2:1/v1"}),
        "leads to another host",
    ),
}


@pytest.mark.parametrize("name", TWISTS)
def test_strange_answers_are_one_line(
    exported: dict[str, Any], stub: VllmStub, tmp_path: Path, name: str
) -> None:
    stub.twist, says = TWISTS[name]
    refused(served(exported, stub, tmp_path / "run"), says)


def refused(command: list[object], says: str) -> None:
    result = call(*command)
    assert result.exit_code == 2, result.output
    assert re.search(says, result.stderr), result.stderr
    assert "Traceback" not in result.stderr


def test_what_serves_something_else_is_refused_before_the_run(
    exported: dict[str, Any], stub: VllmStub, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    name, stub.name = stub.name, "another"
    refused(served(exported, stub, run), f"has 'another' and not '{name}'.*--served-model-name {name}")
    stub.name = name
    # Another edit of the same model has another name.
    changed = [str(word).replace("seed=3", "seed=4") for word in served(exported, stub, run)]
    refused(changed, f"has '{name}' and not 'mechsafety-")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        refused(
            [*exported["generate"], "--backend", "vllm", "--server", nobody, "--out", run], "gives no answer"
        )
    assert not run.exists()
    stub.window = 9
    refused(served(exported, stub, run), r"has a window of 9 tokens.*--max-model-len")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--backend", "vllm"], "go together"),
        (["--server", "http://127.0.0.1:1/v1"], "go together"),
        (["--backend", "vllm", "--server", "ftp://x"], "no http"),
        (["--backend", "vllm", "--server", "http://u:p@x/v1"], "holds a password"),
        (["--backend", "vllm", "--server", "http://x", "--least-agreement", 2], "least_agreement"),
        (["--backend", "vllm", "--server", "http://x", "--compared-prompts", 0], "compared"),
    ],
)
def test_settings_that_cannot_be(
    exported: dict[str, Any], tmp_path: Path, options: list[object], says: str
) -> None:
    refused([*exported["generate"], *options, "--out", tmp_path / "run"], says)


def test_edits_without_a_weight_form_are_refused_by_name(
    tiny_kept: Callable[..., Any], direction: torch.Tensor, tmp_path: Path
) -> None:
    model, prompts = tiny_kept("llama"), small_prompts().report
    server = VllmServer("http://127.0.0.1:9/v1", options=FAST)
    for edit in (
        AffineAblate(direction, reference=0.1),
        Add(direction, layer=2),
        Ablate(direction, alpha=0.5),
        Ablate(direction, positions="generated"),
        Ablate(direction, layers=(1,)),
    ):
        with pytest.raises(MechsafetyError, match="has no weight form") as caught:
            ms.generate(model, prompts, edit=edit, server=server, max_new_tokens=2)
        assert type(edit).__name__ in str(caught.value)
        assert "runs weights and no hooks" in str(caught.value)


# -- the interface of Python ---------------------------------------------------------------------------------


def test_generate_takes_a_server_for_edits_and_removals(
    tiny: Callable[..., Any], direction: torch.Tensor, tmp_path: Path
) -> None:
    model, prompts = tiny("llama"), small_prompts().report
    edit = Orthogonalise(direction, norm_preserving=True)
    with ms.baked(model, edit):
        own = ms.generate(model, prompts, max_new_tokens=NEW, batch_size=5)
    folder = ms.save_model(model, edit, tmp_path / "edited")
    command = serve_command(model, edit, folder)
    assert served_name(model, edit) in command
    with serving(VllmStub(folder, served_name(model, edit))) as stub:
        server = VllmServer(stub.url, options=FAST, compared=3)
        kept = {"max_new_tokens": NEW, "batch_size": 5, "out": tmp_path / "kept"}
        found = ms.generate(model, prompts, edit=edit, server=server, **kept)
        assert found.items == own.items
        assert found.served is not None
        assert found.served.used
        assert found.served.agreement["prompts"] == 3
        asked = len(stub.bodies)
        ms.generate(model, prompts, edit=edit, server=server, **kept)
        assert len(stub.bodies) == asked + 3  # what is kept is not asked for again
        other_edit = Orthogonalise(direction.flip(0))
        with pytest.raises(MechsafetyError, match=f"has {stub.name!r} and not 'mechsafety-"):
            ms.generate(model, prompts, edit=other_edit, server=server, max_new_tokens=NEW)
        stub.twist = other
        left = ms.generate(model, prompts, edit=edit, server=server, max_new_tokens=NEW, batch_size=5)
        assert left.items == own.items
        assert left.served is not None
        assert not left.served.used
        assert "before the first difference" in left.served.reason


def test_a_removal_is_served_as_the_weights_it_leaves(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, prompts = tiny("llama"), small_prompts().report
    maps = linear_maps(model)
    places = torch.arange(0, maps[0].d_out * maps[0].d_in, 2)
    shapes = {m.name: (m.d_out, m.d_in) for m in maps}
    pruning = Pruning(label="half", entries={maps[0].name: places}, shapes=shapes)
    with removed(model, pruning):
        folder = ms.save_model(model, None, tmp_path / "pruned")
        with serving(VllmStub(folder, served_name(model, None))) as stub:
            found = ms.generate(model, prompts, server=VllmServer(stub.url, options=FAST), max_new_tokens=NEW)
        own = ms.generate(model, prompts, max_new_tokens=NEW)
    assert found.served is not None
    assert found.served.used
    assert found.items == own.items != ms.generate(model, prompts, max_new_tokens=NEW).items


def answer(*tokens: int, finish: Any = "length") -> Completion:
    fixed = {"id": "a", "prompt": "p", "label": "harmful", "category": "", "text": "", "n_prompt_tokens": 1}
    return Completion(tokens=tokens, finish=finish, **fixed)


def test_agreement_counts_tokens_before_the_first_difference() -> None:
    ours = [answer(1, 2, 3, 4), answer(1, 2), answer(5), answer(finish="stop")]
    theirs = [answer(1, 2, 9, 4), answer(1, 2), answer(5, 6), answer(finish="stop")]
    found = agreement_of(ours, theirs, least=0.6)
    assert (found.prompts, found.equal, found.tokens, found.common) == (4, 2, 8, 5)
    assert found.share == 0.625
    assert found.holds
    assert not found.reason
    assert not agreement_of(ours, theirs, least=0.63).holds
    assert agreement_of([], [], least=1.0).share == 1.0
    assert agreement_of([answer(1)], [answer(1, finish="stop")], least=1.0).equal == 0
    prompts = small_prompts().report
    assert [p.id for p in spread(prompts, 3)] == [prompts[0].id, prompts[4].id, prompts[8].id]
    assert len(spread(prompts, 99)) == 12


def test_the_record_can_be_written(exported: dict[str, Any]) -> None:
    assert json.loads(json.dumps(agreement_of([answer(1)], [answer(2)], least=0.5).as_dict()))["share"] == 0
