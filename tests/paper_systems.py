"""The ten checkpoints of arXiv 2510.02768 as tiny random models: three architectures, and templates of their forms.

The templates are written here, in words that the tiny tokenizer knows: what stands around a turn, where a default
system prompt or a date is written, and Qwen3's switch of the thought have the form of the published ones.
"""

from __future__ import annotations

from pathlib import Path

from mechsafety.experiments.study.config import load_config
from tests.architectures import save_architecture

_TURN = "{% for m in messages %}<| start |> {{ m['role'] }}\n{{ m['content'] }} <| end |>\n{% endfor %}"
_NEXT = "{% if add_generation_prompt %}<| start |> assistant\n{% endif %}"
_ABOUT = (
    "{% if messages[0]['role'] != 'system' %}<| start |> system\nanswer the question <| end |>\n{% endif %}"
)
_RUNG = _TURN + _NEXT
"""The six rungs share one form: turns between marks, no system prompt of their own."""
_SMOLLM2 = _ABOUT + _TURN + _NEXT
_GLM = (
    "[ g ] < s > {% for m in messages %}<| {{ m['role'] }} |>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<| assistant |>{% endif %}"
)
_LLAMA = (
    "<| begin |> <| h |> system <| / h |>\n\nDate : {{ strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' }}"
    "\n\n <| end |>"
    "{% for m in messages %}<| h |> {{ m['role'] }} <| / h |>\n\n{{ m['content'] | trim }} <| end |>{% endfor %}"
    "{% if add_generation_prompt %}<| h |> assistant <| / h |>\n\n{% endif %}"
)
_QWEN3 = (
    _TURN + "{% if add_generation_prompt %}<| start |> assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SYSTEMS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        [s for s in load_config("safety-pretraining").systems if "locuslab" in s], ("llama", _RUNG)
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama-tied", _SMOLLM2),
    "zai-org/glm-4-9b-chat-hf": ("glm", _GLM),
    "meta-llama/Llama-3.3-70B-Instruct": ("llama", _LLAMA),
    "Qwen/Qwen3-14B": ("qwen3", _QWEN3),
}
"""Architecture (:mod:`tests.architectures`) and template of each system, in the order of the preset."""


def save_systems(folder: Path, *, width: int = 400) -> list[str]:
    """Each system as a folder, named after the last part of its hub id; random weights differ from one to the next."""
    made: list[str] = []
    for seed, (name, (architecture, template)) in enumerate(SYSTEMS.items()):
        place = folder / name.rpartition("/")[2]
        save_architecture(place, architecture, seed=seed, template=template, max_position_embeddings=width)
        made.append(str(place))
    return made
