"""Packed rows as training batches.

A row is cut after its last label: the model is causal, so what follows cannot change the loss, and
of a 237-token row the published layout needs about 50. The rest of the padding is the batch's own.

    rows of 5 and 3 tokens   ids     1 P P 70 2      labels  . . . 70 2      mel [128, 40]
                                     1 P 2           labels  . . 2           mel [128, 24]
    the batch                ids     1 P P 70 2      labels  . . . 70 2      mel [2, 128, 40]
                                     1 P 2 11 11             . . 2 . .       (silence on the right)

With an audio cache the mel's place is taken by `audio_embeds` [B, T, hidden], zeros on the right.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from ..data.clock import Clock
from ..data.layouts import IGNORED, Row, lay_out
from ..data.packing import PackedSplit
from ..modeling.audio_cache import CachedAudio
from ..units import FRAMES_PER_TOKEN, SILENCE_LOG_MEL


@dataclass(frozen=True)
class Target:
    """What the model learns to write for the clip at `index` of the split."""

    index: int
    target_ids: list[int]


class TrainingSet(Dataset):
    """Rows of a packed split, with its own targets or with others (RAFT). `pad_weight`: what a
    `[STREAMING_PAD]` that is learned counts in the loss; only `aligned` learns any."""

    def __init__(
        self,
        split: PackedSplit,
        clock: Clock,
        targets: Sequence[Target] | None = None,
        cache: CachedAudio | None = None,
        pad_weight: float = 1.0,
    ):
        self._split, self._clock, self._cache, self._pad_weight = split, clock, cache, pad_weight
        self._targets = targets or [Target(i, example.target_ids) for i, example in enumerate(split.examples)]
        self.rows = [self._lay_out(target) for target in self._targets]

    def _lay_out(self, target: Target) -> Row:
        example = self._split.examples[target.index]
        return lay_out(self._split.layout, self._clock, example.utterance_tokens, example.row_tokens, target.target_ids)

    @property
    def label_weight(self) -> float:
        """What all labels together count: their number, but for the pads of an `aligned` target."""
        learned = [row.labels[row.prompt_tokens : row.needed_tokens] for row in self.rows]
        pads = sum(labels.count(self._clock.streaming_pad_id) for labels in learned)
        return sum(map(len, learned)) - pads + self._pad_weight * pads

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index]
        clip, tokens = self._targets[index].index, row.needed_tokens
        item = {"input_ids": torch.tensor(row.ids[:tokens]), "labels": torch.tensor(row.labels[:tokens])}
        if self._pad_weight != 1:
            is_pad = item["labels"] == self._clock.streaming_pad_id
            item["label_weights"] = (item["labels"] != IGNORED) * torch.where(is_pad, self._pad_weight, 1.0)
        if self._cache:
            return item | {"audio_embeds": self._cache.row(clip, tokens)}
        return item | {"input_features": torch.from_numpy(self._split.mel_of(clip, tokens))}


class StepSampler(Sampler[int]):
    """A new order every epoch; within the rows of one optimizer step the longest come first, so that rows of
    similar length share a padded batch. The step's gradient is a sum over its rows: it stays the same.

        lengths 5 3 9 4 9 3 5 8, 4 rows to a step   a random order   5 9 3 8 | 4 9 3 5
        what is trained on, 2 rows to a batch                        9 8, 5 3 | 9 5, 4 3
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int):
        self._lengths, self._rows_per_step, self._seed, self._epoch = lengths, rows_per_step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The Trainer says which epoch it is, also after a resume."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
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
