"""Train the tiny base: transcription in the base model's streaming form, but nothing about tags.

Three kinds of supervision share the audio path: words, each written 480 ms after it was heard,
as in Voxtral Realtime; phonemes per 20 ms encoder frame; and acoustic descriptions per 80 ms
token. Two linear heads predict the last two and are discarded after training. Text-only rows
(silent audio, random words and tags that belong to no sound) keep the tags' subwords writable:
without them a LoRA cannot learn to write tags at all. They are in the streaming form too, so
the base has never written in any other layout.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from ..config.training import TinyBaseConfig
from ..errors import EvoxtralError
from ..families.base import IGNORED, ClipSize, Network, Row
from ..families.realtime.clock import Clock
from ..families.realtime.family import Realtime
from ..families.realtime.layouts import RealtimeLayout
from ..modeling.weights import require_finite_weights
from ..synthesis.scripts import Grammar, draw_scripts
from ..synthesis.synthesizer import VOICES, Synthesizer
from ..text.tags import BASE_TAGS
from ..units import FRAMES_PER_TOKEN, TOKEN_S, samples_to_seconds, samples_to_tokens, tokens_to_samples
from . import acoustics

_FRAME_S = TOKEN_S / 4  # one encoder frame
_PHONEME_DELAY_FRAMES = 4  # a causal encoder names a phoneme once it has heard 80 ms of it
ROOM_TOKENS = 40  # fast speech is written later than it is heard


@dataclass
class PretrainRow:
    """`mel`: the sounding part, float16 [128, n]; `phonemes`: int64 [4 × needed_tokens];
    `acoustics`: float32 [needed_tokens, 24]; both None for a text-only row."""

    row: Row
    mel: np.ndarray
    mel_start: int
    phonemes: np.ndarray | None
    acoustics: np.ndarray | None


class Heads(nn.Module):
    """The two linear heads on the audio path, discarded after training."""

    def __init__(self, audio_width: int, text_width: int, phonemes: int):
        super().__init__()
        self.phonemes = nn.Linear(audio_width, phonemes)
        self.acoustics = nn.Linear(text_width, acoustics.DESCRIPTORS)


def make_rows(config: TinyBaseConfig, family: Realtime) -> tuple[list[PretrainRow], int, int]:
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
        row_tokens = clock.stock_tokens(len(clip.samples), 0) + ROOM_TOKENS
        row = _row(layout, words, ClipSize(samples_to_tokens(len(clip.samples)), row_tokens))
        needed = row.needed_tokens
        mel = family.mel(clip.samples, row_tokens * FRAMES_PER_TOKEN)
        left = tokens_to_samples(clock.left_pad_tokens)
        description = acoustics.describe(np.pad(clip.samples, (left, 0)), mel[:, : needed * FRAMES_PER_TOKEN])
        kept, start = family.trim_silence(mel)
        phonemes = _phoneme_frames(clip.phonemes, samples_to_seconds(len(clip.samples)), clock, needed, classes)
        rows.append(PretrainRow(row, kept.astype(np.float16), start, phonemes, description))
    text_rows = round(config.clips * config.text_only_share / (1 - config.text_only_share))
    for _ in range(text_rows):
        rows.append(_text_row(layout, tokenizer, sorted(vocabulary), rng))
    return rows, len(classes), len(vocabulary)


def _phoneme_frames(phonemes: list[dict], clip_s: float, clock: Clock, tokens: int, classes: dict[str, int]) -> np.ndarray:
    labels = np.zeros(4 * tokens, np.int64)
    shift = clock.left_pad_tokens * 4 + _PHONEME_DELAY_FRAMES
    starts = [round(each["start_s"] / _FRAME_S) + shift for each in phonemes] + [round(clip_s / _FRAME_S) + shift]
    for each, start, stop in zip(phonemes, starts, starts[1:], strict=False):
        name = each["phoneme"].strip("',_:")
        labels[start:stop] = classes.setdefault(name, len(classes))
    return labels


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


def pretrain(config: TinyBaseConfig, network: Network, family: Realtime, report: Callable[[dict], None]) -> dict:
    """Train the model in place; `report` gets {step, steps, text, phonemes, acoustics} now and then."""
    torch.manual_seed(config.seed)
    model = network.model
    rows, phoneme_classes, words = make_rows(config, family)
    described = np.concatenate([row.acoustics for row in rows if row.acoustics is not None])
    mean, spread = described.mean(axis=0), described.std(axis=0) + 1e-3
    heads = Heads(model.config.audio_config.hidden_size, model.config.text_config.hidden_size, phoneme_classes)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    steps = config.epochs * math.ceil(len(rows) / config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, config.warmup_steps, steps))
    rng = np.random.default_rng(config.seed + 1)
    model.train()
    step, started, window, finite = 0, time.monotonic(), [], None
    remedy = f"lower learning_rate (now {config.learning_rate:g}), and start again with --overwrite"
    for _ in range(config.epochs):
        for chosen in _batches(rows, config.batch_size, rng):
            losses = _losses(network, heads, family, [rows[i] for i in chosen], mean, spread)
            total = losses["text"] + config.phoneme_weight * losses["phonemes"] + config.acoustics_weight * losses["acoustics"]
            total.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            window.append({name: value.item() for name, value in losses.items()})
            if not math.isfinite(sum(window[-1].values())):
                before = f"the last finite loss was {finite:.4g}" if finite is not None else "no loss was finite before"
                raise EvoxtralError(f"at step {step} the loss is not finite; {before}", fix=remedy)
            finite = window[-1]["text"]
            if step % 100 == 0 or step in (1, steps):
                means = {name: sum(each[name] for each in window) / len(window) for name in losses}
                report({"step": step, "steps": steps, **means})
                window = []
    require_finite_weights(model, steps, remedy)
    return {"steps": steps, "rows": len(rows), "words": words, "train_s": time.monotonic() - started, **means}


def _losses(
    network: Network, heads: Heads, family: Realtime, rows: list[PretrainRow], mean: np.ndarray, spread: np.ndarray
) -> dict[str, torch.Tensor]:
    model, clock = network.model, family.clock
    tokens = max(each.row.needed_tokens for each in rows)
    ids = torch.tensor([_fit(each.row.ids, tokens, clock.pad_id) for each in rows])
    labels = torch.tensor([_fit(each.row.labels, tokens, IGNORED) for each in rows])
    mel = np.stack([family.restore_silence(each.mel, each.mel_start, tokens * FRAMES_PER_TOKEN) for each in rows])
    audio = model.get_audio_features(torch.from_numpy(mel), return_dict=True)
    hidden = network.hidden(ids, audio.pooler_output)
    wanted = labels[:, 1:] != IGNORED
    text = nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][wanted]), labels[:, 1:][wanted])
    phonemes = torch.full((len(rows), 4 * tokens), IGNORED)
    target = torch.zeros(len(rows), tokens, acoustics.DESCRIPTORS)
    mask = torch.zeros(len(rows), tokens, dtype=torch.bool)
    for index, each in enumerate(rows):
        if each.phonemes is not None:
            phonemes[index, : len(each.phonemes)] = torch.from_numpy(each.phonemes)
            target[index, : len(each.acoustics)] = torch.from_numpy((each.acoustics - mean) / spread)
            mask[index, clock.left_pad_tokens : len(each.acoustics)] = True
    losses = {"text": text, "phonemes": text.new_zeros(()), "acoustics": text.new_zeros(())}
    if bool(mask.any()):  # a batch may consist of text-only rows
        named = heads.phonemes(audio.last_hidden_state).flatten(0, 1)
        losses["phonemes"] = nn.functional.cross_entropy(named, phonemes.flatten(), ignore_index=IGNORED)
        losses["acoustics"] = nn.functional.mse_loss(heads.acoustics(audio.pooler_output)[mask], target[mask])
    return losses


def _fit(values: list[int], length: int, fill: int) -> list[int]:
    return values[:length] + [fill] * (length - len(values))


def _batches(rows: list[PretrainRow], size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Batches of similar length in random order: shuffle, sort within pools of 16 batches, cut."""
    order = rng.permutation(len(rows))
    pool = 16 * size
    batches = []
    for start in range(0, len(order), pool):
        part = sorted(order[start : start + pool], key=lambda i: rows[i].row.needed_tokens)
        batches += [np.array(part[at : at + size]) for at in range(0, len(part), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _warm_cosine(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
