"""What a client is told when its request fails: a status, and JSON in OpenAI's shape on every route."""

import math

from starlette.exceptions import HTTPException

from ..errors import RowError, UsageError
from .access import AccessDenied
from .engine import ServerFull

RETRY_AFTER_S = 5


class Refusal(Exception):
    """`code`: a word for programs. `param`: the form field at fault. `retry_after_s`: when another attempt may succeed."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after_s: float | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = {} if retry_after_s is None else {"Retry-After": str(math.ceil(retry_after_s))}

    def as_json(self) -> dict:
        kinds = {401: "authentication_error", 403: "permission_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal_of(error: BaseException) -> Refusal:
    """Anything that a handler may raise; what nobody foresaw is a 500 without details."""
    match error:
        case Refusal():
            return error
        case AccessDenied():
            return Refusal(error.status, error.code, str(error))
        case ServerFull():
            return Refusal(503, "server_full", str(error) or "the server is full", retry_after_s=RETRY_AFTER_S)
        case RowError():
            return Refusal(400, "invalid_audio", str(error), "file")
        case UsageError():
            return Refusal(422, "invalid_value", str(error))
        case HTTPException(status_code=404):
            return Refusal(404, "not_found", "there is nothing at this address; /docs lists what there is")
        case HTTPException():
            return Refusal(error.status_code, "http_error", str(error.detail))
    return Refusal(500, "internal_error", "the server failed; its log says why")
