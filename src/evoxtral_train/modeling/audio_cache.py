"""The frozen audio path, computed once: projected audio embeddings of a packed split, on disk.

With the audio tower and projector frozen their output never changes, so training, RAFT and
evaluation read it back and run the language model alone. The file is one flat array of
[tokens, hidden] rows, memory-mapped, beside the dataset that it was made from:

    <dataset>/audio-cache/<base>-<dtype>-<device type>/<split>.bin, <split>.json

A row is cached up to the last position that its target or `room_tokens` of decoding can reach,
not to the end of its padding. Written batch by batch: a cut run goes on where it stopped.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ..data import layouts
from ..data.clock import Clock
from ..data.packing import PackedSplit
from ..errors import EvoxtralError
from ..progress import progress
from ..runs import disk_errors, write_atomic
from .realtime import audio_embeddings

_BATCH_TOKENS = 4096
_STORED = {torch.float32: np.dtype("<f4"), torch.bfloat16: np.dtype("<u2")}


class MelSource(Protocol):
    """Where the mel of a clip comes from: a packed split, or clips held in memory."""

    def mel_of(self, index: int, tokens: int) -> np.ndarray:
        """The first `tokens` × 8 frames of clip `index`: float32 [128, 8 × tokens]."""


class AudioSource(Protocol):
    """What decoding reads: the projected audio of clips, computed now or read back."""

    def embeddings(self, indices: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """[B, max(tokens), hidden] on the model's device; row i is the clip `indices[i]`."""


@dataclass(frozen=True)
class LiveAudio:
    """Audio embeddings from the audio tower, each time they are asked for."""

    model: object
    mels: MelSource

    def embeddings(self, indices: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        mel = np.stack([self.mels.mel_of(index, max(tokens)) for index in indices])
        return audio_embeddings(self.model, torch.from_numpy(mel))


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
        """As `AudioSource`; beyond a row's own tokens stand zeros, which that row never reads."""
        batch = torch.zeros(len(indices), max(tokens), self._rows.shape[1], dtype=self._dtype)
        for place, (index, count) in enumerate(zip(indices, tokens, strict=True)):
            batch[place, :count] = self.row(index, count)
        return batch.to(self._device)


def open_cache(model, base_fingerprint: str, split: PackedSplit, clock: Clock) -> CachedAudio:
    """The cache of `split` for this base, dtype and kind of device; what is missing is computed now.

    Raises EvoxtralError when a cache under this name was made from another dataset.
    """
    tokens = [_needed_tokens(split, clock, index) for index in range(len(split))]
    hidden, dtype = model.config.text_config.hidden_size, model.dtype
    folder = split.folder / "audio-cache" / f"{base_fingerprint}-{str(dtype).removeprefix('torch.')}-{model.device.type}"
    path, record = folder / f"{split.split}.bin", folder / f"{split.split}.json"
    made_from = {"base": base_fingerprint, "dataset": split.fingerprint, "dtype": str(dtype), "tokens": sum(tokens)}
    done = 0
    if record.is_file():
        content = json.loads(record.read_text("utf-8"))
        stale = sorted(name for name, value in made_from.items() if content.get(name) != value)
        if stale:
            raise EvoxtralError(
                f"this audio cache was made from another {', '.join(stale)}",
                where=str(folder),
                fix="delete the folder; it is made again",
            )
        done = content["rows_done"]
        width = hidden * _STORED[dtype].itemsize
        if not path.is_file() or path.stat().st_size < sum(tokens[:done]) * width:
            done = 0  # the record outlived the rows that it counts
    if done < len(split):
        _fill(path, record, made_from, model, split, tokens, done)
    return CachedAudio(path, tokens, hidden, dtype, model.device)


def _needed_tokens(split: PackedSplit, clock: Clock, index: int) -> int:
    """Up to the end of the longest text that may be trained on or decoded for the clip."""
    example = split.examples[index]
    start = layouts.prompt_tokens(split.layout, clock, example.utterance_tokens)
    return min(example.row_tokens, start + max(split.room_tokens, len(example.target_ids) + 1))


@torch.inference_mode()
def _fill(path: Path, record: Path, made_from: dict, model, split: PackedSplit, tokens: list[int], done: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width = model.config.text_config.hidden_size * _STORED[model.dtype].itemsize
    live = LiveAudio(model, split)
    with disk_errors(path), path.open("r+b" if path.exists() else "wb") as file, progress("encoding", len(split), "clips") as bar:
        file.truncate(sum(tokens[:done]) * width)
        file.seek(0, 2)
        bar.skip(done)
        while done < len(split):
            batch = _next_batch(tokens, done)
            embeddings = live.embeddings(batch, [tokens[index] for index in batch]).cpu()
            for index, row in zip(batch, embeddings, strict=True):
                kept = row[: tokens[index]].contiguous()
                file.write((kept if kept.dtype == torch.float32 else kept.view(torch.uint16)).numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
            done += len(batch)
            write_atomic(record, json.dumps(made_from | {"rows_done": done}) + "\n")
            bar.advance(len(batch))


def _next_batch(tokens: list[int], start: int) -> list[int]:
    """Clips from `start` on whose padded batch stays within a budget of tokens; at least one."""
    batch, longest = [start], tokens[start]
    for index in range(start + 1, len(tokens)):
        longest = max(longest, tokens[index])
        if longest * (len(batch) + 1) > _BATCH_TOKENS:
            break
        batch.append(index)
    return batch
