"""Adversarial suffixes by greedy coordinate gradient (GCG), through the package ``nanogcg``.

Zou et al. 2023, arXiv 2307.15043; used without system prompt, in the chat template, by Wei et al., arXiv 2402.05162.
Suffixes are searched on prompts of their own and tried on others, which is harder for the attack than the same prompt.
They are never shown, printed or logged; they leave memory only where the caller writes them into a run folder.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from mechsafety.core.errors import MechsafetyError, needs
from mechsafety.core.progress import Progress, track
from mechsafety.core.verdict import Judge
from mechsafety.edits.interventions import Edit
from mechsafety.generation.answered import Completions
from mechsafety.generation.bodies import body_under
from mechsafety.generation.completions import DEFAULT_BATCH, generate
from mechsafety.judges.outcomes import Keep, judgements
from mechsafety.models.chat import own_tokenizer, render_turn, tokenize_text
from mechsafety.models.loading import is_hooked_transformer
from mechsafety.models.rendering import chat_start
from mechsafety.prompts.prompt_set import Prompt, PromptSet
from mechsafety.robustness.attempts import Attempts
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

START = "x x x x x x x x x x x x x x x x x x x x"
_CANDIDATES_AT_ONCE = 64
_TOP_TOKENS = 256
_PLACE = "{optim_str}"
"""Where nanogcg puts the suffix."""


@dataclass(frozen=True, kw_only=True)
class SearchCost:
    """``steps`` of the search for each prompt, each of which tries ``width`` candidates."""

    steps: int = 100
    width: int = 128

    def __post_init__(self) -> None:
        if self.steps < 1 or self.width < 1:
            raise MechsafetyError(f"steps {self.steps} and width {self.width} must both be 1 at least")


@dataclass(frozen=True, kw_only=True)
class Suffixes:
    """One suffix for each prompt that it was searched on, with the loss before each step and at last.

    The texts are left out of what is shown. ``losses`` are the best candidates' mean cross-entropies, in nats.
    """

    prompt_ids: tuple[str, ...]
    texts: tuple[str, ...] = field(repr=False)
    losses: tuple[tuple[float, ...], ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.texts or not len(self.prompt_ids) == len(self.texts) == len(self.losses):
            raise MechsafetyError(
                f"{len(self.texts)} suffixes for {len(self.prompt_ids)} prompts: one for each, one at least"
            )

    def as_dict(self) -> dict[str, Any]:
        """For the run folder, and nowhere else."""
        return {"prompt_ids": self.prompt_ids, "texts": self.texts, "losses": self.losses}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Suffixes:
        return cls(
            prompt_ids=tuple(stored["prompt_ids"]),
            texts=tuple(stored["texts"]),
            losses=tuple(tuple(row) for row in stored["losses"]),
        )


def find_suffixes(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    *,
    cost: SearchCost,
    seed: int,
    edit: Edit | None = None,
    start: str = START,
) -> Suffixes:
    """Search a suffix for each of ``prompts`` after which ``model`` under ``edit`` begins to comply.

    The loss is the cross-entropy of an answer's beginning ("Sure, here is ..." and the request again). The search
    depends on the prompt and ``seed`` only; global seeds, settings and the tokenizer stay as they were. Positions of
    ``edit`` count the whole text that is scored as the prompt. Raises :class:`MechsafetyError` where nanogcg is
    missing, without prompts, and for a ``HookedTransformer``.
    """
    if not prompts:
        raise MechsafetyError("no prompts to search suffixes on: name one harmful request at least")
    if is_hooked_transformer(model):
        raise MechsafetyError("suffixes need a model with input embeddings: load it with load_model()")
    texts: list[str] = []
    losses: list[tuple[float, ...]] = []
    for prompt in prompts:
        with body_under(model, edit) as body, _seeded(seed, prompt.id):
            found = _search(model, body, prompt, cost, start)
        texts.append(found.best_string)
        losses.append(tuple(float(loss) for loss in found.losses))
    return Suffixes(prompt_ids=tuple(p.id for p in prompts), texts=tuple(texts), losses=tuple(losses))


def resumable_suffixes(
    run: RunFolder,
    model: TransformerBridge,
    prompts: PromptSet,
    *,
    cost: SearchCost,
    seed: int,
    edit: Edit | None = None,
    key: tuple[str, ...] = (),
    say: Progress,
) -> Suffixes:
    """A part of the run for each suffix, since each may take minutes; ``key`` keeps several models' apart.

    They stay in the run folder.
    """
    todo = [p for p in prompts if not run.has_part("suffixes", *key, p.id, suffix="json")]
    if todo:
        minutes = expected_seconds(model, todo, cost=cost) / 60
        say(
            f"suffix: {len(todo)} searches of {cost.steps} steps with {cost.width} candidates, about "
            f"{minutes:.1f} minutes"
        )
    for prompt in todo:
        found = find_suffixes(model, [prompt], cost=cost, seed=seed, edit=edit)
        run.write_json_part(found.as_dict(), "suffixes", *key, prompt.id)
    parts = [Suffixes.from_dict(run.read_json_part("suffixes", *key, p.id)) for p in prompts]
    return Suffixes(
        prompt_ids=tuple(i for part in parts for i in part.prompt_ids),
        texts=tuple(text for part in parts for text in part.texts),
        losses=tuple(row for part in parts for row in part.losses),
    )


def suffix_attack(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    suffixes: Suffixes,
    *,
    max_new_tokens: int,
    seed: int,
    edit: Edit | None = None,
    judge: str | Judge = "rules",
    batch_size: int = DEFAULT_BATCH,
    keep: Keep | None = None,
) -> Attempts:
    """Greedy answers to each prompt with each suffix after it, without system prompt, in the chat template.

    The judge reads the request without its suffix. Raises :class:`MechsafetyError` where a prompt is one of those
    the suffixes were searched on: this measures transfer.
    """
    if seen := {p.id for p in prompts} & set(suffixes.prompt_ids):
        raise MechsafetyError(
            f"prompt {min(seen)!r} is one that a suffix was searched on: attack prompts and measured prompts must "
            "differ"
        )
    k = len(suffixes.texts)
    attacked = [
        p.with_text(_joined(p.text, suffix), id=f"{p.id}#{i}")
        for p in prompts
        for i, suffix in enumerate(suffixes.texts)
    ]
    answers = generate(
        model,
        attacked,
        edit=edit,
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
        rendering="chat_no_system",
        label="attacking",
    )
    plain = [replace(answer, prompt=prompts[i // k].text) for i, answer in enumerate(answers)]
    judged = judgements(Completions(items=tuple(plain)), judge=judge, keep=keep)
    return Attempts(judged=tuple(tuple(judged[i : i + k]) for i in range(0, len(judged), k)))


def expected_seconds(model: TransformerBridge, prompts: Sequence[Prompt], *, cost: SearchCost) -> float:
    """About how long the search will take, from one timed batch of candidates of the longest prompt."""
    rows = min(cost.width, _CANDIDATES_AT_ONCE)
    longest = max(prompts, key=lambda p: sum(map(len, p.contents)))
    ids = tokenize_text(model, _rendered(model, longest).replace(_PLACE, START) + target_of(longest.text))
    with body_under(model, None) as body, torch.no_grad():
        batch = torch.tensor([ids] * rows, device=body.device)
        body(input_ids=batch[:1])
        started = time.perf_counter()
        body(input_ids=batch)
        once = time.perf_counter() - started
    # A gradient is a forward and a backward pass of one row.
    return len(prompts) * cost.steps * once * (cost.width + 3) / rows


def target_of(text: str) -> str:
    """The beginning of an answer that the search makes likely: it only repeats the request."""
    return f"Sure, here is an answer to the request: {text}"


def require_nanogcg() -> Any:
    """The package that searches, or a :class:`MechsafetyError` that names how to install it."""
    with needs("attacks"):
        return importlib.import_module("nanogcg")


def _joined(text: str, suffix: str) -> str:
    return f"{text} {suffix}"


def _rendered(model: TransformerBridge, prompt: Prompt) -> str:
    # A request that holds the mark itself would have two places.
    bare = prompt.with_contents([text.replace(_PLACE, "") for text in prompt.contents])
    return render_turn(model, bare.with_text(_joined(bare.text, _PLACE)).asked, rendering="chat_no_system")


def _search(model: TransformerBridge, body: Any, prompt: Prompt, cost: SearchCost, start: str) -> Any:
    nanogcg = require_nanogcg()
    own = own_tokenizer(model)
    tokenizer = _SearchTokenizer(own, body.get_input_embeddings().num_embeddings)
    before = str(own.decode(chat_start(own)))  # nanogcg takes text, and adds no token to it
    config = nanogcg.GCGConfig(
        num_steps=cost.steps,
        search_width=cost.width,
        batch_size=min(cost.width, _CANDIDATES_AT_ONCE),
        topk=min(_TOP_TOKENS, tokenizer.n_allowed()),
        optim_str_init=start,
        use_prefix_cache=False,  # it hands the model its keys and values as lists, which transformers 5 refuses
        verbosity="CRITICAL",
    )
    with _quiet(), torch.enable_grad():
        return nanogcg.run(
            body,
            tokenizer,
            [{"role": "user", "content": before + _rendered(model, prompt)}],
            target_of(prompt.text),
            config,
        )


class _SearchTokenizer:
    """What nanogcg takes for the tokenizer: text that is rendered already, and no special token as a candidate.

    nanogcg deletes the first token of the template wherever it occurs (where every turn begins with it, the turns
    are gone), renders with the system prompt, and lets special tokens other than four into the suffix.
    """

    bos_token = None
    bos_token_id = eos_token_id = pad_token_id = unk_token_id = None
    chat_template = "rendered already"

    def __init__(self, tokenizer: Any, n_embeddings: int) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = n_embeddings
        self._special = frozenset(tokenizer.all_special_ids)

    def __call__(self, text: Any, **options: Any) -> Any:
        return self.tokenizer(text, **(options | {"add_special_tokens": False}))

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], **_: object) -> str:
        return messages[0]["content"]

    def batch_decode(self, ids: Any) -> list[str]:
        return self.tokenizer.batch_decode(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of one token; of one that may be no candidate, a character that is not printable."""
        text = str(self.tokenizer.decode(list(ids)))
        return "\0" if self._special.intersection(ids) or not text.strip() else text

    def n_allowed(self) -> int:
        words = (self.decode([i]) for i in range(self.vocab_size))
        return sum(word.isascii() and word.isprintable() for word in words)


@contextmanager
def _seeded(seed: int, prompt_id: str) -> Iterator[None]:
    # nanogcg's own seeding sets every library's seed and the deterministic algorithms for the whole process.
    digest = hashlib.sha256(f"{seed}\x1f{prompt_id}".encode()).digest()
    with torch.random.fork_rng():
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep nanogcg from logging suffixes, from its own bar, and from scanning all objects at every step."""
    from nanogcg import gcg

    logger = logging.getLogger("nanogcg")
    level, bar = logger.level, gcg.tqdm
    logger.disabled = True
    gcg.tqdm = lambda steps: track(steps, "searching a suffix", total=len(steps), unit="step")
    gc.freeze()  # it collects garbage after every batch of candidates
    try:
        yield
    finally:
        gc.unfreeze()
        gcg.tqdm = bar
        logger.disabled = False
        logger.setLevel(level)
