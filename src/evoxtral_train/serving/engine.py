"""The engine: one model, one thread that owns it. Everything else only moves bytes.

Handlers run in the event loop. They open a stream, feed it samples and read its events; they hand over files and wait for transcripts.
The thread takes one frame of every stream that has one, then, while no stream is waiting, steps the files.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..config.serving import ServeConfig
from ..transcription.transcriber import Transcriber
from ..transcription.transcript import Transcript
from .events import LiveEvent

Rows = Literal["base", "adapter", "both"]


class ServerFull(Exception):
    """All slots are taken, or too many files wait, or the server is shutting down."""


class LiveStream:
    """One client's stream. Its methods are called from the event loop."""

    id: str

    async def feed(self, samples: np.ndarray) -> None:
        """float32 [samples], mono at 16 kHz. Returns when less than `limits.queue_s` of audio wait to be decoded."""
        raise NotImplementedError

    def commit(self) -> None:
        """End the utterance here, if one has begun: what was heard is finished, and the next sound begins another."""
        raise NotImplementedError

    def end(self) -> None:
        """No more audio will come. The last utterance is finished, and `events` ends with StreamEnded."""
        raise NotImplementedError

    def cancel(self) -> None:
        """The client is gone: free its slot at once. May be called at any time, and twice."""
        raise NotImplementedError

    def events(self) -> AsyncIterator[LiveEvent]:
        """What was heard, as it comes; ends after StreamEnded, or after `cancel`."""
        raise NotImplementedError


@dataclass(frozen=True)
class EngineStats:
    """For /metrics and /health. Counters grow from the start on; gauges are of now."""

    slots: int
    streams: int  # gauge: open
    files: int  # gauge: waiting or being decoded
    streams_total: int
    utterances_total: int
    blank_ruts_total: int
    audio_s_total: float  # decoded, live and files
    tags_total: dict[str, int]  # kept tags by name
    refused_total: int  # ServerFull
    step_s: list[float]  # of the last 1,000 live steps
    lag_s: list[float]  # of the frames of the last 1,000 live steps: from their arrival to their tokens


class Engine:
    """`start` before anything else. `transcriber` holds base, adapters, row kinds and merge."""

    config: ServeConfig
    transcriber: Transcriber

    def __init__(self, config: ServeConfig):
        """Opens base and adapters without weights. Raises UsageError."""
        raise NotImplementedError

    def start(self) -> None:
        """Load the weights, size the slots, start the thread. Blocks until the first step could run."""
        raise NotImplementedError

    @property
    def is_ready(self) -> bool:
        """Between `start` and `stop`, while the thread lives."""
        raise NotImplementedError

    def open_stream(self, rows: Rows | None = None) -> LiveStream:
        """`rows` None: the config's. Raises ServerFull; UsageError for rows that this server has not (no adapter)."""
        raise NotImplementedError

    async def transcribe(
        self, path: Path, rows: Rows | None = None, on_delta: Callable[[str], None] | None = None
    ) -> Transcript:
        """A file of any length, cut into segments as `evoxtral transcribe` does. `on_delta(text)` is called in the event loop as the
        base writes; the deltas joined are `Transcript.text`. A cancelled call frees its rows. Raises RowError for a file that cannot be
        read or is longer than `limits.upload_s`, ServerFull."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        raise NotImplementedError

    async def drain(self) -> None:
        """Accept nothing new; end every stream (code "shutting_down"), finish what was heard, for at most `limits.drain_s`."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the thread. What is left is dropped."""
        raise NotImplementedError
