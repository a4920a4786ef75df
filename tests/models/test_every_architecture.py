"""Directions, sweep, edits by hooks and as weights, generation and regions: right on every architecture, or refused.

docs/architectures.md has the numbers (``python -m benchmarks.architectures``).
"""

from __future__ import annotations

from importlib.metadata import version

import pytest

from tests.architecture_measures import MEASURES, outcome
from tests.architectures import ARCHITECTURES, MORE, UNFAITHFUL, kinds_first, save_architecture
from tests.models.test_batched_alone import TEMPLATES, Subject

NORM_BETWEEN = (
    *(
        "gemma2",
        "gemma3",
        "gemma4",
        "gemma4-shared-keys",
        "bloom",
        "olmo2",
        "olmo3",
        "exaone4",
        "glm4",
        "xglm",
    ),
    *("afmoe", "flex-olmo", "nanochat", "modernbert-decoder", "olmo-hybrid"),
    *("gemma3, images", "gemma4, images", "kolibri1", "lfm3"),
)
"""What a map writes is normed or scaled before it reaches the stream, so that weights alone cannot hold the edit."""
REFUSED = dict.fromkeys(NORM_BETWEEN, ("baked",)) | {
    "recurrent-gemma": ("sweep", "edit by hooks", "baked", "generation"),
    "openai-gpt": ("edit by hooks", "baked", "generation"),
}

SHARES_KEYS = "gemma4-shared-keys"
"""Its last blocks read keys of earlier ones, and run for the columns alone whose logits are asked for."""
UNREADABLE = (
    {("qwen3-next", "baked"), ("qwen3-next", "generation")}
    if version("transformer-lens").startswith("3.")
    else set()
)
"""What runs on the bridge's own modules of linear attention."""
TRIED = [name for name in ARCHITECTURES if name not in UNFAITHFUL]
if not version("transformer-lens").startswith("3."):
    TRIED += MORE


@pytest.fixture(scope="module", params=kinds_first(TRIED, also=(SHARES_KEYS,)))
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = save_architecture(
        tmp_path_factory.mktemp(request.param), request.param, template=TEMPLATES["no prefix"]
    )
    return Subject(folder, request.param)


@pytest.mark.parametrize("measure", MEASURES)
def test_each_measure_is_right_or_refused_by_name(one: Subject, measure: str) -> None:
    if (one.name, measure) in UNREADABLE:
        pytest.skip(
            "transformer-lens 3.9 asks linear attention for causal_conv1d_fn, which transformers 5 keeps elsewhere"
        )
    found = outcome(MEASURES[measure], one)
    assert found.split()[0] == ("refused" if measure in REFUSED.get(one.name, ()) else "right"), found
