"""Packed rows as training batches.

A row is cut after its last label: the model is causal, so what follows cannot change the loss, and
of a 237-token row the published layout needs about 50. The rest of the padding is the batch's own.

    rows of 5 and 3 tokens   ids     1 P P 70 2      labels  . . . 70 2      mel [128, 40]
                                     1 P 2           labels  . . 2           mel [128, 24]
    the batch                ids     1 P P 70 2      labels  . . . 70 2      mel [2, 128, 40]
                                     1 P 2 11 11             . . 2 . .       (silence on the right)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from ..data.clock import Clock
from ..data.layouts import IGNORED, Row, lay_out
from ..data.packing import PackedSplit
from ..units import FRAMES_PER_TOKEN, MEL_BINS, SILENCE_LOG_MEL


@dataclass(frozen=True)
class Target:
    """What the model learns to write for the clip at `index` of the split."""

    index: int
    target_ids: list[int]


class TrainingSet(Dataset):
    """Rows of a packed split, with its own targets or with others (RAFT)."""

    def __init__(self, split: PackedSplit, clock: Clock, targets: Sequence[Target] | None = None):
        self._split, self._clock = split, clock
        self._targets = targets or [Target(i, example.target_ids) for i, example in enumerate(split.examples)]
        self.rows = [self._lay_out(target) for target in self._targets]

    def _lay_out(self, target: Target) -> Row:
        example = self._split.examples[target.index]
        return lay_out(self._split.layout, self._clock, example.utterance_tokens, example.row_tokens, target.target_ids)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index]
        mel = self._split.mel_of(self._targets[index].index, row.needed_tokens)
        return {
            "input_ids": torch.tensor(row.ids[: row.needed_tokens]),
            "labels": torch.tensor(row.labels[: row.needed_tokens]),
            "input_features": torch.from_numpy(mel),
        }


@dataclass(frozen=True)
class Collator:
    """Pads on the right: ids with `<pad>`, labels with -100, mel with log-mel silence. No attention
    mask is needed: padding stands after everything that is scored."""

    clock: Clock

    def __call__(self, rows: Sequence[dict[str, torch.Tensor]]) -> dict:
        tokens = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), tokens), self.clock.pad_id)
        labels = torch.full((len(rows), tokens), IGNORED)
        mel = torch.full((len(rows), MEL_BINS, tokens * FRAMES_PER_TOKEN), SILENCE_LOG_MEL)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            assert row["input_features"].shape[-1] == length * FRAMES_PER_TOKEN, "mel and ids run on one clock"
            ids[index, :length] = row["input_ids"]
            labels[index, :length] = row["labels"]
            mel[index, :, : length * FRAMES_PER_TOKEN] = row["input_features"]
        return {
            "input_ids": ids,
            "labels": labels,
            "input_features": mel,
            "num_delay_tokens": self.clock.delay_tokens,  # a plain int: a 0-d tensor breaks `generate`
        }
