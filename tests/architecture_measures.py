"""What works on an architecture, each measured against plain transformers or against another way to the same.

Every measure gives the largest deviation, relative to the largest value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mechsafety as ms
from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.places import written_places
from mechsafety.generation.answers import Example, encode
from mechsafety.models.loading import body_of
from mechsafety.regions.attribution import score_weights
from mechsafety.regions.maps import LinearMap, linear_maps, running_body
from tests.models.test_batched_alone import Subject, prompts, swept

EDIT = ms.Ablate(torch.randn(32, generator=torch.Generator().manual_seed(9)))
EXAMPLES = [
    Example(prompt="tell me about the garden", answer="the river and the fire", whole=True),
    Example(prompt="bread", answer="write a list of bread", whole=True),
    Example(prompt="help me with the lock", answer="key", whole=True),
]
BOUND = 1e-3
_NEW = 5


def outcome(measure: Callable[[Subject], float], one: Subject) -> str:
    """``right`` with the deviation, ``wrong`` with it, or ``refused`` by a message of one line."""
    try:
        apart = measure(one)
    except MechsafetyError as error:
        return "refused" if "\n" not in str(error) else "refused without a clear line"
    return f"{'right' if apart <= BOUND else 'wrong'} {shown(apart)}"


def shown(deviation: float) -> str:
    return f"{deviation:.0e}" if deviation else "0"


def directions(one: Subject) -> float:
    """Mean differences of the classes, against plain transformers on each prompt alone."""
    stream = ms.residual_stream(one.model, prompts(), batch_size=one.batch_size)
    found = ms.find_directions(stream)
    streams = [one.streams(tokens) for tokens in one.sequences]
    want = torch.stack(streams[0::2]).mean(0) - torch.stack(streams[1::2]).mean(0)
    got = torch.stack([found.steering(layer=layer, position=-1) for layer in range(len(want))])
    return apart(got, want)


def sweep(one: Subject) -> float:
    """Scores of many candidates in a batch, against one candidate and one prompt at a time through edited()."""
    fast, plain = (torch.tensor(t.to_numpy(dtype=float)).nan_to_num() for t in swept(one))
    return apart(fast, plain)


def edit_by_hooks(one: Subject) -> float:
    """The share of an ablated direction that stands anywhere afterwards: where blocks write, and what norms read."""
    model = one.model
    n = model.cfg.n_layers
    names = [place for block in written_places(model) for place in block]
    names += [f"blocks.{layer}.hook_{site}" for layer in range(n) for site in ("resid_mid", "resid_post")]
    # What stands after a block is projected at the next one's input.
    names = [name for name in names if not name.endswith("resid_post") or f".{n - 1}." in name]
    before, after = _along(model, names, None), _along(model, names, EDIT)
    return max(after.values()) / max(before.values())


def _along(model: Any, names: list[str], edit: Any) -> dict[str, float]:
    seen: dict[str, float] = {}
    ids = torch.tensor([[5, 9, 12, 30, 7, 21, 40, 8, 11, 17]])

    def run() -> None:
        hooks = [
            (
                name,
                lambda x, hook, name=name: seen.__setitem__(name, float((x.float() @ EDIT.basis[0]).norm())),
            )
            for name in names
            if name in model.hook_dict
        ]
        with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
            body_of(model)(input_ids=ids)

    if edit is None:
        run()
    else:
        with ms.edited(model, edit):
            run()
    return seen


def baked(one: Subject) -> float:
    """Logits with the edit in the weights, against those with hooks."""
    with ms.edited(one.model, EDIT):
        hooked = _logits(one.model, one.sequences[0])
    with ms.baked(one.model, EDIT):
        weights = _logits(one.model, one.sequences[0])
    return apart(weights, hooked)


def generation(one: Subject) -> float:
    """The share of greedy answers under the edit that differ from those of uncached passes on a prompt alone."""
    done: Any = ms.generate(
        one.model, prompts(), edit=EDIT, max_new_tokens=_NEW, seed=0, batch_size=one.batch_size
    )
    differ = 0
    for completion, tokens in zip(done, one.sequences, strict=True):
        whole = list(tokens)
        with ms.edited(one.model, EDIT):
            while len(whole) < len(tokens) + _NEW:
                whole.append(int(_logits(one.model, whole)[-1].argmax()))
                if whole[-1] == 1:
                    whole.pop()
                    break
        differ += list(completion.tokens) != whole[len(tokens) :]
    return differ / len(one.sequences)


def regions(one: Subject) -> float:
    """SNIP scores of every map, experts by their routed tokens, against autograd on one example at a time."""
    linear = linear_maps(one.model)
    got, want = score_weights(one.model, EXAMPLES), snip_by_autograd(one.model, linear)
    return max(apart(got.snip(name), score) for name, score in want.items() if float(score.max()) > 1e-7)


def snip_by_autograd(model: Any, linear: list[LinearMap]) -> dict[str, Tensor]:
    """mean |W * dL/dW|, L the mean negative log-likelihood of the answer, by autograd on one example at a time."""
    body = running_body(model)
    parameters = list(dict.fromkeys(m.places[0].parameter for m in linear))
    found = {m.name: torch.zeros(m.d_out, m.d_in) for m in linear}
    for p in parameters:
        p.requires_grad_(True)
    for prompt, answer in encode(model, EXAMPLES):
        with torch.inference_mode(False), torch.enable_grad():
            ids = torch.tensor([[*prompt, *answer]])
            logits = body(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            loss = -logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)].mean()
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            by_parameter = dict(zip(parameters, gradients, strict=True))
        for m in linear:
            gradient = m.places[0].of(by_parameter[m.places[0].parameter])
            found[m.name] += (m.weight() * gradient).abs() / len(EXAMPLES)
    for p in parameters:
        p.requires_grad_(False)
    return found


def _logits(model: Any, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        return body_of(model)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()


def apart(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


MEASURES: dict[str, Callable[[Subject], float]] = {
    "directions": directions,
    "sweep": sweep,
    "edit by hooks": edit_by_hooks,
    "baked": baked,
    "generation": generation,
    "regions": regions,
}
