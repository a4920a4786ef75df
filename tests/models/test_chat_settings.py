"""Chat settings: a model is fed what its own template makes of the same messages and arguments, and the prefix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import find_directions
from mechsafety.directions.files import load_directions
from mechsafety.edits.expressions import parse_edit
from mechsafety.edits.files import load_edit, save_edit
from mechsafety.experiments.generation.config import GenerationConfig
from mechsafety.experiments.generation.experiment import run_generation
from mechsafety.generation.answers import Example, encode
from mechsafety.generation.completions import generate
from mechsafety.judges.kinds.fluent import FluentJudge
from mechsafety.judges.kinds.text import TextJudge
from mechsafety.judges.selfjudgement import Exchange, self_judge
from mechsafety.models import chat as tokens
from mechsafety.models import rendering
from mechsafety.models.chat import (
    post_instruction_positions,
    post_instruction_tokens,
    render_chat,
    render_turn,
    tokenize_prompts,
    tokenize_text,
)
from mechsafety.models.chat_settings import ChatSettings, chat_text, chatting, judging, template_variables
from mechsafety.models.loading import load_model, load_reader
from mechsafety.models.provenance import of_model
from mechsafety.models.rendering import BARE_TEMPLATES
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.sweeps.measures import answer_tokens
from mechsafety.sweeps.sweep import sweep
from tests.conftest import save_tiny, save_tokenizer
from tests.prompt_sets import small_prompts, write_csv
from tests.turn_templates import STYLES

pytestmark = pytest.mark.usefixtures("unpublished")

ASK = "make a list"
USER = {"role": "user", "content": ASK}
TALK = [
    USER,
    {"role": "assistant", "content": "key and gate"},
    {"role": "user", "content": "how do rivers form"},
]
SYSTEM = "take the key"

FORMS = {
    # A default system prompt, and a variable with a default of its own.
    "default system": (
        "{% if messages[0].role != 'system' %}<|system|>\nhelp me\n{% endif %}"
        "{% if style is defined %}{{ style }} {% endif %}"
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    # As Mistral: the system prompt stands before the last request, inside its turn; roles must alternate.
    "system in the turn": (
        "{% if messages[0].role == 'system' %}{% set told = messages[0].content %}{% set turns = messages[1:] %}"
        "{% else %}{% set turns = messages %}{% endif %}"
        "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m.role == 'user' %}[INST] {% if loop.last and told is defined %}{{ told }}\n\n{% endif %}"
        "{% if style is defined %}{{ style }} {% endif %}{{ m.content }} [/INST]"
        "{% else %} {{ m.content }} <eos>{% endif %}{% endfor %}"
    ),
    # As Llama 3: a variable that the template sets where it is not given.
    "set where missing": (
        "{% if not style is defined %}{% set style = 'plain' %}{% endif %}"
        "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] | trim }} {{ style }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|> {% endif %}"
    ),
}
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} {% endfor %}"
)
IGNORES_SYSTEM = "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|> {{ m.content }} {% endfor %}"
SETTINGS = {
    "none": ChatSettings(),
    "system": ChatSettings(system_prompt=SYSTEM),
    "arguments": ChatSettings(template_arguments={"style": "bread"}),
    "prefix": ChatSettings(answer_prefix="the key"),
    "all": ChatSettings(
        system_prompt=SYSTEM, template_arguments={"style": "bread"}, answer_prefix="the key is"
    ),
}
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """``made(template)``: a tiny model that speaks in it, made once."""
    whole = save_tiny(tmp_path_factory.mktemp("tiny"))
    folders: dict[str, Path] = {}

    def make(template: str) -> Path:
        if template not in folders:
            folders[template] = tmp_path_factory.mktemp("form") / "model"
            shutil.copytree(whole, folders[template])
            save_tokenizer(folders[template], template=template)
        return folders[template]

    return make


def reader(folder: Path, chat: ChatSettings | None = None, **more: Any) -> Any:
    return load_reader(str(folder), chat=chat, **more)


def load(folder: Path, chat: Any = None, **more: Any) -> Any:
    return load_model(str(folder), dtype="float32", device="cpu", chat=chat, **more)


def asked_of(model: Any, messages: list[dict[str, str]], settings: ChatSettings) -> str:
    """The oracle: Hugging Face's rendering of the same messages and arguments, and the prefix."""
    told = [] if settings.system_prompt is None else [{"role": "system", "content": settings.system_prompt}]
    text = model.tokenizer.apply_chat_template(
        [*told, *messages], tokenize=False, add_generation_prompt=True, **settings.template_arguments
    )
    return text + (settings.answer_prefix or "")


