"""Mistral's `/v1/audio/transcriptions/realtime`.

    client   session.update {session}, input_audio.append {audio}, input_audio.flush, input_audio.end
    server   session.created, session.updated, transcription.text.delta …, transcription.segment …, transcription.done

An utterance is a segment; a flush ends it.
"""

from ...units import samples_to_tokens, seconds_to_samples
from ..events import LiveEvent, StreamEnded, TagHeard, TextDelta, UtteranceEnded
from . import (
    Action,
    Commit,
    Dialect,
    End,
    ErrorCode,
    InvalidMessage,
    Reply,
    RunningText,
    object_in,
    short,
    tags_as_json,
    unknown,
)  # fmt: skip

APPEND_BYTES = 262_144
"""Most audio in a message, decoded."""
ENCODING = "pcm_s16le"
_STATUS: dict[ErrorCode, int] = {
    "unauthorized": 401, "idle": 408, "too_slow": 408, "message_too_large": 413, "session_too_long": 413, "internal_error": 500,
    "server_full": 503, "shutting_down": 503,
}  # fmt: skip


class Mistral(Dialect):
    lasts = False

    def __init__(self, session):
        super().__init__(session)
        self._text, self._segments, self._tags = RunningText(), [], []

    def greet(self) -> list[dict]:
        return [{"type": "session.created", "session": self._session_as_json()}]

    def read(self, message: dict) -> list[Action]:
        match message["type"]:
            case "session.update":
                self._configure(object_in(message, "session"))
                return [Reply({"type": "session.updated", "session": self._session_as_json()})]
            case "input_audio.append":
                return self._feed(message, APPEND_BYTES)
            case "input_audio.flush":
                return [Commit()]
            case "input_audio.end":
                return [End()]
        raise unknown(message, ["session.update", "input_audio.append", "input_audio.flush", "input_audio.end"])

    def _configure(self, session: dict) -> None:
        audio_format = object_in(session, "audio_format")
        if audio_format.get("encoding") not in (None, ENCODING):
            raise InvalidMessage("invalid_message", f"`encoding` must be {ENCODING}, not {short(audio_format['encoding'])}")
        if audio_format.get("sample_rate") is not None:
            self._set_rate(audio_format["sample_rate"], "sample_rate")

    def _session_as_json(self) -> dict:
        return {
            "request_id": self.session.id, "model": self.session.model,
            "audio_format": {"encoding": ENCODING, "sample_rate": self.rate_hz},
        }  # fmt: skip

    def write(self, event: LiveEvent) -> list[dict]:
        match event:
            case TextDelta():
                return [{"type": "transcription.text.delta", "text": self._text.append(event)}]
            case TagHeard():
                return [{"type": "transcription.text.delta", "text": "", "tags": tags_as_json(event.utterance, [event.tag])}]
            case UtteranceEnded():
                segment, tags = event.segment, tags_as_json(event.utterance, event.segment.tags)
                times = {"start": round(segment.start_s, 3), "end": round(segment.end_s, 3)}
                fields = {"text": segment.text, **times, "tags": tags, "merged": event.merged}
                self._segments.append({"type": "transcription_segment", **fields})
                self._tags += tags
                return [{"type": "transcription.segment", **fields}]
            case StreamEnded():
                return [self._done(event)]
        return []

    def _done(self, event: StreamEnded) -> dict:
        transcript = event.transcript
        prompt_tokens = samples_to_tokens(seconds_to_samples(transcript.duration_s))
        return {
            "type": "transcription.done", "model": self.session.model, "text": transcript.text, "language": None,
            "segments": self._segments,
            "usage": {
                "prompt_tokens": prompt_tokens, "completion_tokens": event.tokens, "total_tokens": prompt_tokens + event.tokens,
                "prompt_audio_seconds": round(transcript.duration_s),
            },
            "tags": self._tags, "merged": transcript.merged, "code": event.code,
        }  # fmt: skip

    def error(self, code: ErrorCode, what: str, event_id: str | None = None) -> dict:
        return {"type": "error", "error": {"message": what, "code": _STATUS.get(code, 400), "type": code}}
