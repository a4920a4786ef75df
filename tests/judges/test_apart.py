"""Judges that are models: verdict and score of an answer are its own, whatever else is in the call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import pytest

from mechsafety.core.verdict import Judge, Response, Verdict
from mechsafety.generation import fixed_batches
from mechsafety.judges import asking
from mechsafety.judges.classifiers import load_classifier
from mechsafety.judges.kinds.embedding import EmbeddingJudge, load_encoder, packaged_head, read_head
from mechsafety.judges.kinds.llamaguard import LlamaGuardJudge
from mechsafety.judges.kinds.strongreject import StrongRejectJudge
from mechsafety.judges.kinds.text import TextJudge
from tests.kept_models import kept, kept_folder

KINDS = ("llama", "gpt2", "gemma2", "mixtral")
"""Rotated and learned positions, windows, experts."""
DTYPES = ("bfloat16", "float32")
WORDS = ["sure here", "sorry can not", "the river", "make bread"]
RESPONSES = [
    Response(
        id=str(n),
        prompt="tell me about " + "the river " * (n % 3),
        text=" ".join(f"{WORDS[n % 4]} {WORDS[place % 3]}" for place in range(n + 1)),
    )
    for n in range(11)
]
LONG = Response(id="long", prompt="make bread", text="storm river " * 300)
SHORT_QUESTION = (
    "please tell me about the question {nonce} {prompt} and the answer [ {answer} ] again {nonce}"
)


class Graded(StrongRejectJudge):
    """A short question, for models that read 256 tokens."""

    answer_tokens = None

    def question(self, prompt: str, answer: str) -> str:
        return f"make a question {prompt} sure {answer} list"


def text(kind: str, dtype: str) -> Judge:
    return TextJudge("tiny", kept(kind, dtype=dtype), max_new_tokens=4)


def graded(kind: str, dtype: str) -> Judge:
    return Graded("graded", load_classifier(str(kept_folder(kind)), dtype=dtype, device="cpu"))


def guard(kind: str, dtype: str) -> Judge:
    return LlamaGuardJudge("guard", load_classifier(str(kept_folder(kind)), dtype=dtype, device="cpu"))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_QUESTION", SHORT_QUESTION)


def assert_each_has_its_own_verdict(judge: Judge, responses: Sequence[Response]) -> list[Verdict]:
    together = list(judge(responses))
    assert [judge([r])[0] for r in responses[::3]] == together[::3]
    mixed = [responses[i] for i in (7, 2, 10, 0, 5, 9, 1, 3, 8, 6, 4)]
    assert sorted(judge([*mixed, *mixed[:2]][:11]), key=lambda v: int(v.id)) == together
    assert list(judge(responses[:5])) == together[:5]
    others = [Response(id=f"o{n}", prompt="write", text="fire storm " * n) for n in range(1, 13)]
    assert list(judge([*others[:9], *responses, *others[9:]]))[9 : 9 + len(responses)] == together
    return together


FAST = [
    *((text, "bfloat16", "llama"), (text, "float32", "gemma2"), (graded, "bfloat16", "gpt2")),
    *((graded, "float32", "llama"), (guard, "bfloat16", "gemma2"), (guard, "float32", "gpt2")),
]
"""Every judge, kind and number format twice or more."""
CASES = [
    pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
    for case in product((text, graded, guard), DTYPES, KINDS)
]


@pytest.mark.parametrize(("make", "dtype", "kind"), CASES)
def test_a_verdict_does_not_depend_on_the_others_in_the_call(
    make: Callable[[str, str], Judge], dtype: str, kind: str
) -> None:
    together = assert_each_has_its_own_verdict(make(kind, dtype), RESPONSES)
    assert len({str(v.detail) for v in together}) > 3  # the control: they are not all the same


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_embedding_does_not_depend_on_the_others_in_the_call(dtype: str) -> None:
    encoder = load_encoder(dtype=dtype, device="cpu")
    together = assert_each_has_its_own_verdict(
        EmbeddingJudge("embedding", head=read_head(packaged_head()), encoder=encoder), RESPONSES
    )
    assert len({str(v.detail) for v in together}) > 5
    texts = [r.text for r in RESPONSES]
    each = [encoder.embed([one])[0] for one in texts]
    assert all((one == other).all() for one, other in zip(each, encoder.embed(texts), strict=True))


def test_in_plain_batches_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    # The control: in one batch of whatever size and width, the same judges move with the others in bfloat16.
    def plain(shapes: Sequence[tuple[int, ...]], _: object) -> Iterator[tuple[list[int], list[int]]]:
        yield list(range(len(shapes))), list(range(len(shapes)))

    monkeypatch.setattr(fixed_batches, "fixed_plan", plain)
    monkeypatch.setattr(fixed_batches, "wide", lambda n: n)
    judges = [graded(kind, "bfloat16") for kind in ("llama", "gpt2", "gemma2")]
    moved = [
        judge([r])[0] != one for judge in judges for r, one in zip(RESPONSES, judge(RESPONSES), strict=True)
    ]
    if not any(moved):
        pytest.skip("this machine rounds alike in every shape")


@pytest.mark.parametrize("make", [text, graded, guard])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_the_context_cannot_hold_is_too_long(make: Callable[[str, str], Judge], kind: str) -> None:
    judge = make(kind, "float32")
    alone = list(judge(RESPONSES[:2]))
    verdicts = list(judge([RESPONSES[0], LONG, RESPONSES[1]]))
    assert (verdicts[1].label, verdicts[1].tags) == ("unparsed", ("too_long",))
    assert [verdicts[0], verdicts[2]] == alone
