"""The frozen audio path, computed once: the audio of a packed split, on disk.

The audio tower and projector are frozen, so their output never changes. Training, RAFT and
evaluation read it back and run only the language model. If the projector is trained, what enters it is
cached instead. The file is one flat array of [tokens, width] rows, memory-mapped, inside the dataset that it belongs
to (see `cache_files`).

A row is cached up to the last position that its target or `room_tokens` of decoding can reach,
not to the end of its padding. It is written batch by batch: an interrupted run continues where it stopped,
with any number of processes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

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
        """What the first `tokens` positions of clip `index` are made from: float32 [128, frames]."""


class AudioSource(Protocol):
    """The input of decoding: the projected audio of clips, computed now or read back."""

    def embeddings(self, indices: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """[B, max(tokens), hidden] on the model's device; row i is the clip `indices[i]`."""


Stage = Literal["embeds", "states"]
"""What is cached: the projected audio, or what enters the projector."""


@dataclass(frozen=True)
class LiveAudio:
    """Audio computed by the audio tower on each call. `stage`: states are cached, not decoded."""

    network: Network
    mels: MelSource
    stage: Stage = "embeds"

    def embeddings(self, indices: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        mels = [torch.from_numpy(self.mels.mel_of(index, max(tokens))) for index in indices]
        compute = self.network.audio_embeddings if self.stage == "embeds" else self.network.audio_states
        return compute(mels, max(tokens))


class CachedAudio:
    """Audio read back from disk; the audio tower is not needed. `network`: the model whose projector projects cached states."""

    def __init__(
        self, path: Path, split: PackedSplit, tokens: np.ndarray, network: Network, stage: Stage, device: torch.device
    ):  # fmt: skip
        self.stage, self._split, self._tokens, self._network, self._device = stage, split, tokens, network, device
        self._dtype = _cached_dtype(network)
        self._starts = np.concatenate([[0], np.cumsum(tokens)])
        self._rows = np.memmap(path, _STORED[self._dtype], mode="r", shape=(int(self._starts[-1]), _width(network, stage)))

    def row(self, index: int, tokens: int) -> torch.Tensor:
        """The audio at the first `tokens` positions of a clip's row: [tokens, width], on the CPU; zeros where it has none."""
        start, held = int(self._starts[index]), self._split.layout.audio_tokens(self._split.clip(index), tokens)
        assert held <= self._tokens[index], "callers stay within what `open_cache` reaches"
        stored = np.zeros((tokens, self._rows.shape[1]), self._rows.dtype)
        stored[:held] = self._rows[start : start + held]
        rows = torch.from_numpy(stored)
        return rows if self._dtype == torch.float32 else rows.view(torch.bfloat16)

    def embeddings(self, indices: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """As `AudioSource`. Beyond a row's own tokens are zeros, which that row never reads."""
        batch = torch.zeros(len(indices), max(tokens), self._rows.shape[1], dtype=self._dtype)
        for place, (index, count) in enumerate(zip(indices, tokens, strict=True)):
            batch[place, :count] = self.row(index, count)
        batch = batch.to(self._device)
        return batch if self.stage == "embeds" else self._network.project(batch)


def cached_stage(network: Network) -> Stage | None:
    """The last stage before anything that is trained or carries an adapter; None if that is the tower itself."""
    changed = [name for name, part in network.model.named_parameters() if part.requires_grad or "lora_" in name]
    if any("audio_tower" in name for name in changed):
        return None
    return "states" if any("multi_modal_projector" in name for name in changed) else "embeds"


def cache_bytes(network: Network, split: PackedSplit, stage: Stage) -> int:
    """The size of the cache of `split`, for a network with or without weights."""
    return int(_needed_tokens(split).sum()) * _width(network, stage) * _STORED[_cached_dtype(network)].itemsize


def _width(network: Network, stage: Stage) -> int:
    return network.text_config.hidden_size if stage == "embeds" else network.state_width


def _cached_dtype(network: Network) -> torch.dtype:
    """The audio tower's: trained weights may be float32 beside it."""
    return next(part.dtype for part in network.audio_parts[0].parameters() if part.ndim > 1)


def open_cache(
    network: Network, device: torch.device, base_fingerprint: str, split: PackedSplit, stage: Stage = "embeds"
) -> CachedAudio:
    """The cache of `split` for this base, dtype and kind of device. Missing clips are computed now by
    the audio path on `device`, shared among the processes.

    Raises EvoxtralError when a cache under this name was made from another dataset.
    """
    tokens, dtype = _needed_tokens(split), str(_cached_dtype(network))
    folder = cache_folder(split.folder, base_fingerprint, dtype.removeprefix("torch."), device.type, stage)
    files = CacheFiles(folder, split.split)
    made_from = {"base": base_fingerprint, "dataset": split.fingerprint, "dtype": dtype, "tokens": int(tokens.sum())}
    size = cache_bytes(network, split, stage)
    if not processes.first(lambda: files.whole(made_from, size)):
        with files.alone():
            missing = processes.first(lambda: files.missing_clips(made_from, len(split), size))
            if missing:
                network.place_audio_path(device)
                _fill(files, network, split, tokens, missing, stage)
                network.place_audio_path(torch.device("cpu"))
                processes.wait()
            processes.first(lambda: files.finish(made_from))
    return CachedAudio(files.rows, split, tokens, network, stage, device)


def _needed_tokens(split: PackedSplit) -> np.ndarray:
    """For each clip: the audio up to the end of the longest text that may be trained on or decoded for it."""
    layout, needed = split.layout, np.empty(len(split), np.int64)
    for index in range(len(split)):
        clip, target_tokens = split.clip(index), int(split.target_tokens[index])
        reach = max(layout.prompt_tokens(clip) + target_tokens + 1, layout.room_start(clip) + layout.room_tokens)
        needed[index] = layout.audio_tokens(clip, min(clip.row_tokens, reach))
    return needed


def _fill(
    files: CacheFiles, network: Network, split: PackedSplit, tokens: np.ndarray, missing: list[int], stage: Stage
) -> None:
    """Encode this process's part of `missing`, batch by batch; each is on disk before it is listed as done."""
    width_bytes = _width(network, stage) * _STORED[_cached_dtype(network)].itemsize
    starts = np.concatenate([[0], np.cumsum(tokens)]) * width_bytes
    mine = list(processes.share(sorted(missing, key=lambda index: -tokens[index])))  # a batch pads to its longest clip
    done_path = files.folder / f"{files.split}.{processes.rank()}.done"
    batches = encoded_batches(LiveAudio(network, split, stage), mine, tokens.tolist())
    with (
        disk_errors(files.rows), files.rows.open("r+b") as file, done_path.open("a") as done,
        progress("encoding", len(mine), "clips") as bar,
    ):  # fmt: skip
        for batch, embeddings in batches:
            for index, row in zip(batch, embeddings, strict=True):
                kept = row[: int(tokens[index])].contiguous()
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
