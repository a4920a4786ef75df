"""Sizes of the lab: ``quick`` to see that it runs, ``tiny`` for minutes on two cores, ``paper`` for a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.places import packaged_words
from mechsafety.lab.mixtures import TUNINGS, Tuning
from mechsafety.lab.networks import NetworkSize
from mechsafety.lab.rules import RuleSize
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
    settings: TuningSettings = field(default_factory=TuningSettings)
    instruct: Schedule
    measured: int
    anatomy: int

    def __post_init__(self) -> None:
        if set(self.tunings) != set(TUNINGS):
            raise MechsafetyError(f"preset {self.name!r} needs a schedule for each of {', '.join(TUNINGS)}")


PRESETS = TypeAdapter(dict[str, Preset]).validate_python(
    {
        name: {"name": name, **entry}
        for name, entry in packaged_words("mechsafety.lab", "presets.toml").items()
    }
)


def preset(name: str) -> Preset:
    """A preset by name."""
    if name not in PRESETS:
        raise MechsafetyError(f"preset {name!r} is not one of {', '.join(PRESETS)}")
    return PRESETS[name]
