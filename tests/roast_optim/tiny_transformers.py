"""Every model of the installed transformers that can be built tiny from its config and takes tokens."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

KINDS = (
    "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice",
    "ForCausalLM", "ForConditionalGeneration",
)  # fmt: skip

VOCABULARY = 64
TOKENS = 16
SAMPLES = 2

# What the names of options in the configs mean; the first one that a name contains or ends with decides.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "entity_vocab_size": 8, "char_vocab_size": 20,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "emb_dim": 32, "embedding_size": 32, "d_embed": 32,
    "embed_dim": 32, "embedding_dim": 32, "entity_emb_size": 8, "hidden_dim": 32, "model_dim": 32,
    "proj_hidden_size": 32,
    "intermediate_size": 48, "ffn_dim": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "d_ff": 48, "n_inner": 48,
    "d_inner": 48, "ffn_hidden_size": 48, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_encoder_layers": 2, "num_decoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2, "head_dim": 8, "d_kv": 8, "d_head": 8,
    "max_position_embeddings": 64, "n_positions": 64, "max_target_positions": 64, "max_source_positions": 64,
    "n_ctx": 64,
    "num_local_experts": 2, "num_experts": 2, "n_routed_experts": 2, "moe_num_experts": 2, "num_experts_per_tok": 1,
    "num_experts_per_token": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "moe_topk": 1, "moe_k": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_labels": 3, "num_buckets": 2, "attention_window": 8, "attention_head_size": 8, "num_hashes": 1,
    "image_size": 16, "patch_size": 8, "lora_rank": 4, "head_size": 8, "sliding_window": 8, "bottleneck_size": 8,
    "block_size": 4, "num_random_blocks": 1, "window_size": 8, "attention_types": None,
}  # fmt: skip
_TOKENS = {
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 1, "forced_eos_token_id": 2,
    "cls_token_id": 0, "sep_token_id": 2, "image_token_id": 60, "image_token_index": 60, "video_token_id": 61,
    "audio_token_id": 62, "audio_token_index": 62, "boi_token_id": 59, "eoi_token_id": 58, "vision_start_token_id": 57,
    "vision_end_token_id": 56, "mask_token_id": 4,
}  # fmt: skip


def models() -> Iterator[tuple[str, type[Any]]]:
    """Name and class of every model of these kinds, in alphabetical order."""
    for name in sorted(dir(transformers)):
        if name.endswith(KINDS) and not name.startswith(("Auto", "TF", "Flax")):
            model_class = getattr(transformers, name)
            if inspect.isclass(model_class) and getattr(model_class, "config_class", None) is not None:
                yield name, model_class


# What models need that the sizes above do not suit: a full attention after three linear ones; parts of heads.
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_hidden_layers": 4, "num_layers": 4},
    {"hidden_size": 64, "head_dim": 16, "d_model": 64, "embedding_size": 64, "num_key_value_heads": 4},
)


def build(model_class: type[Any], variant: int = 0) -> nn.Module:
    """A tiny, randomly initialised model, without dropout where the config has names for it."""
    num_labels = 2 if "QuestionAnswering" in model_class.__name__ else 3
    config = _tiny_config(model_class.config_class, num_labels, _SIZES | VARIANTS[variant])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = model_class(config)
    return model.train()


def _tiny_config(config_class: type[Any], num_labels: int, sizes: dict[str, Any]) -> Any:
    default = config_class()
    options: dict[str, Any] = {
        name: _TOKENS[name] for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id")
    }
    for name, value in default.to_dict().items():
        if name in sizes and isinstance(value, int) and not isinstance(value, bool):
            options[name] = sizes[name]
        elif name in _TOKENS:
            options[name] = _TOKENS[name]
        elif "dropout" in name and isinstance(value, float):
            options[name] = 0.0
        elif (
            isinstance(value, dict)
            and value.get("model_type")
            and isinstance(getattr(default, name, None), transformers.PretrainedConfig)
        ):
            options[name] = _tiny_config(type(getattr(default, name)), num_labels, sizes)
    options["num_labels"] = num_labels
    return config_class(**options)


def batch(name: str, step: int = 0) -> dict[str, Tensor]:
    """Sentences of different lengths, padded on the right, with what the kind of model takes as labels."""
    generator = torch.Generator().manual_seed(step)
    choices = 2 if name.endswith("ForMultipleChoice") else 1
    input_ids = torch.randint(5, 50, (SAMPLES * choices, TOKENS), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, -3:] = 0
    input_ids[attention_mask == 0] = 1
    input_ids[torch.arange(SAMPLES * choices), attention_mask.sum(1) - 1] = 2  # where T5 and BART classify
    given = {"input_ids": input_ids, "attention_mask": attention_mask}
    if name.endswith("ForSequenceClassification"):
        given["labels"] = torch.randint(0, 3, (SAMPLES,), generator=generator)
    elif name.endswith("ForTokenClassification"):
        given["labels"] = torch.randint(0, 3, input_ids.shape, generator=generator)
    elif name.endswith("ForQuestionAnswering"):
        given["start_positions"] = torch.tensor([1, 2])
        given["end_positions"] = torch.tensor([3, 2])
    elif name.endswith("ForMultipleChoice"):
        given = {key: value.view(SAMPLES, choices, TOKENS) for key, value in given.items()}
        given["labels"] = torch.tensor([0, 1])
    else:
        given["labels"] = input_ids.masked_fill(attention_mask == 0, -100)
    return given
