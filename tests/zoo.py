"""Every causal architecture of transformers, built tiny from its config: a few layers of a few features, random weights."""

from typing import Any, Final

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY: Final = 97
LAYERS: Final = 4
HIDDEN: Final = 32
#: Tokens of the longest document, where a config says so.
LENGTH: Final = 512
#: Of windows and chunks, and keys that are kept: few, so that longer documents show what is done with them.
WINDOW: Final = 24


def _all(value: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


#: By the names that configs have for sizes; each is set where a config has it at all.
SIZES: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    **_all(1, "bos_token_id eos_token_id decoder_start_token_id sep_token_id"),
    **_all(LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers"),
    **_all(1, "encoder_layers num_encoder_layers n_group topk_group"),
    **_all(HIDDEN, "hidden_size n_embd d_model dim embedding_size"),
    **_all(4, "num_attention_heads n_head n_heads swa_num_attention_heads"),
    **_all(4, "decoder_attention_heads num_decoder_attention_heads encoder_attention_heads"),
    **_all(2, "num_key_value_heads num_kv_heads swa_num_key_value_heads"),
    **_all(16, "index_n_heads"),  # of few, scores are zero for many keys, and which of these are kept is chance
    **_all(48, "intermediate_size ffn_dim ffn_hidden_size decoder_ffn_dim encoder_ffn_dim"),
    **_all(48, "dff dim_ff d_inner feed_forward_size"),
    **_all(8, "head_dim d_head dim_head qk_nope_head_dim qk_rope_head_dim v_head_dim index_head_dim kv_channels"),
    **_all(16, "q_lora_rank kv_lora_rank o_lora_rank qk_head_dim lru_width"),
    **_all(8, "linear_head_dim linear_key_head_dim linear_value_head_dim mamba_headdim mamba_d_head mamba_head_dim"),
    **_all(4, "linear_num_heads linear_num_key_heads linear_num_value_heads"),
    **_all(8, "mamba_n_heads mamba_num_heads mamba_d_state state_size ssm_state_size mamba_d_ssm"),
    **_all(WINDOW, "mamba_chunk_size chunk_size"),
    **_all(16, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size"),
    **_all(16, "moe_shared_expert_intermediate_size moe_latent_size router_hidden_size adapter_rank"),
    **_all(16, "shared_experts_intermediate_size"),
    **_all(8, "hidden_size_per_layer_input swa_head_dim"),
    **_all(VOCABULARY, "vocab_size_per_layer_input encoder_hash_byte_group_vocab"),
    **_all(4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    **_all(2, "num_experts_per_tok num_experts_per_token moe_topk moe_k top_k_experts num_experts_per_layer"),
    **_all(LENGTH, "max_position_embeddings n_positions max_seq_len max_target_positions model_max_length seq_length"),
    **_all(
        WINDOW, "sliding_window sliding_window_size attention_window_size window_size attention_chunk_size index_topk"
    ),
}
ROPE: Final = {"rope_type": "default", "rope_theta": 10000.0}
MIXED: Final = ["sliding_attention", "full_attention"] * (LAYERS // 2)
#: What sizes alone do not do.
MORE: Final[dict[str, dict[str, Any]]] = {
    **_all({"is_decoder": True}, "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert"),
    **_all({"is_decoder": True}, "rembert roberta roberta-prelayernorm roformer xlm-roberta xlm-roberta-xl"),
    **_all({"head_dim": 8}, "hunyuan_v1_dense hunyuan_v1_moe ministral"),
    **_all({"num_key_value_heads": 4}, "dots3_note_text nemotron axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32"),
    **_all({"num_key_value_heads": 4}, "glm4_moe_lite glm_moe_dsa longcat_flash minicpm3 youtu"),
    **_all({"rotary_dim": 4}, "codegen gptj"),
    **_all({"layer_types": ["conv", "full_attention"] * 2}, "lfm2 lfm2_moe"),
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE},
        "layer_types": MIXED,
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"layer_types": MIXED, "num_kv_shared_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": WINDOW,
        "indexer_compress_ratio": 4,
    },
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"] * 2,
        "axial_pos_shape": (16, 32),
        "axial_pos_embds_dim": (16, 16),
    },
    "roc_bert": {
        "is_decoder": True,
        "pronunciation_vocab_size": VOCABULARY,
        "shape_vocab_size": VOCABULARY,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xmod": {"is_decoder": True, "languages": ("en_XX",), "default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 9},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


def kinds() -> dict[str, str]:
    """Kinds of configs, one for each class of causal language models, and that class.

    Of several it is the one of text alone, else the one that the class is called after.
    """
    kinds_of: dict[str, list[str]] = {}
    for kind, architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        kinds_of.setdefault(architecture, []).append(kind)

    def fitness(kind: str) -> tuple[bool, bool]:
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind].lower()
        return kind.endswith("_text"), architecture.startswith(kind.replace("_", ""))

    return {max(kinds, key=fitness): architecture for architecture, kinds in kinds_of.items()}


def tiny(kind: str) -> Any:
    """A config of that kind, as small as it goes. Raises what the library raises where that is not to be had."""
    return transformers.CONFIG_MAPPING[kind](**_shrunk(transformers.CONFIG_MAPPING[kind]()))


def _shrunk(default: Any) -> dict[str, Any]:
    """Arguments of a small config of the same kind, and of the configs in it."""
    chosen = {name: size for name, size in SIZES.items() if _is_size(default, name)}
    for name, inner in vars(default).items():
        if isinstance(inner, transformers.PretrainedConfig):
            chosen[name] = _shrunk(inner) | {"model_type": inner.model_type}
    return chosen | MORE.get(default.model_type, {})


def _is_size(default: Any, name: str) -> bool:
    """Whether a config has a number of that name that can be set."""
    kind = getattr(type(default), name, None)
    if isinstance(kind, property) and (kind.fset is None or default.model_type in ("prophetnet", "xlnet")):
        return False  # these have setters that refuse
    try:
        value = getattr(default, name, None)
    except Exception:  # it may differ between layers, and says so by an error of its own
        return True
    return (isinstance(value, int | float) and not isinstance(value, bool)) or (
        name == "pad_token_id" and hasattr(default, name)
    )
