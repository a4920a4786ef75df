"""Hours on many GPUs are those that are worked out by hand, and the page has the table that the function makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.study.cluster import cluster_table, on_gpus, stream_bytes
from mechsafety.experiments.study.config import load_config
from mechsafety.experiments.study.costs import Estimate, Gpu, Memory
from mechsafety.experiments.study.plan import Plan, PlanRow, plan_study

COUNTS, PRICE = (1, 8, 64), 2
PAGE = Path(__file__).parents[3] / "docs" / "scaling.md"


def plan(*systems: tuple[float, int]) -> Plan:
    """Of (hours on its own GPUs, GPUs); each has 4 GB of weights."""
    rows = [
        PlanRow(
            system=f"s{n}",
            estimate=Estimate(memory=Memory(weights=4e9, cache=0.0), devices=d, hours={"all": hours * d}),
        )
        for n, (hours, d) in enumerate(systems)
    ]
    return Plan(rows=(*rows, PlanRow(system="lost", unknown="no")), gpu=Gpu(), dtype="bfloat16", notes=())


def test_systems_take_turns_on_the_gpus_there_are() -> None:
    given = plan((3.0, 1), (1.0, 1), (2.0, 1), (2.0, 2))
    one = on_gpus(given, 1)
    assert (one.hours, one.least, one.gpu_hours, one.systems) == (6.0, 6.0, 6.0, 3)
    assert one.too_large == ("s3",)
    # 3 on the first; 2 on the second; the pair begins when both are free, at 3; then 1 at 5.
    two = on_gpus(given, 2)
    assert (two.hours, two.least, two.gpu_hours, two.systems) == (6.0, 5.0, 10.0, 4)
    assert two.rented(2.0) == 24.0
    many = on_gpus(given, 5)
    assert (many.hours, many.least) == (3.0, 2.0)
    # Four systems begin at once: 16 GB at 2 GB/s.
    assert many.loading == 8.0
    assert on_gpus(given, 500).hours == 3.0  # no system is faster for having more
    with pytest.raises(MechsafetyError, match="0 GPUs"):
        on_gpus(given, 0)


def test_no_schedule_is_better_than_all_gpus_busy() -> None:
    given = plan(*((1 + n % 5 / 2, 1 + n % 3) for n in range(12)))
    for gpus in range(3, 20):
        found = on_gpus(given, gpus)
        assert found.least <= found.hours + 1e-9
        assert found.hours >= 3.0


def test_the_page_has_the_table_of_the_paper_preset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # the packaged prompts
    monkeypatch.delenv("SAFETY_PRETRAINING", raising=False)
    made = plan_study(load_config("safety-pretraining", {}, say=lambda _: None), Gpu())
    page = PAGE.read_text(encoding="utf-8")
    assert cluster_table(made, COUNTS, price=PRICE) in page
    # 220 of each label at five positions, 81 streams of 8192 numbers.
    assert stream_bytes(made, prompts=440, positions=5) == 440 * 5 * 81 * 8192 * 4
    assert f"{stream_bytes(made, prompts=440, positions=5) / 1e9:.1f} GB" in page
