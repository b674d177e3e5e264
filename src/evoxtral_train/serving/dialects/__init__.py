"""The protocols that clients speak, as pure translation.

    a client's message ─► Dialect.read ─► Feed, Commit, End, Reply        LiveEvent ─► Dialect.write ─► messages for the client
"""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ...transcription.transcript import Tag
from ..events import LiveEvent, TextDelta
from ..pcm import RATES_HZ

ErrorCode = Literal[
    "invalid_json", "invalid_message", "invalid_audio", "message_too_large", "unauthorized", "origin_not_allowed",
    "server_full", "no_live_streams", "idle", "too_slow", "session_too_long", "shutting_down", "internal_error",
]  # fmt: skip


@dataclass(frozen=True)
class Feed:
    pcm: bytes


@dataclass(frozen=True)
class Commit:
    """The utterance ends here."""


@dataclass(frozen=True)
class End:
    """No more audio will come."""


@dataclass(frozen=True)
class Reply:
    message: dict


Action = Feed | Commit | End | Reply


class InvalidMessage(Exception):
    """A message that the dialect cannot follow; the session goes on. `event_id`: the client's own name for it."""

    def __init__(self, code: ErrorCode, what: str, event_id: str | None = None):
        super().__init__(what)
        self.code, self.what, self.event_id = code, what, event_id


@dataclass(frozen=True)
class Session:
    """What a server tells about itself. `rate_hz`: that the client asked for in the address; None if it did not."""

    id: str
    created_unix_s: int
    model: str
    patience_s: float
    rate_hz: int | None = None


class Dialect:
    """One client's side of a protocol. It holds no connection and does no I/O."""

    default_rate_hz = 16_000
    lasts: bool
    """Whether the client may begin another transcription on the same connection when one has ended."""

    def __init__(self, session: Session):
        self.session = session
        self.rate_hz = session.rate_hz or self.default_rate_hz
        self._has_audio = False

    def greet(self) -> list[dict]:
        """What the server sends first."""
        return []

    def chosen(self, message: dict) -> "Dialect":
        """The dialect of a client that sends this message: another one only while it is still open which."""
        return self

    def read(self, message: dict) -> list[Action]:
        """Raises InvalidMessage."""
        raise NotImplementedError

    def write(self, event: LiveEvent) -> list[dict]:
        raise NotImplementedError

    def error(self, code: ErrorCode, what: str, event_id: str | None = None) -> dict:
        raise NotImplementedError

    def _feed(self, message: dict, most_bytes: int | None = None) -> list[Action]:
        pcm = _decoded(message.get("audio"))
        if most_bytes is not None and len(pcm) > most_bytes:
            raise InvalidMessage(
                "message_too_large", f"`audio` has {len(pcm):,} bytes; send at most {most_bytes:,} in a message, decoded"
            )
        self._has_audio |= bool(pcm)
        return [Feed(pcm)] if pcm else []

    def _set_rate(self, rate_hz: Any, name: str) -> None:
        if isinstance(rate_hz, bool) or rate_hz not in RATES_HZ:
            raise InvalidMessage("invalid_message", f"`{name}` must be 16000 or 24000, not {short(rate_hz)}")
        if self._has_audio and rate_hz != self.rate_hz:
            raise InvalidMessage("invalid_message", f"`{name}` cannot change after audio was sent; open a new connection")
        self.rate_hz = rate_hz


class RunningText:
    """The texts of a stream's utterances as one text: joined by a space."""

    def __init__(self):
        self._utterance: int | None = None

    def append(self, delta: TextDelta) -> str:
        begins = self._utterance is not None and delta.utterance != self._utterance
        self._utterance = delta.utterance
        return f" {delta.text}" if begins else delta.text


def parse(text: str | None, most_bytes: int) -> dict:
    """A frame's message; `text` None: a binary frame. Raises InvalidMessage."""
    if text is None:
        raise InvalidMessage("invalid_message", "this is a binary frame; send JSON in text frames, with the audio in base64")
    if len(text) > most_bytes:
        raise InvalidMessage("message_too_large", f"the message has {len(text):,} bytes; send at most {most_bytes:,} at a time")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidMessage("invalid_json", "the message is not valid JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise InvalidMessage("invalid_message", 'the message must be a JSON object with a "type"')
    return message


def unknown(message: dict, known: Iterable[str]) -> InvalidMessage:
    return InvalidMessage("invalid_message", f"unknown type {short(message['type'])}; send one of: {', '.join(known)}")


def object_in(content: dict, name: str) -> dict:
    """The object of that name, or {} if it is missing or null. Raises InvalidMessage if it is something else."""
    value = content.get(name)
    if not isinstance(value, dict | None):
        raise InvalidMessage("invalid_message", f"`{name}` must be an object, not {short(value)}")
    return value or {}


def short(value: Any) -> str:
    """A client's value, cut so that an error message stays readable."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def tags_as_json(utterance: int, tags: Iterable[Tag]) -> list[dict]:
    return [tag.as_json() | {"utterance": utterance} for tag in tags]


def _decoded(audio: Any) -> bytes:
    if not isinstance(audio, str):
        raise InvalidMessage("invalid_audio", "`audio` must be a string: PCM16 in base64")
    try:
        return base64.b64decode(audio, validate=True)
    except ValueError:
        raise InvalidMessage("invalid_audio", "`audio` is not valid base64") from None
