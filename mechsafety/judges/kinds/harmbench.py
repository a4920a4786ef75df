"""Judge ``harmbench``: does the response do the harmful thing that was asked for?

The classifier of HarmBench (Mazeika et al. 2024, arXiv 2402.04249): Llama-2-13B fine-tuned to answer Yes or No. The
template is that of its model card, https://huggingface.co/cais/HarmBench-Llama-2-13b-cls (the standard one, without
context); responses are cut at 512 tokens, as there. The prompt stands where HarmBench puts its description of the
behaviour. It judges harm: :mod:`mechsafety.judges.classifiers` describes how that is mapped. ``detail["score"]`` is
P(yes) / (P(yes) + P(no)).
"""

from __future__ import annotations

from collections.abc import Sequence

from mechsafety.core.places import packaged_words
from mechsafety.judges.classifiers import ClassifierJudge, Reading, harm_reading, out_of_form

TAKES = "classifier"
ABOUT = "harmbench  HarmBench's classifier reads whether the response is harmful; harmbench:FOLDER or :HUB/ID@REVISION"

DEFAULT = "cais/HarmBench-Llama-2-13b-cls"

_TEMPLATE = packaged_words("mechsafety.judges", "words/questions.toml")["harmbench"]


def read_answer(answer: str, *, score: float | None) -> Reading:
    """``Yes`` or ``No``, in any case, and nothing else."""
    word = answer.strip().strip(".").lower()
    if word not in ("yes", "no"):
        return out_of_form(answer)
    return harm_reading("harmful" if word == "yes" else "not_harmful", detail={"score": score})


class HarmBenchJudge(ClassifierJudge):
    """``compliance`` where the answer is Yes; see the module."""

    markers = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
    answer_tokens = 512

    def question(self, prompt: str, answer: str) -> str:
        return _TEMPLATE.format(behavior=prompt, generation=answer)

    def read(self, questions: Sequence[Sequence[int]]) -> list[Reading]:
        replies = self.classifier.answer(questions, new_tokens=self.new_tokens, yes="yes", no="no")
        return [read_answer(r.text, score=r.shares[0] if r.shares else None) for r in replies]


JUDGE = HarmBenchJudge
