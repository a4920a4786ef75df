"""Inputs as prompt sets and an answer key, so that every other command works on lab models too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch

from mechsafety.lab.inputs import ATTACKS, Inputs, Kind, Split, draw_inputs
from mechsafety.lab.rules import TEXT_CLASSES
from mechsafety.lab.vocabulary import Vocabulary

_SPLITS: Mapping[str, Split] = {"fit": "train", "validation": "validation", "report": "report"}
_SOURCE = "mechsafety lab"


@dataclass(frozen=True, kw_only=True)
class LabPrompts:
    """Three tables: prompts (safe and unsafe, all splits), attacks (report split), and the answer key of both."""

    prompts: pd.DataFrame
    attacks: pd.DataFrame
    key: pd.DataFrame


def lab_prompts(
    vocabulary: Vocabulary, *, fit: int, validation: int, report: int, attacks: int, seed: int
) -> LabPrompts:
    """That many safe and as many unsafe prompts a split, and ``attacks`` of each family and text class.

    Columns are those of a prompt set (:func:`load_prompts`); ``category`` is the text class, and of an attack
    its family. The key is the file of the judge ``key``.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = {"fit": fit, "validation": validation, "report": report}
    rows: list[dict[str, str]] = []
    keys: dict[str, dict[str, str]] = {}
    for split, n in numbers.items():
        for kind in ("safe", "unsafe"):
            rows += _rows(vocabulary, kind, n, split=split, keys=keys, generator=generator)
    attacked: list[dict[str, str]] = []
    for kind in ATTACKS:
        n = attacks * (len(TEXT_CLASSES) if kind in ("co_task", "misgen") else 1)
        attacked += _rows(vocabulary, kind, n, split="report", keys=keys, generator=generator)
    return LabPrompts(
        prompts=pd.DataFrame(rows), attacks=pd.DataFrame(attacked), key=pd.DataFrame(list(keys.values()))
    )


def prompt_text(vocabulary: Vocabulary, inputs: Inputs) -> list[str]:
    """Each input as the text of a chat message: task tokens, ``<sot>``, text."""
    return [vocabulary.text(row[1:-1]) for row in vocabulary.prompts(inputs).tolist()]


def _rows(
    vocabulary: Vocabulary,
    kind: Kind,
    n: int,
    *,
    split: str,
    keys: dict[str, dict[str, str]],
    generator: torch.Generator,
) -> list[dict[str, str]]:
    """``n`` prompts of a kind that ``keys`` does not hold yet; their keys are added to it."""
    rows: list[dict[str, str]] = []
    while len(rows) < n:
        inputs = draw_inputs(vocabulary.rules, kind, n, split=_SPLITS[split], generator=generator)
        answers, refusals, rephrased = (
            [vocabulary.text(row[:-1]) for row in ids.tolist()]
            for ids in (vocabulary.answers(inputs), vocabulary.refusals(inputs), vocabulary.rephrased(inputs))
        )
        for i, text in enumerate(prompt_text(vocabulary, inputs)):
            if text in keys or len(rows) == n:
                continue
            redirection = rephrased[i] if inputs.unsafe[i] and rephrased[i] != answers[i] else ""
            keys[text] = {
                "prompt": text,
                "answer": answers[i],
                "refusal": refusals[i],
                "redirection": redirection,
                "tag": "<tag>",
            }
            rows.append(
                {
                    "id": f"{kind}-{split}-{len(rows):04d}",
                    "text": text,
                    "label": "harmful" if inputs.unsafe[i] else "harmless",
                    "category": kind if kind in ATTACKS else inputs.text_classes[i],
                    "split": split,
                    "source": _SOURCE,
                    "licence": "CC0-1.0",
                }
            )
    return rows
