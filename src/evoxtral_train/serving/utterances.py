"""What a stream says, utterance by utterance: from its samples to the events of `events.py`. Used by the engine's thread
alone."""

from __future__ import annotations  # `segment_jobs` imports this module

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..config.serving import Live
from ..data.endpoints import Ended, Endpointer, Sounded, Started
from ..data.segments import SoundSegment, segments_of
from ..decoding.decoder import Completion
from ..decoding.live import LiveDecoder, LiveRow, LiveRowKind, LiveUtterance
from ..transcription.transcriber import RowKind, Transcriber
from ..transcription.transcript import Segment, Transcript, heard_words
from ..units import TOKEN_SAMPLES, samples_to_seconds, samples_to_tokens, seconds_to_samples
from .events import EndReason, Heard, LiveEvent, StreamEnded, TagHeard, TextDelta, UtteranceEnded, UtteranceStarted, WordHeard

if TYPE_CHECKING:
    from .segment_jobs import SegmentJob

_HEARD_EVERY_S = 0.25
_LOOKBACK_S = 3.0  # an utterance begins at most this plus the patience before its first sound is noticed


def live_kind(kind: RowKind) -> LiveRowKind:
    return LiveRowKind(kind.number, kind.layout, kind.prepad_samples, kind.is_bound)


class GrowingText:
    """Characters as they become certain: an unfinished character of several bytes and the spaces at both ends wait."""

    def __init__(self, tokenizer):
        self._tokenizer, self._sent = tokenizer, 0

    def delta(self, token_ids: list[int]) -> str:
        """What these tokens, which begin with those of the last call, add."""
        text = self._tokenizer.decode(token_ids).rstrip("\N{REPLACEMENT CHARACTER}").strip()
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        return new


@dataclass
class _Progress:
    """How much of a row has been turned into events."""

    tokens: int = 0
    items: int = 0


class Utterance:
    """From its first sound to its last token. Its samples wait here until it is seated.

    `live`: its rows while it is decoded. `sounding`: the tokens (80 ms) in which there was sound. `end_samples`: on the stream's
    clock, once it is known."""

    def __init__(self, transcriber: Transcriber, number: int, kinds: list[RowKind], start_samples: int):
        self.number, self.start_samples = number, start_samples
        self.kinds = kinds
        self.live: LiveUtterance | None = None
        self.end_samples: int | None = None
        self.reason: EndReason = "end"
        self.sounding: list[int] = []
        self.samples: list[np.ndarray] = []  # all of it, for rows that are decoded at its end
        self.ready_since: float | None = None
        self._transcriber, self._start_s = transcriber, samples_to_seconds(start_samples)
        self._waiting: list[np.ndarray] = []
        self._sound_samples = 0
        self._text = GrowingText(transcriber.base.family.tokenizer)
        self._progress = {kind.number: _Progress() for kind in kinds}

    def hear(self, samples: np.ndarray) -> None:
        self.samples.append(samples)
        (self._waiting.append if self.live is None else self.live.hear)(samples)

    def sounded(self, until_samples: int) -> None:
        self._sound_samples = until_samples - self.start_samples
        token = max(self._sound_samples - 1, 0) // TOKEN_SAMPLES
        if not self.sounding or self.sounding[-1] < token:
            self.sounding.append(token)
        if self.live is not None:
            self.live.sounded(self._sound_samples)

    def end(self, end_samples: int, reason: EndReason) -> None:
        self.end_samples, self.reason = end_samples, reason
        if self.live is not None:
            self.live.end(end_samples - self.start_samples)

    def seat(self, decoder: LiveDecoder) -> None:
        self.live = decoder.seat([live_kind(kind) for kind in self.kinds])
        for samples in self._waiting:
            self.live.hear(samples)
        self._waiting = []
        self.live.sounded(self._sound_samples)
        if self.end_samples is not None:
            self.live.end(self.end_samples - self.start_samples)

    @property
    def waiting_samples(self) -> int:
        return sum(map(len, self._waiting)) if self.live is None else self.live.waiting_samples

    @cached_property
    def sound(self) -> SoundSegment:
        """Once it has ended. Its silences are those that a file of the same samples has."""
        samples = np.concatenate(self.samples)[: self.end_samples - self.start_samples]
        segments = segments_of([samples], self._transcriber.config.segmentation)
        quiet = [(self._start_s + begin_s, self._start_s + end_s) for segment in segments for begin_s, end_s in segment.quiet]
        return SoundSegment(self.start_samples, samples, tuple(quiet))

    def is_in_rut(self, settings: Live) -> bool:
        """Whether the base has written fillers alone for `blank_rut_s`, unsure of them, although there was sound half of the
        time."""
        if settings.blank_rut_s is None:
            return False
        longest = samples_to_tokens(seconds_to_samples(settings.blank_rut_s))
        for kind, row in zip(self.kinds, self.live.rows, strict=True):
            if not kind.is_bound and row.blanks >= longest:
                begun = self.live.read_samples // TOKEN_SAMPLES - row.blanks
                sounding = sum(token > begun for token in self.sounding)
                return sounding >= row.blanks / 2 and row.blank_lead / row.blanks < settings.blank_rut_margin
        return False

    def news(self) -> Iterator[LiveEvent]:
        """The characters, words and tags that have become certain since the last call."""
        for kind, row in zip(self.kinds, self.live.rows, strict=True):
            progress = self._progress[kind.number]
            new = row.token_ids[progress.tokens : row.written]
            progress.tokens = row.written
            written = any(token != kind.layout.filler_id for token in new)
            if kind.is_bound and written:
                yield from self._new_tags(kind, row, progress)
            elif not kind.is_bound:
                if written and (delta := self._text.delta(row.token_ids[: row.written])):
                    yield TextDelta(self.number, delta)
                yield from self._new_words(kind, row, progress)

    def _new_words(self, kind: RowKind, row: LiveRow, progress: _Progress) -> Iterator[LiveEvent]:
        heard = kind.layout.word_times(self._transcriber.base.family.tokenizer, row.token_ids[: row.written]) or []
        is_whole = row.finish_reason or row.token_ids[row.written - 1 : row.written] == [kind.layout.filler_id]
        whole = len(heard) if is_whole else len(heard) - 1  # the last word may go on
        if whole > progress.items:
            words = heard_words([(word, self._start_s + heard_s) for word, heard_s in heard], self._start_s)
            for word in words[progress.items : whole]:
                yield WordHeard(self.number, word)
            progress.items = whole

    def _new_tags(self, kind: RowKind, row: LiveRow, progress: _Progress) -> Iterator[LiveEvent]:
        written = Completion("", 0, row.token_ids[: row.written], "", 0.0, row.log_probs[: row.written], kind.number)
        tags = self._transcriber.tags_of(kind, written, self._start_s)
        for tag in tags[progress.items :]:
            yield TagHeard(self.number, tag)
        progress.items = max(progress.items, len(tags))


