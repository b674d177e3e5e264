"""The frozen audio path, computed once: projected audio embeddings of a packed split, on disk.

With the audio tower and projector frozen their output never changes, so training, RAFT and
evaluation read it back and run the language model alone. The file is one flat array of
[tokens, hidden] rows, memory-mapped, beside the dataset that it was made from:

    <dataset>/audio-cache/<base>-<dtype>-<device type>/<split>.bin, <split>.json

A row is cached up to the last position that its target or `room_tokens` of decoding can reach,
not to the end of its padding. Written batch by batch: a cut run goes on where it stopped, with
any number of processes.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout

from .. import processes
from ..data import layouts
from ..data.batching import leading_batch
from ..data.clock import Clock
from ..data.packed import PackedSplit
from ..errors import EvoxtralError
from ..files import disk_errors, write_atomic
from ..progress import progress
from ..records import drop_partial_line
from .memory import shrink
from .realtime import audio_embeddings, place_audio_path

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


def open_cache(model, device: torch.device, base_fingerprint: str, split: PackedSplit, clock: Clock) -> CachedAudio:
    """The cache of `split` for this base, dtype and kind of device; what is missing is computed now, by
    the audio path on `device`, shared out over the processes.

    Raises EvoxtralError when a cache under this name was made from another dataset.
    """
    tokens = [_needed_tokens(split, clock, index) for index in range(len(split))]
    hidden, dtype = model.config.text_config.hidden_size, model.dtype
    folder = split.folder / "audio-cache" / f"{base_fingerprint}-{str(dtype).removeprefix('torch.')}-{device.type}"
    files = _Files(folder, split.split)
    made_from = {"base": base_fingerprint, "dataset": split.fingerprint, "dtype": str(dtype), "tokens": sum(tokens)}
    size = sum(tokens) * hidden * _STORED[dtype].itemsize
    if not processes.first(lambda: files.whole(made_from, size)):
        with files.alone():
            missing = processes.first(lambda: files.missing_clips(made_from, len(split), size))
            if missing:
                place_audio_path(model, device)
                _fill(files, model, split, tokens, missing)
                place_audio_path(model, torch.device("cpu"))
                processes.wait()
            processes.first(lambda: files.finish(made_from))
    return CachedAudio(files.rows, tokens, hidden, dtype, device)


def _needed_tokens(split: PackedSplit, clock: Clock, index: int) -> int:
    """Up to the end of the longest text that may be trained on or decoded for the clip."""
    heard = int(split.utterance_tokens[index])
    target_end = layouts.prompt_tokens(split.layout, clock, heard) + int(split.target_tokens[index]) + 1
    room_end = layouts.room_start(split.layout, clock, heard) + split.room_tokens
    return min(int(split.row_tokens[index]), max(target_end, room_end))


@dataclass(frozen=True)
class _Files:
    """`<split>.bin`: the rows, of full size from the start. `<split>.json`: what they were made from, and
    whether they are whole. Until then `<split>.<process>.done` lists the clips that are on disk."""

    folder: Path
    split: str

    @property
    def rows(self) -> Path:
        return self.folder / f"{self.split}.bin"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.split}.json"

    def done(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.split}.*.done"))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Of several calls of the command line that need one cache, the first fills it and the others wait."""
        if not processes.is_first():
            yield
            return
        with disk_errors(self.rows):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f"{self.split}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                print(f"waiting: {self.rows} is being filled by another process", file=sys.stderr, flush=True)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def whole(self, made_from: dict, size_bytes: int) -> bool:
        """Whether every clip is there. Raises EvoxtralError when the cache was made from something else."""
        record = json.loads(self.record.read_text("utf-8")) if self.record.is_file() else {}
        stale = sorted(name for name, value in made_from.items() if record and record.get(name) != value)
        if stale:
            raise EvoxtralError(
                f"this audio cache was made from another {', '.join(stale)}",
                where=str(self.folder),
                fix="delete the folder; it is made again",
            )
        return bool(record.get("whole")) and self._of_full_size(size_bytes)

    def _of_full_size(self, size_bytes: int) -> bool:
        return self.rows.is_file() and self.rows.stat().st_size == size_bytes

    def missing_clips(self, made_from: dict, clips: int, size_bytes: int) -> list[int]:
        """The clips that are still to be encoded; makes room for them."""
        if self.whole(made_from, size_bytes):
            return []
        if not self._of_full_size(size_bytes):  # the record outlived the rows that it speaks of
            for path in self.done():
                path.unlink()
        with disk_errors(self.rows):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.rows.open("ab") as file:
                file.truncate(size_bytes)
            write_atomic(self.record, json.dumps(made_from | {"whole": False}) + "\n")
        for path in self.done():
            drop_partial_line(path)
        done = {int(index) for path in self.done() for index in path.read_text("ascii").split()}
        return sorted(set(range(clips)) - done)

    def finish(self, made_from: dict) -> None:
        write_atomic(self.record, json.dumps(made_from | {"whole": True}) + "\n")
        for path in self.done():
            path.unlink()


def _fill(files: _Files, model, split: PackedSplit, tokens: list[int], missing: list[int]) -> None:
    """Encode this process's part of `missing`, batch by batch; each is on disk before it is listed as done."""
    width_bytes = model.config.text_config.hidden_size * _STORED[model.dtype].itemsize
    starts = np.concatenate([[0], np.cumsum(tokens)]) * width_bytes
    mine = [int(index) for index in np.array_split(missing, processes.count())[processes.rank()]]
    done_path = files.folder / f"{files.split}.{processes.rank()}.done"
    batches = encoded_batches(LiveAudio(model, split), mine, tokens)
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
    """(clips, their first `tokens[clip]` embeddings on the CPU), in padded batches within a budget of tokens; it is
    halved when CUDA runs out of memory. Raises EvoxtralError when not even one clip fits."""
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


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())
