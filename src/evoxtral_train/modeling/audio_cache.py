"""The frozen audio path, computed once: projected audio embeddings of a packed split, on disk.

The audio tower and projector are frozen, so their output never changes. Training, RAFT and
evaluation read it back and run only the language model. The file is one flat array of
[tokens, hidden] rows, memory-mapped, inside the dataset that it belongs to (see `cache_files`).

A row is cached up to the last position that its target or `room_tokens` of decoding can reach,
not to the end of its padding. It is written batch by batch: an interrupted run continues where it stopped,
with any number of processes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from .. import processes
from ..dataset.reader import PackedSplit
from ..families.base import Network
from ..files import disk_errors
from ..progress import progress
from .cache_files import CacheFiles, cache_folder
from .out_of_memory import shrink

_BATCH_TOKENS = 4096
_STORED = {torch.float32: np.dtype("<f4"), torch.bfloat16: np.dtype("<u2")}


class MelSource(Protocol):
    """The source of a clip's mel: a packed split, or clips in memory."""

    def mel_of(self, index: int, tokens: int) -> np.ndarray:
        """The first `tokens` × 8 frames of clip `index`: float32 [128, 8 × tokens]."""


class AudioSource(Protocol):
    """The input of decoding: the projected audio of clips, computed now or read back."""

    def embeddings(self, indices: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """[B, max(tokens), hidden] on the model's device; row i is the clip `indices[i]`."""


@dataclass(frozen=True)
class LiveAudio:
    """Audio embeddings computed by the audio tower on each call."""

    network: Network
    mels: MelSource

    def embeddings(self, indices: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        mel = np.stack([self.mels.mel_of(index, max(tokens)) for index in indices])
        return self.network.audio_embeddings(torch.from_numpy(mel))


class CachedAudio:
    """Audio embeddings read back from disk; the audio tower is not needed."""

    def __init__(self, path: Path, tokens: list[int], hidden: int, dtype: torch.dtype, device: torch.device):
        self._tokens, self._dtype, self._device = tokens, dtype, device
        self._starts = np.concatenate([[0], np.cumsum(tokens)])
        self._rows = np.memmap(path, _STORED[dtype], mode="r", shape=(int(self._starts[-1]), hidden))

    def row(self, index: int, tokens: int) -> torch.Tensor:
        """The first `tokens` embeddings of a clip: [tokens, hidden], on the CPU."""
        assert tokens <= self._tokens[index], "callers stay within what `open_cache` reaches"
        start = int(self._starts[index])
        stored = torch.from_numpy(np.array(self._rows[start : start + tokens]))
        return stored if self._dtype == torch.float32 else stored.view(torch.bfloat16)

    def embeddings(self, indices: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """As `AudioSource`. Beyond a row's own tokens are zeros, which that row never reads."""
        batch = torch.zeros(len(indices), max(tokens), self._rows.shape[1], dtype=self._dtype)
        for place, (index, count) in enumerate(zip(indices, tokens, strict=True)):
            batch[place, :count] = self.row(index, count)
        return batch.to(self._device)


def open_cache(network: Network, device: torch.device, base_fingerprint: str, split: PackedSplit) -> CachedAudio:
    """The cache of `split` for this base, dtype and kind of device. Missing clips are computed now by
    the audio path on `device`, shared among the processes.

    Raises EvoxtralError when a cache under this name was made from another dataset.
    """
    tokens = [_needed_tokens(split, index) for index in range(len(split))]
    hidden, dtype = network.text_config.hidden_size, network.dtype
    folder = cache_folder(split.folder, base_fingerprint, str(dtype).removeprefix("torch."), device.type)
    files = CacheFiles(folder, split.split)
    made_from = {"base": base_fingerprint, "dataset": split.fingerprint, "dtype": str(dtype), "tokens": sum(tokens)}
    size = sum(tokens) * hidden * _STORED[dtype].itemsize
    if not processes.first(lambda: files.whole(made_from, size)):
        with files.alone():
            missing = processes.first(lambda: files.missing_clips(made_from, len(split), size))
            if missing:
                network.place_audio_path(device)
                _fill(files, network, split, tokens, missing)
                network.place_audio_path(torch.device("cpu"))
                processes.wait()
            processes.first(lambda: files.finish(made_from))
    return CachedAudio(files.rows, tokens, hidden, dtype, device)


def _needed_tokens(split: PackedSplit, index: int) -> int:
    """Tokens up to the end of the longest text that may be trained on or decoded for the clip."""
    layout, clip = split.layout, split.clip(index)
    target_end = layout.prompt_tokens(clip) + int(split.target_tokens[index]) + 1
    return min(clip.row_tokens, max(target_end, layout.room_start(clip) + layout.room_tokens))


def _fill(files: CacheFiles, network: Network, split: PackedSplit, tokens: list[int], missing: list[int]) -> None:
    """Encode this process's part of `missing`, batch by batch; each is on disk before it is listed as done."""
    width_bytes = network.text_config.hidden_size * _STORED[network.dtype].itemsize
    starts = np.concatenate([[0], np.cumsum(tokens)]) * width_bytes
    mine = [int(index) for index in np.array_split(missing, processes.count())[processes.rank()]]
    done_path = files.folder / f"{files.split}.{processes.rank()}.done"
    batches = encoded_batches(LiveAudio(network, split), mine, tokens)
    with (
        disk_errors(files.rows), files.rows.open("r+b") as file, done_path.open("a") as done,
        progress("encoding", len(mine), "clips") as bar,
    ):  # fmt: skip
        for batch, embeddings in batches:
            for index, row in zip(batch, embeddings, strict=True):
                kept = row[: tokens[index]].contiguous()
                if not kept.isfinite().all():
                    raise split.not_finite(index)
                file.seek(int(starts[index]))
                file.write((kept if kept.dtype == torch.float32 else kept.view(torch.uint16)).numpy().tobytes())
            _sync(file)
            done.write(" ".join(map(str, batch)) + "\n")
            _sync(done)
            bar.advance(len(batch))


def encoded_batches(audio: AudioSource, clips: list[int], tokens: list[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(clips, their first `tokens[clip]` embeddings on the CPU), in padded batches within a budget of tokens, which
    is halved when CUDA runs out of memory. Raises EvoxtralError when not even one clip fits."""
    budget, position = _BATCH_TOKENS, 0
    while position < len(clips):
        lengths = [tokens[index] for index in clips[position : position + budget]]
        batch = clips[position : position + leading_batch(lengths, budget)]
        embeddings = None
        with suppress(torch.OutOfMemoryError), torch.inference_mode():
            embeddings = audio.embeddings(batch, [tokens[index] for index in batch]).cpu()
        if embeddings is not None:
            position += len(batch)
            yield batch, embeddings
        else:
            held = len(batch) * max(lengths[: len(batch)])
            budget = shrink(held, held // 2 if len(batch) > 1 else None, "tokens")


def leading_batch(lengths: Sequence[int], budget_tokens: int) -> int:
    """How many of the first `lengths` fit into one padded batch of `budget_tokens`; at least one.

    >>> leading_batch([3, 5, 4], budget_tokens=10)
    2
    """
    longest = 0
    for count, length in enumerate(lengths):
        longest = max(longest, length)
        if count and longest * (count + 1) > budget_tokens:
            return count
    return len(lengths)


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())
