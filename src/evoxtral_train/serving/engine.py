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
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import psutil
import torch

from ..config.serving import Rows, ServeConfig
from ..data.segments import SoundSegment
from ..decoding.decoder import Completion, Decoder, Decoding
from ..decoding.live import LiveDecoder, LiveRowKind
from ..errors import UsageError
from ..families.base import Network
from ..modeling.bases import describe_model, pick_device
from ..transcription.segment_audio import SegmentAudio
from ..transcription.transcriber import RowKind, Transcriber
from ..transcription.transcript import Transcript
from ..units import SAMPLE_RATE_HZ, samples_to_seconds, seconds_to_samples
from .events import LiveEvent, UtteranceEnded
from .file_transcription import FileTranscription
from .segment_jobs import SegmentJob, SegmentJobs
from .streams import TURN_SAMPLES, LiveStream
from .utterances import live_kind

_LOG = logging.getLogger(__name__)
_MOST_STREAMS = {"cuda": 64, "cpu": 8}
_SPARE_S = 3.0  # an utterance may be that much longer than `segmentation.max_s`, before its end is noticed
_MOST_FAILURES = 5  # in a row, before the engine gives up
_TURN_COMMANDS = 100  # of a stream, obeyed in a turn
_NEWEST = 1000  # measurements that are kept



class ServerFull(Exception):
    """All slots are taken, or too many files wait, or the server is shutting down."""


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


