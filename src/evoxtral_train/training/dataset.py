"""Packed rows as training rows: laid out, cut after the last label, in the order of `StepSampler`.

A row is cut after its last label: the model is causal, so later positions cannot change the loss. Of a 237-token row the
published layout needs about 50. Further padding is added per batch (`Network.collate`). With an audio cache, rows have
`audio_embeds` instead of the mel.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ..dataset.augmentation import Augmenter
from ..dataset.reader import PackedSplit
from ..families.base import IGNORED, Row
from ..modeling.audio_cache import CachedAudio
from ..text.tags import find_tags
from .clip_weights import draw


@dataclass(frozen=True)
class Target:
    """The target for the clip at `index` of the split, the tags in its text, and the loss weight of its tokens."""

    index: int
    target_ids: list[int]
    tags: list[str]
    weight: float = 1.0


class TrainingSet(Dataset):
    """Rows of a packed split, with its own targets or with others (RAFT, replay); read on access. Raises EvoxtralError
    for a row whose features are not finite.

    `pad_weight`: the loss weight of `Layout.filler_id`.
    `augmenter`: changes the audio, differently in each epoch; it needs the split's own targets and no cache.
    """

    def __init__(
        self,
        split: PackedSplit,
        targets: Sequence[Target] | None = None,
        cache: CachedAudio | None = None,
        pad_weight: float = 1.0,
        augmenter: Augmenter | None = None,
    ):
        assert augmenter is None or (targets is None and cache is None), "the cache and other targets do not fit changed audio"
        self.split, self.cache, self._pad_weight = split, cache, pad_weight
        self._targets, self._augmenter, self._epoch = targets, augmenter, 0
        learned = split.target_tokens if targets is None else [len(target.target_ids) for target in targets]
        prompts = [split.layout.prompt_tokens(split.clip(self._clip(index))) for index in range(len(learned))]
        self._learned = np.asarray(learned, np.int64) + 1
        self._weights = np.ones(len(learned)) if targets is None else np.array([target.weight for target in targets])
        self.needed_tokens = self._learned + prompts

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def tags(self) -> list[list[str]]:
        """The tags of each row: those of its clip's transcript, or of the target that replaces it."""
        if self._targets is None:
            return [find_tags(example.text) for example in self.split.examples]
        return [target.tags for target in self._targets]

    def row(self, index: int) -> Row:
        """The row as it was packed, with its target laid out."""
        clip = self._clip(index)
        target_ids = self.split.examples[clip].target_ids if self._targets is None else self._targets[index].target_ids
        return self.split.layout.lay_out(self.split.clip(clip), target_ids)

    @cached_property
    def label_weight(self) -> float:
        """Sum of the label weights: the target's, times `pad_weight` for a filler token."""
        learned = self._learned.astype(float)
        if self._weighs_filler:
            pads = np.array([self.row(index).labels.count(self.split.layout.filler_id) for index in range(len(self))])
            learned += (self._pad_weight - 1) * pads
        return float(self._weights @ learned)

    @property
    def _weighs_filler(self) -> bool:
        return self._pad_weight != 1 and self.split.layout.filler_id is not None

    @cached_property
    def _weighs(self) -> bool:
        return self._weighs_filler or bool((self._weights != 1).any())

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
        if self._weighs:
            weights = torch.full((tokens,), float(self._weights[index]))
            if self._weighs_filler:
                weights[item["labels"] == self.split.layout.filler_id] *= self._pad_weight
            item["label_weights"] = (item["labels"] != IGNORED) * weights
        if self.cache:
            name, features = f"audio_{self.cache.stage}", self.cache.row(clip, tokens)
        else:
            name, features = "input_features", torch.from_numpy(self.split.mel_of(clip, tokens) if mel is None else mel)
        if not features.isfinite().all():
            raise self.split.not_finite(clip)
        return item | {name: features}


class EvenRows(Dataset):
    """`rows`, and after them rows without labels, until their number is a multiple of `multiple`: so all processes get equally
    many, and no row counts twice. `sampler`: the order of the rows."""

    def __init__(self, rows: TrainingSet, multiple: int):
        self.rows, self.sampler, self._length = rows, None, -(-len(rows) // multiple) * multiple

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate where it does not find the sampler: on several processes, in the epoch where a run resumes."""
        if self.sampler is not None:
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = self.rows[index % len(self.rows)]
        if index < len(self.rows):
            return item
        weights = {"label_weights": torch.zeros_like(item["label_weights"])} if "label_weights" in item else {}
        return item | weights | {"labels": torch.full_like(item["labels"], IGNORED)}


class StepSampler(Sampler[int]):
    """A new order every epoch; within the rows of one optimizer step the longest come first, so rows of
    similar length share a padded batch. The step's gradient is a sum over its rows, so it stays the same.

        lengths 5 3 9 4 9 3 5 8, 4 rows to a step   a random order   5 9 3 8 | 4 9 3 5
        batches of 2 rows, longest first                             9 8, 5 3 | 9 5, 4 3

    `weights`: how often each row is drawn in an epoch; None: once. `on_epoch` is called with each epoch before it begins.
    `extra`: the number of rows without labels, which come last in each epoch (`EvenRows`).
    """

    def __init__(
        self,
        lengths: Sequence[int],
        rows_per_step: int,
        seed: int,
        weights: np.ndarray | None = None,
        on_epoch: Callable[[int], None] = lambda epoch: None,
        extra: int = 0,
    ):
        self._lengths, self._rows_per_step, self._seed, self._epoch = lengths, rows_per_step, seed, 0
        self._weights, self._on_epoch, self._extra = weights, on_epoch, extra

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer with the current epoch, also after a resume."""
        self._epoch = epoch
        self._on_epoch(epoch)

    def __len__(self) -> int:
        return len(self._lengths) + self._extra

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        if self._weights is not None:
            drawn = draw(self._weights, torch.rand((), generator=generator, dtype=torch.float64).item())
            order = [drawn[place] for place in order]
        for start in range(0, len(order), self._rows_per_step):
            yield from sorted(order[start : start + self._rows_per_step], key=lambda row: -self._lengths[row])
        yield from range(len(self._lengths), len(self))
