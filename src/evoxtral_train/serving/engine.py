"""The engine: one model, one thread that owns it. Everything else only moves bytes.

Handlers run in the event loop. They open a stream, feed it samples and read its events; they hand over files and wait for
transcripts. The thread takes one frame of every stream that has one; a stream that is behind has one again at once. While no
stream has a frame, it steps the files.
"""

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch

from ..config.serving import ServeConfig
from ..data.recordings import open_recording
from ..data.segments import SoundSegment, segments_of
from ..decoding.decoder import Completion, Decoder, Decoding
from ..decoding.live import LiveDecoder, LiveRowKind
from ..errors import RowError, UsageError
from ..families.base import Network
from ..modeling.bases import describe_model, pick_device
from ..transcription.segment_audio import SegmentAudio
from ..transcription.transcriber import RowKind, Transcriber
from ..transcription.transcript import Segment, Transcript
from ..units import samples_to_seconds, seconds_to_samples
from .events import LiveEvent, StreamEnded, UtteranceEnded
from .utterances import Channel, GrowingText, live_kind

_LOG = logging.getLogger(__name__)
_MOST_STREAMS = {"cuda": 64, "cpu": 8}
_SPARE_S = 3.0  # an utterance may be that much longer than `segmentation.max_s`, before its end is noticed
_SEGMENTS_OF_A_FILE = 4  # decoded at a time
_MOST_FAILURES = 5  # in a row, before the engine gives up
_TURN_SAMPLES = 16_000  # of a stream that are received in a turn, about: one that is sent a lot must not hold up the others
_TURN_COMMANDS = 100
_NEWEST = 1000  # measurements that are kept
_EVENTS = 10_000  # that a client has not read, before its stream is closed
_WAITING_COMMANDS = 100  # of a stream, before its client has to wait

Rows = Literal["base", "adapter", "both"]


class ServerFull(Exception):
    """All slots are taken, or too many files wait, or the server is shutting down."""


class LiveStream:
    """One client's stream. Its methods are called from the event loop."""

    def __init__(self, engine: "Engine", number: int, kinds: list[RowKind]):
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
        for start in range(0, len(samples), _TURN_SAMPLES):
            piece = samples[start : start + _TURN_SAMPLES]
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
    failures_total: int  # streams, and segments of files, that were lost to a fault
    step_s: list[float]  # of the last 1,000 live steps
    lag_s: list[float]  # of the frames of the last 1,000 live steps: from their arrival to their tokens


@dataclass
class _SegmentJob:
    """A segment that is decoded as a whole. `done(completions or error)` and `on_text(delta)` are called in the engine's
    thread."""

    sound: SoundSegment
    kinds: list[RowKind]
    done: Callable[[dict[int, Completion] | Exception], None]
    on_text: Callable[[str], None] | None = None
    completions: dict[int, Completion] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    text: GrowingText | None = None
    is_urgent: bool = False


