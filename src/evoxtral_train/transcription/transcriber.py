"""Recordings to transcripts: the base's words and the adapters' tags, decoded together in one batch.

    from evoxtral_train.transcription.transcriber import Transcriber

    transcriber = Transcriber.of(adapters=["runs/demo/sft"])
    for transcript in transcriber.transcribe(["talk.wav", samples]):
        print(transcript.merged)

Each segment of a recording is encoded once and decoded in a row for the base and one for each adapter (`RowAdapters`). Segments
of many recordings share the batch. They are read as rows become free, so memory does not grow with the length of a recording.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ..config.sections import Model
from ..config.transcription import KeptTags, TranscribeConfig, Transcription
from ..data.recordings import open_recording
from ..data.segments import SoundSegment, segments_of
from ..decoding.confidences import tag_confidences
from ..decoding.decoder import Completion, Decoding, Request, decode
from ..decoding.known_tags import KnownTags
from ..errors import RowError, UsageError
from ..families.base import Layout, Network
from ..files import fingerprint_files
from ..modeling.adapter_record import FILE as RECORD
from ..modeling.adapter_record import AdapterRecord
from ..modeling.adapter_thresholds import THRESHOLDS, find_thresholds
from ..modeling.adapters import Adapter, base_of, check_base, find_adapter
from ..modeling.bases import Base, open_base, pick_device
from ..modeling.row_adapters import RowAdapters
from ..scoring.tag_filter import TagFilter
from ..text.tags import find_tags, strip_tags, tag_offsets
from ..text.taxonomy import Taxonomy
from ..text.written import written_text
from ..units import PREPAD_SAMPLES, samples_to_seconds
from .segment_audio import SegmentAudio
from .transcript import Merge, Segment, Tag, Transcript, heard_words

_DEFAULT_BASE = "mistralai/Voxtral-Mini-4B-Realtime-2602"
_SEGMENTS = 64  # in memory at once; of 30 s, in two rows each, they fill the default `batch_tokens`

Source = Path | str | np.ndarray
"""A file, or mono float32 samples at 16 kHz."""


@dataclass(frozen=True)
class RowKind:
    """How rows of the base (`number` 0) or of an adapter are laid out and read. `name`: the adapter's, if there are several."""

    number: int
    layout: Layout
    prepad_samples: int
    name: str | None = None
    ends_stretch: bool = False  # the time of a manner of speaking is its end: see `Tag`
    tag_filter: TagFilter = TagFilter()
    language: str | None = None
    is_tagger: bool = False  # a base that was itself trained to write tags

    @property
    def is_bound(self) -> bool:
        """Whether it may write known tags only: text in brackets is free for the base."""
        return self.number > 0 or self.is_tagger

    def request(self, identity: str, samples: int, index: int) -> Request:
        clip = self.layout.measure(samples, self.prepad_samples, self.language)
        return Request.of(identity, self.layout, clip, index, self.number, self.is_bound)