# -- what is fed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_fed_is_the_templates_own_rendering_and_the_prefix(made: Made, form: str, name: str) -> None:
    settings = SETTINGS[name]
    model, bare = reader(made(FORMS[form]), settings), reader(made(FORMS[form]))
    for asked, messages in ((ASK, [USER]), (TALK, TALK)):
        expected = asked_of(model, messages, settings)
        assert render_turn(model, asked, rendering="chat") == expected
        ids = model.tokenizer(expected, add_special_tokens=False)["input_ids"]
        assert tokenize_prompts(model, [asked]) == [ids]
        # The control: without settings the same prompt is read otherwise.
        assert (tokenize_prompts(bare, [asked]) == [ids]) == settings.is_default
        if settings.answer_prefix:
            shown = model.tokenizer(settings.answer_prefix, add_special_tokens=False)["input_ids"]
            assert ids[-len(shown) :] == shown


@pytest.mark.parametrize("style", [*STYLES, *BARE_TEMPLATES])
def test_without_settings_nothing_changes(made: Made, style: str) -> None:
    model = reader(made(STYLES[style].template if style in STYLES else BARE_TEMPLATES[style]))
    before = model.tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert render_chat(model, [USER]) == before
    with chatting(model, ChatSettings(thinking="model")):
        assert render_chat(model, [USER]) == before
        assert render_chat(model, TALK) == rendering.rendered(model.tokenizer, TALK, day=tokens.day_of(model))


def test_a_system_message_of_the_prompts_own_wins(made: Made) -> None:
    model = reader(made(FORMS["default system"]), SETTINGS["system"])
    own = [{"role": "system", "content": "help the cat"}, *TALK]
    assert render_turn(model, own, rendering="chat") == asked_of(model, own, ChatSettings())
    # Without a system prompt means without the one that was asked for, too.
    assert SYSTEM not in render_turn(model, own, rendering="chat_no_system")
    assert "cat" not in render_turn(model, own, rendering="chat_no_system")
    assert SYSTEM in render_turn(model, TALK, rendering="chat")


def test_an_empty_system_prompt_takes_the_place_of_the_templates(made: Made) -> None:
    model = reader(made(FORMS["default system"]), ChatSettings(system_prompt=""))
    assert "help me" not in render_chat(model, [USER])
    assert "help me" in render_chat(reader(made(FORMS["default system"])), [USER])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("form", FORMS)
def test_post_instruction_tokens_are_all_that_follows_the_request(made: Made, form: str, name: str) -> None:
    model = reader(made(FORMS[form]), SETTINGS[name])
    text = "list three keys"
    after = render_chat(model, [{"role": "user", "content": text}]).rpartition(text)[2]
    found = post_instruction_tokens(model)
    assert found == model.tokenizer(after, add_special_tokens=False)["input_ids"]
    assert post_instruction_positions(model) == tuple(range(-len(found), 0))


@pytest.mark.parametrize(
    ("template", "variables"),
    [
        (FORMS["set where missing"], {"style"}),
        ("{% generation %}{{ a }}{% endgeneration %}{% for m in messages %}{% break %}{% endfor %}", {"a"}),
        ("{% macro say(x) %}{{ x }}{{ inner }}{% endmacro %}{% set b = 1 %}{{ say(b) }}", {"inner"}),
        ("{% if switch is defined and switch is false %}x{% endif %}", {"switch"}),
    ],
)
def test_variables_of_a_template(template: str, variables: set[str]) -> None:
    assert template_variables(template) - {"messages", "add_generation_prompt"} == variables


