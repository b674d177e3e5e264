"""The tiny base of Voxtral Realtime: a small `VoxtralRealtimeForConditionalGeneration`, with real processor files, made without a
download.

It learns to transcribe in the base model's streaming form: each word is written 480 ms after it was heard. Text-only rows are in
that form too, so the base has never written in any other layout.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import (
    VoxtralRealtimeConfig,
    VoxtralRealtimeFeatureExtractor,
    VoxtralRealtimeForConditionalGeneration,
)

from ..config.training import TinyBaseConfig
from ..families.base import IGNORED, ClipSize, Row
from ..families.realtime.family import Realtime
from ..families.realtime.layouts import RealtimeLayout
from ..families.realtime.model import RealtimeNetwork, network_of
from ..synthesis.scripts import Grammar, draw_scripts
from ..synthesis.synthesizer import VOICES, Synthesizer
from ..text.tags import BASE_TAGS
from ..units import FRAMES_PER_TOKEN, TOKEN_S, samples_to_seconds, samples_to_tokens, tokens_to_samples
from . import acoustics, pretraining
from .pretraining import Normal, phoneme_frames
from .processor import write_tokenizer

RECIPE = "configs/tiny-base.yaml"
FORM = """\
It was trained to transcribe in the base model's own streaming format (each word 480 ms after it was heard). It heard speech
in every style and every sound that the demo's tags name, but never a tag together with its sound. To learn the tags'
subwords, it saw words and tags as text over silence, also in the streaming format. So it knows neither `packed` nor
`deferred`. During training two linear heads on its audio path, since discarded, predicted phonemes and acoustic features
(loudness, pitch, voicing, brightness, silence)."""
"""For the checkpoint's README: what it learned, and how."""

_SPECIAL_TOKENS = {32: "[STREAMING_PAD]", 33: "[STREAMING_WORD]"}
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
ROOM_TOKENS = 40  # fast speech is written later than it is heard
_PHONEME_DELAY_FRAMES = 4  # a causal encoder names a phoneme once it has heard 80 ms of it


def make(folder: Path, config: TinyBaseConfig) -> tuple[Realtime, RealtimeNetwork]:
    """Write the processor's files and the config into `folder`; the model has random weights."""
    vocabulary = write_processor(folder, config.vocabulary_ranks)
    model = tiny_model(vocabulary, config.audio_width, config.audio_layers, config.text_width, config.text_layers)
    model.config.save_pretrained(folder)
    family = Realtime.open(folder)
    return family, network_of(model, family.clock)


def measure(family: Realtime, samples: int) -> ClipSize:
    return ClipSize(samples_to_tokens(samples), family.clock.stock_tokens(samples, 0) + ROOM_TOKENS)


def write_processor(folder: Path, ranks: int) -> int:
    """Write `tekken.json` and the feature extractor's file, so that AutoProcessor can load them. `ranks`: as in
    `write_tokenizer`. Returns the vocabulary size."""
    vocabulary = write_tokenizer(folder, ranks, _SPECIAL_TOKENS, _AUDIO)
    extractor = VoxtralRealtimeFeatureExtractor(feature_size=128, processor_class="VoxtralRealtimeProcessor")
    extractor.save_pretrained(folder)
    return vocabulary


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


@dataclass
class PretrainRow:
    """`mel`: the sounding part, float16 [128, n]; `phonemes`: int64 [4 × needed_tokens];
    `acoustics`: float32 [needed_tokens, 24]; both None for a text-only row."""

    row: Row
    mel: np.ndarray
    mel_start: int
    phonemes: np.ndarray | None
    acoustics: np.ndarray | None


class Lessons(pretraining.Lessons):
    """Words, each written 480 ms after it was heard; phonemes per 20 ms encoder frame; acoustic descriptions per 80 ms token."""

    def __init__(self, config: TinyBaseConfig, network: RealtimeNetwork, family: Realtime):
        self._network, self._family = network, family
        self.rows, phonemes, self.words = _make_rows(config, family)
        self._normal = Normal([row.acoustics for row in self.rows if row.acoustics is not None])
        sizes = network.model.config
        self.heads = nn.ModuleDict({
            "phonemes": nn.Linear(sizes.audio_config.hidden_size, phonemes),
            "acoustics": nn.Linear(sizes.text_config.hidden_size, acoustics.DESCRIPTORS),
        })  # fmt: skip
        self.weights = {"phonemes": config.phoneme_weight, "acoustics": config.acoustics_weight}

    def length(self, row: PretrainRow) -> int:
        return row.row.needed_tokens

    def losses(self, rows: list[PretrainRow], progress: float) -> dict[str, torch.Tensor]:
        model, clock = self._network.model, self._family.clock
        tokens = max(each.row.needed_tokens for each in rows)
        ids = torch.tensor([_fit(each.row.ids, tokens, clock.pad_id) for each in rows])
        labels = torch.tensor([_fit(each.row.labels, tokens, IGNORED) for each in rows])
        frames = tokens * FRAMES_PER_TOKEN
        mel = np.stack([self._family.restore_silence(each.mel, each.mel_start, frames) for each in rows])
        audio = model.get_audio_features(torch.from_numpy(mel), return_dict=True)
        hidden = self._network.hidden(ids, audio.pooler_output)
        wanted = labels[:, 1:] != IGNORED
        text = nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][wanted]), labels[:, 1:][wanted])
        phonemes = torch.full((len(rows), 4 * tokens), IGNORED)
        target = torch.zeros(len(rows), tokens, acoustics.DESCRIPTORS)
        mask = torch.zeros(len(rows), tokens, dtype=torch.bool)
        for index, each in enumerate(rows):
            if each.phonemes is not None:
                phonemes[index, : len(each.phonemes)] = torch.from_numpy(each.phonemes)
                target[index, : len(each.acoustics)] = self._normal(each.acoustics)
                mask[index, clock.left_pad_tokens : len(each.acoustics)] = True
        losses = {"text": text, "phonemes": text.new_zeros(()), "acoustics": text.new_zeros(())}
        if bool(mask.any()):  # a batch may consist of text-only rows
            named = self.heads["phonemes"](audio.last_hidden_state).flatten(0, 1)
            losses["phonemes"] = nn.functional.cross_entropy(named, phonemes.flatten(), ignore_index=IGNORED)
            losses["acoustics"] = nn.functional.mse_loss(self.heads["acoustics"](audio.pooler_output)[mask], target[mask])
        return losses


