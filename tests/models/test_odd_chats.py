"""Chat templates and tokenizers of odd kinds: a model is fed what its own template writes, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mechsafety as ms
from mechsafety.core.errors import MechsafetyError
from mechsafety.models.chat import post_instruction_tokens, render_turn, tokenize_prompts, tokenize_text
from mechsafety.models.loading import load_model, load_reader
from mechsafety.models.turn_ends import end_of_turn, stop_tokens
from mechsafety.sweeps.refusal_scores import RefusalTokens
from tests.conftest import save_tiny
from tests.prompt_sets import small_prompts
from tests.tokenizer_kinds import KINDS, TURNS, TURNS_WITH_BOS, save_kind

ASKED = {"role": "user", "content": "make a list"}
TOLD = {"role": "system", "content": "take the key"}
SAID = {"role": "assistant", "content": "sorry"}

BLOCKS = (
    "{% for m in messages %}<|turn|> {{ m.role }} \n "
    "{% for block in m.content %}{% if block['type'] == 'text' %}{{ block['text'] }}{% endif %}{% endfor %}"
    " <|end|> \n {% endfor %}{% if add_generation_prompt %}<|turn|> assistant \n {% endif %}"
)
USER_BLOCKS = (
    "{% for m in messages %}<|turn|> {{ m.role }} \n "
    "{% if m.role == 'user' %}{{ m.content[0].text }}{% else %}{{ m.content }}{% endif %}"
    " <|end|> \n {% endfor %}{% if add_generation_prompt %}<|turn|> assistant \n {% endif %}"
)
EITHER = TURNS.replace(
    "{{ m['content'] }}", "{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}"
)
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS
WANTS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + TURNS
FUNCTIONS = (
    "{% set facts = {'day': strftime_now('%-d'), 'roles': messages | map(attribute='role') | list} %}"
    "{% if not messages %}{{ raise_exception('nothing asked') }}{% endif %}{{ facts | tojson }} \n " + TURNS
)
LEAVES_OUT = "{% for m in messages %}<|turn|> {{ m.role }} {% endfor %}"
NO_ADDITION = TURNS.replace("{{ m['content'] }}", "{{ m['content'] + m['name'] }}")
SAME_PARTS = "Hello {{ 1 + messages[0]['content'] }}"

RIGHT = {
    "takes text or blocks": EITHER,
    "takes blocks alone": BLOCKS,
    "takes blocks of users alone": USER_BLOCKS,
    "refuses a system prompt": REFUSES_SYSTEM,
    "BOS of template and tokenizer": TURNS_WITH_BOS,
    "functions and filters": FUNCTIONS,
}
REFUSED = {
    "wants a system prompt": (WANTS_SYSTEM, "it fails: system first"),
    "leaves out what is asked": (LEAVES_OUT, "it leaves it out"),
    "adds what is not there": (NO_ADDITION, "it fails: 'dict object' has no attribute 'name'"),
    "adds a number to a text": (SAME_PARTS, "it fails: unsupported operand"),
}
Made = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """``made(template)``: a tiny model with it, and with a tokenizer that adds a BOS and is changed by ``change``."""

    def make(template: Any, change: Callable[[Any], object] = lambda _: None) -> Path:
        folder = save_tiny(tmp_path_factory.mktemp("odd"))
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer = save_kind(folder, KINDS["BOS added"], template=template)
        change(tokenizer)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def load(folder: Path, **options: Any) -> Any:
    return load_model(str(folder), dtype="float32", device="cpu", **options)


def in_blocks(message: dict[str, Any]) -> dict[str, Any]:
    return message | {"content": [{"type": "text", "text": message["content"]}]}


def own_tokens(folder: Path, messages: list[dict[str, Any]]) -> list[int]:
    """What transformers makes of a conversation."""
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(folder)
    return own.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def everything(model: Any, folder: Path) -> None:
    """Directions, a sweep, answers under an edit, and the edit in the weights of a folder that reads the same."""
    prompts = small_prompts(4)
    found = ms.find_directions(ms.residual_stream(model, prompts.fit))
    tokens = RefusalTokens(ids=(5, 9), texts=("a", "b"), weight=(0.1, 0.1), source="user")
    ms.sweep(model, found, prompts.validation, refusal_tokens=tokens, layers=(1,))
    edit = ms.Orthogonalise(found.at(layer=1).unit)
    hooked = ms.generate(model, prompts.report, edit=edit, max_new_tokens=3, seed=0)
    again = load(ms.save_model(model, edit, folder))
    assert [c.text for c in ms.generate(again, prompts.report, max_new_tokens=3, seed=0)] == [
        c.text for c in hooked
    ]
    texts = [p.asked for p in prompts.report]
    assert tokenize_prompts(again, texts) == tokenize_prompts(model, texts)


# -- templates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(RIGHT))
def test_a_model_is_fed_what_its_template_writes(made: Made, kind: str) -> None:
    folder = made(RIGHT[kind])
    model = load_reader(str(folder))
    blocks = {"takes blocks alone": ("user", "system", "assistant"), "takes blocks of users alone": ("user",)}
    conversations = [[ASKED], [ASKED, SAID, ASKED]]
    if kind != "refuses a system prompt":
        conversations.append([TOLD, ASKED])
    for messages in conversations:
        given = [in_blocks(m) if m["role"] in blocks.get(kind, ()) else m for m in messages]
        fed = tokenize_prompts(model, [messages])[0]
        assert fed == own_tokens(folder, given)
        assert "list" in model.tokenizer.convert_ids_to_tokens(fed)
    assert post_instruction_tokens(model)
    if kind == "refuses a system prompt":
        with pytest.raises(MechsafetyError, match=r"\(system, user\): no system"):
            tokenize_prompts(model, [[TOLD, ASKED]])


def test_control_text_where_blocks_are_wanted_would_be_left_out(made: Made) -> None:
    fed = own_tokens(made(BLOCKS), [ASKED])
    assert fed != own_tokens(made(BLOCKS), [in_blocks(ASKED)])


@pytest.mark.parametrize("kind", list(REFUSED))
def test_a_template_that_does_not_write_what_is_asked_is_refused(made: Made, kind: str) -> None:
    template, said = REFUSED[kind]
    for how in (load_model, load_reader):
        with pytest.raises(MechsafetyError, match="does not write what a user asks") as refused:
            how(str(made(template)))
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_template_that_wants_a_system_prompt_takes_one(made: Made) -> None:
    folder = made(WANTS_SYSTEM)
    model = load(folder, chat={"system_prompt": TOLD["content"]})
    assert tokenize_prompts(model, [ASKED["content"]])[0] == own_tokens(folder, [TOLD, ASKED])


def test_a_conversation_on_which_a_template_fails_is_one_line(made: Made) -> None:
    once = "{% if messages | length > 1 %}{{ 1 + messages[1]['content'] }}{% endif %}" + TURNS
    model = load_reader(str(made(once)))
    with pytest.raises(MechsafetyError, match=r"\(user, assistant, user\): unsupported operand"):
        render_turn(model, [ASKED, SAID, ASKED], rendering="chat")


def test_the_default_of_several_templates_is_taken(made: Made) -> None:
    folder = made({"default": TURNS, "tool_use": LEAVES_OUT})
    model = load_reader(str(folder))
    assert tokenize_prompts(model, ["make a list"])[0] == own_tokens(folder, [ASKED])
    nameless = made({"rag": TURNS, "tool_use": TURNS})
    with pytest.raises(MechsafetyError, match=r"several chat templates \(rag, tool_use\) and none"):
        load_model(str(nameless))
    assert load_reader(str(nameless), template="plain").tokenizer.chat_template


# -- tokenizers ---------------------------------------------------------------------------------------


def named(**tokens: Any) -> Callable[[Any], None]:
    def change(tokenizer: Any) -> None:
        for name, token in tokens.items():
            setattr(tokenizer, name, token)

    return change


TOKENIZERS: dict[str, Callable[[Any], None]] = {
    "no pad token": named(pad_token=None),
    "no end": named(eos_token=None),
    "neither": named(pad_token=None, eos_token=None),
    "the end pads": named(pad_token="<eos>"),
    "all one": named(pad_token="<eos>", bos_token="<eos>", unk_token="<eos>"),
}


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_special_tokens_that_are_missing_or_one(made: Made, kind: str) -> None:
    folder = made(TURNS, TOKENIZERS[kind])
    model = load(folder)
    texts = [p.text for p in small_prompts().report]
    assert tokenize_prompts(model, texts) == [
        own_tokens(folder, [{"role": "user", "content": t}]) for t in texts
    ]
    together = ms.logits(model, small_prompts().report)
    for row, ids in enumerate(tokenize_prompts(model, texts)):
        alone = model.original_model(input_ids=torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=1e-4)
    done = ms.generate(model, small_prompts().report, max_new_tokens=3, seed=0)
    assert all(c.tokens for c in done)
    assert stop_tokens(model) <= {end_of_turn(model), 1}


@pytest.mark.parametrize(
    "kind",
    [
        "takes blocks alone",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in [*RIGHT, *TOKENIZERS]
            if kind != "takes blocks alone"
        ),
    ],
)
def test_everything_runs_on_an_odd_kind(made: Made, tmp_path: Path, kind: str) -> None:
    folder = made(RIGHT[kind]) if kind in RIGHT else made(TURNS, TOKENIZERS[kind])
    everything(load(folder), tmp_path / "edited")


def test_tokens_that_the_tokenizer_does_not_know(made: Made, tmp_path: Path) -> None:
    """More rows in the embedding than tokens: they may be written, and are no text."""
    model = load(made(TURNS))
    known = len(model.tokenizer)
    weight = model.original_model.get_output_embeddings().weight
    assert known < weight.shape[0]
    weight[known:] = 3 * weight[known - 1]
    weight[known - 1] = 0
    done = ms.generate(model, small_prompts().report, max_new_tokens=8, seed=0)
    assert any(token >= known for c in done for token in c.tokens)
    everything(model, tmp_path / "edited")


def test_a_text_with_a_token_that_has_no_row_is_an_error(made: Made) -> None:
    from tokenizers import AddedToken

    def more(tokenizer: Any) -> None:
        fill = 160 - len(tokenizer)
        tokenizer.add_tokens([f"word{i}" for i in range(fill)])
        tokenizer.add_tokens([AddedToken("<image>", special=True)])

    folder = made(TURNS, more)
    for model in (load(folder), load_reader(str(folder))):
        assert tokenize_prompts(model, ["make a list"])
        for how in ("chat", "text"):
            with pytest.raises(MechsafetyError, match="holds '<image>', a token for which"):
                tokenize_prompts(model, ["look at <image> here"], rendering=how)
        with pytest.raises(MechsafetyError, match="holds '<image>'"):
            tokenize_text(model, "<image>")