class Engine:
    """`start` before anything else. `transcriber` holds base, adapters, row kinds and merge."""

    def __init__(self, config: ServeConfig):
        """Opens base and adapters without weights. Raises UsageError."""
        self.config, self.transcriber = config, Transcriber(config)
        if self.has_streams and self.transcriber.merge == "written":
            what = "under merge: written the words are the adapter's, but while people speak they are the base's"
            raise UsageError(what, where="merge", fix="use auto, front, timed or none")
        self.slots = 0
        self._wake = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._streams: dict[LiveStream, None] = {}  # in the order of their opening; owned by the event loop
        self._live: dict[LiveStream, None] = {}  # the same, owned by the thread
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
        family = self.transcriber.base.family
        longest_tokens, row_bytes, stream_bytes = self._sizes(network, settings)
        free_bytes = _free_bytes(network.device)
        if self.has_streams:
            kinds = self._live_kinds()
            self.slots = self._slots_for(stream_bytes, free_bytes, network.device)
            encoder = network.streams(family, self.slots, longest_tokens)
            rows = self.slots * len(kinds)
            self._decoder = LiveDecoder(network, encoder, settings, kinds, self.slots, rows, longest_tokens, adapters)
        spare_tokens = int((free_bytes - self.slots * stream_bytes) / 2 / (row_bytes / longest_tokens))
        budget_tokens = max(min(settings.batch_tokens, spare_tokens), longest_tokens)
        # Streams wait for a step of the files: it reads one new segment at most.
        step_tokens = longest_tokens * len(self.transcriber.rows)
        audio = SegmentAudio(network, family)
        self._segments = SegmentJobs(Decoder(network, audio, settings, budget_tokens, adapters, step_tokens), audio)
        self._warm_up()
        self._thread.start()

    @property
    def has_streams(self) -> bool:
        """Whether people can be heard while they speak; otherwise only files are transcribed."""
        return self.transcriber.base.family.writes_while_listening

    def plan(self) -> tuple[int, int]:
        """Memory per stream in bytes, and slots if the weights leave as much memory as is free now; without loading them. (0, 0)
        without streams. Raises UsageError as `start` does."""
        if not self.has_streams:
            return 0, 0
        network, device = describe_model(self.transcriber.model)[0], pick_device(self.transcriber.model.device)
        network.model.to(getattr(torch, self.transcriber.model.dtype))
        settings = Decoding.greedy(self.config.decode, None, self.transcriber.base.family.default_new_tokens)
        stream_bytes = self._sizes(network, settings)[2]
        weights_bytes = network.sizes()["parameters"] * network.dtype.itemsize
        return stream_bytes, self._slots_for(stream_bytes, _free_bytes(device) - weights_bytes, device)

    def _live_kinds(self) -> list[LiveRowKind]:
        return [live_kind(kind) for kind in self.transcriber.rows if kind.layout.has_times]

    def _sizes(self, network: Network, settings: Decoding) -> tuple[int, int, int]:
        """The longest utterance in tokens; bytes of a row, and of a stream with all its rows (0 without streams)."""
        longest_samples = seconds_to_samples(self.config.segmentation.max_s + (_SPARE_S if self.has_streams else 0.0))
        longest_tokens = max(settings.reach(row.request("", longest_samples, 0)) for row in self.transcriber.rows)
        row_bytes = LiveDecoder.bytes_per_row(network, longest_tokens)
        if not self.has_streams:
            return longest_tokens, row_bytes, 0
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
        if not self.has_streams:
            silence = SoundSegment(0, np.zeros(SAMPLE_RATE_HZ, np.float32), ())
            job = SegmentJob(silence, self.transcriber.used_rows, lambda _: None)
            self._segments.start(job)
            self._segments.step()
            self._segments.drop(job)
            return
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
        """`rows` None: the config's. Raises ServerFull; UsageError for rows that this server has not (no adapter), and without
        `has_streams`."""
        if not self.has_streams:
            what = f"{self.transcriber.base.family.title} hears a whole recording before it writes, so there are no live streams"
            raise UsageError(what, fix="send a file to /v1/audio/transcriptions")
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
            tags = "writes the tags itself" if base.is_tagger else "writes no tags"
            raise UsageError(f"this server has no adapter, and its base {tags}", fix="use rows: base")
        return {"base": [base], "adapter": adapters, "both": self.transcriber.used_rows}[rows]

    async def transcribe(
        self, path: Path, rows: Rows | None = None, on_delta: Callable[[str], None] | None = None, language: str | None = None
    ) -> Transcript:
        """A file of any length, cut into segments as `evoxtral transcribe` does. `on_delta(text)` is called in the event loop as
        the base writes; the deltas joined are `Transcript.text`. `language`: for the prompt, if it names any; None: the config's.
        A cancelled call frees its rows. Raises RowError for a file that cannot be read or is longer than `limits.upload_s`,
        UsageError for an unknown language, ServerFull."""
        kinds = self._in_language(self._kinds(rows), language)
        if self._is_draining or self._files >= self.config.limits.uploads:
            self._refuse(f"{self._files} files are being transcribed")
        self._files += 1
        file = FileTranscription(self, kinds, on_delta)
        try:
            return await file.transcribe(path)
        finally:
            self._files -= 1
            file.cancel()

    def _in_language(self, kinds: list[RowKind], language: str | None) -> list[RowKind]:
        family = self.transcriber.base.family
        if language is None or not family.languages:
            return kinds
        family.check_language(language)
        return [replace(kind, language=language) for kind in kinds]

    def stats(self) -> EngineStats:
        return EngineStats(
            slots=self.slots, streams=len(self._streams), files=self._files, streams_total=self._counts["streams"],
            utterances_total=self._counts["utterances"], blank_ruts_total=self._counts["blank_ruts"],
            audio_s_total=samples_to_seconds(self._live_samples + self.file_samples), tags_total=dict(self._tags.copy()),
            refused_total=self._counts["refused"], failures_total=self._counts["failures"] + self._segments.failures,
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

    def submit(self, job: SegmentJob) -> None:
        """Decode a segment. From any thread."""
        self.post(lambda: self._segments.start(job), None)

    def drop(self, job: SegmentJob) -> None:
        """Nobody needs this segment any more."""
        self.post(lambda: self._segments.drop(job), None)

    # The thread's side

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                self._take_turn()
            except Exception as error:  # noqa: BLE001  the thread must live: other clients will come
                _LOG.exception("the engine has failed; what it was decoding is lost")
                self._failures_in_a_row += 1
                self._fail([*self._live])
                self._segments.fail(error)
            if self._failures_in_a_row == _MOST_FAILURES:  # such as a GPU that is gone
                _LOG.critical("the engine stops after %d failures in a row: restart the server", _MOST_FAILURES)
                return

    def _take_turn(self) -> None:
        self._obey()
        ready = [stream for stream in self._live if self._prepare(stream)]
        if ready and self._is_time(ready):
            self._step(ready)
        elif self._segments.are_waiting:
            self._step_segments()
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
        until = channel.received_samples + TURN_SAMPLES
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
            for job in stream.channel.late_jobs:
                self._segments.drop(job)

    def decode_late(
        self, sound: SoundSegment, kinds: list[RowKind], done: Callable[[dict[int, Completion]], None]
    ) -> SegmentJob:  # fmt: skip
        """Rows that need a whole utterance, before those of files. In the thread."""

        def finish(result: dict[int, Completion] | Exception) -> None:
            if isinstance(result, Exception):  # an utterance without its tags
                result = {kind.number: Completion("", 0, [], "length", 0.0, [], kind.number) for kind in kinds}
            done(result)

        job = SegmentJob(sound, kinds, finish, is_urgent=True)
        self._segments.start(job)
        return job

    def _step_segments(self) -> None:
        try:
            self._segments.step()
            self._failures_in_a_row = 0
        except Exception as error:  # noqa: BLE001  the streams go on
            _LOG.exception("segments have failed")
            self._failures_in_a_row += 1
            self._segments.fail(error)

    def count(self, events: list[LiveEvent]) -> None:
        """Called by streams, in the thread."""
        for event in events:
            if isinstance(event, UtteranceEnded):
                self._counts["utterances"] += 1
                self._tags.update(tag.tag for tag in event.segment.tags_filtered)


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