def _make_rows(config: TinyBaseConfig, family: Realtime) -> tuple[list[PretrainRow], int, int]:
    """Speak the training sentences and lay them out. Returns (rows, phoneme classes, distinct words)."""
    layout, clock, tokenizer = family.own_layout(ROOM_TOKENS), family.clock, family.tokenizer
    grammar, synthesizer = Grammar.load(config.grammar), Synthesizer()
    rng = np.random.default_rng(config.seed)
    scripts = draw_scripts(grammar, {"train": config.clips}, untagged_share=0.3, seed=config.seed)
    classes: dict[str, int] = {"": 0}
    rows, vocabulary = [], set()
    for index, script in enumerate(scripts):
        clip = synthesizer.render(script.text, VOICES[rng.integers(len(VOICES))], seed=config.seed * 1_000_003 + index)
        vocabulary.update(word["word"] for word in clip.words)
        words = [(tokenizer.encode(" " + word["word"], False, False), word["end_s"]) for word in clip.words]
        size = measure(family, len(clip.samples))
        row = _row(layout, words, size)
        needed = row.needed_tokens
        mel = family.mel(clip.samples, size.row_tokens * FRAMES_PER_TOKEN)
        left = tokens_to_samples(clock.left_pad_tokens)
        description = acoustics.describe(np.pad(clip.samples, (left, 0)), mel[:, : needed * FRAMES_PER_TOKEN])
        kept, start = family.trim_silence(mel)
        shift = clock.left_pad_tokens * 4 + _PHONEME_DELAY_FRAMES
        phonemes = phoneme_frames(clip.phonemes, samples_to_seconds(len(clip.samples)), shift, 4 * needed, classes)
        rows.append(PretrainRow(row, kept.astype(np.float16), start, phonemes, description))
    text_rows = round(config.clips * config.text_only_share / (1 - config.text_only_share))
    for _ in range(text_rows):
        rows.append(_text_row(layout, tokenizer, sorted(vocabulary), rng))
    return rows, len(classes), len(vocabulary)


def _row(layout: RealtimeLayout, pieces: list[tuple[list[int], float]], clip: ClipSize) -> Row:
    return layout.lay_out(clip, layout.target_ids(None, "", pieces, clip))


def _text_row(layout: RealtimeLayout, tokenizer, vocabulary: list[str], rng: np.random.Generator) -> PretrainRow:
    """One to four tags, in half of the rows with up to four words, in one to three groups, each written
    at a different time. A group begins with or without a space, because layouts write both."""
    tags = [f"[{BASE_TAGS[i]}]" for i in rng.permutation(len(BASE_TAGS))[: rng.integers(1, 5)]]
    words = [vocabulary[i] for i in rng.integers(len(vocabulary), size=rng.integers(0, 5))] if rng.random() < 0.5 else []
    items = [str(item) for item in rng.permutation(tags + words)]
    cuts = rng.integers(1, len(items), size=rng.integers(0, 3)) if len(items) > 1 else []
    edges = sorted({0, len(items), *map(int, cuts)})
    heard = int(rng.integers(1, 70))
    moments = sorted(rng.uniform(0, heard * TOKEN_S, size=len(edges) - 1))
    groups = [" " * int(rng.integers(2)) + " ".join(items[start:stop]) for start, stop in pairwise(edges)]
    pieces = [(tokenizer.encode(group, False, False), moment) for group, moment in zip(groups, moments, strict=True)]
    row = _row(layout, pieces, ClipSize(heard, layout.clock.written_at(heard) + 2 * ROOM_TOKENS))
    return PretrainRow(row, np.zeros((128, 0), np.float16), 0, None, None)


def _fit(values: list[int], length: int, fill: int) -> list[int]:
    return values[:length] + [fill] * (length - len(values))