class Transcriber:
    """A base with adapters. Weights are loaded once, at the first recording. `rows`: the base's and the adapters'; `used_rows`:
    those that the transcripts are made from.

    Raises UsageError for a base or adapter that does not exist, and for an adapter of another base.
    """

    def __init__(self, config: Transcription):
        self.config, self.adapters = config, [find_adapter(path) for path in config.adapters]
        _check_adapters(self.adapters)
        self.model = _resolved(config, self.adapters)
        self.base: Base = open_base(self.model)
        for adapter in self.adapters:
            check_base(adapter, self.base.fingerprint, self.model.base)
        self._taxonomy = Taxonomy.load(config.tags_table)
        family = self.base.family
        if config.layout not in (None, *family.layouts):
            raise UsageError(f"there is no layout {config.layout!r}", where="layout", fix=f"use {', '.join(family.layouts)}")
        family.check_language(config.language)
        layout, own = family.own_layout(family.default_room_tokens), AdapterRecord.read(family.folder)  # of a full fine-tune
        if own is not None and (own.target == "tags" or own.restore_layout().name != layout.name):
            learned = f"{own.target} in the layout {own.restore_layout().name}"
            what = f"this full model or merged adapter learned {learned}, not whole transcripts"
            fix = "train it with target tagged_text or text in the family's own layout; `evoxtral eval` measures any"
            raise UsageError(what, where="model.base", fix=fix)
        is_tagger = own is not None and own.target != "text" and not layout.has_times
        kept = _filter_of(config.kept_tags, find_adapter(family.folder)) if is_tagger else TagFilter()
        self.rows = [RowKind(0, layout, PREPAD_SAMPLES, None, False, kept, config.language, is_tagger)]
        records = [_record_of(adapter, config, self.base, self._taxonomy) for adapter in self.adapters]
        self._known_tags = sorted({tag for record in [*records, *([own] if is_tagger else [])] for tag in record.tags})
        for number, (adapter, record) in enumerate(zip(self.adapters, records, strict=True), start=1):
            self.rows.append(
                RowKind(
                    number, record.restore_layout(), record.prepad_samples, _name(config.adapters, number),
                    record.target == "tags", _filter_of(config.kept_tags, adapter), config.language,
                )
            )  # fmt: skip
        self.merge = self._merge(sum(record.target != "tags" for record in records))
        self.used_rows = self.rows[-1:] if self.merge == "written" else self.rows

    @classmethod
    def of(cls, adapters: Iterable[Path | str] = (), base: str | None = None, **settings) -> "Transcriber":
        """`settings`: other fields of `TranscribeConfig`, such as merge="front"."""
        _require_list("adapters", adapters)
        return cls(TranscribeConfig(adapters=list(adapters), model={"base": base}, **settings))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of all that the transcripts depend on besides the config and the recordings."""
        found, folders = {"base": self.base.fingerprint}, {"the base": self.base.family.folder}
        for path, adapter in zip(self.config.adapters, self.adapters, strict=True):
            found[f"adapter {path}"], folders[str(path)] = adapter.fingerprint, adapter.folder
        for path, folder in folders.items():
            for name in [RECORD, THRESHOLDS] if self.config.kept_tags.thresholds else [RECORD]:
                if (folder / name).is_file():
                    found[f"{name} of {path}"] = fingerprint_files([folder / name])
        return found

    def transcribe(
        self, sources: Iterable[Source], on_error: Callable[[Source, RowError], None] | None = None,
        on_progress: Callable[[float], None] = lambda seconds: None,
    ) -> Iterator[Transcript]:  # fmt: skip
        """The transcripts, in the order of the sources, as they are finished. A recording without sound has an empty one.

        `on_error(source, error)` is called for a recording that cannot be read, and the others go on; by default the error is
        raised. `on_progress(seconds)`: that much more audio has been transcribed.
        """
        _require_list("sources", sources)
        network, adapters, settings = self.loaded
        work = _Work(self, sources, SegmentAudio(network, self.base.family), on_progress)
        window = _SEGMENTS * len(self.used_rows)
        for completions in decode(network, work.audio, work.requests(), settings, adapters, window, hand_over=1):
            work.take(completions)
            yield from work.finished(on_error)
        yield from work.finished(on_error)

    @cached_property
    def loaded(self) -> tuple[Network, RowAdapters | None, Decoding]:
        """With its weights on the device."""
        network, device = self.base.family.load(self.model.dtype), pick_device(self.model.device)
        adapters = RowAdapters(network, self.adapters) if self.adapters else None
        network.place_audio_path(device)
        network.place_language_model(device)
        known = None
        if any(row.is_bound for row in self.rows) and self.config.decode.known_tags_only:
            known = KnownTags(self.base.family.tokenizer, self._known_tags, device)
        return network, adapters, Decoding.greedy(self.config.decode, known, self.base.family.default_new_tokens)

    def _merge(self, writers: int) -> Merge:
        """`writers`: how many adapters write words. Raises UsageError for "timed" without times and "written" without words."""
        base, *rows = self.rows
        without = [str(path) for path, row in zip(self.config.adapters, rows, strict=True) if not row.layout.has_times]
        is_writer_alone = len(rows) == writers == 1 or (not rows and base.is_tagger)
        if self.config.merge == "timed" and without:
            what = f"its layout has no times, so its tags have no place among the words: {', '.join(without)}"
            fix = "use merge: auto" + (", or train an adapter in the layout aligned" if base.layout.has_times else "")
            raise UsageError(what, where="merge", fix=fix)
        if self.config.merge == "written" and not is_writer_alone:
            what = "written takes the words and tags of one adapter, which must write both"
            fix = "name one adapter that was trained with target tagged_text, or use merge: auto"
            raise UsageError(what, where="merge", fix=fix)
        if self.config.merge != "auto":
            return self.config.merge
        if rows and not without:
            return "timed"
        return "written" if is_writer_alone and not base.layout.has_times else "front"

    def segment_of(self, sound: SoundSegment, completions: dict[int, Completion]) -> Segment:
        """`completions`: by the number of the row kind. Without the base's, the words are those that the first adapter wrote."""
        tokenizer, start_s = self.base.family.tokenizer, samples_to_seconds(sound.start_samples)
        rows = [row for row in self.rows if row.number in completions]
        writer = completions[rows[0].number]
        text = written_text(tokenizer, writer.token_ids)
        heard = rows[0].layout.word_times(tokenizer, writer.token_ids) or []
        if rows[0].is_bound:
            text, heard = strip_tags(text), []
        tags = [tag for row in rows if row.is_bound for tag in self.tags_of(row, completions[row.number], start_s)]
        return Segment(
            start_s, samples_to_seconds(sound.end_samples), text,
            heard_words([(word, start_s + heard_s) for word, heard_s in heard], start_s, sound.quiet), tags,
            any(completions[row.number].is_cut(row.layout) for row in rows),
        )  # fmt: skip

    def tags_of(self, row: RowKind, completion: Completion, start_s: float) -> list[Tag]:
        """The tags that an adapter wrote for a segment that begins at `start_s`."""
        tokenizer = self.base.family.tokenizer
        text = written_text(tokenizer, completion.token_ids)
        tags = find_tags(text)
        confidences = tag_confidences(tokenizer, completion.token_ids, completion.token_logprobs)
        times = row.layout.tag_times(tokenizer, completion.token_ids) or []
        if [time["tag"] for time in times] != tags:
            times = [{"at_s": None}] * len(tags)
        kept = set(row.tag_filter.kept(tags, confidences))
        return [
            Tag(
                tag, confidence, None if time["at_s"] is None else start_s + time["at_s"], row.name, place in kept,
                row.ends_stretch and not self._taxonomy.lies_between_words(tag), offset,
            )
            for place, (tag, confidence, time, offset) in enumerate(
                zip(tags, confidences, times, tag_offsets(text), strict=True)
            )
        ]  # fmt: skip


