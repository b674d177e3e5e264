"""What the engine tells a client about its stream, in the order in which it happens. Times are seconds on the stream's own clock.

    UtteranceStarted ─► TextDelta, WordHeard, TagHeard … ─► UtteranceEnded ─► UtteranceStarted … ─► StreamEnded
"""

from dataclasses import dataclass
from typing import Literal

from ..transcription.transcript import Segment, Tag, Transcript, Word

EndReason = Literal["silence", "commit", "length", "end", "rut"]
"""Why an utterance ended: it became quiet; the client asked; it had the longest length; the stream ended; a blank rut."""


@dataclass(frozen=True)
class UtteranceStarted:
    utterance: int
    start_s: float


@dataclass(frozen=True)
class TextDelta:
    """The base's next characters. The deltas of an utterance, joined, are its text, without spaces at either end."""

    utterance: int
    text: str


@dataclass(frozen=True)
class WordHeard:
    """A word is complete: the next one, or a pause, has begun."""

    utterance: int
    word: Word


@dataclass(frozen=True)
class TagHeard:
    """An adapter has closed a tag's bracket. `tag.kept`: whether it passed the filters, as far as is known now."""

    utterance: int
    tag: Tag


@dataclass(frozen=True)
class UtteranceEnded:
    """`segment`: what `transcribe` writes for a segment: text, words and tags, with the filters applied. `merged`: its text with
    its kept tags."""

    utterance: int
    segment: Segment
    merged: str
    reason: EndReason


@dataclass(frozen=True)
class Heard:
    """Sent a few times a second. `received_s`: audio that the client has sent. `decoded_s`: that the model has heard."""

    received_s: float
    decoded_s: float

    @property
    def lag_s(self) -> float:
        return self.received_s - self.decoded_s


@dataclass(frozen=True)
class StreamEnded:
    """The last event. `tokens`: written by all rows. `code`: None, or why the server ended the stream: "session_too_long",
    "shutting_down", "internal_error"."""

    transcript: Transcript
    tokens: int
    code: str | None = None


LiveEvent = UtteranceStarted | TextDelta | WordHeard | TagHeard | UtteranceEnded | Heard | StreamEnded
