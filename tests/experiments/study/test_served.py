"""A study whose arms servers answer has the tables of one that answers itself, or says why it answered itself.

The servers are stubs with vLLM's interface on loopback; vLLM itself is not run here.
"""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from starlette.responses import JSONResponse

from mechsafety.core.errors import MechsafetyError, StoppedError
from mechsafety.experiments.result import Result
from mechsafety.experiments.study.config import StudyConfig, load_config
from mechsafety.experiments.study.experiment import run_study
from tests import in_process_ray
from tests.cli.test_base import call
from tests.faulty_server import serving
from tests.serving.stub import VllmStub
from tests.small_studies import small_study

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"])]


@pytest.fixture(autouse=True)
def _tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHSAFETY_ENDPOINT_TRIES", "1")


@pytest.fixture(scope="module")
def config(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    return small_study(tmp_path_factory.mktemp("prompts"), tiny_folder("llama"), per_split=4, batch_size=3)


@pytest.fixture(scope="module")
def own(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_study(config, tmp_path_factory.mktemp("own") / "run").path


@pytest.fixture(scope="module")
def nobody() -> Iterator[Callable[[], str]]:
    """Addresses at which nobody listens, nor will: their ports stay taken."""
    with ExitStack() as stack:

        def address() -> str:
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"

        yield address


def at(config: StudyConfig, *addresses: str, **more: Any) -> StudyConfig:
    asked = config.model_dump() | {"generation": {"backend": "vllm", "address": addresses, **more}}
    return load_config(None, asked)


@pytest.fixture(scope="module")
def exported(
    config: StudyConfig, tmp_path_factory: pytest.TempPathFactory, nobody: Callable[[], str]
) -> Mapping[str, Any]:
    """A study that stopped because no server had its weights, and by arm the folder and name of each checkpoint."""
    base, heard, addresses = tmp_path_factory.mktemp("exported"), list[str](), (nobody(), nobody())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MECHSAFETY_ENDPOINT_TRIES", "1")
        asked = at(config, *addresses, export_to=str(base / "weights"))
        with pytest.raises(StoppedError, match="2 arms wait for a server of their weights"):
            run_study(asked, base / "run", say=heard.append)
    found: dict[str, Any] = {"run": base / "run", "weights": base / "weights"}
    for arm, address in zip(("original", "edited"), addresses, strict=True):
        (line,) = [text for text in heard if f"· {arm}: serve it by " in text]
        words = shlex.split(line.partition("serve it by ")[2])
        options = dict(zip(words[3::2], words[4::2], strict=True))
        assert address == f"http://{options['--host']}:{options['--port']}/v1"
        found[arm] = (words[2], options["--served-model-name"])
    return found


@contextmanager
def stubs(exported: Mapping[str, Any], **weights: str) -> Iterator[dict[str, VllmStub]]:
    """A server for each arm; ``weights`` names the arm whose weights another one's server has in truth."""
    with ExitStack() as stack:
        running = {}
        for arm in ("original", "edited"):
            folder = exported[weights.get(arm, arm)][0]
            running[arm] = stack.enter_context(serving(VllmStub(folder, exported[arm][1])))
        yield running


def assert_same(a: Path, b: Path) -> None:
    for name in (
        "rates.csv",
        "tests.csv",
        "responses.parquet",
        "verdicts.parquet",
        "random_responses.parquet",
    ):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def served(run: Result) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in pd.read_csv(run.path / "served.csv").to_dict(orient="records")}


def test_exported_arms_are_answered_by_their_servers(
    config: StudyConfig, own: Path, exported: Mapping[str, Any]
) -> None:
    assert not (exported["run"] / "rates.csv").is_file()
    # Which server has which arm is not said: each is known by its name.
    with stubs(exported) as running:
        addresses = [running[arm].url for arm in ("edited", "original")]
        run = run_study(at(config, *addresses, export_to=str(exported["weights"])), exported["run"])
        assert {arm: len(stub.bodies) for arm, stub in running.items()} == {"original": 16, "edited": 16}
        assert {stub.listed for stub in running.values()} == {1}
        for arm, row in served(run).items():
            assert (row["used"], row["equal"], row["prompts"], row["share"]) == (True, 8, 8, 1.0)
            assert (row["address"], row["model"]) == (running[arm].url, exported[arm][1])
    assert_same(own, run.path)
    # The control: the two arms do not answer alike, so that a mistaken server would be seen.
    answers = pd.read_parquet(own / "responses.parquet").groupby("arm")["response"].apply(list)
    assert answers["original"] != answers["edited"]
    lines = [line for line in run.findings if "vLLM server" in line]
    assert len(lines) == 2
    assert all("8 of 8" in line for line in lines)
    assert "Answers by servers" in (run.path / "report.html").read_text()
    # A finished study asks no server.
    run_study(config, run.path)


def test_a_server_of_other_weights_is_not_used(
    config: StudyConfig, own: Path, exported: Mapping[str, Any], tmp_path: Path
) -> None:
    with stubs(exported, edited="original") as running:
        run = run_study(at(config, *(stub.url for stub in running.values())), tmp_path / "run")
    found = served(run)
    assert (found["original"]["used"], found["edited"]["used"]) == (True, False)
    assert found["edited"]["share"] < 0.8
    assert "share" in found["edited"]["reason"]
    assert any(found["edited"]["reason"] in line for line in run.findings)
    assert found["edited"]["reason"] in (run.path / "report.html").read_text()
    assert_same(own, run.path)


def test_arms_that_no_server_has_are_answered_here(
    config: StudyConfig, own: Path, exported: Mapping[str, Any], tmp_path: Path
) -> None:
    heard: list[str] = []
    with stubs(exported) as running:
        run = run_study(at(config, running["edited"].url), tmp_path / "run", say=heard.append)
        found = served(run)
        assert (found["original"]["used"], found["edited"]["used"]) == (False, True)
        assert (
            f"has {exported['edited'][1]!r} and not {exported['original'][1]!r}"
            in found["original"]["reason"]
        )
        assert any("original: no server is used" in line for line in heard)
        assert_same(own, run.path)
        # A half projection has no weight form.
        half = config.model_copy(update={"alpha": 0.5})
        asked = at(half, running["original"].url, export_to=str(tmp_path / "weights"))
        run = run_study(asked, tmp_path / "half")
    found = served(run)
    assert (found["original"]["used"], found["edited"]["used"]) == (True, False)
    assert "has no weight form" in found["edited"]["reason"]
    assert not (tmp_path / "weights").exists()


def test_an_arm_is_answered_by_what_began_it(
    config: StudyConfig,
    own: Path,
    exported: Mapping[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stubs(exported) as running:
        stub = running["edited"]

        answered = 3  # of the sample

        def down(_body: Any, _choice: Any) -> JSONResponse | None:
            gone = len(stub.bodies) > answered
            return JSONResponse({"error": {"message": "out"}}, status_code=503) if gone else None

        stub.twist = down
        asked = at(config, *(one.url for one in running.values()))
        with pytest.raises(MechsafetyError):
            run_study(asked, tmp_path / "run")
        stub.bodies.clear()
        answered = 8 + 3  # the sample and one batch
        with pytest.raises(MechsafetyError):
            run_study(asked, tmp_path / "run")
        in_process_ray.put_in(monkeypatch)
        for elsewhere in (config, config.model_copy(update={"engine": "ray"})):
            with pytest.raises(MechsafetyError, match=r"was begun by server .* do not mix: none is named"):
                run_study(elsewhere, tmp_path / "run")
        stub.twist = lambda *_: None
        run = run_study(asked, tmp_path / "run")
        assert [row["used"] for row in served(run).values()] == [True, True]
        assert_same(own, run.path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--backend", "vllm"], "go together"),
        (["--server", "http://127.0.0.1:1/v1"], "go together"),
        (["--export-to", "weights"], "is about servers: give --backend vllm too"),
        (["--backend", "vllm", "--server", "http://a/v1,ftp://x"], "no http"),
        (["--backend", "vllm", "--server", "http://u:p@x/v1"], "holds a password"),
        (["--backend", "vllm", "--server", "http://x/v1", "--workers", 2], "leave out --workers"),
        (["--backend", "vllm", "--server", "http://x/v1", "--least-agreement", 2], "least_agreement"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, options: list[object], says: str) -> None:
    result = call("study", *options, "--out", tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert re.search(says, result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_servers_that_do_not_answer_are_one_line(
    config: StudyConfig, tmp_path: Path, nobody: Callable[[], str]
) -> None:
    with pytest.raises(MechsafetyError, match="gives no answer"):
        run_study(at(config, nobody()), tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(MechsafetyError, match="cannot write model"):
        run_study(at(config, nobody(), export_to=str(tmp_path / "file" / "x")), tmp_path / "run")


def test_the_file_and_the_options_name_servers_alike(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("generation: {backend: vllm, address: 'http://a/v1/', compared: 3}\n")
    found = load_config(str(file))
    assert (found.generation.server, found.generation.compared) == (("http://a/v1",), 3)
    other = load_config(str(file), {"generation": {"server": ("http://b/v1",)}})
    assert (other.generation.server, other.generation.compared) == (("http://b/v1",), 3)
