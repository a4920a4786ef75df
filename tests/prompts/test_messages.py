"""Conversations as prompts: what a file holds is what the model is asked, through every form and every change."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.experiment import run_study
from mechsafety.generation.answered import Completions, asked_in
from mechsafety.generation.completions import generate
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import load_model, load_reader, window
from mechsafety.prompts.fed import fed, truncated
from mechsafety.prompts.messages import turns_text
from mechsafety.prompts.prompt_set import Prompt, PromptSet, load_prompts
from tests.conftest import save_tiny
from tests.prompt_sets import small_prompts
from tests.turn_templates import STYLES, save_turns

pytestmark = pytest.mark.usefixtures("unpublished")

TALK = [
    {"role": "system", "content": "help me"},
    {"role": "user", "content": "make a  list"},
    {"role": "assistant", "content": "bread, key"},
    {"role": "user", "content": "how do rivers form"},
]


def talk(id: str = "t", *, last: str = "how do rivers form", **more: Any) -> Prompt:
    turns = (*((m["role"], m["content"]) for m in TALK[:-1]), ("user", last))
    return Prompt(id=id, text=last, label="harmful", messages=turns, **more)


def written(rows: list[dict[str, Any]], path: Path) -> Path:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            writer.writeheader()
            for row in rows:
                writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_conversations_survive_files(tmp_path: Path, suffix: str) -> None:
    prompts = PromptSet((talk(), talk("u", last=" why? "), Prompt(id="p", text="key", label="harmless")), "x")
    prompts = PromptSet(tuple(replace(p, source="s") for p in prompts), "x")
    found = load_prompts(written(prompts.to_frame().to_dict("records"), tmp_path / f"p{suffix}"))
    assert found.prompts == prompts.prompts
    assert found.sha256() == prompts.sha256()
    assert found[0].asked == TALK
    alone = [{"messages": TALK, "label": "harmful"}]
    assert load_prompts(written(alone, tmp_path / f"q{suffix}"))[0].asked == TALK


def test_one_turn_of_the_user_is_the_text_itself(tmp_path: Path) -> None:
    text = load_prompts(written([{"text": "key", "label": "harmful", "id": "a"}], tmp_path / "a.json"))
    turn = [{"messages": [{"role": "user", "content": "key"}], "label": "harmful", "id": "a"}]
    same = load_prompts(written(turn, tmp_path / "b.json"))
    assert [replace(p, source="") for p in text] == [replace(p, source="") for p in same]
    # Every turn counts: another history is another prompt, and another hash.
    other = replace(talk(), messages=(("user", "gate"), *talk().messages[2:]))
    assert PromptSet((talk(),)).sha256() != PromptSet((other,)).sha256()
    assert talk().folded != other.folded


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (TALK[:3], "line 1: the messages end with the assistant's turn"),
        ([*TALK[:3], {"role": "user", "content": " "}], "the user's last message is empty"),
        ([{"role": "human", "content": "key"}], "message 1: role 'human' is not one of system"),
        ([{"role": "user"}], "message 1: the content is a NoneType; a text"),
        (
            [{"role": "user", "content": "key", "tool": "x"}],
            "message 1: key 'tool' is not one of role, content",
        ),
        (["key"], "message 1: an object with role and content is expected, got str"),
        ({"role": "user"}, "messages are a list of {role, content}, got dict"),
        ("[not json", "the messages are not JSON"),
        ([{"role": "user", "content": "\ud83d"}], "half a character"),
    ],
)
def test_messages_that_are_none(tmp_path: Path, messages: Any, said: str) -> None:
    with pytest.raises(MechsafetyError) as raised:
        load_prompts(written([{"messages": messages, "label": "harmful"}], tmp_path / "p.jsonl"))
    assert said in str(raised.value)
    both = [{"messages": TALK, "text": "another", "label": "harmful"}]
    with pytest.raises(MechsafetyError, match="the text is not the last of the messages"):
        load_prompts(written(both, tmp_path / "q.jsonl"))


# -- what is fed ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_reader(str(save_turns(tmp_path_factory.mktemp("qwen"), "qwen")))


def test_a_conversation_is_read_as_the_template_renders_it(qwen: Any) -> None:
    whole = qwen.tokenizer.apply_chat_template(
        TALK, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert tokenize_prompts(qwen, [talk().asked]) == [whole]
    assert tokenize_prompts(qwen, [talk().text]) != [whole]


def test_every_message_is_escaped_and_counted(qwen: Any) -> None:
    mark = STYLES["qwen"].end
    history = replace(talk(), messages=(("user", f"key {mark}"), *talk().messages[2:]))
    prompts = PromptSet((talk("clean"), history))
    found = fed(qwen, prompts, new_tokens=4, escape=True)
    assert found.control == ("t",)
    assert found.prompts[0] == prompts[0]
    assert found.prompts[1].contents == (f"key {mark[0]} {mark[1:]}", *history.contents[1:])
    assert fed(qwen, prompts, new_tokens=4).prompts == prompts


def test_long_conversations_lose_the_ends_of_their_longest_messages(qwen: Any) -> None:
    most = window(qwen)
    assert most is not None
    turns = (("user", "key " * 200), ("assistant", "gate " * 300), ("user", "bread list"))
    long = replace(talk(last="bread list"), messages=turns)
    short = talk("short")
    (cut, same), ids = truncated(qwen, [long, short], new_tokens=10)
    assert ids == ("t",)
    assert same == short
    n_tokens = len(tokenize_prompts(qwen, [cut.asked])[0])
    assert most - 10 - 2 <= n_tokens <= most - 10  # two messages share what is left
    assert cut.text == "bread list"
    assert all(whole.startswith(part) for part, whole in zip(cut.contents, long.contents, strict=True))


# -- who asks it ------------------------------------------------------------------------------------------


def test_answers_keep_the_conversation(tmp_path: Path) -> None:
    model = load_model(str(save_turns(tmp_path / "m", "qwen")), dtype="float32", device="cpu")
    prompts = [talk(), Prompt(id="p", text="key", label="harmless")]
    answers = generate(model, prompts, max_new_tokens=3, seed=0)
    table = answers.to_frame()
    assert asked_in(table) == [p.asked for p in prompts]
    assert list(table["messages"]) == [turns_text(p.messages) for p in prompts]
    plain = answers[1:]
    assert "messages" not in Completions(tuple(plain)).to_frame().columns
    # The answer is to the whole conversation, not to its last turn.
    (last,) = generate(model, [replace(talk(), messages=())], max_new_tokens=3, seed=0)
    assert answers[0].n_prompt_tokens > last.n_prompt_tokens
    assert answers[0].prompt == last.prompt == talk().text


def test_a_study_of_conversations(tmp_path: Path) -> None:
    before = (("user", "help me"), ("assistant", "key"))
    prompts = PromptSet(
        tuple(replace(p, messages=(*before, ("user", p.text))) for p in small_prompts(3)), "talks"
    )
    path = written(prompts.to_frame().to_dict("records"), tmp_path / "p.jsonl")
    config = StudyConfig(
        systems=(str(save_tiny(tmp_path / "m")),),
        prompts=str(path),
        anchors=str(path),
        judges=("rules",),
        max_new_tokens=4,
        layer=2,
        controls=0,
        dtype="float32",
        device="cpu",
    )
    result = run_study(config, tmp_path / "run")
    responses = result.to_frame("responses")
    assert [asked_in(responses)[0]] == [p.asked for p in prompts.report if p.id == responses["id"][0]]
    (fed_as,) = (one["rendered"] for one in _fed(result.manifest))
    assert all(text.startswith("Question: help me") for text in fed_as.values())
    assert responses["nll"].notna().any()


def _fed(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [facts for facts in manifest["systems"].values() if "rendered" in facts]
