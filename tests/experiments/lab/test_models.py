"""Lab models in folders: whole or not there, and trained once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.experiments.lab import models as lab_models
from mechsafety.experiments.lab.models import pretrained, tuned
from mechsafety.lab.networks import new_network
from mechsafety.lab.presets import PRESETS, Preset
from mechsafety.lab.training import Schedule
from mechsafety.lab.vocabulary import Vocabulary
from mechsafety.models.loading import load_model
from tests.lab.test_rules import tiny_world
from tests.lab.test_training import bits, same

SCHEDULE = Schedule(steps=4, batch_size=8, learning_rate=1e-2)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(rules=tiny_world())


@pytest.fixture(scope="module")
def preset() -> Preset:
    return dataclasses.replace(PRESETS["quick"], pretraining=SCHEDULE, checkpoint_every=2)


def stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def test_a_finished_model_is_not_trained_again(
    vocabulary: Vocabulary, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "raw"
    given: dict[str, Any] = {"rung": "raw", "seed": 0, "checkpoints": True}
    first = pretrained(preset, vocabulary, folder, **given)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]
    steps = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert steps == ["step-000000", "step-000002", "step-000004"]
    before = stamps(folder)
    # Same seed, same bytes, in another folder too.
    again = pretrained(preset, vocabulary, tmp_path / "other", **given)
    assert same(bits(first), bits(again))
    assert {k: v[1] for k, v in stamps(tmp_path / "other").items()} == {k: v[1] for k, v in before.items()}
    unlike = pretrained(preset, vocabulary, tmp_path / "third", **(given | {"seed": 1, "checkpoints": False}))
    assert not same(bits(first), bits(unlike))
    assert not (tmp_path / "third" / "checkpoints").exists()

    ssft: dict[str, Any] = {"tuning": "ssft", "schedule": SCHEDULE, "seed": 0}
    moved = tuned(preset, vocabulary, folder, tmp_path / "ssft", **ssft)
    assert not same(bits(moved), bits(first))
    assert stamps(folder) == before  # the base stays as it is

    def trained_again(*_: Any, **__: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(lab_models, "pretrain", trained_again)
    monkeypatch.setattr(lab_models, "tune_network", trained_again)
    assert same(bits(pretrained(preset, vocabulary, folder, **given)), bits(first))
    assert same(bits(tuned(preset, vocabulary, folder, tmp_path / "ssft", **ssft)), bits(moved))
    assert stamps(folder) == before
    with pytest.raises(AssertionError, match="trained again"):
        pretrained(preset, vocabulary, tmp_path / "new", **given)

    bridge = load_model(str(folder), dtype="float32", device="cpu")
    ids = torch.tensor([[30, 17, 18, 25, 3, 4, 5]])
    with torch.inference_mode():
        torch.testing.assert_close(bridge(ids), first(ids).logits, atol=1e-5, rtol=1e-5)
        start = new_network(preset.network, vocabulary, seed=0)(ids).logits
        assert not torch.allclose(start, first(ids).logits, atol=1e-3)


def test_interrupted_training_leaves_no_model(
    vocabulary: Vocabulary, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"rung": "raw", "seed": 0, "checkpoints": True}
    whole = pretrained(preset, vocabulary, tmp_path / "whole", **given)
    steps: list[int] = []
    real = lab_models.pretrain

    def interrupted(*args: Any, checkpoints: Path, **options: Any) -> Any:
        real(*args, checkpoints=checkpoints, **options)
        steps.append(len(list(checkpoints.iterdir())))
        (checkpoints / "left behind").touch()
        raise KeyboardInterrupt

    folder = tmp_path / "raw"
    with monkeypatch.context() as patch:
        patch.setattr(lab_models, "pretrain", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrained(preset, vocabulary, folder, **given)
    assert steps == [3]
    assert not folder.exists()
    # The next call starts anew, and ends as one that was never interrupted.
    again = pretrained(preset, vocabulary, folder, **given)
    assert same(bits(again), bits(whole))
    assert {k: v[1] for k, v in stamps(folder).items()} == {
        k: v[1] for k, v in stamps(tmp_path / "whole").items()
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw", "whole"]
