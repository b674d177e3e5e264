"""A checkpoint in Mistral's own format, which vLLM's loader, voxtral.c and other engines read, in both directions.

    params.json                the config, under Mistral's names
    consolidated.safetensors   the weights, under Mistral's names, and q and k in the order of its rotary embedding
    tekken.json                the tokenizer; the same file as in transformers' format

Weights are converted in memory and bit for bit. Source of the names, the order and the config's fields: transformers'
`convert_voxtral_realtime_weights_to_hf.py`, which converts in one direction, and the published `params.json`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    MistralCommonBackend,
    VoxtralRealtimeConfig,
    VoxtralRealtimeFeatureExtractor,
    VoxtralRealtimeForConditionalGeneration,
    VoxtralRealtimeProcessor,
)

from ...errors import UsageError
from ...files import write_atomic
from ...plain_text import one_line
from ..checkpoint import FEATURE_FILES, read_config_file

WEIGHTS = "consolidated.safetensors"

_EMBEDDING = "mm_streams_embeddings.embedding_module."
_ENCODER = _EMBEDDING + "whisper_encoder."
_PLACES = {  # the first that a stock name starts with is replaced
    "model.audio_tower.embedder.conv1.": _ENCODER + "conv_layers.0.conv.",
    "model.audio_tower.embedder.conv2.": _ENCODER + "conv_layers.1.conv.",
    "model.audio_tower.": _ENCODER + "transformer.",
    "model.multi_modal_projector.linear_1.": _EMBEDDING + "audio_language_projection.0.",
    "model.multi_modal_projector.linear_2.": _EMBEDDING + "audio_language_projection.2.",
    "model.language_model.embed_tokens.": _EMBEDDING + "tok_embeddings.",
    "model.language_model.": "",
}
_PARTS = {
    ".self_attn.q_proj.": ".attention.wq.",
    ".self_attn.k_proj.": ".attention.wk.",
    ".self_attn.v_proj.": ".attention.wv.",
    ".self_attn.o_proj.": ".attention.wo.",
    ".mlp.gate_proj.": ".feed_forward.w1.",
    ".mlp.down_proj.": ".feed_forward.w2.",
    ".mlp.up_proj.": ".feed_forward.w3.",
    ".input_layernorm.": ".attention_norm.",
    ".self_attn_layer_norm.": ".attention_norm.",
    ".post_attention_layernorm.": ".ffn_norm.",
    ".final_layer_norm.": ".ffn_norm.",
    ".ada_rms_norm.linear1.": ".ada_rms_norm_t_cond.0.",
    ".ada_rms_norm.linear2.": ".ada_rms_norm_t_cond.2.",
}
_TIED = "lm_head.weight"  # the head is the token embeddings: Mistral's format holds them once

_AUDIO_CONFIG = {  # stock field -> Mistral's
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "head_dim": "head_dim",
    "intermediate_size": "hidden_dim",
    "num_attention_heads": "n_heads",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "norm_eps",
    "sliding_window": "sliding_window",
    "rope_theta": "rope_theta",
}
_TEXT_CONFIG = _AUDIO_CONFIG | {"num_key_value_heads": "n_kv_heads", "max_position_embeddings": "model_max_length"}
_FLOATS = ("rms_norm_eps", "rope_theta")
_DEFAULTS = {"model_max_length": 131_072}  # the conversion's
_ADA_NORM_WIDTH = 32  # fixed in the stock class


def mistral_name(name: str) -> str:
    """`model.language_model.layers.0.mlp.up_proj.weight` -> `layers.0.feed_forward.w3.weight`"""
    place = next(place for place in _PLACES if name.startswith(place))
    name = _PLACES[place] + name.removeprefix(place)
    for stock, own in _PARTS.items():
        name = name.replace(stock, own)
    return name


def to_pairs(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """q or k (its weight [heads × head_dim, width] or bias [heads × head_dim]) as Mistral's rotary embedding takes it. Both turn
    pairs of a head's rows; stock pairs row i with row i + head_dim / 2, Mistral row 2i with row 2i + 1."""
    return tensor.view(-1, 2, head_dim // 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def to_halves(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The inverse of `to_pairs`."""
    return tensor.view(-1, head_dim // 2, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _reordered(name: str, tensor: torch.Tensor, config: VoxtralRealtimeConfig, order) -> torch.Tensor:
    if ".q_proj." not in name and ".k_proj." not in name:
        return tensor
    part = config.audio_config if "audio_tower" in name else config.text_config
    return order(tensor, part.head_dim)


def save(model: VoxtralRealtimeForConditionalGeneration, processor: VoxtralRealtimeProcessor, folder: Path) -> None:
    """Write `params.json` and `consolidated.safetensors`, in the model's dtype. Raises UsageError for an untied head."""
    if not model.config.tie_word_embeddings:
        raise UsageError("Mistral's format has no place for a head that is not tied to the embeddings", where="format",
                         fix="export with format: transformers")  # fmt: skip
    state = {name: tensor for name, tensor in model.state_dict().items() if name != _TIED}
    tensors = {mistral_name(name): _reordered(name, state[name], model.config, to_pairs).contiguous() for name in state}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_atomic(folder / "params.json", json.dumps(_params(model.config, processor), indent=2) + "\n")


def _params(config: VoxtralRealtimeConfig, processor: VoxtralRealtimeProcessor) -> dict[str, Any]:
    """The fields of the published `params.json`."""
    text, tower, audio = config.text_config, config.audio_config, processor.mistral_common_audio_config
    encoder = {
        "audio_encoding_args": {
            "sampling_rate": audio.sampling_rate,
            "frame_rate": audio.frame_rate,
            "num_mel_bins": audio.encoding_config.num_mel_bins,
            "hop_length": audio.encoding_config.hop_length,
            "window_size": audio.encoding_config.window_size,
            "chunk_length_s": None,
            "global_log_mel_max": processor.feature_extractor.global_log_mel_max,
            "transcription_format": "streaming",
        },
        **_own_fields(tower, _AUDIO_CONFIG),
        "n_kv_heads": tower.num_attention_heads,
        "use_biases": True,
        "use_cache": False,
        "causal": True,
        "pos_embed": "rope",
        "max_source_positions": None,
        "ffn_type": "swiglu",
        "norm_type": "rms_norm",
    }
    return {
        **_own_fields(text, _TEXT_CONFIG),
        "use_biases": False,
        "causal": True,
        "model_parallel": 1,
        "tied_embeddings": True,
        "multimodal": {
            "whisper_model_args": {
                "encoder_args": encoder,
                "downsample_args": {"downsample_factor": config.downsample_factor},
            }
        },
        "ada_rms_norm_t_cond": True,
        "ada_rms_norm_t_cond_dim": _ADA_NORM_WIDTH,
    }


def _own_fields(config, names: dict[str, str]) -> dict[str, Any]:
    values = config.to_dict() | config.rope_parameters
    return {own: values[stock] for stock, own in names.items()}


def read_config(folder: Path) -> VoxtralRealtimeConfig:
    """The stock config. Raises UsageError when `params.json` is damaged, or lacks what the model's shape needs."""
    path, params = folder / "params.json", read_config_file(folder)
    try:
        whisper = params["multimodal"]["whisper_model_args"]
        encoder = whisper["encoder_args"]
        return VoxtralRealtimeConfig(
            text_config=_stock_fields(_DEFAULTS | params, _TEXT_CONFIG) | {"pad_token_id": 11},
            audio_config=_stock_fields(encoder, _AUDIO_CONFIG) | {"num_mel_bins": encoder["audio_encoding_args"]["num_mel_bins"]},
            downsample_factor=whisper["downsample_args"]["downsample_factor"],
        )
    except KeyError as error:
        raise UsageError(f"lacks {error}", where=str(path), fix="use the params.json of a Voxtral Realtime checkpoint") from None
    except (TypeError, ValueError, OverflowError, StrictDataclassError) as error:
        what = f"does not describe a model: {one_line(error, 200)}"
        raise UsageError(what, where=str(path), fix="copy the checkpoint again") from None


def _stock_fields(params: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Raises KeyError, TypeError or ValueError unless each is a number above zero."""
    fields = {stock: float(params[own]) if stock in _FLOATS else int(params[own]) for stock, own in names.items()}
    if bad := [names[stock] for stock, value in fields.items() if not value > 0]:
        raise ValueError(f"{bad[0]} must be above 0")
    return fields


def read_processor(folder: Path) -> VoxtralRealtimeProcessor:
    """The tokenizer of `tekken.json`, and a feature extractor from its own file, if there is one, or from `params.json`."""
    if any((folder / name).is_file() for name in FEATURE_FILES):
        extractor = VoxtralRealtimeFeatureExtractor.from_pretrained(folder)
    else:
        audio = read_config_file(folder)["multimodal"]["whisper_model_args"]["encoder_args"]["audio_encoding_args"]
        extractor = VoxtralRealtimeFeatureExtractor(
            feature_size=audio["num_mel_bins"], sampling_rate=audio["sampling_rate"], hop_length=audio["hop_length"],
            n_fft=audio["window_size"], win_length=audio["window_size"], global_log_mel_max=audio["global_log_mel_max"],
        )  # fmt: skip
    return VoxtralRealtimeProcessor(extractor, MistralCommonBackend.from_pretrained(folder))


def read_weights(folder: Path, config: VoxtralRealtimeConfig) -> dict[str, torch.Tensor]:
    """The weights under their stock names. Raises UsageError unless they are exactly those of `config`'s model."""
    path = folder / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        fix = "a folder with params.json needs consolidated.safetensors and tekken.json: copy it again"
        raise UsageError(f"these weights cannot be read: {one_line(error, 200)}", where=str(path), fix=fix) from None
    with torch.device("meta"):
        expected = VoxtralRealtimeForConditionalGeneration(config).state_dict()
    del expected[_TIED]
    stock_names = {mistral_name(name): name for name in expected}
    wrong = [f"lacks {name}" for name in stock_names if name not in tensors]
    wrong += [f"holds {one_line(name, 100)}, which is no part of Voxtral Realtime" for name in tensors if name not in stock_names]
    wrong += [
        f"{name} has the shape {list(tensors[name].shape)}, params.json says {list(expected[stock].shape)}"
        for name, stock in stock_names.items() if name in tensors and tensors[name].shape != expected[stock].shape
    ]  # fmt: skip
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UsageError(wrong[0] + more, where=str(path), fix="copy the checkpoint again: its files do not belong together")
    state = {stock: _reordered(stock, tensors.pop(name), config, to_halves) for name, stock in stock_names.items()}
    return state | {_TIED: state["model.language_model.embed_tokens.weight"]}
