"""A file, transcribed by the engine segment by segment."""

from __future__ import annotations  # the engine imports this module

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.recordings import open_recording
from ..data.segments import SoundSegment, segments_of
from ..decoding.decoder import Completion
from ..errors import RowError
from ..text.tags import strip_tags
from ..text.written import without_language
from ..transcription.transcriber import RowKind
from ..transcription.transcript import Segment, Transcript
from ..units import samples_to_seconds
from .segment_jobs import SegmentJob
from .utterances import GrowingText

if TYPE_CHECKING:
    from .engine import Engine

_SEGMENTS_OF_A_FILE = 4  # decoded at a time


class FileTranscription:
    """One file of `Engine.transcribe`. Its methods run in the event loop."""

    def __init__(self, engine: Engine, kinds: list[RowKind], on_delta: Callable[[str], None] | None):
        self._engine, self._kinds, self._on_delta = engine, kinds, on_delta
        self._loop = asyncio.get_running_loop()
        self._pending: deque[tuple[SegmentJob, asyncio.Future]] = deque()
        self._written: dict[int, str] = {}  # by segments, so far
        self._texts: dict[int, str] = {}  # their words, as far as they are certain
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
        job = SegmentJob(sound, self._kinds, lambda result: self._call(_settle, future, result), on_text, text)
        self._written[key] = self._texts[key] = ""
        self._pending.append((job, future))
        self._engine.submit(job)

    async def _next(self) -> Segment:
        """The oldest pending segment, once it is decoded."""
        job, future = self._pending[0]
        segment = self._engine.transcriber.segment_of(job.sound, await future)
        self._texts[self._finished] = segment.text
        self._send()
        self._pending.popleft()
        self._engine.file_samples += len(job.sound.samples)
        del self._texts[self._finished], self._written[self._finished]
        self._finished += 1
        self._has_text |= bool(segment.text)
        self._sent = 0
        self._send()
        return segment

    def _write(self, key: int, delta: str) -> None:
        if key in self._texts:
            self._written[key] += delta
            self._texts[key] = certain_words(self._written[key], self._kinds[0].is_bound)
            self._send()

    def _send(self) -> None:
        """What the oldest pending segment has written and was not sent yet."""
        text = self._texts.get(self._finished, "")
        if self._on_delta is not None and len(text) > self._sent:
            self._on_delta((" " if self._has_text and not self._sent else "") + text[self._sent :])
            self._sent = len(text)

    def cancel(self) -> None:
        """Free the rows of what is not finished."""
        for job, future in self._pending:
            future.cancel()
            self._engine.drop(job)
        self._pending.clear()

    def _call(self, function: Callable, *arguments) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *arguments)


def certain_words(written: str, has_tags: bool) -> str:
    """What a growing text already has of `Segment.text`: its beginning may become `lang:xx`, and an open bracket a tag."""
    if "lang:".startswith(written[:5]) and len(written) < len("lang:xx"):
        return ""
    text = without_language(written)
    if not has_tags:
        return text
    opened = text.rfind("[")
    return strip_tags(text if opened <= text.rfind("]") else text[:opened])


def _settle(future: asyncio.Future, result: dict[int, Completion] | Exception) -> None:
    if not future.done():
        (future.set_exception if isinstance(result, Exception) else future.set_result)(result)
