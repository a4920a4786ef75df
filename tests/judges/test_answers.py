"""Bodies of any shape: an answer or a failure, never anything else."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mechsafety.judges.answers import Failure, provider_says, read_body

KEYS = (
    *(
        "choices",
        "message",
        "delta",
        "content",
        "refusal",
        "finish_reason",
        "error",
        "code",
        "type",
        "detail",
    ),
    *("text", "value", "usage", "status", "thought"),
)
LEAVES = st.sampled_from(
    (None, True, 3, -1.5, "", "stop", "length", "text", "VERDICT: REFUSAL", "\ud800", "402")
)
SHAPES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
)
# Most random shapes are wrong at once: what lies behind the first steps is drawn as often.
MESSAGES = st.dictionaries(st.sampled_from(KEYS), SHAPES, max_size=3)
CHOICES = st.dictionaries(st.sampled_from(("message", "delta")), MESSAGES, min_size=1).flatmap(
    lambda choice: MESSAGES.map(lambda more: {"choices": [more | choice]})
)


def read(body: bytes) -> None:
    try:
        answer, _ = read_body(body)
    except Failure as failure:
        said = failure.says
    else:
        said = (answer.text + answer.refusal).encode().decode() and "an answer"
    assert said.isprintable()
    assert provider_says(body).isprintable()


@given(SHAPES | CHOICES)
def test_a_body_of_any_shape_is_an_answer_or_a_failure(shape: Any) -> None:
    body = json.dumps(shape).encode()
    read(body)
    read(b"data: " + body + b"\n\ndata: [DONE]\n\n")


@given(st.binary(max_size=40))
def test_any_bytes_are_an_answer_or_a_failure(body: bytes) -> None:
    read(body)
    read(b"data: " + body)
