"""Every case that a lab model is measured on: kinds of inputs by text class, and soft tokens before unsafe ones."""

from __future__ import annotations

import pandas as pd
import torch
from transformers import GPTNeoXForCausalLM

from mechsafety.lab.inputs import KINDS, draw_inputs, joined
from mechsafety.lab.outcomes import free_running, outcome_table, readings
from mechsafety.lab.soft_tokens import random_soft_tokens, search_soft_tokens
from mechsafety.lab.vocabulary import Vocabulary


def measure_cases(model: GPTNeoXForCausalLM, vocabulary: Vocabulary, *, n: int, seed: int) -> pd.DataFrame:
    """Outcomes on ``n`` report inputs of each kind, and on as many unsafe ones behind soft tokens.

    ``kind`` is one of :data:`KINDS`, ``soft`` (searched tokens) or ``random_soft`` (where the search starts, its
    control); the other columns are those of :func:`outcomes.outcome_table`.
    """
    generator = torch.Generator().manual_seed(seed)
    rules = vocabulary.rules
    inputs = joined([draw_inputs(rules, kind, n, split="report", generator=generator) for kind in KINDS])
    answers = free_running(model, vocabulary, vocabulary.prompts(inputs))
    tables = [outcome_table(inputs, readings(vocabulary, inputs, answers))]
    unsafe = draw_inputs(rules, "unsafe", n, split="report", generator=generator)
    prompts = vocabulary.prompts(unsafe)
    for kind, soft in (
        ("random_soft", random_soft_tokens(model, n, seed=seed)),
        ("soft", search_soft_tokens(model, vocabulary, unsafe, seed=seed)),
    ):
        answers = free_running(model, vocabulary, prompts, soft=soft)
        tables.append(outcome_table(unsafe, readings(vocabulary, unsafe, answers)).assign(kind=kind))
    return pd.concat(tables, ignore_index=True)
