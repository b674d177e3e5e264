"""OpenAI's transcription sessions on `/v1/realtime`.

    client   session.update {session}, input_audio_buffer.append {audio}, input_audio_buffer.commit
    server   session.updated, and for each utterance: …speech_started, ….delta …, …speech_stopped, …committed, ….completed

An utterance is an item. The client ends one by a commit, the server by its silence. A commit after which nothing was heard is an
item without words. A session ends when the client leaves.
"""

from ..events import Heard, LiveEvent, StreamEnded, TagHeard, TextDelta, UtteranceEnded, UtteranceStarted
from . import Action, Commit, Dialect, ErrorCode, Feed, InvalidMessage, Reply, object_in, short, tags_as_json, unknown

APPEND, COMMIT = "input_audio_buffer.append", "input_audio_buffer.commit"
TRANSCRIPTION = "conversation.item.input_audio_transcription"
_SERVER_ERRORS = {"server_full", "shutting_down", "internal_error"}


class OpenAI(Dialect):
    default_rate_hz = 24_000
    lasts = False

    def __init__(self, session):
        super().__init__(session)
        self._audio_bytes = self._events = 0
        self._items: dict[int, str] = {}  # of the utterances that have begun and not ended
        self._items_begun = 0
        self._last_item: str | None = None
        self._commits_s: list[float] = []  # the client's commits that no item has answered yet: the audio sent by then
        self._last_commit_s = 0.0

    def read(self, message: dict) -> list[Action]:
        try:
            return self._read(message)
        except InvalidMessage as error:
            event_id = message.get("event_id")
            raise InvalidMessage(error.code, error.what, event_id if isinstance(event_id, str) else None) from None

    def _read(self, message: dict) -> list[Action]:
        match message["type"]:
            case "session.update":
                self._configure(object_in(message, "session"))
                return [Reply(self.event("session.updated", session=self.session_as_json()))]
            case "input_audio_buffer.append":
                actions = self._feed(message)
                self._audio_bytes += sum(len(action.pcm) for action in actions if isinstance(action, Feed))
                return actions
            case "input_audio_buffer.commit":
                return self._commit(self._audio_bytes / 2 / self.rate_hz)
            case "input_audio_buffer.clear":
                raise InvalidMessage("invalid_message", "audio cannot be cleared: it is transcribed as it arrives")
        raise unknown(message, ["session.update", APPEND, COMMIT])

    def _commit(self, audio_s: float) -> list[Action]:
        is_empty = audio_s == self._last_commit_s and not self._commits_s
        self._last_commit_s = audio_s
        if is_empty:
            return [Reply(message) for message in self._empty_item()]
        self._commits_s.append(audio_s)
        return [Commit()]

    def _configure(self, session: dict) -> None:
        if session.get("type") not in (None, "transcription"):
            raise InvalidMessage(
                "invalid_message", f"`session.type` must be transcription, not {short(session['type'])}; nothing speaks here"
            )
        audio_format = object_in(object_in(object_in(session, "audio"), "input"), "format")
        if audio_format.get("type") not in (None, "audio/pcm"):
            raise InvalidMessage("invalid_message", f"`format.type` must be audio/pcm, not {short(audio_format['type'])}")
        if audio_format.get("rate") is not None:
            self._set_rate(audio_format["rate"], "format.rate")

    def session_as_json(self) -> dict:
        """What holds, whatever the client asked for."""
        turns = {"type": "server_vad", "silence_duration_ms": round(self.session.patience_s * 1000)}
        audio_format = {"type": "audio/pcm", "rate": self.rate_hz}
        heard = {"format": audio_format, "transcription": {"model": self.session.model}, "turn_detection": turns}
        return {
            "type": "transcription", "object": "realtime.transcription_session", "id": self.session.id, "audio": {"input": heard}
        }  # fmt: skip

    def write(self, event: LiveEvent) -> list[dict]:
        match event:
            case UtteranceStarted():
                item = self._items[event.utterance] = self._new_item()
                return [self.event("input_audio_buffer.speech_started", audio_start_ms=_ms(event.start_s), item_id=item)]
            case TextDelta():
                return [self._delta(event.utterance, event.text)]
            case TagHeard():
                return [self._delta(event.utterance, "", tags=tags_as_json(event.utterance, [event.tag]))]
            case UtteranceEnded():
                return self._completed(event)
            case Heard() if not self._items:
                return self._answer_commits(event.decoded_s)
            case StreamEnded():
                return self._answer_commits(float("inf"))
        return []

    def _delta(self, utterance: int, delta: str, **fields) -> dict:
        return self.event(f"{TRANSCRIPTION}.delta", item_id=self._items[utterance], content_index=0, delta=delta, **fields)

    def _completed(self, event: UtteranceEnded) -> list[dict]:
        item, segment = self._items.pop(event.utterance), event.segment
        tags = tags_as_json(event.utterance, segment.tags)
        messages = self._item(item, segment.text, segment.end_s - segment.start_s, tags, event.merged)
        if event.reason == "commit" and self._commits_s:
            return messages + self._answer_commits(self._commits_s.pop(0))
        stopped = self.event("input_audio_buffer.speech_stopped", audio_end_ms=_ms(segment.end_s), item_id=item)
        return [stopped, *messages]

    def _answer_commits(self, decoded_s: float) -> list[dict]:
        """An empty item for each commit that ended no utterance."""
        messages = []
        while self._commits_s and self._commits_s[0] <= decoded_s:
            del self._commits_s[0]
            messages += self._empty_item()
        return messages

    def _empty_item(self) -> list[dict]:
        return self._item(self._new_item(), "", 0.0, [], "")

    def _item(self, item: str, transcript: str, seconds: float, tags: list[dict], merged: str) -> list[dict]:
        committed = self.event("input_audio_buffer.committed", item_id=item, previous_item_id=self._last_item)
        self._last_item = item
        completed = self.event(
            f"{TRANSCRIPTION}.completed", item_id=item, content_index=0, transcript=transcript,
            usage={"type": "duration", "seconds": round(seconds, 3)}, tags=tags, merged=merged,
        )  # fmt: skip
        return [committed, completed]

    def error(self, code: ErrorCode, what: str, event_id: str | None = None) -> dict:
        kind = "server_error" if code in _SERVER_ERRORS else "invalid_request_error"
        error = {"type": kind, "code": code, "message": what, "param": None, "event_id": event_id}
        return self.event("error", error=error)

    def event(self, kind: str, **fields) -> dict:
        self._events += 1
        return {"type": kind, "event_id": f"event_{self.session.id}_{self._events}", **fields}

    def _new_item(self) -> str:
        self._items_begun += 1
        return f"item_{self.session.id}_{self._items_begun}"


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
