"""The ten checkpoints of arXiv 2510.02768 as tiny random models: three architectures, and templates of their forms."""

from __future__ import annotations

from pathlib import Path

from mechsafety.experiments.study.config import load_config
from tests.architectures import random_model
from tests.chat_forms import set_form

_RUNGS = [system for system in load_config("safety-pretraining").systems if "locuslab" in system]
SYSTEMS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(_RUNGS, ("llama-tied", "safety_smollm2")),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama-tied", "smollm2"),
    "zai-org/glm-4-9b-chat-hf": ("glm", "glm4"),
    "meta-llama/Llama-3.3-70B-Instruct": ("llama", "llama33"),
    "Qwen/Qwen3-14B": ("qwen3", "qwen3"),
}
"""Architecture (:mod:`tests.architectures`) and form of the template (:mod:`tests.chat_forms`), in the preset's order."""


def save_system(folder: Path, system: str, *, seed: int = 0, window: int = 512) -> Path:
    """A tiny random model of a system's architecture, with a template of its form; named after its repository."""
    architecture, form = SYSTEMS[system]
    place = folder / system.rpartition("/")[2]
    random_model(architecture, seed=seed, max_position_embeddings=window).save_pretrained(place)
    set_form(place, form)
    return place
