"""A study's configuration prints as YAML that loads back, and its mistakes name the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import RECIPE_NAMES
from mechsafety.edits.recipes import RECIPES, recipe
from mechsafety.experiments.study.config import (
    SamplingConfig,
    StudyConfig,
    commented_yaml,
    load_config,
    presets,
)
from mechsafety.experiments.study.experiment import study_prompts
from tests.prompts.test_folders import save_parts

LADDER = [
    "locuslab/mix_ift_v4-smollm2-1.7b-all_raw_folders_baseline-600B",
    "locuslab/mix_ift_v4-smollm2-1.7b-score0_only-600B",
    "locuslab/mix_ift_v4-smollm2-1.7b-score0_mix_rephrased_from_beginning-600B",
    "locuslab/mix_ift_v4-smollm2-1.7b-score0_mix_rephrased_from_beginning_metadata-600B",
    "locuslab/mix_ift_v4-smollm2-1.7b-base-score0_mix_rephrase123_with_mild_refusal45-600B",
    "locuslab/mix_ift_v9-smollm2-1.7b-score0_rephrase123_mild_ref45_metadata_5p-600B-metamix3p-1k-0",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "zai-org/glm-4-9b-chat-hf",
    "meta-llama/Llama-3.3-70B-Instruct",
    "Qwen/Qwen3-14B",
]


def test_one_system_is_one(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("systems: smollm2-135m\n")
    assert load_config(str(path)).systems == ("smollm2-135m",)


def error_of(source: Any, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(MechsafetyError) as caught:
        load_config(None if source is None else str(source), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "config",
    [
        StudyConfig(),
        StudyConfig(
            systems=("org/näme@v1+a", "yes", "1.5"),
            limit=3,
            recipe="paper",
            direction="pca",
            centring="per_class",
            layer=0,
            selection="arditi",
            alpha=0.5,
            sampling=SamplingConfig(temperature=0.7),
            template="null",
        ),
    ],
    ids=["default", "every kind of value"],
)
def test_printed_yaml_loads_back_equal(tmp_path: Path, config: StudyConfig) -> None:
    text = commented_yaml(config)
    assert load_config(str(write(tmp_path, text))) == config
    lines = text.splitlines()
    for name, field in StudyConfig.model_fields.items():
        place = next(i for i, line in enumerate(lines) if line.startswith(f"{name}:"))
        assert field.description
        assert lines[place - 1] == f"# {field.description}"


def test_without_a_source_it_is_the_default() -> None:
    assert load_config(None) == StudyConfig()
    assert load_config(None, {"seed": 3}) == StudyConfig(seed=3) != StudyConfig()


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    config = load_config(str(write(tmp_path, "seed: 1\nlimit: 4\n")), {"seed": 2})
    assert (config.seed, config.limit) == (2, 4)


def test_the_first_judge_is_the_primary_one() -> None:
    assert load_config(None, {"judges": ("degeneracy", "rules")}).primary_judge == "degeneracy"


def test_every_preset_loads() -> None:
    assert "safety-pretraining" in presets()
    loaded = {name: load_config(name) for name in presets()}
    assert all(config.systems for config in loaded.values())


def test_the_granular_study_has_its_ten_checkpoints() -> None:
    config = load_config("safety-pretraining")
    assert list(config.systems) == LADDER
    assert (config.recipe, config.max_new_tokens, config.prompts) == ("paper", 2000, "default")
    assert "phrases:granular" in config.judges


def test_the_granular_study_takes_the_papers_prompts_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAFETY_PRETRAINING", raising=False)
    said: list[str] = []
    assert load_config("safety-pretraining", say=said.append).anchors == "default"
    assert len(said) == 2
    assert all("$SAFETY_PRETRAINING/data" in line and "'default' is used" in line for line in said)

    data = save_parts(tmp_path / "checkout" / "data")
    monkeypatch.setenv("SAFETY_PRETRAINING", str(data.parent))
    said.clear()
    config = load_config("safety-pretraining", say=said.append)
    assert (config.prompts, config.anchors, said) == (str(data), str(data), [])
    report, anchors = study_prompts(config)
    assert (len(report), len(anchors)) == (6, 32)
    assert load_config("safety-pretraining", {"prompts": "contrast"}).prompts == "contrast"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour: red", ["colour: Extra inputs are not permitted", "Keys are systems, prompts, anchors"]),
        ("limit: many", ["limit: Input should be a valid integer", "(got 'many')"]),
        ("systems: 3", ["systems: Input should be a valid tuple", "(got 3)"]),
        ("systems: [a, b, a]", ["systems: a is named twice"]),
        ("judges: [rules, rules]", ["judges: rules is named twice"]),
        ("systems: [a, ' ']", ["systems: a name is empty"]),
        ("systems: []", ["systems: "]),
        ("selection: best", ["selection: 'best' is not one of auto, arditi"]),
        ("limit: -1", ["limit: Input should be greater than or equal to 1 (got -1)"]),
        ("limit: 0", ["limit: Input should be greater than or equal to 1 (got 0)"]),
        ("fit: 1", ["fit: Input should be greater than or equal to 2"]),
        ("layer: -1", ["layer: Input should be greater than or equal to 0"]),
        ("alpha: .nan", ["alpha: Input should be a finite number"]),
        ("sampling: {temperature: .inf}", ["sampling.temperature: Input should be a finite number"]),
        ("sampling: {temperature: 0}", ["sampling.temperature: Input should be greater than 0"]),
        ("sampling: {top_k: 5}", ["sampling.top_k: Extra inputs are not permitted"]),
        ("recipe: mine", ["recipe: Input should be 'default', 'paper', 'code', 'granular-release' or 'arditi'"]),
        ("direction: median", ["direction: "]),
        ("dtype: int8", ["dtype: "]),
        ("colour: red\nseed: -3", ["colour: ", "seed: "]),
        ("1: 2", ["key 1 is no text"]),
        (f"prompts: [{'x' * 500}]", ["prompts: Input should be a valid string", "…)"]),
    ],
)  # fmt: skip
def test_a_mistake_names_its_key(tmp_path: Path, text: str, said: list[str]) -> None:
    path = write(tmp_path, text)
    message = error_of(path)
    assert message.startswith(f"{path}: ")
    for part in said:
        assert part in message


def test_a_mistaken_option_names_its_key() -> None:
    assert error_of(None, {"limit": -1}).startswith("the study's options: limit: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nlimit: [1, 2\n", "line 3: not YAML ("),
        ("seed: 1\n\tlimit: 2\n", "line 2: not YAML ("),
        ("seed: \x00", ": not YAML ("),
        (b"seed: \xff\n", ": not UTF-8"),
        ("", "keys and values are expected, got NoneType"),
        ("- a\n- b\n", "keys and values are expected, got list"),
        ("!!python/object/apply:os.getcwd []", "line 1: not YAML (could not determine a constructor"),
    ],
)  # fmt: skip
def test_what_is_no_mapping_is_one_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = write(tmp_path, text)
    message = error_of(path)
    assert message.startswith(str(path))
    assert said in message


@pytest.mark.parametrize("source", ["none.yaml", "safety", "."])
def test_a_missing_file_names_the_presets(source: str) -> None:
    message = error_of(source)
    assert f"{source!r} does not exist; presets are " in message
    assert "safety-pretraining" in message


def test_presets_are_commented(tmp_path: Path) -> None:
    from mechsafety.core.places import configs_folder

    for name in presets():
        text = (configs_folder() / f"{name}.yaml").read_text(encoding="utf-8")
        assert text.startswith("# ")
        assert set(yaml.safe_load(text)) <= set(StudyConfig.model_fields)


# -- recipes ----------------------------------------------------------------------------------------


def test_recipes_are_the_named_ones() -> None:
    assert tuple(RECIPES) == RECIPE_NAMES
    assert [recipe(name).name for name in RECIPE_NAMES] == list(RECIPE_NAMES)
    with pytest.raises(
        MechsafetyError, match="recipe 'mine' is not one of default, paper, code, granular-release, arditi"
    ):
        recipe("mine")


def test_what_the_user_chose_replaces_the_recipes_choice() -> None:
    changed = recipe("paper", method="mean_difference", centring="per_class", layer=0)
    assert (changed.method, changed.centring, changed.layer) == ("mean_difference", "per_class", 0)
    assert (recipe("paper").method, recipe("paper").layer) == ("pca", None)


def test_layers_of_recipes() -> None:
    assert [recipe("code").layer_of(n) for n in (30, 32, 24)] == [18, 19, 14]  # int(0.6 n)
    assert recipe("granular-release").layer_of(30) == 30  # after the final norm
    assert recipe("default").layer_of(30) is None
    assert recipe("code", layer=7).layer_of(30) == 7


def test_an_address_with_a_password_gets_into_no_manifest() -> None:
    judge = "endpoint:m@http://me:hunter2@localhost:8000/v1"
    with pytest.raises(MechsafetyError, match="holds a password") as error:
        load_config(None, {"judges": ("rules", judge)})
    assert "hunter2" not in str(error.value)
    plain = load_config(None, {"judges": ("rules", "endpoint:m@http://localhost:8000/v1")})
    assert plain.judges[1].endswith("/v1")


def test_a_wrong_field_in_python_names_the_nearest_right_one() -> None:
    with pytest.raises(
        MechsafetyError, match=r"sistems: StudyConfig has no such field .did you mean 'systems'"
    ):
        StudyConfig(**{"sistems": ("a",)})
    with pytest.raises(
        MechsafetyError, match=r"chat.thinkin: ChatConfig has no such field .did you mean 'thinking'"
    ):
        StudyConfig(**{"chat": {"thinkin": True}})
    for name in StudyConfig.model_fields:
        assert f"\n    {name} (" in (StudyConfig.__doc__ or "")
