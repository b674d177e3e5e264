"""The audio of segments in memory: each is encoded once, for the rows of the base and of all adapters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..decoding.decoder import Request
from ..families.base import Family, Network


@dataclass
class _Held:
    """`audio_tokens`: what its longest row may read; `mel_frames`: what that is made from. `readers`: how many rows read it;
    `left`: those that have not yet."""

    samples: np.ndarray
    audio_tokens: int
    mel_frames: int
    readers: int
    left: int = 0
    embeddings: torch.Tensor | None = None


class SegmentAudio:
    """An `AudioSource`. A segment's embeddings are dropped once all its rows have read them, its samples with `remove`. If rows
    start again after that (a GPU ran out of memory), the segment is encoded again."""

    def __init__(self, network: Network, family: Family):
        self._network, self._family = network, family
        self._held: dict[int, _Held] = {}

    def add(self, index: int, samples: np.ndarray, requests: Sequence[Request]) -> None:
        """A segment and all its rows. `samples`: float32 at 16 kHz."""
        audio_tokens, mel_frames = (max(getattr(each, name) for each in requests) for name in ("audio_tokens", "mel_frames"))
        self._held[index] = _Held(samples, audio_tokens, mel_frames, len(requests))

    def remove(self, index: int) -> None:
        """The segment is finished."""
        del self._held[index]

    def embeddings(self, indices: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """[B, max(tokens), hidden], zeros beyond what a segment's rows may read."""
        self._encode([index for index in dict.fromkeys(indices) if self._held[index].embeddings is None])
        rows = [self._held[index].embeddings for index in indices]
        batch = rows[0].new_zeros(len(rows), max(tokens), rows[0].shape[-1])
        for place, (index, row, count) in enumerate(zip(indices, rows, tokens, strict=True)):
            batch[place, : len(row[:count])] = row[:count]
            held = self._held[index]
            held.left -= 1
            if held.left == 0:
                held.embeddings = None
        return batch

    def _encode(self, missing: list[int]) -> None:
        if not missing:
            return
        held = [self._held[index] for index in missing]
        mels = [torch.from_numpy(self._family.mel(each.samples, each.mel_frames)) for each in held]
        longest = max(each.audio_tokens for each in held)
        for each, row in zip(held, self._network.audio_embeddings(mels, longest), strict=True):
            each.embeddings, each.left = row[: each.audio_tokens].clone(), each.readers