# -- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "settings", "said"),
    [
        (
            FORMS["default system"],
            {"template_arguments": {"styl": 1}},
            r"'styl': .* no such variable; .* style",
        ),
        (
            FORMS["default system"],
            {"template_arguments": {"messages": []}},
            "'messages': .* no such variable",
        ),
        (FORMS["system in the turn"], {"template_arguments": {"style": None, "x": 1}}, "'x'"),
        (REFUSES_SYSTEM, {"system_prompt": "be kind"}, "refuses it: System role not supported"),
        (IGNORES_SYSTEM, {"system_prompt": "be kind"}, "leaves it out"),
        (IGNORES_SYSTEM, {"system": "be kind"}, "chat setting 'system' is not one of system_prompt"),
        (IGNORES_SYSTEM, {"answer_prefix": "Sure", "thinking": "model"}, "leaves no thought"),
        (IGNORES_SYSTEM, {"template_arguments": {"a": {1}}}, "text, numbers, true"),
    ],
)
def test_settings_that_a_template_does_not_take(
    made: Made, form: str, settings: dict[str, Any], said: str
) -> None:
    for how in (load_model, load_reader):
        with pytest.raises(MechsafetyError, match=said):
            how(str(made(form)), chat=settings)


def test_roles_in_an_order_that_the_template_refuses(made: Made) -> None:
    model = reader(made(FORMS["system in the turn"]))
    with pytest.raises(MechsafetyError, match=r"\(user, user\): roles must alternate"):
        tokenize_prompts(model, [[USER, USER]])
    assert tokenize_prompts(model, [TALK])


# -- answers --------------------------------------------------------------------------------------------


def test_an_answer_begins_with_its_prefix_once(made: Made) -> None:
    prefix = "the key"
    model = load(made(FORMS["default system"]), {"answer_prefix": prefix})
    prompt = Prompt(id="a", text=ASK, label="harmless")
    (answer,) = generate(model, [prompt], max_new_tokens=6, seed=0)
    whole = Prompt(id="b", text=render_turn(model, ASK, rendering="chat"), label="harmless")
    (same,) = generate(model, [whole], max_new_tokens=6, seed=0, rendering="text")
    assert answer.tokens == same.tokens
    assert answer.n_prompt_tokens == len(tokenize_prompts(model, [ASK])[0])
    assert answer.text.startswith(prefix)
    assert answer.text.removeprefix(prefix).strip() == same.text.strip()
    # As an example to learn from, the prefix is among the prompt's tokens alone.
    ((context, tail),) = encode(model, [Example(prompt=ASK, answer=answer.text, whole=False)])
    assert context == tokenize_prompts(model, [ASK])[0]
    assert tail == model.tokenizer(answer.text.removeprefix(prefix), add_special_tokens=False)["input_ids"]


def test_written_answers_follow_the_prefix(made: Made) -> None:
    model = reader(made(FORMS["default system"]), SETTINGS["prefix"])
    before = tokenize_text(model, render_chat(model, [{"role": "user", "content": "Hello"}]))
    ids = answer_tokens(model, "make bread")
    assert [*before, *ids] == tokenize_text(
        model, render_chat(model, [{"role": "user", "content": "Hello"}]) + " make bread"
    )