@dataclass
class _Closing:
    """An utterance whose live rows have finished; rows that need its whole sound may not have: `job` decodes those. `later`:
    events of the next utterance, which wait until this one has ended."""

    utterance: Utterance
    completions: dict[int, Completion]
    missing: set[int]
    job: SegmentJob | None = None
    later: list[LiveEvent] = field(default_factory=list)


class Channel:
    """One stream. `kinds`: the rows that write while they listen; `late_kinds`: those that need an utterance's end.

    `decode_late(sound, kinds, done)` decodes the late rows; `done(completions)` is called in the same thread.
    """

    def __init__(
        self, transcriber: Transcriber, patience_s: float, kinds: list[RowKind], late_kinds: list[RowKind],
        emit: Callable[[list[LiveEvent]], None], decode_late: Callable,
    ):  # fmt: skip
        self._transcriber, self._kinds, self._late_kinds = transcriber, kinds, late_kinds
        self._emit, self._decode_late = emit, decode_late
        self._endpointer = Endpointer(transcriber.config.segmentation, patience_s)
        self._lookback_samples = seconds_to_samples(patience_s + _LOOKBACK_S)
        self._utterances: deque[Utterance] = deque()  # heard and not decoded; the first may be on its slot
        self._closing: deque[_Closing] = deque()
        self._recent: deque[np.ndarray] = deque()  # the next utterance may begin in them
        self._recent_start = 0
        self.received_samples = 0
        self._count = self._tokens = 0
        self._segments: list[Segment] = []
        self._begun, self._heard_at = time.monotonic(), 0.0
        self._arrivals: deque[tuple[int, float]] = deque()
        self._ending: str | None = None
        self.is_ending = self.is_over = False

    def receive(self, samples: np.ndarray, arrived: float) -> None:
        """The next samples, of any number."""
        if self.is_ending:
            return
        for start in range(0, len(samples), TOKEN_SAMPLES):
            self._receive(samples[start : start + TOKEN_SAMPLES])
        self._arrivals.append((self.received_samples, arrived))
        while self.head is None and self._arrivals[0][0] < self._recent_start:  # silence, which nothing will decode
            self._arrivals.popleft()

    def _receive(self, samples: np.ndarray) -> None:
        self._recent.append(samples)
        self.received_samples += len(samples)
        if self._open is not None:
            self._open.hear(samples)
        self._apply(self._endpointer.hear(samples))
        while self._recent_start + len(self._recent[0]) <= self.received_samples - self._lookback_samples:
            self._recent_start += len(self._recent.popleft())

    @property
    def _open(self) -> Utterance | None:
        """The utterance that is being heard."""
        last = self._utterances[-1] if self._utterances else None
        return last if last is not None and last.end_samples is None else None

    def _apply(self, events: list[Started | Sounded | Ended]) -> None:
        for event in events:
            if isinstance(event, Started):
                utterance = Utterance(self._transcriber, self._count, self._kinds, event.at_samples)
                self._count += 1
                held = np.concatenate([*self._recent, np.zeros(0, np.float32)])
                utterance.hear(held[event.at_samples - self._recent_start :])
                self._utterances.append(utterance)
            elif isinstance(event, Sounded):
                self._open.sounded(event.until_samples)
            else:
                self._open.end(event.at_samples, event.reason)

    def commit(self, reason: EndReason = "commit") -> None:
        """End the utterance here, if there is one."""
        for event in self._endpointer.commit():
            self._apply([Ended(event.at_samples, reason) if isinstance(event, Ended) else event])
        self._recent.clear()
        self._recent_start = self.received_samples

    def end(self, code: str | None = None) -> None:
        """No more audio will come."""
        if not self.is_ending:
            self.commit("end")
            self.is_ending, self._ending = True, code

    @property
    def waiting_samples(self) -> int:
        """Heard, and not decoded yet."""
        return sum(utterance.waiting_samples for utterance in self._utterances)

    @property
    def queued_samples(self) -> int:
        """Heard, and waiting for the model: for a live row, or for the late rows of an utterance that has ended. Before its end
        an utterance without live rows waits for the client alone."""
        late = [closing.utterance for closing in self._closing if closing.missing]
        late_samples = sum(utterance.end_samples - utterance.start_samples for utterance in late)
        return late_samples + (self.waiting_samples if self._kinds else 0)

    @property
    def head(self) -> Utterance | None:
        """The utterance to decode."""
        return self._utterances[0] if self._utterances else None

    def seat_head(self, decoder: LiveDecoder) -> None:
        """Begin to decode it."""
        self._begin(self.head)
        self.head.seat(decoder)

    def _begin(self, utterance: Utterance) -> None:
        self._say([UtteranceStarted(utterance.number, samples_to_seconds(utterance.start_samples))])

    def _say(self, events: list[LiveEvent]) -> None:
        """Not before the utterance before is closed."""
        if self._closing:
            self._closing[-1].later += events
        elif events:
            self._emit(events)

    @property
    def received_s(self) -> float:
        return samples_to_seconds(self.received_samples)

    def stepped(self) -> float | None:
        """After a step of the head. Returns how long the frame has waited, in seconds; None for the silence after the end, which
        waits for nothing."""
        utterance = self.head
        self._say([*utterance.news()])
        reached = utterance.start_samples + utterance.live.decoded_samples
        if utterance.end_samples is not None and reached >= utterance.end_samples:
            return None
        while len(self._arrivals) > 1 and self._arrivals[0][0] < reached:
            self._arrivals.popleft()
        return time.monotonic() - self._arrivals[0][1] if self._arrivals else 0.0

    def finish_head(self, decoder: LiveDecoder) -> int:
        """The head's rows have finished. Returns how many samples it had."""
        utterance = self._utterances.popleft()
        live, name, completions = utterance.live, str(utterance.number), {}
        if live is None:
            self._begin(utterance)
        else:
            completions = {row.kind.adapter: decoder.completion(live, row, name) for row in live.rows}
            decoder.leave(live)
        closing = _Closing(utterance, completions, {kind.number for kind in self._late_kinds})
        self._closing.append(closing)
        if closing.missing:
            closing.job = self._decode_late(utterance.sound, self._late_kinds, lambda late: self._add_late(closing, late))
        self._close_finished()
        return utterance.end_samples - utterance.start_samples

    @property
    def late_jobs(self) -> list[SegmentJob]:
        return [closing.job for closing in self._closing if closing.job]

    def _add_late(self, closing: _Closing, late: dict[int, Completion]) -> None:
        closing.completions |= late
        closing.missing -= set(late)
        self._close_finished()

    def _close_finished(self) -> None:
        while self._closing and not self._closing[0].missing:
            closing = self._closing.popleft()
            utterance = closing.utterance
            segment = self._transcriber.segment_of(utterance.sound, closing.completions)
            self._segments.append(segment)
            self._tokens += sum(len(completion.token_ids) for completion in closing.completions.values())
            merged = segment.merged(self._transcriber.merge)
            self._emit([UtteranceEnded(utterance.number, segment, merged, utterance.reason), *closing.later])

    def tick(self, now: float) -> None:
        """Say how far the stream is, from time to time, and that it is over once it is."""
        if now - self._heard_at >= _HEARD_EVERY_S and self.received_samples:
            self._heard_at = now
            decoded_s = self.received_s - samples_to_seconds(self.waiting_samples)
            self._emit([Heard(self.received_s, decoded_s)])
        if self.is_ending and not self._utterances and not self._closing and not self.is_over:
            self.is_over = True
            self._emit([self._ended(self._ending)])

    def failed(self) -> StreamEnded:
        """What was finished before something went wrong."""
        return self._ended("internal_error")

    def _ended(self, code: str | None) -> StreamEnded:
        timings = {"seconds": time.monotonic() - self._begun}
        transcript = Transcript(None, self.received_s, self._segments, self._transcriber.merge, timings)
        return StreamEnded(transcript, self._tokens, code)
