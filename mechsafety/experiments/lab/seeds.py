"""What a seed of the lab is in a run folder, the same for the run and for its ladder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechsafety.experiments.lab.config import LabConfig
from mechsafety.lab.cases import measure_cases
from mechsafety.lab.networks import open_network
from mechsafety.lab.presets import Preset, preset
from mechsafety.lab.prompt_sets import lab_prompts
from mechsafety.lab.rules import Rules
from mechsafety.lab.vocabulary import Vocabulary
from mechsafety.models.hardware import resolve_device
from mechsafety.models.provenance import of_model
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

    from mechsafety.experiments.session import Session

PROMPTS, ATTACKS, KEY = "prompts.csv", "attacks.csv", "answer_key.csv"


@dataclass(frozen=True, kw_only=True)
class LabSeed:
    """The world, the folder and the prompt sets of one seed."""

    session: Session
    chosen: Preset
    vocabulary: Vocabulary
    seed: int
    device: str

    @classmethod
    def each(cls, session: Session, config: LabConfig) -> list[LabSeed]:
        chosen = preset(config.preset)
        return [
            cls(
                session=session,
                chosen=chosen,
                vocabulary=Vocabulary(rules=Rules(size=chosen.rules, seed=seed)),
                seed=seed,
                device=config.device,
            )
            for seed in config.seeds
        ]

    @property
    def folder(self) -> Path:
        return seed_folder(self.session.shared_folder, self.seed)

    @property
    def key(self) -> str:
        """What its parts are named by."""
        return seed_key(self.seed)

    def model(self, name: str) -> Path:
        """The folder of one of its models."""
        return self.folder / "models" / name

    def say(self, line: str) -> None:
        self.session.say(f"seed {self.seed}: {line}")

    @property
    def training(self) -> dict[str, Any]:
        """What each of its trainings is given."""
        return {"seed": self.seed, "device": resolve_device(self.device)}

    @property
    def reading(self) -> dict[str, Any]:
        """The configuration's fields, in an anatomy or a ladder, of a run on this seed's prompts."""
        return {
            "prompts": str(self.folder / PROMPTS),
            "judge": f"key:{self.folder / KEY}",
            # The longest right answer: a tag, the text, and the token that ends it.
            "max_new_tokens": self.vocabulary.rules.size.grammar.length[1] + 2,
            "dtype": "float32",
            "device": self.device,
            "seed": self.seed,
        }

    def write_prompt_sets(self) -> None:
        """The inputs as ``prompts.csv`` and ``attacks.csv``, and their answers as ``answer_key.csv``."""
        n = self.chosen.anatomy
        made = lab_prompts(self.vocabulary, fit=n, validation=n, report=n, attacks=n, seed=self.seed)
        for name, table in ((PROMPTS, made.prompts), (ATTACKS, made.attacks), (KEY, made.key)):
            RunFolder(self.folder).write_table(table, name)

    def cases(self, path: Path, name: str, **columns: str) -> pd.DataFrame:
        """What the model in ``path`` answers to every kind of input, with ``columns`` beside it."""
        made_from = of_model(str(path), dtype="float32", device=self.device)
        self.session.run.require_source(f"model {name} of seed {self.seed}", made_from)

        def measured() -> pd.DataFrame:
            model = open_network(path, device=resolve_device(self.device))
            return measure_cases(model, self.vocabulary, n=self.chosen.measured, seed=self.seed)

        table = self.session.part(self.key, "cases", name, make=measured)
        first = {"seed": self.seed, **columns}
        return table.assign(**first)[[*first, *table.columns]]


def seed_key(seed: int) -> str:
    return f"seed-{seed}"


def seed_folder(run: Path, seed: int) -> Path:
    return run / seed_key(seed)