def test_judges_do_not_inherit_the_settings(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(FORMS["default system"])
    model, plain = load(folder, SETTINGS["all"]), load(folder)
    responses = [
        Response(id="1", prompt=ASK, text="the key"),
        Response(id="2", prompt="a gate", text="bread"),
    ]
    assert FluentJudge("m", model)(responses) == FluentJudge("m", plain)(responses)
    read: dict[bool, list[list[int]]] = {}
    tokenized = tokens.tokenize_text
    for one in (model, plain):
        seen = read.setdefault(one is model, [])

        def spy(m: Any, text: str, *, to: list[list[int]] = seen) -> list[int]:
            to.append(tokenized(m, text))
            return to[-1]

        with monkeypatch.context() as patched:
            patched.setattr(tokens, "tokenize_text", spy)
            TextJudge("m", one, max_new_tokens=2)(responses)
    assert read[True] == read[False]
    # The control: the studied model itself is asked otherwise.
    assert tokenize_prompts(model, [ASK]) != tokenize_prompts(plain, [ASK])
    with judging(model):
        assert tokenize_prompts(model, [ASK]) == tokenize_prompts(plain, [ASK])
    assert chat_text(model)


def test_self_judgement_keeps_the_dialogue_and_not_the_prefix(made: Made) -> None:
    folder = made(FORMS["default system"])
    exchanges = [Exchange(id=str(i), prompt=ASK, response=r) for i, r in enumerate(("the key", "bread"))]
    scores = {
        name: [one.score for one in self_judge(load(folder, SETTINGS[name]), exchanges, seed=0)]
        for name in ("none", "prefix", "system")
    }
    assert scores["none"] == scores["prefix"] != scores["system"]


# -- records --------------------------------------------------------------------------------------------


def test_a_run_is_bound_to_its_settings(made: Made, tmp_path: Path) -> None:
    prompts = write_csv(small_prompts(1), tmp_path / "p.csv")
    folder = made(FORMS["default system"])

    def run(**chat: Any) -> Any:
        config = {"model": str(folder), "prompts": str(prompts), "max_new_tokens": 3, "dtype": "float32"}
        checked = GenerationConfig.model_validate({**config, "device": "cpu", "chat": chat})
        return run_generation(checked, tmp_path / "run")

    asked = {"system_prompt": SYSTEM, "answer_prefix": "the key"}
    manifest = run(**asked).manifest
    (record,) = manifest["models"].values()
    assert {name: record["chat"][name] for name in asked} == asked
    assert record["chat"]["thinking"].startswith("off")
    (fed,) = manifest["fed"].values()
    assert all(SYSTEM in text and text.endswith("the key") for text in fed["rendered"].values())
    assert any("the key" in line and SYSTEM in line for line in run(**asked).page().how)
    for other in (
        {},
        asked | {"answer_prefix": "the gate"},
        asked | {"template_arguments": {"style": "bread"}},
    ):
        with pytest.raises(MechsafetyError, match=r"another configuration .*chat"):
            run(**other)
    identities = [of_model(str(folder), chat=s).identity for s in SETTINGS.values()]
    assert len({json.dumps(one, sort_keys=True) for one in identities}) == len(SETTINGS)
    assert identities[0] == of_model(str(folder)).identity


def test_directions_and_edits_say_under_which_settings_they_were_found(made: Made, tmp_path: Path) -> None:
    folder, prompts = made(FORMS["default system"]), small_prompts()
    model, plain = load(folder, SETTINGS["system"]), load(folder)
    found = find_directions(residual_stream(model, prompts.fit), resamples=1)
    path = tmp_path / "d.safetensors"
    found.save(path)
    assert load_directions(path).chat == chat_text(model) != ""
    edit = parse_edit(f"ablate({path}, layer=2)", model)
    with pytest.raises(MechsafetyError, match=r"other chat settings .*take the key.*any_chat=true"):
        parse_edit(f"ablate({path}, layer=2)", plain)
    assert parse_edit(f"ablate({path}, layer=2, any_chat=true)", plain) == edit
    with pytest.raises(MechsafetyError, match="other chat settings"):
        sweep(plain, found, prompts.validation)
    saved = tmp_path / "e.safetensors"
    save_edit(edit, saved, model=model)
    with pytest.raises(MechsafetyError, match="other chat settings"):
        load_edit(saved, model=plain)
    assert load_edit(saved, model=plain, allow_other_chat=True) == load_edit(saved, model=model) == edit