class Engine:
    """`start` before anything else. `transcriber` holds base, adapters, row kinds and merge."""

    def __init__(self, config: ServeConfig):
        """Opens base and adapters without weights. Raises UsageError."""
        self.config, self.transcriber = config, Transcriber(config)
        self.slots = 0
        self._wake = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._streams: dict[LiveStream, None] = {}  # in the order of their opening; owned by the event loop
        self._live: dict[LiveStream, None] = {}  # the same, owned by the thread
        self._jobs: dict[str, _SegmentJob] = {}
        self._numbers = count()
        self._files = 0
        self._is_draining = self._is_stopping = False
        self._counts: Counter[str] = Counter()
        self._tags: Counter[str] = Counter()
        self._failures_in_a_row = 0
        self._live_samples = 0  # counted by the thread
        self.file_samples = 0  # counted by the event loop
        self._step_s: deque[float] = deque(maxlen=_NEWEST)
        self._lag_s: deque[float] = deque(maxlen=_NEWEST)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # The event loop's side

    def start(self) -> None:
        """Load the weights, size the slots, start the thread. Blocks until the first step could run. Raises UsageError if not
        even one stream fits into memory."""
        network, adapters, settings = self.transcriber.loaded
        kinds = self._live_kinds()
        family = self.transcriber.base.family
        longest_tokens, row_bytes, stream_bytes = self._sizes(network, settings)
        free_bytes = _free_bytes(network.device)
        self.slots = self._slots_for(stream_bytes, free_bytes, network.device)
        encoder = network.streams(family, self.slots, longest_tokens)
        rows = self.slots * len(kinds)
        self._decoder = LiveDecoder(network, encoder, settings, kinds, self.slots, rows, longest_tokens, adapters)
        self._audio = SegmentAudio(network, family)
        spare_tokens = int((free_bytes - self.slots * stream_bytes) / 2 / (row_bytes / longest_tokens))
        budget_tokens = max(min(settings.batch_tokens, spare_tokens), longest_tokens)
        # Streams wait for a step of the files: it reads one new segment at most.
        step_tokens = longest_tokens * len(self.transcriber.rows)
        self._file_decoder = Decoder(network, self._audio, settings, budget_tokens, adapters, step_tokens)
        self._warm_up()
        self._thread.start()

    def plan(self) -> tuple[int, int]:
        """Memory per stream in bytes, and slots if the weights leave as much memory as is free now; without loading them. Raises
        UsageError as `start` does."""
        network, device = describe_model(self.transcriber.model)[0], pick_device(self.transcriber.model.device)
        network.model.to(getattr(torch, self.transcriber.model.dtype))
        stream_bytes = self._sizes(network, Decoding.greedy(self.config.decode))[2]
        weights_bytes = network.sizes()["parameters"] * network.dtype.itemsize
        return stream_bytes, self._slots_for(stream_bytes, _free_bytes(device) - weights_bytes, device)

    def _live_kinds(self) -> list[LiveRowKind]:
        return [live_kind(kind) for kind in self.transcriber.rows if kind.layout.has_times]

    def _sizes(self, network: Network, settings: Decoding) -> tuple[int, int, int]:
        """The longest utterance in tokens; bytes of a row, and of a stream with all its rows."""
        longest_samples = seconds_to_samples(self.config.segmentation.max_s + _SPARE_S)
        longest_tokens = max(settings.reach(row.request("", longest_samples, 0)) for row in self.transcriber.rows)
        row_bytes = LiveDecoder.bytes_per_row(network, longest_tokens)
        encoder_bytes = network.streams(self.transcriber.base.family, 1, longest_tokens).bytes_per_slot
        return longest_tokens, row_bytes, encoder_bytes + len(self._live_kinds()) * row_bytes

    def _slots_for(self, stream_bytes: int, free_bytes: int, device: torch.device) -> int:
        share_bytes = max(int(free_bytes * self.config.live.memory_share), 0)
        fitting = share_bytes // stream_bytes
        wanted = self.config.live.streams or min(fitting, _MOST_STREAMS.get(device.type, 64))
        if not 1 <= wanted <= fitting:
            needed = max(wanted, 1)
            raise UsageError(
                f"{needed} live streams need {needed * stream_bytes / 1e9:.2f} GB, and {share_bytes / 1e9:.2f} GB may be used",
                where="live.streams", fix=f"set it to at most {fitting}, or free memory" if fitting else "free memory",
            )  # fmt: skip
        return wanted

    def _warm_up(self) -> None:
        """The first step is slow; no client should wait for it."""
        utterance = self._decoder.seat(self._live_kinds())
        utterance.hear(np.zeros(self._decoder.window_samples, np.float32))
        self._decoder.step([utterance])
        self._decoder.leave(utterance)

    @property
    def was_started(self) -> bool:
        return self._thread.ident is not None

    @property
    def is_ready(self) -> bool:
        """Between `start` and `stop`, while the thread lives."""
        return self._thread.is_alive() and not self._is_stopping

    def open_stream(self, rows: Rows | None = None) -> LiveStream:
        """`rows` None: the config's. Raises ServerFull; UsageError for rows that this server has not (no adapter)."""
        kinds = self._kinds(rows)
        if self._is_draining or len(self._streams) >= self.slots:
            self._refuse(f"all {self.slots} streams are in use")
        stream = LiveStream(self, next(self._numbers), kinds)
        self._streams[stream] = None
        self._counts["streams"] += 1
        self.post(lambda: self._live.setdefault(stream), None)
        return stream

    def _refuse(self, why: str) -> None:
        self._counts["refused"] += 1
        raise ServerFull("the server is shutting down" if self._is_draining else why)

    def _kinds(self, rows: Rows | None) -> list[RowKind]:
        base, *adapters = self.transcriber.rows
        rows = rows or (self.config.live.rows if adapters else "base")
        if rows not in ("base", "adapter", "both"):
            raise UsageError(f"there are no rows {rows!r}", fix="use base, adapter or both")
        if rows != "base" and not adapters:
            raise UsageError("this server has no adapter, so it writes no tags", fix="use rows: base")
        return {"base": [base], "adapter": adapters, "both": [base, *adapters]}[rows]

    async def transcribe(
        self, path: Path, rows: Rows | None = None, on_delta: Callable[[str], None] | None = None
    ) -> Transcript:
        """A file of any length, cut into segments as `evoxtral transcribe` does. `on_delta(text)` is called in the event loop as
        the base writes; the deltas joined are `Transcript.text`. A cancelled call frees its rows. Raises RowError for a file
        that cannot be read or is longer than `limits.upload_s`, ServerFull."""
        kinds = self._kinds(rows)
        if self._is_draining or self._files >= self.config.limits.uploads:
            self._refuse(f"{self._files} files are being transcribed")
        self._files += 1
        file = _File(self, kinds, on_delta)
        try:
            return await file.transcribe(path)
        finally:
            self._files -= 1
            file.cancel()

    def stats(self) -> EngineStats:
        return EngineStats(
            slots=self.slots, streams=len(self._streams), files=self._files, streams_total=self._counts["streams"],
            utterances_total=self._counts["utterances"], blank_ruts_total=self._counts["blank_ruts"],
            audio_s_total=samples_to_seconds(self._live_samples + self.file_samples), tags_total=dict(self._tags.copy()),
            refused_total=self._counts["refused"], failures_total=self._counts["failures"],
            step_s=[*self._step_s], lag_s=[*self._lag_s],
        )  # fmt: skip

    async def drain(self) -> None:
        """Accept nothing new; end every stream (code "shutting_down"), finish what was heard, for at most `limits.drain_s`."""
        self._is_draining = True
        for stream in [*self._streams]:
            stream.end("shutting_down")
        until = time.monotonic() + self.config.limits.drain_s
        while (self._streams or self._files) and time.monotonic() < until and self.is_ready:
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """End the thread. What is left is dropped."""
        self._is_stopping = True
        self.post(lambda: None, None)
        if self._thread.is_alive():
            self._thread.join()

    def close(self, stream: LiveStream) -> None:
        """A stream is over, or its client is gone."""
        if stream in self._streams:
            del self._streams[stream]
            self.post(lambda: self._forget(stream), None)

    def post(self, command: Callable[[], None], stream: LiveStream | None) -> None:
        """Have the thread do this. What concerns a stream is done in order, while the stream is open; a fault ends it alone."""
        with self._wake:
            (self._inbox if stream is None else stream.inbox).append(command)
            self._wake.notify()

    def submit(self, job: _SegmentJob) -> str:
        """Decode a segment; returns its name. From any thread."""
        name = f"segment-{next(self._numbers)}"
        self.post(lambda: self._start_job(name, job), None)
        return name

    def drop(self, name: str) -> None:
        """Nobody needs this segment any more."""
        self.post(lambda: self._drop_job(name), None)

    # The thread's side

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                self._take_turn()
            except Exception as error:  # noqa: BLE001  the thread must live: other clients will come
                _LOG.exception("the engine has failed; what it was decoding is lost")
                self._failures_in_a_row += 1
                self._fail([*self._live])
                self._fail_jobs(error)
            if self._failures_in_a_row == _MOST_FAILURES:  # such as a GPU that is gone
                _LOG.critical("the engine stops after %d failures in a row: restart the server", _MOST_FAILURES)
                return

    def _take_turn(self) -> None:
        self._obey()
        ready = [stream for stream in self._live if self._prepare(stream)]
        if ready and self._is_time(ready):
            self._step(ready)
        elif self._file_decoder.is_busy:
            self._step_files()
        else:
            self._wait(ready)
        now = time.monotonic()
        for stream in [*self._live]:
            stream.channel.tick(now)
            if stream.channel.is_over:
                del self._live[stream]

    def _obey(self) -> None:
        while self._inbox:
            try:
                self._inbox.popleft()()
            except Exception:  # noqa: BLE001  the thread must live
                _LOG.exception("a command has failed")
        for stream in [*self._live]:
            if stream.inbox:
                self._obey_stream(stream)

    def _obey_stream(self, stream: LiveStream) -> None:
        """A turn's share of what was posted."""
        channel, commands = stream.channel, 0
        until = channel.received_samples + _TURN_SAMPLES
        try:
            while stream.inbox and channel.received_samples < until and commands < _TURN_COMMANDS:
                stream.inbox.popleft()()
                commands += 1
            stream.took()
        except Exception:  # noqa: BLE001  no fault of one stream may end the others
            _LOG.exception("a stream has failed")
            self._fail([stream])

    def _wait(self, ready: list[LiveStream]) -> None:
        """Until something is to be done."""
        with self._wake:
            is_idle = not self._inbox and not any(stream.inbox for stream in self._live)
            if is_idle and not self._is_stopping:
                self._wake.wait(self._gather_left(ready) if ready else 0.25)

    def _prepare(self, stream: LiveStream) -> bool:
        """Whether its next frame can be decoded."""
        channel = stream.channel
        while (utterance := channel.head) is not None:
            if not utterance.kinds:  # nothing is written before its end
                if utterance.end_samples is None:
                    return False
                channel.finish_head(self._decoder)
                continue
            if utterance.live is None:
                channel.seat_head(self._decoder)
            if not utterance.live.is_ready:
                utterance.ready_since = None
                return False
            if utterance.ready_since is None:
                utterance.ready_since = time.monotonic()
            return True
        return False

    def _is_time(self, ready: list[LiveStream]) -> bool:
        """Frames of several streams share a step: wait a little for those that are due, but not for streams that are behind."""
        speaking = sum(stream.channel.head is not None for stream in self._live)
        return len(ready) == speaking or self._gather_left(ready) <= 0

    def _gather_left(self, ready: list[LiveStream]) -> float:
        since = min(stream.channel.head.ready_since for stream in ready)
        return since + self.config.live.gather_ms / 1000 - time.monotonic()

    def _step(self, ready: list[LiveStream]) -> None:
        begun = time.monotonic()
        try:
            self._decoder.step([stream.channel.head.live for stream in ready])
        except Exception:  # noqa: BLE001  it ends the streams of this step; the others go on
            _LOG.exception("a live step has failed")
            self._failures_in_a_row += 1
            self._fail(ready)
            return
        self._failures_in_a_row = 0
        self._step_s.append(time.monotonic() - begun)
        for stream in ready:
            try:
                self._advance(stream)
            except Exception:  # noqa: BLE001  no fault of one stream may end the others
                _LOG.exception("%s has failed", stream.id)
                self._fail([stream])

    def _advance(self, stream: LiveStream) -> None:
        """After a step of the stream's utterance."""
        channel, utterance = stream.channel, stream.channel.head
        utterance.ready_since = None
        if utterance.live.has_failed:
            _LOG.error("%s: the model's output is not finite (NaN or infinite)", stream.id)
            self._fail([stream])
            return
        if (lag_s := channel.stepped()) is not None:
            self._lag_s.append(lag_s)
        if utterance.live.is_finished:
            self._live_samples += channel.finish_head(self._decoder)
        elif utterance.end_samples is None and utterance.is_in_rut(self.config.live):
            self._counts["blank_ruts"] += 1
            channel.commit("rut")
        stream.took()

    def _fail(self, streams: list[LiveStream]) -> None:
        for stream in streams:
            self._counts["failures"] += 1
            self._forget(stream)
            stream.fail()

    def _forget(self, stream: LiveStream) -> None:
        if stream in self._live:
            del self._live[stream]
            utterance = stream.channel.head
            if utterance is not None and utterance.live is not None:
                self._decoder.leave(utterance.live)
            for name in stream.channel.late_jobs:
                self._drop_job(name)

    def decode_late(self, sound: SoundSegment, kinds: list[RowKind], done: Callable[[dict[int, Completion]], None]) -> str:
        """Rows that need a whole utterance, before those of files. Returns the job's name. In the thread."""

        def finish(result: dict[int, Completion] | Exception) -> None:
            if isinstance(result, Exception):  # an utterance without its tags
                result = {kind.number: Completion("", 0, [], "length", 0.0, [], kind.number) for kind in kinds}
            done(result)

        name = f"segment-{next(self._numbers)}"
        self._start_job(name, _SegmentJob(sound, kinds, finish, is_urgent=True))
        return name

    def _start_job(self, name: str, job: _SegmentJob) -> None:
        self._jobs[name] = job
        index = int(name.removeprefix("segment-"))
        try:
            requests = [kind.request(name, len(job.sound.samples), index) for kind in job.kinds]
            self._audio.add(index, job.sound.samples, max(request.row_tokens for request in requests), len(requests))
            (self._file_decoder.add_first if job.is_urgent else self._file_decoder.add)(requests)
        except Exception as error:  # noqa: BLE001  whoever waits for it is told
            _LOG.exception("a segment has failed")
            self._drop_job(name)
            job.done(error)

    def _drop_job(self, name: str) -> None:
        if self._jobs.pop(name, None) is not None:
            self._file_decoder.drop(name)
            self._audio.remove(int(name.removeprefix("segment-")))

    def _step_files(self) -> None:
        try:
            completions = self._file_decoder.step()
            tokens = self._file_decoder.newest() if any(job.on_text for job in self._jobs.values()) else []
        except Exception as error:  # noqa: BLE001
            _LOG.exception("segments have failed")
            self._failures_in_a_row += 1
            self._fail_jobs(error)
            return
        self._failures_in_a_row = 0
        for token in tokens:
            job = self._jobs.get(token.utterance_id)
            if job is not None and job.on_text is not None and token.adapter == job.kinds[0].number:
                job.token_ids.append(token.token_id)
                if delta := job.text.delta(job.token_ids):
                    job.on_text(delta)
        for completion in completions:
            job = self._jobs[completion.utterance_id]
            job.completions[completion.adapter] = completion
            if len(job.completions) == len(job.kinds):
                del self._jobs[completion.utterance_id]
                self._audio.remove(int(completion.utterance_id.removeprefix("segment-")))
                job.done(job.completions)

    def _fail_jobs(self, error: Exception) -> None:
        for name, job in [*self._jobs.items()]:
            self._counts["failures"] += 1
            self._drop_job(name)
            job.done(error)

    def count(self, events: list[LiveEvent]) -> None:
        """Called by streams, in the thread."""
        for event in events:
            if isinstance(event, UtteranceEnded):
                self._counts["utterances"] += 1
                self._tags.update(tag.tag for tag in event.segment.tags_filtered)


