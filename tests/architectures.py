"""Tiny random models of every architecture that the theorems run over.

One table, shared by all tests whose claim is about "any model": 4 blocks, width 32, float32, random biases. Each
entry says what is special about its attention, because that is what batching has to respect: ``window`` (a sliding
or local window, in tokens), ``alibi`` (distances instead of positions), ``state`` (recurrent or convolutional
layers, whose cache is no list of keys).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

WINDOW = 20
"""The sliding window of every entry that has one: prompts of these tests lie on both sides of it."""

_GATED: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # wide enough that attention and positions matter to the logits
    "tie_word_embeddings": False,
}
_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256, "initializer_range": 0.3}
_SLIDING: dict[str, Any] = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
_LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Architecture:
    """A configuration class of transformers, its settings beyond the common ones, and what it attends with.

    ``text`` is the entry that its text model is, where it reads images too.
    """

    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    base: str = "gated"
    window: bool = False
    alibi: bool = False
    state: bool = False
    text: str = ""


def _gated(config: str, /, *, window: bool = False, state: bool = False, **settings: Any) -> Architecture:
    return Architecture(config, settings, window=window, state=state)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": _gated("LlamaConfig"),
    "llama-tied": _gated("LlamaConfig", tie_word_embeddings=True),
    "mistral": _gated("MistralConfig", window=True, sliding_window=WINDOW),
    "mixtral": _gated("MixtralConfig", **_EXPERTS),
    "ministral3": _gated("Ministral3Config", head_dim=8),
    "qwen2": _gated("Qwen2Config", tie_word_embeddings=True),
    "qwen2-sliding": _gated(
        "Qwen2Config", window=True, use_sliding_window=True, max_window_layers=2, sliding_window=WINDOW
    ),
    "qwen2-moe": _gated(
        "Qwen2MoeConfig",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "qwen3": _gated("Qwen3Config", head_dim=8),
    "qwen3-moe": _gated(
        "Qwen3MoeConfig", head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "qwen3-next": _gated(
        "Qwen3NextConfig",
        state=True,
        head_dim=8,
        **_LINEAR,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "qwen3_5": _gated(
        "Qwen3_5TextConfig",
        state=True,
        head_dim=8,
        **_LINEAR,
    ),
    "qwen3_5-moe": _gated(
        "Qwen3_5MoeTextConfig",
        state=True,
        head_dim=8,
        **_LINEAR,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "gemma": _gated("GemmaConfig", head_dim=8, tie_word_embeddings=True),
    "gemma2": _gated("Gemma2Config", window=True, head_dim=8, tie_word_embeddings=True, **_SLIDING),
    "gemma3": _gated("Gemma3TextConfig", window=True, head_dim=8, tie_word_embeddings=True, **_SLIDING),
    "gemma4": _gated(
        "Gemma4TextConfig",
        window=True,
        head_dim=8,
        global_head_dim=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=160,
        **_SLIDING,
    ),
    "gpt2": Architecture("GPT2Config", base="gpt"),
    "gpt-bigcode": Architecture("GPTBigCodeConfig", base="gpt"),
    "gptj": Architecture("GPTJConfig", {"rotary_dim": 4}, base="gpt"),
    "codegen": Architecture("CodeGenConfig", {"rotary_dim": 4}, base="gpt"),
    "gpt-neo": Architecture(
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": WINDOW,
        },
        window=True,
    ),
    "gpt-neox": _gated("GPTNeoXConfig", rotary_pct=0.5, num_key_value_heads=4),
    "opt": _gated("OPTConfig", ffn_dim=48, word_embed_proj_dim=32, tie_word_embeddings=True),
    "bloom": Architecture("BloomConfig", {"n_layer": 4, "n_head": 4}, alibi=True),
    "mpt": Architecture(
        "MptConfig",
        {"d_model": 32, "n_heads": 4, "n_layers": 4, "expansion_ratio": 2, "max_seq_len": 256},
        base="none",
        alibi=True,
    ),
    "falcon": _gated("FalconConfig", multi_query=True, alibi=False, parallel_attn=True, bias=False),
    "falcon-alibi": Architecture(
        "FalconConfig",
        {
            "multi_query": False,
            "alibi": True,
            "parallel_attn": False,
            "bias": True,
            "num_key_value_heads": 4,
        },
        alibi=True,
    ),
    "phi": _gated("PhiConfig"),
    "phi3": _gated("Phi3Config"),
    "phi3-sliding": _gated("Phi3Config", window=True, sliding_window=WINDOW),
    "olmo": _gated("OlmoConfig"),
    "olmo2": _gated("Olmo2Config"),
    "olmo3": _gated("Olmo3Config", window=True, **_SLIDING),
    "olmoe": _gated("OlmoeConfig", num_experts=4, num_experts_per_tok=2),
    "stablelm": _gated("StableLmConfig"),
    "starcoder2": _gated("Starcoder2Config", window=True, sliding_window=WINDOW),
    "cohere": _gated("CohereConfig", logit_scale=0.0625),
    "cohere2": _gated("Cohere2Config", window=True, **_SLIDING),
    "granite": _gated("GraniteConfig", residual_multiplier=0.3, logits_scaling=8.0, embedding_multiplier=2.0),
    "granite-moe": _gated("GraniteMoeConfig", **_EXPERTS),
    "granite-hybrid": _gated(
        "GraniteMoeHybridConfig",
        state=True,
        position_embedding_type="rope",
        layer_types=["mamba", "attention"] * 2,
        shared_intermediate_size=16,
        **_MAMBA,
        **_EXPERTS,
    ),
    "gpt-oss": _gated(
        "GptOssConfig",
        window=True,
        head_dim=8,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        **_SLIDING,
        **_EXPERTS,
    ),
    "deepseek-v3": _gated(
        "DeepseekV3Config",
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        moe_intermediate_size=16,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        first_k_dense_replace=2,
        num_key_value_heads=4,
    ),
    "llama4": _gated("Llama4TextConfig", head_dim=8, num_local_experts=4, intermediate_size_mlp=48),
    "nemotron": _gated("NemotronConfig"),
    "exaone4": _gated("Exaone4Config", window=True, **_SLIDING),
    "smollm3": _gated("SmolLM3Config"),
    "glm": _gated("GlmConfig", head_dim=8),
    "glm4": _gated("Glm4Config", head_dim=8),
    "hunyuan": _gated("HunYuanDenseV1Config", head_dim=8),
    "apertus": _gated("ApertusConfig"),
    "arcee": _gated("ArceeConfig"),
    "seed-oss": _gated("SeedOssConfig", head_dim=8),
    "ernie": _gated("Ernie4_5Config", head_dim=8),
    "lfm2": _gated(
        "Lfm2Config",
        state=True,
        layer_types=["conv", "full_attention"] * 2,
        block_ff_dim=48,
        block_multiple_of=8,
        conv_L_cache=3,
    ),
    "bamba": _gated("BambaConfig", state=True, attn_layer_indices=[1, 3], **_MAMBA),
    "falcon-h1": _gated("FalconH1Config", state=True, mamba_d_ssm=64, head_dim=8, **_MAMBA),
    "mamba": _gated("MambaConfig", state=True),
    "mamba2": _gated(
        "Mamba2Config",
        state=True,
        num_heads=8,
        head_dim=8,
        expand=2,
        n_groups=1,
        state_size=8,
        chunk_size=16,
    ),
    "falcon-mamba": _gated("FalconMambaConfig", state=True),
    "jamba": _gated(
        "JambaConfig",
        state=True,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=8,
        attn_layer_period=2,
        attn_layer_offset=1,
    ),
    "recurrent-gemma": _gated(
        "RecurrentGemmaConfig",
        state=True,
        window=True,
        attention_window_size=WINDOW,
        lru_width=32,
        head_dim=8,
    ),
    "nemotron-h": _gated(
        "NemotronHConfig",
        state=True,
        num_hidden_layers=None,
        layers_block_type=["linear_attention", "full_attention", "mlp", "moe"],
        head_dim=8,
        mamba_num_heads=8,
        mamba_head_dim=8,
        n_groups=1,
        ssm_state_size=8,
        chunk_size=16,
        n_routed_experts=4,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
    ),
    "minimax-m2": _gated("MiniMaxM2Config", head_dim=8, **_EXPERTS),
    "xglm": _gated("XGLMConfig"),
}


_SIGHT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_ROUTED: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_GROUPED: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
MORE: dict[str, Architecture] = {
    "afmoe": _gated(
        "AfmoeConfig",
        window=True,
        head_dim=8,
        **_ROUTED,
        num_dense_layers=1,
        num_shared_experts=1,
        sliding_window=WINDOW,
    ),
    "flex-olmo": _gated("FlexOlmoConfig", num_experts=4, num_experts_per_tok=2),
    "ernie-moe": _gated(
        "Ernie4_5_MoeConfig",
        moe_num_experts=4,
        moe_k=2,
        moe_intermediate_size=16,
        moe_num_shared_experts=1,
        moe_layer_start_index=1,
    ),
    "glm4-moe": _gated(
        "Glm4MoeConfig",
        head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
    ),
    "nanochat": _gated("NanoChatConfig", head_dim=8),
    "vaultgemma": _gated("VaultGemmaConfig", head_dim=8, window=True, sliding_window=WINDOW),
    "lfm2-moe": _gated(
        "Lfm2MoeConfig",
        state=True,
        **_ROUTED,
        num_dense_layers=1,
        layer_types=["conv", "full_attention"] * 2,
    ),
    "jais2": _gated("Jais2Config", head_dim=8),
    "modernbert-decoder": _gated("ModernBertDecoderConfig", window=True, local_attention=WINDOW),
    "olmo-hybrid": _gated("OlmoHybridConfig", state=True),
    "llama3": _gated(
        "LlamaConfig",
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "deepseek-v2": _gated(
        "DeepseekV2Config",
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        topk_method="group_limited_greedy",
        moe_intermediate_size=16,
        n_shared_experts=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        first_k_dense_replace=2,
        num_key_value_heads=4,
    ),
    "jetmoe": _gated("JetMoeConfig", **_EXPERTS, kv_channels=8),
    "ministral": _gated("MinistralConfig", head_dim=8, window=True, **_SLIDING),
    "helium": _gated("HeliumConfig", head_dim=8),
    "cwm": _gated("CwmConfig", head_dim=8, window=True, **_SLIDING),
    "diffllama": _gated("DiffLlamaConfig", head_dim=8),
    "dots1": _gated("Dots1Config", head_dim=8, first_k_dense_replace=1, **_GROUPED),
    "phimoe": _gated("PhimoeConfig", **_EXPERTS),
    "hunyuan-moe": _gated("HunYuanMoEV1Config", head_dim=8, num_experts=4, moe_topk=2),
    "minimax": _gated("MiniMaxConfig", state=True, head_dim=8, **_EXPERTS),
    "qwen2-vl, images": Architecture(
        "Qwen2VLConfig",
        {
            "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2},
            "text_config": {
                **_GATED,
                "vocab_size": 160,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            },
        },
        base="none",
    ),
    "cohere2-moe": _gated("Cohere2MoeConfig", head_dim=8, window=True, **_SLIDING, **_ROUTED),
    "kolibri1": _gated(
        "Kolibri1Config", head_dim=8, window=True, **_SLIDING, **_ROUTED, shared_expert_intermediate_size=16
    ),
    "lfm3": _gated(
        "Lfm3Config",
        state=True,
        window=True,
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=["conv", "sliding_attention", "conv", "full_attention"],
    ),
    "openai-gpt": Architecture("OpenAIGPTConfig", base="gpt"),
    "bitnet": _gated("BitNetConfig"),
    "laguna": _gated("LagunaConfig", head_dim=8, sliding_window=WINDOW, window=True, **_ROUTED),
    "youtu": _gated("YoutuConfig", **_LATENT),
    "glm4-moe-lite": _gated("Glm4MoeLiteConfig", **_LATENT, **_GROUPED),
    "glm-dsa": _gated(
        "GlmMoeDsaConfig", **_LATENT, **_GROUPED, index_head_dim=8, index_n_heads=16, index_topk=16
    ),
    "gemma4-shared-keys": _gated(
        "Gemma4TextConfig",
        window=True,
        head_dim=8,
        global_head_dim=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=160,
        num_kv_shared_layers=2,
        **_SLIDING,
    ),
    "gemma3, images": Architecture(
        "Gemma3Config", {"vision_config": _SIGHT, "mm_tokens_per_image": 4}, text="gemma3", window=True
    ),
    "gemma4, images": Architecture(
        "Gemma4Config",
        {"vision_config": _SIGHT | {"num_key_value_heads": 2, "head_dim": 8}, "audio_config": None},
        text="gemma4",
        window=True,
    ),
    "mistral3, images": Architecture(
        "Mistral3Config",
        {"vision_config": _SIGHT | {"model_type": "pixtral", "head_dim": 8}},
        text="ministral3",
    ),
}
"""Models that nobody tuned to: tried when all the others held."""
OF_IMAGES = tuple(name for name, entry in MORE.items() if entry.text)
"""The classes of checkpoints that read images too."""


UNFAITHFUL = (
    "falcon-alibi",
    *(("cohere", "cohere2", "deepseek-v3") if version("transformer-lens").startswith("3.") else ()),
)
"""TransformerLens computes other logits for these than transformers does: refused when loaded."""
UNPADDABLE = ("recurrent-gemma",)
"""Padding is text to these: refused in a padded batch, right with a batch size of 1."""
HEADLESS = ("mamba", "mamba2", "falcon-mamba", "nemotron-h", "recurrent-gemma")
"""No attention heads, or none that are found: :func:`head_outputs` refuses them."""

SITELESS = ("recurrent-gemma",)
"""TransformerLens has no hook points within its blocks: an ablation at the default sites is refused by name."""


KINDS = (
    *("llama", "gpt2", "bloom", "gemma3", "gemma4", "gpt-neo", "mixtral", "deepseek-v3"),
    *("qwen3-next", "mamba", "recurrent-gemma"),
)
"""One of every kind: positions rotated, learned, or distances; windows, experts, latent keys, states."""


def kinds_first(names: Iterable[str], *, also: Sequence[str] = ()) -> list[Any]:
    """Parameters of a test over ``names``: one architecture of every kind and those in ``also`` on each run, the rest
    marked slow."""
    first = {*KINDS, *also}
    return [name if name in first else pytest.param(name, marks=pytest.mark.slow) for name in names]


def config_of(name: str, **overrides: Any) -> Any:
    """The transformers configuration of an entry, with ``overrides`` on top."""
    import transformers

    entry = ARCHITECTURES.get(name) or MORE[name]
    if entry.text:
        text = config_of(entry.text, **overrides).to_dict()
        return getattr(transformers, entry.config)(text_config=text, **entry.settings)
    base = {"gated": _GATED, "gpt": _GPT, "none": {}}[entry.base]
    tokens = {"vocab_size": 160, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    return getattr(transformers, entry.config)(**(tokens | base | entry.settings | overrides))


def random_model(name: str, *, seed: int = 0, **overrides: Any) -> Any:
    """A random Hugging Face model of an entry, in float32 and eval mode; its biases are random too."""
    from mechsafety.models.weights import auto_class

    torch.manual_seed(seed)
    config = config_of(name, **overrides)
    model = auto_class(config).from_config(config, dtype=torch.float32)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save_architecture(
    folder: Path, name: str, *, seed: int = 0, template: str | None = None, **overrides: Any
) -> Path:
    """Save a random model of an entry with the tests' tokenizer; ``template`` is its chat template."""
    from mechsafety.models.loading import PLAIN_TEMPLATE
    from tests.conftest import save_tokenizer

    random_model(name, seed=seed, **overrides).save_pretrained(folder)
    save_tokenizer(folder, template=template or PLAIN_TEMPLATE)
    return folder
