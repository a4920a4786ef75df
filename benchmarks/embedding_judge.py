"""The embedding judge: all responses in one call against one response a call."""

from __future__ import annotations

import random

from benchmarks.options import Options
from benchmarks.sections import Check, Section, table
from benchmarks.timing import in_turns
from mechsafety.core.verdict import Response
from mechsafety.judges.kinds.embedding import EmbeddingJudge, load_encoder, packaged_head, read_head
from mechsafety.prompts.prompt_set import load_prompts

BATCHED, SINGLE, FULL = "in one call", "one a call", "in one call, float32"
_WANTED, _WANTED_RATE = 1.5, 200.0


def stand_ins(n: int) -> list[Response]:
    """Responses of 10 to 56 words (40 word pieces on average) put together from packaged prompts."""
    prompts = load_prompts("default").fit
    words = " ".join(p.text for p in prompts).split()
    draw = random.Random(0)
    made = []
    for i in range(n):
        start, length = draw.randrange(len(words) - 64), draw.randint(10, 56)
        text = " ".join(words[start : start + length])
        made.append(Response(id=str(i), prompt=prompts[i % len(prompts)].text, text=text))
    return made


def section(options: Options) -> Section:
    """Responses per second of the whole judge: normalising, the degeneracy gate, encoding, the head."""
    head = read_head(packaged_head())
    fast, full = load_encoder(device="cpu"), load_encoder(dtype="float32", device="cpu")
    many = stand_ins(options.size(512, 32))
    few = many[: options.size(128, 16)]
    judge = EmbeddingJudge("embedding", head=head, encoder=fast)
    precise = EmbeddingJudge("float32", head=head, encoder=full)
    turns = in_turns(
        {
            BATCHED: lambda: len(judge(many)),
            SINGLE: lambda: sum(len(judge([r])) for r in few),
            FULL: lambda: len(precise(few)),
        },
        rounds=options.rounds,
    )
    ratio, rate = turns.ratio(BATCHED, SINGLE), turns.rate(BATCHED)
    return Section(
        name="embedding_judge",
        title="The judge `embedding`",
        quick=options.quick,
        body="\n\n".join(
            [
                f"{len(many)} texts of 10 to 56 words as responses, from text to verdict.",
                table(["job", "responses/s"], [[name, f"{turns.rate(name):.0f}"] for name in turns.rates]),
            ]
        ),
        checks=(
            Check(
                what="the embedding judge in one call against one response a call",
                wanted=f"{_WANTED:.1f}x or more",
                found=str(ratio),
                met=ratio.median >= _WANTED,
            ),
            Check(
                what="responses per second of the embedding judge",
                wanted=f"{_WANTED_RATE:.0f} or more",
                found=f"{rate:.0f}",
                met=rate >= _WANTED_RATE,
            ),
        ),
    )
