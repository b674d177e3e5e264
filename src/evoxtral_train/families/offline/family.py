"""Offline Voxtral, such as Voxtral-Mini-3B: it hears a whole clip, in chunks of 30 s, before it writes.

Its features are those of the stock processor, bit by bit, which passes the audio through a WAV file of 16 bits.
"""

import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
import soundfile

from ...errors import UsageError
from ...units import HOP_SAMPLES, MEL_BINS, SAMPLE_RATE_HZ, TOKEN_SAMPLES
from ..base import Family
from ..checkpoint import copy_processor, in_mistral_layout, load_processor, load_weights
from .transcription import CHUNK_FRAMES, CHUNK_TOKENS, FAMILY, PromptIds, Transcription


class Offline(Family):
    model_type = FAMILY
    title = "offline Voxtral"
    hub_tag = "voxtral"
    stock_class = "VoxtralForConditionalGeneration"
    layouts = (Transcription.name,)
    default_layout = Transcription.name
    default_target = "tagged_text"
    default_room_tokens = 256
    has_mistral_format = False
    default_new_tokens = 512  # as the published evaluation
    usage = """\
inputs = processor.apply_transcription_request("talk.wav", model_id="", language="en")  # or no language: it finds it itself
inputs = inputs.to(model.device, dtype=model.dtype)
written = model.generate(**inputs, max_new_tokens=512, do_sample=False)[:, inputs.input_ids.shape[1] :]
print(processor.batch_decode(written, skip_special_tokens=True)[0])"""
    writes_while_listening = False
    names_language = True

    def __init__(self, folder: Path, processor):
        self.folder, self.processor = folder, processor
        self.tokenizer = processor.tokenizer.tokenizer.instruct_tokenizer.tokenizer
        self.prompt_ids = _prompt_ids(processor)

    @classmethod
    def open(cls, folder: Path) -> "Offline":
        if in_mistral_layout(folder):
            raise UsageError(
                "is offline Voxtral in Mistral's own format, which evoxtral does not read", where=str(folder),
                fix="use the checkpoint in transformers' format: config.json and model-*.safetensors",
            )  # fmt: skip
        return cls(folder, load_processor(folder))

    def layout(self, name: str, room_tokens: int) -> Transcription:
        if name != Transcription.name:
            raise KeyError(name)
        return Transcription(self.prompt_ids, room_tokens)

    def own_layout(self, room_tokens: int) -> Transcription:
        return Transcription(self.prompt_ids, room_tokens)

    @staticmethod
    def restore_layout(record: dict) -> Transcription:
        return Transcription(PromptIds(**record["prompt_ids"]), record["room_tokens"])

    def mel(self, samples: np.ndarray, frames: int) -> np.ndarray:
        """Mono float32 `samples` at 16 kHz -> float32 [128, frames], `frames` a multiple of 3,000.

        Equal to the stock processor's, bit by bit (a test): of fewer frames at once, a few would round differently. They are
        finite whatever the samples are, since the WAV file's are.
        """
        heard = _through_wav(samples)
        padded = np.pad(heard, (0, frames * HOP_SAMPLES - len(heard)))
        extractor = self.processor.feature_extractor
        mel = extractor(padded, sampling_rate=SAMPLE_RATE_HZ, padding=False, truncation=False, return_tensors="np")
        return mel["input_features"][0]

    @staticmethod
    def trim_silence(mel: np.ndarray) -> tuple[np.ndarray, int]:
        """Drops all but the first of the equal frames at the end. Silence has the value of the log-mel's floor, 8 below the
        clip's own maximum or −10, so it differs between clips."""
        differing = np.flatnonzero((mel != mel[:, -1:]).any(axis=0))
        return mel[:, : (differing[-1] + 2 if len(differing) else 1)], 0

    @staticmethod
    def restore_silence(kept: np.ndarray, first_frame: int, frames: int) -> np.ndarray:
        return np.pad(kept, ((0, 0), (0, frames - kept.shape[1])), mode="edge")

    def load(self, dtype: str):
        """Its forward also takes `audio_embeds` or `audio_states` in place of features."""
        from .model import CachedAudioVoxtralForConditionalGeneration, network_of

        return network_of(load_weights(CachedAudioVoxtralForConditionalGeneration, self.folder, dtype), self.prompt_ids)

    @classmethod
    def describe(cls, folder: Path | None):
        import torch
        from transformers import AutoConfig, VoxtralConfig, VoxtralForConditionalGeneration

        from .model import OfflineNetwork

        config = AutoConfig.from_pretrained(folder, trust_remote_code=False) if folder else VoxtralConfig(audio_token_id=24)
        with torch.device("meta"):
            return OfflineNetwork(VoxtralForConditionalGeneration(config))

    def save(self, model, folder: Path) -> None:
        model.save_pretrained(folder)
        copy_processor(self.folder, folder)

    @property
    def languages(self) -> Collection[str]:
        return self.prompt_ids.languages

    def save_mistral(self, model, folder: Path) -> None:
        self.require_mistral_format()


def _through_wav(samples: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def _prompt_ids(processor) -> PromptIds:
    """Raises UsageError when the processor is not that of offline Voxtral."""
    import pycountry  # of mistral-common, which checks languages with it

    encoder = processor.tokenizer.tokenizer.instruct_tokenizer
    tokenizer, audio = encoder.tokenizer, getattr(encoder.audio_encoder, "audio_config", None)
    found = audio and (audio.sampling_rate, audio.encoding_config.hop_length, audio.audio_length_per_tok, audio.chunk_frames)
    expected = (SAMPLE_RATE_HZ, HOP_SAMPLES, TOKEN_SAMPLES // HOP_SAMPLES, CHUNK_FRAMES * HOP_SAMPLES)
    if found != expected or processor.feature_extractor.feature_size != MEL_BINS:
        what = f"this processor is not that of offline Voxtral: {found} instead of {expected}"
        raise UsageError(what, fix="use a Voxtral checkpoint such as mistralai/Voxtral-Mini-3B-2507")
    codes = sorted(language.alpha_2 for language in pycountry.languages if hasattr(language, "alpha_2"))
    token = tokenizer.get_special_token
    return PromptIds(
        bos=tokenizer.bos_id, eos=tokenizer.eos_id, pad=tokenizer.pad_id, begin_instruction=token("[INST]"),
        end_instruction=token("[/INST]"), begin_audio=token("[BEGIN_AUDIO]"), audio=token("[AUDIO]"),
        transcribe=token("[TRANSCRIBE]"), languages={code: tokenizer.encode(f"lang:{code}", False, False) for code in codes},
    )  # fmt: skip


assert CHUNK_TOKENS * TOKEN_SAMPLES == CHUNK_FRAMES * HOP_SAMPLES
