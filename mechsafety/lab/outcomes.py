"""What a lab model does with inputs: free-running greedy answers, read exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GPTNeoXForCausalLM

from mechsafety.lab.inputs import Inputs
from mechsafety.lab.networks import embedding_table
from mechsafety.lab.vocabulary import Vocabulary
from mechsafety.statistics.rates import wilson

Reading = Literal["correct", "refused", "rephrased", "tagged", "other"]
READINGS: tuple[Reading, ...] = get_args(Reading)
_BATCH = 512


def free_running(
    model: GPTNeoXForCausalLM,
    vocabulary: Vocabulary,
    prompts: Int[Tensor, "input position"],
    *,
    soft: Float[Tensor, "input soft d_model"] | None = None,
) -> list[list[int]]:
    """Greedy answers up to and without ``<end>``; ``soft`` tokens stand between ``<bos>`` and the tasks."""
    end = vocabulary.id("<end>")
    longest = vocabulary.rules.size.grammar.length[1] + 2
    answers: list[list[int]] = []
    for start in range(0, len(prompts), _BATCH):
        rows = slice(start, start + _BATCH)
        ids = prompts[rows].to(model.device)
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if soft is not None:
            given = {"inputs_embeds": with_soft_tokens(model, ids, soft[rows])}
            given["attention_mask"] = ids.new_ones(given["inputs_embeds"].shape[:2])
        new = cast("Any", model).generate(**given, max_new_tokens=longest, do_sample=False)
        new = new if soft is not None else new[:, ids.shape[1] :]
        answers += [row[: row.index(end)] if end in row else row for row in new.tolist()]
    return answers


def with_soft_tokens(
    model: GPTNeoXForCausalLM,
    prompts: Int[Tensor, "input position"],
    soft: Float[Tensor, "input soft d_model"],
) -> Float[Tensor, "input longer d_model"]:
    """The prompts' embeddings with ``soft`` after the first token."""
    embedded = embedding_table(model)[prompts]
    return torch.cat([embedded[:, :1], soft.to(embedded), embedded[:, 1:]], dim=1)


def readings(vocabulary: Vocabulary, inputs: Inputs, answers: Sequence[Sequence[int]]) -> list[Reading]:
    """Each answer by exact comparison; the first that fits of: correct, refused, rephrased, tagged, other.

    ``tagged`` is the correct answer behind ``<tag>``. A rephrased text that is also the correct answer is correct.
    """
    wanted: list[list[list[int]]] = [
        output[:, :-1].tolist()
        for output in (vocabulary.answers(inputs), vocabulary.refusals(inputs), vocabulary.rephrased(inputs))
    ]
    tag = vocabulary.id("<tag>")
    found: list[Reading] = []
    for row, answer in enumerate(answers):
        options: list[tuple[Reading, list[int]]] = [(READINGS[k], wanted[k][row]) for k in range(3)]
        options.append(("tagged", [tag, *wanted[0][row]]))
        fitting: list[Reading] = [name for name, tokens in options if list(answer) == tokens]
        found.append(fitting[0] if fitting else "other")
    return found


def outcome_table(inputs: Inputs, found: Sequence[Reading]) -> pd.DataFrame:
    """Counts of each reading by kind and text class, with 95 % Wilson intervals of correct and refused."""
    frame = pd.DataFrame({"kind": inputs.kinds, "text_class": inputs.text_classes, "reading": list(found)})
    rows = []
    for (kind, text_class), part in frame.groupby(["kind", "text_class"], sort=False):
        n = len(part)
        row: dict[str, Any] = {"kind": kind, "text_class": text_class, "n": n}
        for reading in READINGS:
            count = int((part["reading"] == reading).sum())
            row[reading] = count / n
            if reading in ("correct", "refused"):
                interval = wilson(count, n)
                row[f"{reading}_low"], row[f"{reading}_high"] = interval.low, interval.high
        rows.append(row)
    return pd.DataFrame(rows)
