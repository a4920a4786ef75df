"""Shared fixtures: tiny random models that boot offline, and the shape checks of the test run."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.checked_calls import begin_counts, check_calls

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Two test processes on two cores, kernels and commands that tests start among them.
os.environ["OMP_NUM_THREADS"] = "1"

# No test depends on how long an example takes.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_checked = check_calls("mechsafety")

import torch  # noqa: E402

from mechsafety.models.loading import PLAIN_TEMPLATE, load_model  # noqa: E402
from mechsafety.pages.page import find_chromium  # noqa: E402
from tests.kept_models import changed, shared  # noqa: E402

torch.set_num_threads(1)

WORDS = [
    "how",
    "do",
    "i",
    "make",
    "a",
    "tell",
    "me",
    "about",
    "the",
    "write",
    "list",
    "of",
    "for",
    "to",
    "bread",
    "river",
    "garden",
    "storm",
    "fire",
    "gate",
    "lock",
    "key",
    "sorry",
    "can",
    "not",
    "help",
    "with",
    "that",
    "sure",
    "here",
    "is",
    "an",
    "answer",
    "yes",
    "no",
    "question",
    "refusal",
    "refused",
    "answered",
    "compliance",
    "Yes",
    "No",
]


IN_A_KERNEL = "01_refusal_directions.ipynb"
"""The notebook that has a kernel on every run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks come first, as the longest; in kernels, each of their cells has its own time limit, and warnings pass.

    Files of experiments follow, whose tests share runs: a file that is begun early is not divided between processes.
    A kernel takes long to begin: one notebook has one on every run, and the cells of all are run without
    (``test_notebooks.py``).
    """
    items.sort(key=lambda item: (not _is_notebook(item), "experiments" not in item.path.parts))
    for item in items:
        if hasattr(item, "nbmake"):
            item.add_marker(pytest.mark.timeout(0))
            item.add_marker(pytest.mark.filterwarnings("default"))
            if item.path.name != IN_A_KERNEL:
                item.add_marker(pytest.mark.slow)


def _is_notebook(item: pytest.Item) -> bool:
    return hasattr(item, "nbmake") or item.path.name == "test_notebooks.py"


def pytest_collection_finish() -> None:
    """Collect garbage less often: of what tests make, most is freed without."""
    gc.set_threshold(20_000, 20, 10)
    _keep_what_lives()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    yield
    if nextitem is None or nextitem.path != item.path:
        _keep_what_lives()


def _keep_what_lives() -> None:
    """What lives between files does so as long as the process: no garbage collection walks through it again.

    The heap of a whole test run is so large that each would take most of a second.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_logstart() -> None:
    """Of every function, the first calls of each test are checked."""
    begin_counts()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """Kills and interrupts are tested, failures of power are not: no file need reach the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_between_tries() -> Iterator[None]:
    """What is asked of an endpoint again is asked at once; what a wait depends on is tested as a number."""
    from mechsafety.judges.chat_calls import EndpointCalls

    wait = EndpointCalls._wait
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EndpointCalls, "_wait", lambda calls, failed: min(wait(calls, failed), 0.01))
        yield


@pytest.fixture(scope="session", autouse=True)
def _uninstall_checks() -> Iterator[None]:
    yield
    _checked.uninstall()


def save_tokenizer(folder: Path, *, template: str | None = PLAIN_TEMPLATE) -> None:
    """A word-level tokenizer that knows WORDS and every printable character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [chr(c) for c in range(33, 127)]
    vocabulary = ["<pad>", "<eos>", "<unk>", "\n", "\n\n", *WORDS, *(c for c in characters if c not in WORDS)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.chat_template = template
    fast.save_pretrained(folder)


def tiny_config(architecture: str) -> Any:
    from transformers import Gemma2Config, GPT2Config, LlamaConfig, Qwen2Config

    common: dict[str, Any] = {"vocab_size": 160, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    gated: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        # Wide enough that attention and positions matter to the logits.
        "initializer_range": 0.3,
    }
    if architecture == "llama":
        return LlamaConfig(**common, **gated, tie_word_embeddings=False)
    if architecture == "llama-tied":
        return LlamaConfig(**common, **gated, tie_word_embeddings=True)
    if architecture == "qwen2":
        return Qwen2Config(**common, **gated, tie_word_embeddings=True)
    if architecture == "gemma2":
        return Gemma2Config(**common, **gated, head_dim=8)
    return GPT2Config(**common, n_embd=32, n_layer=4, n_head=4, n_positions=256, initializer_range=0.3)


def save_tiny(
    folder: Path, architecture: str = "llama", *, seed: int = 0, template: str | None = PLAIN_TEMPLATE
) -> Path:
    """Save a random model with its tokenizer; biases are random too, so that they are not forgotten."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder, template=template)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_folder("gpt2")``: a saved random model, made once a session."""
    made: dict[tuple[str, int], Path] = {}

    def make(architecture: str = "llama", seed: int = 0) -> Path:
        key = (architecture, seed)
        if key not in made:
            made[key] = save_tiny(tmp_path_factory.mktemp(architecture), architecture, seed=seed)
        return made[key]

    return make


@pytest.fixture
def tiny(tiny_folder: Callable[..., Path]) -> Callable[..., Any]:
    """``tiny("llama", dtype="bfloat16")``: a freshly loaded random model."""

    def load(architecture: str = "llama", *, dtype: str = "float32", seed: int = 0) -> Any:
        return load_model(str(tiny_folder(architecture, seed)), dtype=dtype, device="cpu")

    return load


@pytest.fixture
def tiny_kept(tiny_folder: Callable[..., Path], tiny: Callable[..., Any]) -> Callable[..., Any]:
    """``tiny_kept("llama")``: the same model, loaded once per test process, for tests that only read it."""

    def take(architecture: str = "llama", *, dtype: str = "float32", seed: int = 0) -> Any:
        key = (tiny_folder(architecture, seed), dtype)
        return shared(key, lambda: tiny(architecture, dtype=dtype, seed=seed))

    return take


@pytest.fixture(autouse=True)
def _shared_models_are_read_only() -> Iterator[None]:
    yield
    left = [str(key) for key in changed()]
    assert not left, (
        f"the test changed a model that others share ({', '.join(left)}): it needs one of its own"
    )


@pytest.fixture
def unpublished(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs end without figures and page, which are drawn only when asked for: most tests look at tables alone."""
    from mechsafety.experiments.result import Result

    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("published") is None:
            patch.setattr(Result, "publish", lambda result: result.report_path)
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()
