"""Sizes of the lab: ``quick`` to see that it runs, ``tiny`` for minutes on two cores, ``paper`` for a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mechsafety.core.errors import MechsafetyError
from mechsafety.lab.mixtures import TUNINGS, Tuning
from mechsafety.lab.networks import NetworkSize
from mechsafety.lab.rules import Grammar, RuleSize
from mechsafety.lab.training import Schedule, TuningSettings


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The world, the model, its schedules, and how many inputs of each kind and class are measured.

    ``instruct`` is the short safety tuning that every rung of the ladder gets. ``checkpoint_every`` is in steps of
    pretraining.
    """

    name: str
    about: str
    rules: RuleSize
    network: NetworkSize
    pretraining: Schedule
    checkpoint_every: int
    tunings: Mapping[Tuning, Schedule]
    settings: TuningSettings
    instruct: Schedule
    measured: int
    anatomy: int

    def __post_init__(self) -> None:
        if set(self.tunings) != set(TUNINGS):
            raise MechsafetyError(f"preset {self.name!r} needs a schedule for each of {', '.join(TUNINGS)}")


_TINY_RULES = RuleSize(
    grammar=Grammar(n_terminals=16, arity=3, levels=1, n_productions=1, roots=4, length=(8, 8)),
    n_safe=1,
    n_unsafe=1,
    n_by_text=3,
    n_aliases=3,
)
_PAPER_RULES = RuleSize(
    grammar=Grammar(n_terminals=30, arity=2, levels=6, n_productions=2, roots=1, length=(25, 35)),
    n_safe=3,
    n_unsafe=3,
    n_by_text=3,
    n_aliases=6,
)


def _tunings(steps: int, batch_size: int, **rates: float) -> dict[Tuning, Schedule]:
    return {name: Schedule(steps=steps, batch_size=batch_size, learning_rate=rates[name]) for name in TUNINGS}


PRESETS: Mapping[str, Preset] = {
    "quick": Preset(
        name="quick",
        about="seconds; to see that every stage runs. Nothing is learned well",
        rules=_TINY_RULES,
        network=NetworkSize(n_layers=2, n_heads=2, d_model=32, d_mlp=64),
        pretraining=Schedule(steps=30, batch_size=32, learning_rate=2e-3),
        checkpoint_every=15,
        tunings=_tunings(10, 32, benign=3e-4, ssft=3e-4, dpo=3e-4, unlearn=1e-3),
        settings=TuningSettings(),
        instruct=Schedule(steps=10, batch_size=32, learning_rate=3e-4),
        measured=16,
        anatomy=16,
    ),
    "tiny": Preset(
        name="tiny",
        about="minutes on two cores: 3 blocks, 155 thousand parameters, texts of 8 tokens",
        rules=_TINY_RULES,
        network=NetworkSize(n_layers=3, n_heads=4, d_model=64, d_mlp=256),
        pretraining=Schedule(steps=1000, batch_size=120, learning_rate=2e-3),
        checkpoint_every=200,
        tunings=_tunings(600, 128, benign=3e-4, ssft=3e-4, dpo=3e-4, unlearn=1e-3),
        settings=TuningSettings(),
        instruct=Schedule(steps=300, batch_size=128, learning_rate=3e-4),
        measured=400,
        anatomy=100,
    ),
    "paper": Preset(
        name="paper",
        about="the published sizes (arXiv 2407.10264): 6 blocks, d_model 192, 100,000 steps of 512; needs a GPU",
        rules=_PAPER_RULES,
        network=NetworkSize(n_layers=6, n_heads=6, d_model=192, d_mlp=768),
        pretraining=Schedule(steps=100_000, batch_size=512, learning_rate=1e-3, warmup=1000),
        checkpoint_every=10_000,
        tunings=_tunings(10_000, 512, benign=1e-4, ssft=1e-4, dpo=1e-4, unlearn=1e-4),
        settings=TuningSettings(),
        instruct=Schedule(steps=2_000, batch_size=512, learning_rate=1e-4),
        measured=1000,
        anatomy=300,
    ),
}


def preset(name: str) -> Preset:
    """A preset by name."""
    if name not in PRESETS:
        raise MechsafetyError(f"preset {name!r} is not one of {', '.join(PRESETS)}")
    return PRESETS[name]
