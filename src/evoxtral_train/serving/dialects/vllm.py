"""vLLM's `/v1/realtime`.

    client   session.update {model}, …append {audio}, …commit: begin, …append, …commit {final: true}: end
    server   transcription.delta …, transcription.done

A session may hold one transcription after another. A client may leave out session.update and the first commit.
"""

from ...units import samples_to_tokens, seconds_to_samples
from ..events import LiveEvent, StreamEnded, TagHeard, TextDelta, UtteranceEnded
from . import Action, Dialect, End, ErrorCode, InvalidMessage, RunningText, short, tags_as_json, unknown

APPEND, COMMIT = "input_audio_buffer.append", "input_audio_buffer.commit"


class Vllm(Dialect):
    lasts = True

    def __init__(self, session):
        super().__init__(session)
        self._begin()

    def _begin(self) -> None:
        self._text, self._tags = RunningText(), []

    def read(self, message: dict) -> list[Action]:
        match message["type"]:
            case "session.update":
                if not isinstance(message.get("model"), str | None):
                    raise InvalidMessage("invalid_message", f"`model` must be a string, not {short(message['model'])}")
                return []
            case "input_audio_buffer.append":
                return self._feed(message)
            case "input_audio_buffer.commit":
                final = message.get("final", False)
                if not isinstance(final, bool | None):
                    raise InvalidMessage("invalid_message", f"`final` must be true or false, not {short(final)}")
                return [End()] if final else []
        raise unknown(message, ["session.update", APPEND, COMMIT])

    def write(self, event: LiveEvent) -> list[dict]:
        match event:
            case TextDelta():
                return [{"type": "transcription.delta", "delta": self._text.append(event)}]
            case TagHeard():
                return [{"type": "transcription.delta", "delta": "", "tags": tags_as_json(event.utterance, [event.tag])}]
            case UtteranceEnded():
                self._tags += tags_as_json(event.utterance, event.segment.tags)
            case StreamEnded():
                done = self._done(event)
                self._begin()
                return [done]
        return []

    def _done(self, event: StreamEnded) -> dict:
        prompt_tokens = samples_to_tokens(seconds_to_samples(event.transcript.duration_s))
        return {
            "type": "transcription.done", "text": event.transcript.text,
            "usage": {
                "prompt_tokens": prompt_tokens, "completion_tokens": event.tokens, "total_tokens": prompt_tokens + event.tokens
            },
            "tags": self._tags, "merged": event.transcript.merged, "code": event.code,
        }  # fmt: skip

    def error(self, code: ErrorCode, what: str, event_id: str | None = None) -> dict:
        return {"type": "error", "error": what, "code": code}
