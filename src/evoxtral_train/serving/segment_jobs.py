"""Segments that are decoded as a whole, beside the streams: those of files, and rows that need an utterance's end. Used by the
engine's thread alone."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from ..data.segments import SoundSegment
from ..decoding.decoder import Completion, Decoder
from ..transcription.segment_audio import SegmentAudio
from ..transcription.transcriber import RowKind
from .utterances import GrowingText

_LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class SegmentJob:
    """`done(completions or error)`: the completions by row kind. `on_text(characters)`: what its first row writes, as it writes;
    it needs `text`. `is_urgent`: before those that wait. `token_ids`: of the first row."""

    sound: SoundSegment
    kinds: list[RowKind]
    done: Callable[[dict[int, Completion] | Exception], None]
    on_text: Callable[[str], None] | None = None
    text: GrowingText | None = None
    is_urgent: bool = False
    completions: dict[int, Completion] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)


class SegmentJobs:
    """`failures`: how many were lost to a fault."""

    def __init__(self, decoder: Decoder, audio: SegmentAudio):
        """`audio`: the decoder's."""
        self.failures = 0
        self._decoder, self._audio = decoder, audio
        self._jobs: dict[int, SegmentJob] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def are_waiting(self) -> bool:
        """Whether there is anything to step."""
        return self._decoder.is_busy

    def start(self, job: SegmentJob) -> None:
        number = next(self._numbers)
        self._jobs[number] = job
        try:
            requests = [kind.request(str(number), len(job.sound.samples), number) for kind in job.kinds]
            self._audio.add(number, job.sound.samples, requests)
            (self._decoder.add_first if job.is_urgent else self._decoder.add)(requests)
        except Exception as error:  # noqa: BLE001  whoever waits for it is told
            _LOG.exception("a segment has failed")
            self._fail(number, error)

    def drop(self, job: SegmentJob) -> None:
        """Nobody needs it any more. Does nothing if it is done."""
        for number in [number for number, other in self._jobs.items() if other is job]:
            self._remove(number)

    def step(self) -> None:
        """Every row that has a place writes a token."""
        completions = self._decoder.step()
        if any(job.on_text for job in self._jobs.values()):
            self._tell_text()
        for completion in completions:
            number = int(completion.utterance_id)
            job = self._jobs[number]
            job.completions[completion.adapter] = completion
            if len(job.completions) == len(job.kinds):
                del self._jobs[number]
                self._audio.remove(number)
                job.done(job.completions)

    def _tell_text(self) -> None:
        for token in self._decoder.newest():
            job = self._jobs.get(int(token.utterance_id))
            if job is not None and job.on_text is not None and token.adapter == job.kinds[0].number:
                job.token_ids.append(token.token_id)
                if delta := job.text.delta(job.token_ids):
                    job.on_text(delta)

    def fail(self, error: Exception) -> None:
        """All of them."""
        for number in [*self._jobs]:
            self._fail(number, error)

    def _fail(self, number: int, error: Exception) -> None:
        self.failures += 1
        job = self._jobs[number]
        self._remove(number)
        job.done(error)

    def _remove(self, number: int) -> None:
        del self._jobs[number]
        self._decoder.drop(str(number))
        self._audio.remove(number)
