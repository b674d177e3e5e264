"""Who may use the server: an API key, and the origins of web pages.

A browser lets any page open a WebSocket anywhere, and post a form. CORS only keeps the answer from it. So each request that names
its page (`Origin`) is checked here, also where no key is needed.
"""

import hmac
import os
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from ..config.serving import Listen, ServeConfig
from ..errors import EvoxtralError

KEY_PROTOCOL = "openai-insecure-api-key."


class AccessDenied(EvoxtralError):
    """`status` 401: the key is missing or wrong; 403: another site's page. `code`: for the client."""

    def __init__(self, status: int, code: str, what: str, *, fix: str):
        super().__init__(what, fix=fix)
        self.status, self.code = status, code


def check(config: ServeConfig, headers: Mapping[str, str], query: Mapping[str, str]) -> None:
    """The headers (names in lower case) and the query of an HTTP request or WebSocket handshake. Raises AccessDenied."""
    _check_origin(config.listen, headers)
    key = api_key(config.listen)
    if key is not None and not any(hmac.compare_digest(key.encode(), sent) for sent in _sent_keys(headers, query)):
        fix = "send the header `Authorization: Bearer KEY`; from a browser, ?api_key=KEY"
        raise AccessDenied(401, "unauthorized", "the API key is missing or wrong", fix=fix)


def api_key(listen: Listen) -> str | None:
    return listen.api_key or os.environ.get("EVOXTRAL_API_KEY") or None


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check_origin(listen: Listen, headers: Mapping[str, str]) -> None:
    origin = headers.get("origin")
    if origin is None or "*" in listen.allowed_origins or origin in listen.allowed_origins or _is_own(listen, origin, headers):
        return
    raise AccessDenied(
        403, "origin_not_allowed", f"pages from {origin[:200]} may not use this server", fix="add it to listen.allowed_origins"
    )


def _is_own(listen: Listen, origin: str, headers: Mapping[str, str]) -> bool:
    """Whether the page came from this server. Where only this machine is served, without a key, the name must be this machine's:
    a foreign name may be made to point here (DNS rebinding)."""
    try:
        page = urlsplit(origin)
        name = page.hostname or ""
    except ValueError:
        return False
    reachable = api_key(listen) is not None or not is_loopback(listen.host) or is_loopback(name)
    return page.netloc.lower() == headers.get("host", "").lower() and reachable


def _sent_keys(headers: Mapping[str, str], query: Mapping[str, str]) -> list[bytes]:
    """Header values are bytes that were read as Latin-1."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    keys = [bearer.strip().encode("latin-1", "replace")] if scheme.lower() == "bearer" else []
    keys += [query["api_key"].encode("utf-8", "replace")] if "api_key" in query else []
    protocols = headers.get("sec-websocket-protocol", "").split(",")
    sent = [name.strip().removeprefix(KEY_PROTOCOL) for name in protocols if name.strip().startswith(KEY_PROTOCOL)]
    return keys + [key.encode("latin-1", "replace") for key in sent]
