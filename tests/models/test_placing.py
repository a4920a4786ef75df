"""How a model is divided is decided before its weights are read, and what cannot be divided is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.config import EditedConfig, checked_config
from mechsafety.models import placing
from mechsafety.models.facts import model_facts
from mechsafety.models.loading import load_model, load_record
from mechsafety.models.placing import USABLE, Copies, gpus_needed, memory_of
from mechsafety.models.provenance import of_model


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("0=20GiB,cpu=60GiB", {0: 20 * 1024**3, "cpu": 60 * 1024**3}),
        ("cuda:1=1.5GB", {1: 1_500_000_000}),
        (" 0 = 512 MB , 1=7 ", {0: 512_000_000, 1: 7}),
    ],
)
def test_memory_is_read(text: str, bytes_: dict[str | int, int]) -> None:
    assert memory_of(text) == bytes_


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"max_memory": "0=1GiB"}, 'give device_map="auto" with it'),
        ({"device_map": "auto", "device": "cpu"}, "give one of the two"),
        ({"device_map": "halves"}, "neither auto nor a device for each module"),
        ({"device_map": "auto", "max_memory": "cpu"}, "pairs such as 0=20GiB"),
        ({"device_map": "auto", "max_memory": "cpu=much"}, "is no size"),
        ({"device_map": "auto", "max_memory": "7=1GiB"}, "max_memory names 7"),
        ({"device_map": "auto", "max_memory": "cpu=20kB"}, "is divided by whole blocks"),
    ],
)
def test_what_cannot_be_divided_is_one_line(
    given: dict[str, Any], error: str, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "free_by_device", lambda: {"cpu": 10**9})
    with pytest.raises(MechsafetyError) as raised:
        load_model(str(tiny_folder("llama")), **given)
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_beside_gpus_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "free_by_device", lambda: {0: 10**9, 1: 10**9})
    with pytest.raises(MechsafetyError, match="in main memory beside GPUs are not supported"):
        placing.Placing(map="auto", memory=memory_of("0=1MB,cpu=1GB")).room()


def test_one_device_with_room_takes_all(tiny_folder: Callable[..., Path]) -> None:
    folder = str(tiny_folder("llama"))
    model = load_model(folder, dtype="float32", device_map="auto", max_memory="cpu=1GiB")
    record: Any = load_record(model)
    assert (record.device_map, record.blocks) == (f"auto, cpu={1024**3}", None)
    ids = torch.tensor([[5, 9, 12]])
    assert torch.equal(model(ids), load_model(folder, dtype="float32", device="cpu")(ids))


def test_the_configuration_passes_it_on(tiny_folder: Callable[..., Path]) -> None:
    config = checked_config(EditedConfig, {"model": "m", "device_map": "auto", "max_memory": "cpu=1GiB"})
    assert config.loading["max_memory"] == "cpu=1GiB"
    found = of_model(str(tiny_folder("llama")), **config.loading)
    assert found.circumstance["device"].endswith(f"divided: auto, cpu={1024**3}")


def test_a_constant_is_copied_once_for_a_device() -> None:
    copies = Copies(torch.ones(3))
    there = torch.device("meta")
    assert copies.on(there) is copies.on(there)
    assert copies.on(torch.device("cpu")) is copies.tensor


def test_a_system_asks_for_the_gpus_that_hold_it() -> None:
    # 140 GB of weights, 72 usable of 80, 126 of 140.
    assert gpus_needed(70e9, dtype="bfloat16", memory_gb=80) == 2
    assert gpus_needed(70e9, dtype="auto", memory_gb=80) == 2
    assert gpus_needed(70e9, dtype="float32", memory_gb=80) == 4
    assert gpus_needed(8e9, dtype="bfloat16", memory_gb=80) == 1
    assert gpus_needed(1, dtype="bfloat16", memory_gb=80) == 1
    assert gpus_needed(70e9, dtype="bfloat16", memory_gb=80, beside=5e9) == 3
    # What is held never exceeds what there is, and one GPU fewer would not do.
    for billions in (0.1, 1.7, 8, 33, 36, 70, 405):
        for memory in (24.0, 80.0, 141.0):
            n = gpus_needed(billions * 1e9, dtype="bfloat16", memory_gb=memory)
            assert (n - 1) * USABLE * memory < 2 * billions <= n * USABLE * memory
    large = model_facts("meta-llama/Llama-3.3-70B-Instruct").n_parameters
    assert gpus_needed(large, dtype="bfloat16", memory_gb=80) == 2
    with pytest.raises(MechsafetyError, match="must be above 0"):
        gpus_needed(1e9, dtype="bfloat16", memory_gb=0)
