"""Who may use the server."""

import hmac
from collections.abc import Mapping

from ..config.serving import ServeConfig


class AccessDenied(Exception):
    """`status`: HTTP's, 401 or 403."""

    def __init__(self, what: str, status: int):
        super().__init__(what)
        self.what, self.status = what, status


def check(config: ServeConfig, headers: Mapping[str, str], query: Mapping[str, str]) -> None:
    """Raises AccessDenied."""
    key = config.listen.api_key
    if key is None:
        return
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    offered = [bearer] if scheme.lower() == "bearer" else []
    offered.append(query.get("api_key", ""))
    prefix = "openai-insecure-api-key."
    names = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
    offered += [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if not any(hmac.compare_digest(each.encode(), key.encode()) for each in offered):
        raise AccessDenied("the API key is missing or wrong; send it as `Authorization: Bearer KEY`", 401)
