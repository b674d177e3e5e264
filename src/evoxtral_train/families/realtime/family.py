"""Voxtral Realtime: it hears 80 ms of audio at every position of a row, and writes while it listens.

Its features are log-mel frames on the model's clock, from the checkpoint's own feature extractor. A clip is padded as the stock
processor pads it: 32 tokens of silence on the left, at least 17 on the right, after the pre-padding to 240,480 samples. That is
1,895 mel frames, not a multiple of 8, so log-mel silence pads it further to a whole number of audio tokens (237).
"""

from pathlib import Path

import numpy as np

from ...errors import RowError
from ...text.taxonomy import Taxonomy
from ...units import FRAMES_PER_TOKEN, HOP_SAMPLES, MEL_BINS, SAMPLE_RATE_HZ, SILENCE_LOG_MEL
from ..base import Alignment, Family
from ..checkpoint import FEATURE_FILES, copy_processor, in_mistral_layout, load_processor, load_weights
from .clock import Clock
from .layouts import FAMILY, LAYOUTS, Aligned, Deferred, RealtimeLayout
from .self_alignment import align

_MARGIN_FRAMES = 2  # a window reaches 200 samples to either side: less than two hops of 160


class Realtime(Family):
    model_type = FAMILY
    title = "Voxtral Realtime"
    hub_tag = "voxtral-realtime"
    stock_class = "VoxtralRealtimeForConditionalGeneration"
    layouts = tuple(LAYOUTS)
    default_layout = Deferred.name
    writes_while_listening = True
    default_target = "tags"
    default_room_tokens = 65  # 64 new tokens and EOS, as in the published recipe
    default_new_tokens = 64
    has_mistral_format = True
    names_language = False

    def __init__(self, folder: Path, processor):
        self.folder, self.processor, self.clock = folder, processor, Clock.of(processor)
        self.tokenizer = processor.tokenizer.tokenizer.instruct_tokenizer.tokenizer

    @classmethod
    def open(cls, folder: Path) -> "Realtime":
        if in_mistral_layout(folder):
            from .mistral_format import read_processor

            return cls(folder, load_processor(folder, read_processor))
        return cls(folder, load_processor(folder))

    def layout(self, name: str, room_tokens: int) -> RealtimeLayout:
        return LAYOUTS[name](self.clock, room_tokens)

    def own_layout(self, room_tokens: int) -> Aligned:
        return Aligned(self.clock, room_tokens)

    @staticmethod
    def restore_layout(record: dict) -> RealtimeLayout:
        return LAYOUTS[record["layout"]](Clock(**record["clock"]), record["room_tokens"])

    def mel(self, samples: np.ndarray, frames: int) -> np.ndarray:
        """Mono float32 `samples` at 16 kHz -> float32 [128, frames], the clip after the left padding.

        Equal to `processor(pre-padded clip).input_features` at the stock row length (a test); longer rows continue in silence.
        Only the frames that can overlap the clip are computed: the log-mel of digital silence is a constant. Raises RowError when
        a frame is not finite, for example for samples near the largest float.
        """
        margin = np.zeros(_MARGIN_FRAMES * HOP_SAMPLES, np.float32)
        tail = np.zeros(-len(samples) % HOP_SAMPLES, np.float32)
        heard = np.concatenate([margin, samples.astype(np.float32), tail, margin])
        extractor = self.processor.feature_extractor
        mel = extractor(heard, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np").input_features[0]
        if not np.isfinite(mel).all():
            raise RowError("its features are not finite: its samples are far too large", fix="export it between -1 and 1")
        left = self.clock.left_pad_tokens * FRAMES_PER_TOKEN - _MARGIN_FRAMES
        silence = np.full((MEL_BINS, left), SILENCE_LOG_MEL, np.float32)
        return pad_mel(np.concatenate([silence, mel], axis=1)[:, :frames], frames)

    @staticmethod
    def trim_silence(mel: np.ndarray) -> tuple[np.ndarray, int]:
        """Drops frames of exact digital silence at both ends. Two thirds of a pre-padded row are such frames."""
        sounding = np.flatnonzero((mel != np.float32(SILENCE_LOG_MEL)).any(axis=0))
        if len(sounding) == 0:
            return mel[:, :0], 0
        first, last = int(sounding[0]), int(sounding[-1])
        return mel[:, first : last + 1], first

    @staticmethod
    def restore_silence(kept: np.ndarray, first_frame: int, frames: int) -> np.ndarray:
        mel = np.full((MEL_BINS, frames), SILENCE_LOG_MEL, np.float32)
        count = max(min(kept.shape[1], frames - first_frame), 0)
        mel[:, first_frame : first_frame + count] = kept[:, :count]
        return mel

    @classmethod
    def align(cls, text: str, words: list[tuple[str, float]], duration_s: float, taxonomy: Taxonomy) -> Alignment:
        return align(text, words, duration_s, taxonomy)

    def load(self, dtype: str):
        """Its forward also takes `audio_embeds` in place of features."""
        from .mistral_format import read_config, read_weights
        from .model import CachedAudioVoxtralRealtimeForConditionalGeneration, network_of

        converted = {}
        if in_mistral_layout(self.folder):
            converted["config"] = read_config(self.folder)
            converted["state_dict"] = read_weights(self.folder, converted["config"])
        model = load_weights(CachedAudioVoxtralRealtimeForConditionalGeneration, self.folder, dtype, **converted)
        return network_of(model, self.clock)

    @classmethod
    def describe(cls, folder: Path | None):
        import torch
        from transformers import AutoConfig, VoxtralRealtimeConfig, VoxtralRealtimeForConditionalGeneration

        from .mistral_format import read_config
        from .model import RealtimeNetwork

        if folder and in_mistral_layout(folder):
            config = read_config(folder)
        else:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False) if folder else VoxtralRealtimeConfig()
        with torch.device("meta"):
            return RealtimeNetwork(VoxtralRealtimeForConditionalGeneration(config), config.default_num_delay_tokens)

    def save(self, model, folder: Path) -> None:
        model.save_pretrained(folder)
        copy_processor(self.folder, folder)
        if not any((folder / name).is_file() for name in FEATURE_FILES):  # Mistral's format need not have one
            self.processor.feature_extractor.save_pretrained(folder)

    def save_mistral(self, model, folder: Path) -> None:
        from .mistral_format import save

        save(model, self.processor, folder)
        copy_processor(self.folder, folder)


def pad_mel(mel: np.ndarray, frames: int) -> np.ndarray:
    """[128, n] -> [128, frames], filled with silence on the right. Raises ValueError when n > frames
    or `frames` is not a multiple of 8: the encoder's reshape would fail, or broadcast silently."""
    if frames % FRAMES_PER_TOKEN:
        raise ValueError(f"{frames} mel frames are not a multiple of {FRAMES_PER_TOKEN}")
    if mel.shape[0] != MEL_BINS or mel.shape[1] > frames:
        raise ValueError(f"mel of shape {mel.shape} does not fit into [{MEL_BINS}, {frames}]")
    return np.pad(mel, ((0, 0), (0, frames - mel.shape[1])), constant_values=SILENCE_LOG_MEL)
