"""Packed rows as training batches.

A row is cut after its last label: the model is causal, so what follows cannot change the loss, and
of a 237-token row the published layout needs about 50. The rest of the padding is the batch's own.

    rows of 5 and 3 tokens   ids     1 P P 70 2      labels  . . . 70 2      mel [128, 40]
                                     1 P 2           labels  . . 2           mel [128, 24]
    the batch                ids     1 P P 70 2      labels  . . . 70 2      mel [2, 128, 40]
                                     1 P 2 11 11             . . 2 . .       (silence on the right)

With an audio cache the mel's place is taken by `audio_embeds` [B, T, hidden], zeros on the right.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from ..dataset.augmentation import Augmenter
from ..dataset.reader import PackedSplit
from ..families.realtime.clock import Clock
from ..families.realtime.layouts import IGNORED, Row, lay_out, prompt_tokens
from ..modeling.audio_cache import CachedAudio
from ..text.tags import find_tags
from ..units import FRAMES_PER_TOKEN, SILENCE_LOG_MEL
from .clip_weights import draw


@dataclass(frozen=True)
class Target:
    """What the model learns to write for the clip at `index` of the split."""

    index: int
    target_ids: list[int]


class TrainingSet(Dataset):
    """Rows of a packed split, with its own targets or with others (RAFT); read when they are asked for. Raises EvoxtralError
    for a row whose features are not finite.

    `pad_weight`: what a `[STREAMING_PAD]` that is learned counts in the loss; only `aligned` learns any.
    `augmenter`: changes the audio, in every epoch otherwise; it needs the split's own targets and no cache.
    """

    def __init__(
        self,
        split: PackedSplit,
        clock: Clock,
        targets: Sequence[Target] | None = None,
        cache: CachedAudio | None = None,
        pad_weight: float = 1.0,
        augmenter: Augmenter | None = None,
    ):
        assert augmenter is None or (targets is None and cache is None), "changed audio is not what was cached or sampled from"
        self._split, self._clock, self._cache, self._pad_weight = split, clock, cache, pad_weight
        self._targets, self._augmenter, self._epoch = targets, augmenter, 0
        learned = split.target_tokens if targets is None else [len(target.target_ids) for target in targets]
        heard = [int(split.utterance_tokens[self._clip(index)]) for index in range(len(learned))]
        self._learned = np.asarray(learned, np.int64) + 1
        self.needed_tokens = self._learned + [prompt_tokens(split.layout, clock, each) for each in heard]

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def tags(self) -> list[list[str]]:
        """The tags of each row's clip, as its transcript has them."""
        examples = self._split.examples
        if self._targets is None:
            return [find_tags(example.text) for example in examples]
        return [find_tags(examples[target.index].text) for target in self._targets]

    def row(self, index: int) -> Row:
        """The row as it was packed, with its target laid out."""
        clip = self._clip(index)
        target_ids = self._split.examples[clip].target_ids if self._targets is None else self._targets[index].target_ids
        split = self._split
        return lay_out(split.layout, self._clock, int(split.utterance_tokens[clip]), int(split.row_tokens[clip]), target_ids)

    @cached_property
    def label_weight(self) -> float:
        """What all labels together count: their number, but for the pads of an `aligned` target."""
        count = float(self._learned.sum())
        if self._pad_weight == 1:
            return count
        pads = sum(self.row(index).labels.count(self._clock.streaming_pad_id) for index in range(len(self)))
        return count - pads + self._pad_weight * pads

    def _clip(self, index: int) -> int:
        return index if self._targets is None else self._targets[index].index

    def __len__(self) -> int:
        return len(self.needed_tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        clip = self._clip(index)
        if self._augmenter:
            row, mel = self._augmenter.row(clip, self._epoch)
        else:
            row, mel = self.row(index), None
        tokens = row.needed_tokens
        item = {"input_ids": torch.tensor(row.ids[:tokens]), "labels": torch.tensor(row.labels[:tokens])}
        if self._pad_weight != 1:
            is_pad = item["labels"] == self._clock.streaming_pad_id
            item["label_weights"] = (item["labels"] != IGNORED) * torch.where(is_pad, self._pad_weight, 1.0)
        if self._cache:
            name, features = "audio_embeds", self._cache.row(clip, tokens)
        else:
            name, features = "input_features", torch.from_numpy(self._split.mel_of(clip, tokens) if mel is None else mel)
        if not features.isfinite().all():
            raise self._split.not_finite(clip)
        return item | {name: features}


class StepSampler(Sampler[int]):
    """A new order every epoch; within the rows of one optimizer step the longest come first, so that rows of
    similar length share a padded batch. The step's gradient is a sum over its rows: it stays the same.

        lengths 5 3 9 4 9 3 5 8, 4 rows to a step   a random order   5 9 3 8 | 4 9 3 5
        what is trained on, 2 rows to a batch                        9 8, 5 3 | 9 5, 4 3

    `weights`: how often each row is drawn in an epoch; None: once. `on_epoch` is told of each epoch before it begins.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        rows_per_step: int,
        seed: int,
        weights: np.ndarray | None = None,
        on_epoch: Callable[[int], None] = lambda epoch: None,
    ):
        self._lengths, self._rows_per_step, self._seed, self._epoch = lengths, rows_per_step, seed, 0
        self._weights, self._on_epoch = weights, on_epoch

    def set_epoch(self, epoch: int) -> None:
        """The Trainer says which epoch it is, also after a resume."""
        self._epoch = epoch
        self._on_epoch(epoch)

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        if self._weights is not None:
            drawn = draw(self._weights, torch.rand((), generator=generator, dtype=torch.float64).item())
            order = [drawn[place] for place in order]
        for start in range(0, len(order), self._rows_per_step):
            yield from sorted(order[start : start + self._rows_per_step], key=lambda row: -self._lengths[row])


@dataclass(frozen=True)
class Collator:
    """Pads on the right: ids with `<pad>`, labels with -100, mel with log-mel silence. No attention
    mask is needed: padding stands after everything that is scored."""

    clock: Clock

    def __call__(self, rows: Sequence[dict[str, torch.Tensor]]) -> dict:
        ids = [row["input_ids"] for row in rows]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.clock.pad_id),
            "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED),
            "num_delay_tokens": self.clock.delay_tokens,  # a plain int: a 0-d tensor breaks `generate`
        }
        if "label_weights" in rows[0]:
            batch["label_weights"] = pad_sequence([row["label_weights"] for row in rows], batch_first=True)
        if "audio_embeds" in rows[0]:
            audio = [row["audio_embeds"] for row in rows]
            return batch | {"audio_embeds": pad_sequence(audio, batch_first=True)}
        for row in rows:
            assert row["input_features"].shape[-1] == len(row["input_ids"]) * FRAMES_PER_TOKEN, "mel and ids run on one clock"
        frames = [row["input_features"].T for row in rows]
        mel = pad_sequence(frames, batch_first=True, padding_value=SILENCE_LOG_MEL)
        return batch | {"input_features": mel.transpose(1, 2).contiguous()}
