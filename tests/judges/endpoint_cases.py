"""What endpoints send to a judge, and what the judge must make of it: one row a case.

A reply is the text of an answer, or a mapping: ``message`` and ``finish`` of a chat completion, or ``status``,
``headers`` and ``body`` (bytes, text, or what becomes JSON) of anything else. The last of several is repeated. Replies
are about an answer that declines, so ``refusal`` is right where there is a verdict; ``calls`` are those of one answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.judges.reading_cases import GOOD, READ, UNREAD

R, U = "refusal", "unparsed"
Reply = Any


@dataclass(frozen=True)
class Case:
    """``stops``: what the error says that ends the work; ``says``: what stands in the verdict's detail."""

    replies: tuple[Reply, ...]
    label: str = U
    tags: tuple[str, ...] = ()
    calls: int = 1
    says: str = ""
    stops: str = ""
    code: int = 0
    options: str = ""


def _says(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def _stream(*chunks: str, end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {chunk}\n\n" for chunk in chunks) + end


_PAGE = "<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in</body></html>"
_ALIKE = "answers every call alike"
_BUSY = {"status": 503, "body": {"error": {"message": "busy"}}}
_NO_FORMAT = {"status": 400, "body": {"error": {"message": "response_format is not supported"}}}

SENT: dict[str, Case] = {
    # -- kinds of answers
    "cut at the length": Case(({"message": {"content": GOOD}, "finish": "length"},), tags=("cut_off",)),
    "cut in a thought": Case(({"message": {"content": "<think>Hm"}, "finish": "length"},), tags=("cut_off",)),
    "cut with no content": Case(
        ({"message": {"content": None, "reasoning_content": "Hm, " + GOOD}, "finish": "length"},),
        tags=("cut_off",),
    ),
    "cut at max_tokens": Case(({"message": {"content": GOOD}, "finish": "max_tokens"},), tags=("cut_off",)),
    "filtered": Case(({"message": {"content": GOOD}, "finish": "content_filter"},), tags=("filtered",)),
    "filtered, empty": Case(({"message": {"content": ""}, "finish": "content_filter"},), tags=("filtered",)),
    "filtered by SAFETY": Case(({"message": {"content": "VERD"}, "finish": "SAFETY"},), tags=("filtered",)),
    "cut at the window": Case(
        ({"message": {"content": GOOD}, "finish": "model_context_window_exceeded"},), tags=("cut_off",)
    ),
    "filtered by contentFilter": Case(
        ({"message": {"content": GOOD}, "finish": "contentFilter"},), tags=("filtered",)
    ),
    "filtered by a guardrail": Case(
        ({"message": {"content": GOOD}, "finish": "guardrail_intervened"},), tags=("filtered",)
    ),
    "aborted": Case(({"message": {"content": "VERDICT: COMPLIANCE"}, "finish": "abort"}, GOOD), R, calls=2),
    "declines to judge": Case(
        ({"message": {"content": None, "refusal": "I cannot help."}},),
        tags=("judge_refused",),
        says="I cannot help.",
    ),
    "declines beside a text": Case(
        ({"message": {"content": GOOD, "refusal": "I cannot help."}},), tags=("judge_refused",)
    ),
    "no refusal in it": Case(({"message": {"content": GOOD, "refusal": None}},), R),
    "an empty refusal": Case(({"message": {"content": GOOD, "refusal": ""}},), R),
    "blocks": Case(
        (
            {
                "message": {
                    "content": [{"type": "text", "text": "VERDICT: "}, {"type": "text", "text": "REFUSAL"}]
                }
            },
        ),
        R,
    ),
    "one block": Case(({"message": {"content": {"type": "text", "text": GOOD}}},), R),
    "output_text blocks": Case(({"message": {"content": [{"type": "output_text", "text": GOOD}]}},), R),
    "blocks of texts": Case(({"message": {"content": ["VERDICT: ", "REFUSAL"]}},), R),
    "a thinking block": Case(
        (
            {
                "message": {
                    "content": [
                        {
                            "type": "thinking",
                            "thinking": "VERDICT: COMPLIANCE",
                            "text": "VERDICT: COMPLIANCE",
                        },
                        {"type": "text", "text": GOOD},
                    ]
                }
            },
        ),
        R,
    ),
    "blocks of thought by other names": Case(
        (
            {
                "message": {
                    "content": [
                        {"type": "reasoning.text", "text": "VERDICT: COMPLIANCE"},
                        {"type": "summary_text", "text": "VERDICT: COMPLIANCE"},
                        {"text": "VERDICT: COMPLIANCE", "thought": True},
                        {"text": GOOD},
                    ]
                }
            },
        ),
        R,
    ),
    "a refusal block": Case(
        ({"message": {"content": [{"type": "refusal", "refusal": "No."}]}},),
        tags=("judge_refused",),
        says="No.",
    ),
    "reasoning beside": Case(
        ({"message": {"content": GOOD, "reasoning_content": "VERDICT: COMPLIANCE"}},), R
    ),
    "only reasoning": Case(({"message": {"content": None, "reasoning": GOOD}},), tags=("empty",), calls=2),
    "empty": Case(("",), tags=("empty",), calls=2),
    "blank": Case((" \n ",), tags=("empty",), calls=2),
    "nothing": Case(({"message": {"content": None}},), tags=("empty",), calls=2),
    "tool calls": Case(
        ({"message": {"content": None, "tool_calls": [{"id": "1"}]}},), tags=("empty",), calls=2
    ),
    "empty, then a verdict": Case(("", GOOD), R, ("repaired",), 2),
    "unclear, then a verdict": Case(("It declines.", GOOD), R, ("repaired",), 2),
    "unclear, then cut": Case(
        ("It declines.", {"message": {"content": "VER"}, "finish": "length"}), tags=("cut_off",), calls=2
    ),
    "a lone surrogate": Case(
        ({"body": b'{"choices": [{"message": {"content": "\\ud800 hm"}}]}'},), tags=("unreadable",), calls=2
    ),
    "a lone surrogate before the verdict": Case(
        ({"body": b'{"choices": [{"message": {"content": "\\udfff\\nVERDICT: REFUSAL"}}]}'},), R
    ),
    "no UTF-8": Case(
        ({"body": b'{"choices": [{"message": {"content": "\xff\xfe\\nVERDICT: REFUSAL"}}]}'},), R
    ),
    "a byte order mark": Case(
        ({"body": b"\xef\xbb\xbf" + b'{"choices": [{"message": {"content": "VERDICT: REFUSAL"}}]}'},), R
    ),
    "blanks around": Case(
        ({"body": b'\n\n {"choices": [{"message": {"content": "VERDICT: REFUSAL"}}]}\n'},), R
    ),
    "events": Case(
        (
            {
                "headers": {"content-type": "text/event-stream"},
                "body": _stream(
                    '{"choices": [{"delta": {"role": "assistant", "content": "VERDICT: "}}]}',
                    '{"choices": [{"delta": {"content": "REFUSAL"}, "finish_reason": "stop"}]}',
                    '{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}',
                ),
            },
        ),
        R,
    ),
    "events on several lines, with separators in the text": Case(
        (
            {
                "body": 'event: message\r\ndata: {"choices": [{"delta":\r\ndata: {"content": "a\u2028b\\n'
                'VERDICT: REFUSAL"}, "finish_reason": "stop"}]}\r\n\r\ndata: [DONE]\r\n\r\n'
            },
        ),
        R,
    ),
    "events of no known shape": Case(
        (
            {
                "body": _stream(
                    '{"choices": [{"delta": [1], "message": 2}]}', '{"choices": [{"delta": {"refusal": 3}}]}'
                )
            },
        ),
        tags=("empty",),
        calls=2,
    ),
    "events, cut": Case(
        (
            {
                "body": _stream(
                    '{"choices": [{"delta": {"content": "VERDICT: REFUSAL"}, "finish_reason": "length"}]}'
                )
            },
        ),
        tags=("cut_off",),
    ),
    "events that break off": Case(
        ({"body": _stream('{"choices": [{"delta": {"content": "VERDICT: REFUSAL"}}]}', end="")}, GOOD),
        R,
        calls=2,
    ),
    "an error in events": Case(
        ({"body": _stream('{"error": {"code": 502, "message": "upstream"}}')}, GOOD), R, calls=2
    ),
    "an unknown reason to end": Case(({"message": {"content": GOOD}, "finish": "eos"},), R),
    "UTF-16": Case(({"body": json.dumps(_says(GOOD)).encode("utf-16")},), R),
    "another character set": Case(
        (
            {
                "headers": {"content-type": "application/json; charset=latin-1"},
                "body": '{"choices": [{"message": {"content": "\u00e9\\nVERDICT: REFUSAL"}}]}'.encode(
                    "latin-1"
                ),
            },
        ),
        R,
    ),
    "line breaks within a text": Case(
        ({"body": '{"choices": [{"message": {"content": "It declines.\nVERDICT: REFUSAL"}}]}'},), R
    ),
    "a number of many digits": Case(
        ({"body": json.dumps(_says(GOOD))[:-1] + ', "created": ' + "9" * 5000 + "}"},), R
    ),
    "a usage of many digits": Case(
        ({"body": {**_says(GOOD), "usage": {"prompt_tokens": 10**400, "completion_tokens": 1}}},),
        R,
        options=";price_in=1;price_out=1",
    ),
    "a usage below nothing": Case(
        ({"body": {**_says(GOOD), "usage": {"prompt_tokens": -5, "completion_tokens": 1}}},), R
    ),
    "no numbers": Case(
        (
            {
                "body": '{"choices": [{"message": {"content": "VERDICT: REFUSAL"}, "logprobs": -Infinity}], '
                '"usage": {"prompt_tokens": NaN, "completion_tokens": 1}}'
            },
        ),
        R,
    ),
    "the second choice first": Case(
        (
            {
                "body": {
                    "choices": [
                        {"index": 1, "message": {"content": "VERDICT: COMPLIANCE"}},
                        {"index": 0, "message": {"content": GOOD}},
                    ]
                }
            },
        ),
        R,
    ),
    "malformed": Case(
        ({"message": {"content": "VERDICT: COMPLIANCE"}, "finish": "MALFORMED_FUNCTION_CALL"}, GOOD),
        R,
        calls=2,
    ),
    "comments between events": Case(
        (
            {
                "body": ": PROCESSING\n\n: PROCESSING\n\n"
                + _stream(
                    '{"choices": [{"delta": {"content": "VERDICT: REFUSAL"}, "finish_reason": "stop"}]}'
                )
            },
        ),
        R,
    ),
    "two bodies": Case(
        ({"body": json.dumps(_says("hm")) + "\n" + json.dumps(_says(GOOD))}, GOOD), R, calls=2
    ),
    "a strange usage": Case(({"body": {**_says(GOOD), "usage": {"prompt_tokens": "many"}}},), R),
    # -- faults that pass
    "busy once": Case((_BUSY, GOOD), R, calls=2),
    "busy always": Case((_BUSY,), tags=("network",), calls=3, says="status 503: busy"),
    "429 always": Case(
        ({"status": 429, "body": {"error": {"message": "slow down"}}},),
        tags=("network",),
        calls=3,
        says="slow down",
    ),
    "429 for long": Case(
        ({"status": 429, "headers": {"retry-after": "7200"}, "body": "{}"},),
        tags=("network",),
        says="wait for 7200 s",
    ),
    **{
        f"{status} once": Case(({"status": status, "body": ""}, GOOD), R, calls=2)
        for status in (408, 425, 500, 502, 504, 520, 529)
    },
    "429 until a day that is past": Case(
        (
            {"status": 429, "headers": {"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}, "body": "{}"},
            GOOD,
        ),
        R,
        calls=2,
    ),
    "429 until no day": Case(
        ({"status": 429, "headers": {"retry-after": "Mon, 99 Foo 99999 99:00:00"}, "body": "{}"}, GOOD),
        R,
        calls=2,
    ),
    "429 for less than nothing": Case(
        ({"status": 429, "headers": {"retry-after": "-5", "retry-after-ms": "-5"}, "body": "{}"}, GOOD),
        R,
        calls=2,
    ),
    "429 for ever": Case(
        ({"status": 429, "headers": {"retry-after": "1e400"}, "body": "{}"},),
        tags=("network",),
        says="wait for inf s",
    ),
    "nothing left until tomorrow, or a moment of the calendar": Case(
        tuple(
            {
                "headers": {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": until},
                "body": _says(said),
            }
            for until, said in (("24h", "hm"), ("1764520000", GOOD))
        ),
        R,
        ("repaired",),
        calls=2,
    ),
    "409": Case(({"status": 409, "body": ""}, GOOD), R, calls=2),
    "an error with status 200 and its code": Case(
        ({"body": {"error": {"code": 503, "message": "overloaded"}}}, GOOD), R, calls=2
    ),
    "an error in the choice": Case(
        (
            {"body": {"choices": [{"error": {"code": 502, "message": "lost"}, "message": {"content": ""}}]}},
            GOOD,
        ),
        R,
        calls=2,
    ),
    "an error with status 200 and no code": Case(
        ({"body": {"error": "model is loading"}},), tags=("network",), calls=3, says="model is loading"
    ),
    "an error by detail": Case(
        ({"body": {"detail": "warming up"}},), tags=("network",), calls=3, says="warming up"
    ),
    "a page": Case(({"body": _PAGE},), tags=("network",), calls=3, says="a page with the title 'Sign in'"),
    "a page once": Case(({"body": _PAGE}, GOOD), R, calls=2),
    "half a body": Case(({"body": '{"choices": [{"mess'}, GOOD), R, calls=2),
    "garbled": Case(({"headers": {"content-encoding": "gzip"}, "body": "no"}, GOOD), R, calls=2),
    "garbled, 500": Case(
        ({"status": 500, "headers": {"content-encoding": "gzip"}, "body": "no"}, GOOD), R, calls=2
    ),
    "nothing at all": Case(({"body": ""}, GOOD), R, calls=2),
    "no choices": Case(({"body": {"choices": []}}, GOOD), R, calls=2),
    "choices that are null": Case(({"body": {"choices": None}}, GOOD), R, calls=2),
    "a choice that is null": Case(({"body": {"choices": [None]}}, GOOD), R, calls=2),
    "a message that is a text": Case(({"body": {"choices": [{"message": GOOD}]}}, GOOD), R, calls=2),
    "a content that is a number": Case(({"message": {"content": 3}}, GOOD), R, calls=2),
    "a list": Case(({"body": [1, 2]}, GOOD), R, calls=2),
    "a number": Case(({"body": "3"}, GOOD), R, calls=2),
    "brackets without end": Case(({"body": "[" * 200_000},), tags=("network",), calls=3, says="[[["),
    "braces without end": Case(({"body": '{"a":' * 200_000}, GOOD), R, calls=2),
    # -- rejected questions
    "400 by the filter": Case(
        ({"status": 400, "body": {"error": {"code": "content_filter", "message": "filtered by policy"}}},),
        tags=("rejected",),
        says="filtered by policy",
    ),
    "400 by the context": Case(
        ({"status": 400, "body": {"error": {"message": "maximum context length is 4096 tokens"}}},),
        tags=("rejected",),
        says="maximum context length",
    ),
    "403": Case(
        ({"status": 403, "body": {"error": {"message": "flagged"}}},),
        tags=("rejected",),
        says="403: flagged",
    ),
    "413": Case(({"status": 413, "body": _PAGE},), tags=("rejected",), says="413: a page"),
    "422": Case(
        ({"status": 422, "body": {"detail": [{"msg": "bad"}]}},), tags=("rejected",), calls=2, says="bad"
    ),
    "rejected with status 200": Case(
        ({"body": {"error": {"code": 400, "message": "flagged"}}},),
        tags=("rejected",),
        says="flagged",
    ),
    "rejected with status 200 by name": Case(
        ({"body": {"error": {"type": "invalid_request_error", "message": "too long"}}},),
        tags=("rejected",),
        says="too long",
    ),
    "unstructured asks without a schema": Case(
        ({"status": 400, "body": {"error": {"message": "flagged"}}},),
        tags=("rejected",),
        options=";structured=off",
    ),
    "the schema is not known": Case((_NO_FORMAT, GOOD), R, calls=2),
    "the schema is not known, 422": Case(
        ({"status": 422, "body": {"detail": "extra fields"}}, GOOD), R, calls=2
    ),
    "another name for the length": Case(
        ({"status": 400, "body": {"error": {"message": "use 'max_completion_tokens' instead"}}}, GOOD),
        R,
        calls=2,
    ),
    # -- what stops
    "401": Case(
        ({"status": 401, "body": {"error": {"message": "bad key"}}},), stops="status 401 (bad key)", code=2
    ),
    "404": Case(
        ({"status": 404, "body": {"error": {"message": "no model"}}},), stops="status 404 (no model)", code=2
    ),
    "401 with status 200": Case(
        ({"body": {"error": {"code": 401, "message": "bad key"}}},), stops="bad key", code=2
    ),
    "401 with status 200 by name": Case(
        ({"body": {"error": {"type": "authentication_error", "message": "bad key"}}},),
        stops="status 401 (bad key)",
        code=2,
    ),
    "404 with status 200 by name": Case(
        ({"body": {"error": {"code": "model_not_found", "message": "no model"}}},),
        stops="status 404 (no model)",
        code=2,
    ),
    "429 without quota, to come back": Case(
        (
            {
                "status": 429,
                "headers": {"retry-after": "1"},
                "body": {"error": {"code": "insufficient_quota", "message": "no money"}},
            },
        ),
        stops="quota is used up",
        code=1,
    ),
    "429 by the minute": Case(
        (
            {
                "status": 429,
                "body": [{"error": {"message": "You exceeded your current quota. Please retry in 10ms"}}],
            },
            GOOD,
        ),
        R,
        calls=2,
    ),
    "moved, so that the question would be lost": Case(
        ({"status": 301, "headers": {"location": "/v2/chat/completions"}, "body": ""},),
        stops="has moved (status 301) to http",
        code=2,
    ),
    "402": Case(({"status": 402, "body": {"error": {"message": "pay"}}},), stops="quota is used up", code=1),
    "429 without quota": Case(
        (
            {
                "status": 429,
                "body": {
                    "error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}
                },
            },
        ),
        stops="quota is used up",
        code=1,
    ),
    "402 with status 200": Case(
        ({"body": {"error": {"code": 402, "message": "pay"}}},), stops="quota is used up", code=1
    ),
    "no credit by message": Case(
        ({"status": 400, "body": {"error": {"message": "Your credit balance is too low"}}},),
        stops="credit balance is too low",
        code=1,
    ),
    "pages to every call": Case(
        ({"body": _PAGE},), calls=5, stops="answers every call alike", code=1, options=";tries=9"
    ),
    "another host": Case(
        ({"status": 307, "headers": {"location": "http://127.0.0.2:9/v1/chat/completions"}, "body": ""},),
        stops="leads to another host (127.0.0.2:9)",
        code=2,
    ),
    "another port": Case(
        ({"status": 308, "headers": {"location": "http://127.0.0.1:9/v1/chat/completions"}, "body": ""},),
        stops="leads to another host",
        code=2,
    ),
    "moved to a scheme that is none": Case(
        ({"status": 307, "headers": {"location": "file:///etc/passwd"}, "body": ""},),
        stops="leads to another host",
        code=2,
    ),
    "moved to no address": Case(
        ({"status": 307, "headers": {"location": "http://[bad"}, "body": ""},),
        stops="leads to another host",
        code=2,
    ),
    "in circles": Case(
        ({"status": 307, "headers": {"location": "/v1/chat/completions"}, "body": ""},),
        tags=("network",),
        calls=18,
        stops="gives no answer",
        code=2,
    ),
}
"""What the server sends, by what it is."""

CASES: dict[str, Case] = {
    **{text[:60]: Case((text,), label) for text, label in READ.items()},
    **{text[:60]: Case((text,), tags=("unreadable",), calls=2) for text in UNREAD},
    **SENT,
}
assert len(CASES) == len(READ) + len(UNREAD) + len(SENT) >= 150