@dataclass
class _RecordingInWork:
    """A recording that is being transcribed. `samples`: read so far. `is_read`: it has been read to its end, so all its segments
    are known. `done_samples`: those in finished segments."""

    source: Source
    started: float
    segments: list[Segment | None] = field(default_factory=list)
    open_segments: int = 0
    samples: int = 0
    done_samples: int = 0
    is_read: bool = False
    error: RowError | None = None

    @property
    def name(self) -> str | None:
        """None for an array."""
        return None if isinstance(self.source, np.ndarray) else str(self.source)

    def counted(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The blocks; `samples` counts what has been read."""
        for block in blocks:
            self.samples += len(block)
            yield block


@dataclass
class _OpenSegment:
    """A segment whose rows have not all ended."""

    recording: _RecordingInWork
    place: int
    sound: SoundSegment
    completions: dict[int, Completion] = field(default_factory=dict)


class _Work:
    """The recordings of one call of `transcribe`, from their sound to their transcripts."""

    def __init__(
        self, transcriber: Transcriber, sources: Iterable[Source], audio: SegmentAudio, on_progress: Callable[[float], None]
    ):
        self.audio, self._transcriber, self._sources, self._on_progress = audio, transcriber, sources, on_progress
        self._recordings: deque[_RecordingInWork] = deque()
        self._open: dict[str, _OpenSegment] = {}
        self._count = 0

    def requests(self) -> Iterator[Request]:
        """For each segment, a row of the base and one of each adapter. Reads sound only as far as it is asked."""
        for source in self._sources:
            source = Path(source) if isinstance(source, str) else source
            recording = _RecordingInWork(source, time.monotonic())
            self._recordings.append(recording)
            try:
                blocks = recording.counted(open_recording(source).blocks())
                for sound in segments_of(blocks, self._transcriber.config.segmentation):
                    yield from self._requests_of(recording, sound)
            except RowError as error:
                recording.error = error
            recording.is_read = True

    def _requests_of(self, recording: _RecordingInWork, sound: SoundSegment) -> list[Request]:
        index, samples = self._count, len(sound.samples)
        self._count += 1
        requests = [row.request(str(index), samples, index) for row in self._transcriber.used_rows]
        self.audio.add(index, sound.samples, requests)
        self._open[str(index)] = _OpenSegment(recording, len(recording.segments), sound)
        recording.segments.append(None)
        recording.open_segments += 1
        return requests

    def take(self, completions: list[Completion]) -> None:
        for completion in completions:
            segment = self._open[completion.utterance_id]
            segment.completions[completion.adapter] = completion
            if len(segment.completions) == len(self._transcriber.used_rows):
                del self._open[completion.utterance_id]
                self.audio.remove(int(completion.utterance_id))
                segment.recording.segments[segment.place] = self._transcriber.segment_of(segment.sound, segment.completions)
                segment.recording.open_segments -= 1
                self._advance(segment.recording, len(segment.sound.samples))

    def _advance(self, recording: _RecordingInWork, samples: int) -> None:
        recording.done_samples += samples
        self._on_progress(samples_to_seconds(samples))

    def finished(self, on_error: Callable[[Source, RowError], None] | None) -> Iterator[Transcript]:
        """Those that no unfinished recording precedes."""
        while self._recordings and self._recordings[0].is_read and not self._recordings[0].open_segments:
            recording = self._recordings.popleft()
            self._advance(recording, recording.samples - recording.done_samples)  # the silence between segments
            if recording.error is None:
                timings = {"seconds": time.monotonic() - recording.started}
                duration_s = samples_to_seconds(recording.samples)
                yield Transcript(recording.name, duration_s, recording.segments, self._transcriber.merge, timings)
            elif on_error is None:
                raise RowError(recording.error.what, where=recording.name, fix=recording.error.fix)
            else:
                on_error(recording.source, recording.error)


def _require_list(name: str, value: object) -> None:
    """A string has characters and an array samples, and neither is a recording."""
    if isinstance(value, str | Path | np.ndarray):
        raise TypeError(f"{name} is a list, also for one: [{type(value).__name__}]")


def _resolved(config: Transcription, adapters: list[Adapter]) -> Model:
    """The base that the config or the first adapter names; "auto" decided."""
    model = config.model
    base = model.base or next(filter(None, map(base_of, adapters)), _DEFAULT_BASE)
    dtype = model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if pick_device(model.device).type == "cuda" else "float32"
    return Model(base=base, revision=model.revision, family=model.family, dtype=dtype, device=model.device)


def _check_adapters(adapters: list[Adapter]) -> None:
    """Raises UsageError for one that is named twice, whose tags would be written twice, and for a full model, whose rows cannot
    share the base's weights."""
    for adapter in adapters:
        if adapter.method == "full":
            fix = "set model.base to this folder, and leave it out of `adapters`"
            raise UsageError("is a full model, not an adapter", where=str(adapter.folder), fix=fix)
    folders = [adapter.folder.resolve() for adapter in adapters]
    for adapter, folder in zip(adapters, folders, strict=True):
        if folders.count(folder) > 1:
            raise UsageError("this adapter is named twice", where=str(adapter.folder), fix="name it once")


def _record_of(adapter: Adapter, config: Transcription, base: Base, taxonomy: Taxonomy) -> AdapterRecord:
    """The adapter's own, or for an adapter from elsewhere what the config says. Raises UsageError without either."""
    record, family = AdapterRecord.read(adapter.folder), base.family
    if record is not None:
        return record
    name = family.default_layout if len(family.layouts) == 1 else config.layout
    if name is None:
        raise UsageError(
            "this adapter does not record its layout", where=str(adapter.folder),
            fix=f"set `layout` to the one that it was trained in: {', '.join(family.layouts)}; the published adapters: packed",
        )  # fmt: skip
    return AdapterRecord(
        layout=family.layout(name, family.default_room_tokens).record(), target=family.default_target,
        prepad_samples=PREPAD_SAMPLES, tags=list(taxonomy.tags), base=base.fingerprint,
    )  # fmt: skip


def _filter_of(kept: KeptTags, adapter: Adapter) -> TagFilter:
    thresholds = find_thresholds(adapter) if kept.thresholds else None
    return TagFilter(kept.top_k, kept.top_k_by, kept.min_confidence, thresholds)


def _name(adapters: list[Path], number: int) -> str | None:
    return str(adapters[number - 1]) if len(adapters) > 1 else None
