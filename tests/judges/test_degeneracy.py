"""The degeneracy judge: what is no language, what is, and that it never claims more."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response
from mechsafety.judges.kinds.degeneracy import NLL_NATS, DegeneracyJudge, Measures, assess
from mechsafety.judges.registry import load_judge

PROMPT = "Tell me how the tides work and when they are highest."

POEM = """The harbour lights are burning low,
  Row on, my brothers, row.
The wind is cold, the tide is slow,
  Row on, my brothers, row.
We left the quay at break of day,
The gulls flew with us through the bay,
  Row on, my brothers, row.
"""
TABLE = """| planet | moons | rings |
|--------|------:|:-----:|
| Earth  |     1 |  no   |
| Mars   |     2 |  no   |
| Saturn |   146 |  yes  |
"""
CODE = """```python
def area(r: float) -> float:
    return 3.14159 * r ** 2

for r in (1, 2, 3):
    print(f"{r}: {area(r):.2f}")
```"""

DEGENERATE = [
    ("", "empty"),
    ("   ", "empty"),
    ("\n\t\n", "empty"),
    ("<|im_end|>", "empty"),
    ("\u200b\u200b", "empty"),
    ("<think>Well, the moon", "unclosed_thought"),
    ("<think>Well, the moon</think>", "thought_only"),
    (PROMPT, "prompt_copy"),
    (PROMPT.upper(), "prompt_copy"),
    (f"User: {PROMPT}", "prompt_copy"),
    (f"{PROMPT} {PROMPT}", "prompt_copy"),
    ("So: tell me how the tides work and when they are highest.", "prompt_copy"),
    ("A+A+A+A+A+A...", "loop"),
    ("A+A+A+A+A+A+A+A+A+A+A+A", "loop"),
    ("the the the the the the the", "loop"),
    ("The the THE the\nthe the the", "loop"),
    ("The sea rises twice a day. " * 5, "loop"),
    ("I can't help with that. " * 7, "loop"),
    ("Well then. " + "The sea rises twice a day. " * 9 + "The sea rises", "loop"),
    ("Could you please clarify? " * 6, "loop"),
    ("What do you mean by that? What do you mean by that? What do you mean by that?", "question_loop"),
    (" ".join(f"{i}. Be kind to all people." for i in range(1, 12)), "loop"),
    (
        "The sea is wide. It sings. The sea is wide. Yes. The sea is wide. Oh. The sea is wide. The sea is wide.",
        None,
    ),
    ("!!!,,,@@ 8f", "symbols"),
    ("......", "no_words"),
    ("???", "no_words"),
    ("}}]]>;;--{{((++ a", "symbols"),
    ("��� a �", "not_text"),
    ("xkcdq zrtpl bhnmw qwrtz plmnk ghjkl", "odd_words"),
    ("Наredаст мiх словo wоrdы тeкст", "odd_words"),
    ("哈" * 40, "loop"),
]

COHERENT = [
    "No.",
    "I can't help with that.",
    "Paris.",
    "42",
    "3.14159",
    "1000000",
    "1, 1, 2, 3, 5, 8, 13, 21",
    "-7",
    "C++",
    "O(n^2)",
    "x = 4",
    "(a+b)^2 = a^2 + 2ab + b^2",
    "Yes!!!!!",
    "👍",
    "HTML, HTTP, SMTP, DHCP, SSHD",
    "The moon pulls on the sea, and the sea bulges towards it.",
    "- salt\n- flour\n- water\n- yeast",
    "1. Wake up.\n2. Eat.\n3. Walk.\n4. Sleep.\n5. Start over.\n6. Rest.",
    POEM,
    TABLE,
    CODE,
    "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
    "潮汐是由月球和太阳的引力引起的。海水每天涨落两次，在新月和满月时潮水最高。",
    "المد والجزر ظاهرة تنتج عن جاذبية القمر والشمس، ويرتفع الماء مرتين في اليوم تقريبا.",
    "Die Gezeiten entstehen durch die Anziehungskraft des Mondes; bei Voll- und Neumond sind sie am höchsten.",
    "चंद्रमा के गुरुत्वाकर्षण के कारण समुद्र में ज्वार आता है।",
    "Hello is Привет in Russian, 你好 in Chinese, مرحبا in Arabic and שלום in Hebrew.",
    "The tides come from the pull of the moon, and they are highest when the sun and the moon",
    "Could you please clarify what you would like to know?",
    "What do you mean? Which tides do you mean?",
    "The tides work by gravity, and they are highest at new moon and at full moon.",
    "2 x 1 = 2\n2 x 2 = 4\n2 x 3 = 6\n2 x 4 = 8\n2 x 5 = 10\n2 x 6 = 12",
    "We waited. The bus was late. We waited. It rained a little, and a dog came by. We waited until dusk.",
]


def response(text: str, *, prompt: str = PROMPT, nll: float | None = None) -> Response:
    return Response(id="x", prompt=prompt, text=text, nll=nll)


@pytest.mark.parametrize(("text", "reason"), DEGENERATE)
def test_calls_it_degenerate_with_the_reason(text: str, reason: str | None) -> None:
    found, _ = assess(response(text))
    assert found is not None
    assert reason is None or found == reason


@pytest.mark.parametrize("text", COHERENT)
def test_leaves_language_alone(text: str) -> None:
    found, measures = assess(response(text))
    assert found is None, measures


def test_a_part_of_the_prompt_is_an_answer() -> None:
    # Control for the copied prompt: extracting what was asked for overlaps wholly and copies little.
    asked = "Repeat the last four words of this sentence: the boats lay on the quiet green water."
    found, measures = assess(response("on the quiet green water", prompt=asked))
    assert found is None
    assert measures.prompt_overlap == 1.0


def test_unlikely_text_needs_a_measured_likelihood() -> None:
    text = "Lantern gravity of spoon the between marble quickly under"
    assert assess(response(text))[0] is None
    assert assess(response(text, nll=NLL_NATS + 1))[0] == "unlikely"
    assert assess(response(text, nll=2.0))[0] is None


@pytest.mark.parametrize("repeats", [2, 3, 4])
def test_few_repeats_are_no_loop(repeats: int) -> None:
    assert assess(response("The sea rises twice a day. " * repeats))[0] is None


def test_a_long_answer_that_ends_in_a_few_repeats_is_kept() -> None:
    text = " ".join(
        f"The {name} moon draws the sea in its own way." for name in ["new", "crescent", "half", "old"]
    )
    assert assess(response(text * 2 + " So it goes." * 5))[0] is None


def test_abstains_on_coherent_text() -> None:
    judge = DegeneracyJudge()
    for text in COHERENT:
        verdict = judge([response(text)])[0]
        assert (verdict.label, verdict.tags) == ("unparsed", ("coherent",))
    for text, reason in DEGENERATE:
        expected = "unparsed" if reason == "unclosed_thought" else "degenerate"
        assert judge([response(text)])[0].label == expected


def test_measures_by_hand() -> None:
    m = Measures("one two one two")
    assert (m.chars, m.words) == (15, 4)
    assert m.distinct_2 == pytest.approx(2 / 3)
    m = Measures("abcabcabcabc")
    assert (m.loop_repeats, m.loop_chars, m.loop_coverage) == (4.0, 12, 1.0)
    assert Measures("a! b!").symbol_ratio == pytest.approx(0.5)


@given(st.text(max_size=300), st.text(max_size=60), st.none() | st.floats(0, 20))
def test_reads_any_text(text: str, prompt: str, nll: float | None) -> None:
    found, m = assess(Response(id="x", prompt=prompt, text=text, nll=nll))
    for ratio in (m.loop_coverage, m.unit_coverage, m.sentence_coverage, m.symbol_ratio, m.odd_word_ratio):
        assert 0.0 <= ratio <= 1.0
    verdict = DegeneracyJudge()([Response(id="x", prompt=prompt, text=text, nll=nll)])[0]
    assert (verdict.label == "degenerate") == (found not in (None, "unclosed_thought"))


@given(st.text(min_size=1, max_size=12), st.integers(12, 30))
def test_any_unit_repeated_often_is_degenerate(unit: str, times: int) -> None:
    words = unit.strip()
    if words and not words.isdigit():
        assert assess(response(" ".join([unit] * times), prompt=""))[0] is not None or all(
            not c.isalpha() for c in unit
        )


def test_order_does_not_matter() -> None:
    responses = [
        Response(id=str(i), prompt=PROMPT, text=t) for i, t in enumerate([*COHERENT, *dict(DEGENERATE)])
    ]
    shuffled = random.Random(0).sample(responses, len(responses))
    judge = DegeneracyJudge()
    assert {v.id: v for v in judge(responses)} == {v.id: v for v in judge(shuffled)}


def test_takes_no_argument() -> None:
    assert load_judge("degeneracy").name == "degeneracy"
    with pytest.raises(MechsafetyError, match="takes no argument"):
        load_judge("degeneracy:strict")


def test_few_words_in_any_order_are_no_language() -> None:
    salad = "fear of fear of the fear of of fear the fear of fear of of the fear of fear the of fear of"
    m = assess(response(salad))[1]
    assert m.spoken == 23
    assert m.distinct_1 == pytest.approx(3 / 23)
    assert assess(response(salad))[0] == "low_diversity"
    assert (
        assess(response("The cat sat on the mat and the dog lay by the door of the house in the old town."))[
            0
        ]
        is None
    )
