"""A client's stream, between the event loop and the engine's thread."""

from __future__ import annotations  # the engine imports this module

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from ..transcription.transcriber import RowKind
from ..units import seconds_to_samples
from .events import LiveEvent, StreamEnded
from .utterances import Channel

if TYPE_CHECKING:
    from .engine import Engine

TURN_SAMPLES = 16_000
"""Of a stream, received in one turn of the engine, about: a client that sends a lot must not hold up the others."""

_EVENTS = 10_000  # that a client has not read, before its stream is closed
_WAITING_COMMANDS = 100  # of a stream, before its client has to wait


class LiveStream:
    """One client's stream. Its methods are called from the event loop."""

    def __init__(self, engine: Engine, number: int, kinds: list[RowKind]):
        self.id = f"stream-{number}"
        self._engine, self._loop = engine, asyncio.get_running_loop()
        self._events: asyncio.Queue[LiveEvent | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._fed = self._taken = 0  # samples
        self._closed = False  # by the client
        self.inbox: deque[Callable[[], None]] = deque()  # what the engine's thread is to do with `channel`
        live = [kind for kind in kinds if kind.layout.has_times]
        late = [kind for kind in kinds if not kind.layout.has_times]
        self.channel = Channel(engine.transcriber, engine.config.live.patience_s, live, late, self._emit, engine.decode_late)

    async def feed(self, samples: np.ndarray) -> None:
        """float32 [samples], mono at 16 kHz. Returns when less than `limits.queue_s` of audio and few commands wait for the
        thread. Samples after the end, or beyond `limits.session_s`, are dropped; the stream then ends with the code
        "session_too_long"."""
        room = seconds_to_samples(self._engine.config.limits.session_s) - self._fed
        samples, is_too_long = samples[:room], len(samples) > room
        self._fed += len(samples)
        arrived = time.monotonic()
        for start in range(0, len(samples), TURN_SAMPLES):
            piece = samples[start : start + TURN_SAMPLES]
            self._engine.post(lambda piece=piece: self.channel.receive(piece, arrived), self)
        if is_too_long:
            self.end("session_too_long")
        limit = seconds_to_samples(self._engine.config.limits.queue_s)
        while (self._fed - self._taken > limit or len(self.inbox) > _WAITING_COMMANDS) and not self._closed:
            self._room.clear()
            await self._room.wait()

    def commit(self) -> None:
        """End the utterance here, if one has begun: what was heard is finished, and the next sound begins another."""
        self._engine.post(lambda: self.channel.commit(), self)

    def end(self, code: str | None = None) -> None:
        """No more audio will come. The last utterance is finished, and `events` ends with StreamEnded."""
        self._engine.post(lambda: self.channel.end(code), self)

    def cancel(self) -> None:
        """The client is gone: free its slot at once. May be called at any time, and twice."""
        if not self._closed:
            self._closed = True
            self._room.set()
            self._events.put_nowait(None)
            self._engine.close(self)

    async def events(self) -> AsyncIterator[LiveEvent]:
        """What was heard, as it comes; ends after StreamEnded, or after `cancel`."""
        while (event := await self._events.get()) is not None:
            yield event
            if isinstance(event, StreamEnded):
                return

    def took(self) -> None:
        """Called by the engine's thread: it has obeyed commands or decoded audio."""
        taken = self.channel.received_samples - self.channel.queued_samples  # what was posted is not received yet
        self._call(lambda: self._take(taken))

    def fail(self) -> None:
        """Called by the engine's thread: something went wrong with this stream."""
        self._emit([self.channel.failed()])

    def _take(self, taken: int) -> None:
        self._taken = taken
        self._room.set()

    def _emit(self, events: list[LiveEvent]) -> None:
        """Called by the engine's thread."""
        self._engine.count(events)
        self._call(lambda: self._put(events))
        self.took()

    def _put(self, events: list[LiveEvent]) -> None:
        for event in events:
            self._events.put_nowait(event)
            if isinstance(event, StreamEnded):
                self._engine.close(self)
        if self._events.qsize() > _EVENTS:
            self.cancel()

    def _call(self, function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function)
