"""`/v1/realtime`, which vLLM's and OpenAI's clients share, until the first message shows which client it is."""

from ..events import LiveEvent
from . import Action, Dialect, ErrorCode
from .openai import OpenAI
from .vllm import Vllm


class Realtime(Dialect):
    """Both dialects' fields in one message. `session.update` with a `session` is OpenAI's; all else is vLLM's."""

    lasts = False

    def __init__(self, session):
        super().__init__(session)
        self._openai = OpenAI(session)

    def greet(self) -> list[dict]:
        created = {"id": self.session.id, "created": self.session.created_unix_s}
        return [self._openai.event("session.created", **created, session=self._openai.session_as_json())]

    def chosen(self, message: dict) -> Dialect:
        is_openai = message["type"] == "session.update" and "session" in message
        return self._openai if is_openai else Vllm(self.session)

    def read(self, message: dict) -> list[Action]:
        raise AssertionError("`chosen` comes first")

    def write(self, event: LiveEvent) -> list[dict]:
        return []

    def error(self, code: ErrorCode, what: str, event_id: str | None = None) -> dict:
        return self._openai.error(code, what, event_id) | {"code": code}
