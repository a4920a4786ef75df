"""Small labelled prompt sets in the words that the tiny tokenizer knows."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from mechsafety.prompts.columns import PromptLabel, Split
from mechsafety.prompts.prompt_set import Prompt, PromptSet
from tests.conftest import WORDS

HARMFUL_WORDS = ("fire", "storm", "lock")


def small_prompts(per_split: int = 6, *, seed: int = 0) -> PromptSet:
    """``per_split`` prompts of each label in each split, of different lengths, all texts distinct."""
    generator = random.Random(seed)
    prompts: list[Prompt] = []
    splits: tuple[Split, ...] = ("fit", "validation", "report")
    labels: tuple[PromptLabel, ...] = ("harmful", "harmless")
    for split in splits:
        for label in labels:
            for number in range(per_split):
                words = generator.choices(WORDS[:18], k=2 + number % 5)
                words.append(generator.choice(HARMFUL_WORDS) if label == "harmful" else "bread")
                text = " ".join([*words, *str(len(prompts))])
                prompts.append(
                    Prompt(
                        id=f"{split}-{label}-{number}-{seed}",
                        text=text,
                        label=label,
                        category="tiny",
                        split=split,
                    )
                )
    return PromptSet(tuple(prompts), "small")


def write_csv(prompts: PromptSet, path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(prompts.to_frame().to_dict("records")[0]))
        writer.writeheader()
        writer.writerows(prompts.to_frame().to_dict("records"))
    return path
