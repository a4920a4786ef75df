"""The lab's models in a run folder: trained when they are not there yet, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GPTNeoXForCausalLM

from mechsafety.lab.mixtures import Rung, Tuning
from mechsafety.lab.networks import new_network, open_network, save_network
from mechsafety.lab.presets import Preset
from mechsafety.lab.training import Schedule, pretrain, tune_network
from mechsafety.lab.vocabulary import Vocabulary

_SCRATCH = ".training"


def pretrained(
    preset: Preset,
    vocabulary: Vocabulary,
    folder: Path,
    *,
    rung: Rung,
    seed: int,
    checkpoints: bool,
    device: torch.device | str = "cpu",
) -> GPTNeoXForCausalLM:
    """The model in ``folder``, pretrained on a rung's stream from the initialisation of ``seed``.

    With ``checkpoints`` it is also saved every ``preset.checkpoint_every`` steps, in
    ``folder/checkpoints/step-NNNNNN``: folders of their own, which :func:`load_model` and ``mechsafety compare``
    take as a series.
    """

    def train(scratch: Path) -> GPTNeoXForCausalLM:
        model = new_network(preset.network, vocabulary, seed=seed).to(device)  # pyright: ignore[reportArgumentType]
        pretrain(
            model,
            vocabulary,
            rung=rung,
            schedule=preset.pretraining,
            seed=seed,
            checkpoints=scratch / "checkpoints" if checkpoints else None,
            every=preset.checkpoint_every,
        )
        return model

    return _kept(folder, vocabulary, train)


def tuned(
    preset: Preset,
    vocabulary: Vocabulary,
    base: Path,
    folder: Path,
    *,
    tuning: Tuning,
    schedule: Schedule,
    seed: int,
    device: torch.device | str = "cpu",
) -> GPTNeoXForCausalLM:
    """The model in ``folder``: that of ``base`` after a tuning."""

    def train(_scratch: Path) -> GPTNeoXForCausalLM:
        model = open_network(base, device=device)
        tune_network(model, vocabulary, tuning=tuning, schedule=schedule, settings=preset.settings, seed=seed)
        return model

    return _kept(folder, vocabulary, train)


def _kept(
    folder: Path, vocabulary: Vocabulary, train: Callable[[Path], GPTNeoXForCausalLM]
) -> GPTNeoXForCausalLM:
    """Train into a folder beside ``folder`` and move it there at the end: what is there is finished."""
    if not folder.is_dir():
        scratch = folder.with_name(folder.name + _SCRATCH)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        save_network(train(scratch), vocabulary, scratch)
        scratch.rename(folder)
    return open_network(folder)
