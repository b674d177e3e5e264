"""Voxtral Realtime: it hears 80 ms of audio at every position of a row, and writes while it listens."""

from pathlib import Path

import numpy as np

from ...text.taxonomy import Taxonomy
from ...units import FRAMES_PER_TOKEN, samples_to_tokens
from ..base import Alignment, Family
from ..checkpoint import load_processor, load_weights
from . import features
from .clock import Clock
from .layouts import LAYOUTS, Aligned, Deferred, RealtimeLayout
from .self_alignment import align


class Realtime(Family):
    model_type = "voxtral_realtime"
    title = "Voxtral Realtime"
    layouts = tuple(LAYOUTS)
    default_layout = Deferred.name

    def __init__(self, folder: Path, processor):
        self.folder, self.processor, self.clock = folder, processor, Clock.of(processor)
        self.tokenizer = processor.tokenizer.tokenizer.instruct_tokenizer.tokenizer

    @classmethod
    def open(cls, folder: Path) -> "Realtime":
        return cls(folder, load_processor(folder))

    def layout(self, name: str, room_tokens: int) -> RealtimeLayout:
        return LAYOUTS[name](self.clock, room_tokens)

    def own_layout(self, room_tokens: int) -> Aligned:
        return Aligned(self.clock, room_tokens)

    @staticmethod
    def restore_layout(record: dict) -> RealtimeLayout:
        return LAYOUTS[record["layout"]](Clock(**record["clock"]), record["room_tokens"])

    def mel(self, samples: np.ndarray, tokens: int) -> np.ndarray:
        return features.log_mel(samples, tokens, self.processor.feature_extractor, self.clock)

    def mel_start(self, samples: np.ndarray, tokens: int) -> np.ndarray:
        whole = max(tokens, self.clock.left_pad_tokens + samples_to_tokens(len(samples)) + 1)
        return np.ascontiguousarray(self.mel(samples, whole)[:, : tokens * FRAMES_PER_TOKEN])

    trim_silence = staticmethod(features.trim_silence)

    @staticmethod
    def restore_silence(kept: np.ndarray, first_frame: int, tokens: int) -> np.ndarray:
        return features.restore_silence(kept, first_frame, tokens * FRAMES_PER_TOKEN)

    @classmethod
    def align(cls, text: str, words: list[tuple[str, float]], duration_s: float, taxonomy: Taxonomy) -> Alignment:
        return align(text, words, duration_s, taxonomy)

    def load(self, dtype: str):
        """Its forward also takes `audio_embeds` in place of features."""
        from .model import CachedAudioVoxtralRealtimeForConditionalGeneration, network_of

        return network_of(load_weights(CachedAudioVoxtralRealtimeForConditionalGeneration, self.folder, dtype), self.clock)

    @classmethod
    def describe(cls, folder: Path | None):
        import torch
        from transformers import AutoConfig, VoxtralRealtimeConfig, VoxtralRealtimeForConditionalGeneration

        from .model import RealtimeNetwork

        config = AutoConfig.from_pretrained(folder, trust_remote_code=False) if folder else VoxtralRealtimeConfig()
        with torch.device("meta"):
            return RealtimeNetwork(VoxtralRealtimeForConditionalGeneration(config), config.default_num_delay_tokens)
