"""A prompt as the model reads it: its text, its tokens, and where the named positions lie."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.values import Value
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat import (
    as_turns,
    own_tokenizer,
    post_instruction_positions,
    render_chat,
    tokenize_prompts,
)
from mechsafety.prompts.accepted import PromptsLike, one_prompt

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

_SHADES = {"post_instruction": "#FDE7C7", "last": "#F5B971"}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Rendered(Value):
    """One prompt in its chat template. ``names`` are those of each token's position, empty where it has none."""

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    names: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per token: position (offset from the end), id, token, name (``post_instruction``, ``last``)."""
        import pandas as pd

        n = len(self.ids)
        columns = {"position": range(-n, 0), "id": self.ids, "token": self.tokens, "name": self.names}
        return pd.DataFrame(columns)

    def describe(self) -> str:
        n = sum(map(bool, self.names))
        text = self.text if len(self.text) <= 200 else f"{self.text[:150]} … {self.text[-40:]}"
        return f"Rendered({len(self.ids)} tokens, {n} of them behind the request)\n{text!r}"

    def _repr_html_(self) -> str:
        place = range(-len(self.ids), 0)
        marked = "".join(
            f'<span title="position {at}{f", {name}" if name else ""}" '
            f'style="border:1px solid #ddd;background:{_SHADES.get(name, "none")}">{_visible(token)}</span>'
            for at, token, name in zip(place, self.tokens, self.names, strict=True)
        )
        return f'<div style="font-family:monospace">{marked}</div><small>shaded: post_instruction; darker: last</small>'


def _visible(token: str) -> str:
    return escape(token).replace("\n", "⏎<br>").replace(" ", "&nbsp;") or "∅"


def render(model: ModelLike, prompt: PromptsLike) -> Rendered:
    """``prompt`` in the model's chat template, as every other function feeds it: text, tokens, named positions.

    ``prompt`` is a prompt, a text, or a conversation (a list of {role, content} that ends with the user's turn).

    Returns:
        The text, its tokens, and the named positions in it.

    Example:
        >>> shown = ms.render(model, "how do i bake bread")
        >>> "how do i bake bread" in shown.text
        True
        >>> shown.names[-1]  # the last token
        'last'
        >>> len(shown.to_frame()) == len(shown.tokens)
        True
    """
    model = as_model(model)
    asked = one_prompt(prompt).asked
    (ids,) = tokenize_prompts(model, [asked])
    tokenizer = own_tokenizer(model)
    behind = _behind(model)
    names = ["last" if at == -1 else "post_instruction" if at in behind else "" for at in range(-len(ids), 0)]
    return Rendered(
        text=render_chat(model, as_turns(asked)),
        ids=tuple(ids),
        tokens=tuple(str(tokenizer.decode([one])) for one in ids),
        names=tuple(names),
    )


def _behind(model: TransformerBridge) -> tuple[int, ...]:
    try:
        return post_instruction_positions(model)
    except MechsafetyError:  # the template ends with the request
        return ()
