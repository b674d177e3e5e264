"""A small checkpoint of the real classes, with real processor files, made without a download.

The tokenizer is the vocabulary that mistral-common ships, cut to its first ranks (they are
ordered, so a prefix is a valid BPE), with the special tokens and the audio section of Voxtral
Realtime. The model is `VoxtralRealtimeForConditionalGeneration` with small sizes.
"""

import json
from pathlib import Path

import mistral_common
from transformers import (
    VoxtralRealtimeConfig,
    VoxtralRealtimeFeatureExtractor,
    VoxtralRealtimeForConditionalGeneration,
)

from ..config.training import TinyBaseConfig
from ..families.realtime.family import Realtime
from ..families.realtime.model import RealtimeNetwork, network_of

# Ids as in the published tokenizer, if known; "v13" requires the rest.
_SPECIAL_TOKENS = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]",
    13: "[IMG_END]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 26: "[ARGS]", 27: "[CALL_ID]", 28: "[THINK]",
    29: "[/THINK]", 32: "[STREAMING_PAD]", 33: "[STREAMING_WORD]",
}  # fmt: skip
_SPECIAL_COUNT = 40

_AUDIO = {
    "sampling_rate": 16000,
    "frame_rate": 12.5,
    "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
    "transcription_format": "streaming",
    "transcription_delay_ms": 480,
    "streaming_look_ahead_ms": 2.5,
    "streaming_look_back_ms": 52.5,
    "streaming_n_left_pad_tokens": 32,
}


def make(folder: Path, config: TinyBaseConfig) -> tuple[Realtime, RealtimeNetwork]:
    """Write the processor's files and the config into `folder`; the model has random weights."""
    vocabulary = write_processor(folder, config.vocabulary_ranks)
    model = tiny_model(vocabulary, config.audio_width, config.audio_layers, config.text_width, config.text_layers)
    model.config.save_pretrained(folder)
    family = Realtime.open(folder)
    return family, network_of(model, family.clock)


def write_processor(folder: Path, ranks: int) -> int:
    """Write `tekken.json` and the feature extractor's file, so that AutoProcessor can load them.

    `ranks`: how many entries of the shipped vocabulary to keep. Returns the vocabulary size.
    """
    shipped = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    source = json.loads(shipped.read_text("utf-8"))
    special = [
        {"rank": rank, "token_str": _SPECIAL_TOKENS.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
        for rank in range(_SPECIAL_COUNT)
    ]
    config = {
        "pattern": source["config"]["pattern"],
        "num_vocab_tokens": ranks,
        "default_vocab_size": ranks + _SPECIAL_COUNT,
        "default_num_special_tokens": _SPECIAL_COUNT,
        "version": "v13",
    }
    content = {"config": config, "vocab": source["vocab"][:ranks], "special_tokens": special, "audio": _AUDIO}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tekken.json").write_text(json.dumps(content, separators=(",", ":")), "utf-8")
    extractor = VoxtralRealtimeFeatureExtractor(feature_size=128, processor_class="VoxtralRealtimeProcessor")
    extractor.save_pretrained(folder)
    return ranks + _SPECIAL_COUNT


def tiny_model(
    vocab_size: int, audio_width: int, audio_layers: int, text_width: int, text_layers: int
) -> VoxtralRealtimeForConditionalGeneration:
    """Random weights in the real class; heads are 32 wide, the language model shares keys and
    values between three query heads, as many as the width allows."""
    heads = text_width // 32
    config = VoxtralRealtimeConfig(
        audio_config={
            "hidden_size": audio_width,
            "intermediate_size": 3 * audio_width,
            "num_hidden_layers": audio_layers,
            "num_attention_heads": audio_width // 32,
            "head_dim": 32,
            "vocab_size": vocab_size,
        },
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": text_width,
            "intermediate_size": 3 * text_width,
            "num_hidden_layers": text_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 3 if heads % 3 == 0 else heads,
            "head_dim": 32,
            "max_position_embeddings": 8192,
            "pad_token_id": 11,
        },
    )
    return VoxtralRealtimeForConditionalGeneration(config)