class _File:
    """One file of `Engine.transcribe`. Its methods run in the event loop."""

    def __init__(self, engine: Engine, kinds: list[RowKind], on_delta: Callable[[str], None] | None):
        self._engine, self._kinds, self._on_delta = engine, kinds, on_delta
        self._loop = asyncio.get_running_loop()
        self._pending: deque[tuple[SoundSegment, str, asyncio.Future]] = deque()
        self._texts: dict[int, str] = {}  # of segments, as far as they are written
        self._finished = self._sent = self._samples = 0  # segments; characters of the oldest pending one; of the whole file
        self._has_text = False
        self._begun = time.monotonic()

    async def transcribe(self, path: Path) -> Transcript:
        segments: list[Segment] = []
        try:
            sounds = segments_of(self._counted(path), self._engine.config.segmentation)
            while (sound := await asyncio.to_thread(next, sounds, None)) is not None:
                self._submit(sound)
                if len(self._pending) == _SEGMENTS_OF_A_FILE:
                    segments.append(await self._next())
        except RowError as error:
            raise RowError(error.what, fix=error.fix) from None
        while self._pending:
            segments.append(await self._next())
        timings = {"seconds": time.monotonic() - self._begun}
        return Transcript(None, samples_to_seconds(self._samples), segments, self._engine.transcriber.merge, timings)

    def _counted(self, path: Path) -> Iterator[np.ndarray]:
        longest_s = self._engine.config.limits.upload_s
        for block in open_recording(path).blocks():
            self._samples += len(block)
            if samples_to_seconds(self._samples) > longest_s:
                raise RowError(f"the recording is longer than {longest_s:g} s", fix="cut it, or raise limits.upload_s")
            yield block

    def _submit(self, sound: SoundSegment) -> None:
        future, key = self._loop.create_future(), len(self._pending) + self._finished
        text = self._on_delta and GrowingText(self._engine.transcriber.base.family.tokenizer)
        on_text = text and (lambda delta: self._call(self._write, key, delta))
        job = _SegmentJob(sound, self._kinds, lambda result: self._call(_settle, future, result), on_text, text=text)
        self._texts[key] = ""
        self._pending.append((sound, self._engine.submit(job), future))

    async def _next(self) -> Segment:
        """The oldest pending segment, once it is decoded."""
        sound, _, future = self._pending[0]
        segment = self._engine.transcriber.segment_of(sound, await future)
        self._texts[self._finished] = segment.text
        self._send()
        self._pending.popleft()
        self._engine.file_samples += len(sound.samples)
        self._finished += 1
        self._has_text |= bool(segment.text)
        self._sent = 0
        self._send()
        return segment

    def _write(self, key: int, delta: str) -> None:
        self._texts[key] += delta
        self._send()

    def _send(self) -> None:
        """What the oldest pending segment has written and was not sent yet."""
        text = self._texts.get(self._finished, "")
        if self._on_delta is not None and len(text) > self._sent:
            self._on_delta((" " if self._has_text and not self._sent else "") + text[self._sent :])
            self._sent = len(text)

    def cancel(self) -> None:
        """Free the rows of what is not finished."""
        for _, name, future in self._pending:
            future.cancel()
            self._engine.drop(name)
        self._pending.clear()

    def _call(self, function: Callable, *arguments) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *arguments)


def _settle(future: asyncio.Future, result: dict[int, Completion] | Exception) -> None:
    if not future.done():
        (future.set_exception if isinstance(result, Exception) else future.set_result)(result)


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
