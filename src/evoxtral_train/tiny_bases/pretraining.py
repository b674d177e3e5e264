"""Train a tiny base: transcription in its family's own form, but nothing about tags.

Besides the words, linear heads on the audio path learn phonemes and acoustic descriptions; they are discarded after training.
Text-only rows (silent audio, words and tags that belong to no sound) keep the tags' subwords writable: without them a LoRA
cannot learn to write tags at all.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..config.training import TinyBaseConfig
from ..errors import EvoxtralError
from ..families.base import Network
from ..modeling.weights import require_finite_weights
from ..units import TOKEN_S

ENCODER_FRAME_S = TOKEN_S / 4


class Lessons(ABC):
    """What the tiny base of a family learns: its rows, and their losses."""

    rows: Sequence[Any]
    words: int
    """Distinct words of the rows."""
    heads: nn.Module
    """On the audio path; trained with the model, then discarded."""
    weights: dict[str, float]
    """The weight of each loss but the text's."""

    @abstractmethod
    def length(self, row: Any) -> int:
        """Rows of similar length share a batch."""

    @abstractmethod
    def losses(self, rows: list[Any], progress: float) -> dict[str, torch.Tensor]:
        """The losses of a batch by name, among them `text`. `progress`: 0 at the first step, 1 after the last."""


def pretrain(config: TinyBaseConfig, network: Network, lessons: Lessons, report: Callable[[dict], None]) -> dict:
    """Train the model in place; `report` gets {step, steps, text, …}, the mean losses, now and then."""
    model = network.model
    parameters = [each for each in (*model.parameters(), *lessons.heads.parameters()) if each.requires_grad]
    optimizers = _optimizers(config, model, parameters)
    steps = config.epochs * math.ceil(len(lessons.rows) / config.batch_size)
    schedules = [_warm_cosine(optimizer, config.warmup_steps, steps) for optimizer in optimizers]
    rng = np.random.default_rng(config.seed + 1)
    model.train()
    step, started, window, finite = 0, time.monotonic(), [], None
    remedy = f"lower learning_rate (now {config.learning_rate:g}), and start again with --overwrite"
    for _ in range(config.epochs):
        for chosen in _batches(lessons, config.batch_size, rng):
            with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16"):
                losses = lessons.losses([lessons.rows[i] for i in chosen], step / steps)
            total = losses["text"]
            for name, weight in lessons.weights.items():
                total = total + weight * losses[name]
            total.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
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
    return {
        "steps": steps, "rows": len(lessons.rows), "words": lessons.words, "train_s": time.monotonic() - started, **means
    }  # fmt: skip


def _optimizers(config: TinyBaseConfig, model: nn.Module, parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the linear layers inside the model, if it has a learning rate; AdamW for the rest."""
    linear = [each.weight for name, each in model.named_modules() if isinstance(each, nn.Linear) and "lm_head" not in name]
    matrices = {id(each) for each in linear} if config.muon_learning_rate else set()
    adamw = [each for each in parameters if id(each) not in matrices]
    optimizers = [torch.optim.AdamW(adamw, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.02)]
    if config.muon_learning_rate:
        optimizers.append(torch.optim.Muon(linear, lr=config.muon_learning_rate, weight_decay=0.01))
    return optimizers


def phoneme_frames(phonemes: list[dict], stop_s: float, shift: int, frames: int, classes: dict[str, int]) -> np.ndarray:
    """The phoneme of each encoder frame, int64 [frames], all `shift` frames late; 0 is silence. New ones join `classes`."""
    labels = np.zeros(frames, np.int64)
    starts = [round(each["start_s"] / ENCODER_FRAME_S) + shift for each in phonemes] + [round(stop_s / ENCODER_FRAME_S) + shift]
    for each, start, stop in zip(phonemes, starts, starts[1:], strict=False):
        name = each["phoneme"].strip("',_:")
        labels[start:stop] = classes.setdefault(name, len(classes))
    return labels


class Normal:
    """Acoustic descriptions with mean 0 and spread 1 in every column."""

    def __init__(self, described: Sequence[np.ndarray]):
        together = np.concatenate(described)
        self._mean, self._spread = together.mean(axis=0), together.std(axis=0) + 1e-3

    def __call__(self, description: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((description - self._mean) / self._spread)


def _batches(lessons: Lessons, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Batches of similar length in random order: shuffle, sort within pools of 16 batches, cut."""
    order = rng.permutation(len(lessons.rows))
    pool = 16 * size
    batches = []
    for start in range(0, len(order), pool):
        part = sorted(order[start : start + pool], key=lambda i: lessons.length(lessons.rows[i]))
        batches += [np.array(part[at : at + size]) for at in range(0, len(part), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _warm_cosine(optimizer: torch.optim.Optimizer, warmup: int, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
