"""The WebSocket routes: one connection, one stream, two tasks. The dialects translate; the engine transcribes.

    client ─► reader: parse, Dialect.read, LiveStream.feed …
    client ◄─ writer: LiveStream.events, Dialect.write …         whichever ends first ends the other, and the stream is freed

The reader stops reading while the engine has enough audio of this stream, and so the client has to wait. A client that does not
take what it is sent is closed. A message above `limits.message_bytes` is answered with an error, and the session goes on.
Above twice that size, uvicorn closes the connection.
"""

import asyncio
import json
import logging
import time
import uuid
from typing import NoReturn

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from ..errors import UsageError
from ..text.taxonomy import Taxonomy
from . import access
from .dialects import Commit, Dialect, End, ErrorCode, Feed, InvalidMessage, Reply, Session, parse
from .dialects.mistral import Mistral
from .dialects.own import as_message
from .dialects.realtime import Realtime
from .engine import Engine, ServerFull
from .events import Heard, StreamEnded
from .pcm import RATES_HZ, PcmReader
from .streams import LiveStream

_LOG = logging.getLogger(__name__)
_CLOSE_S = 1.0
_CLOSE_CODES: dict[ErrorCode | None, int] = {
    None: 1000, "internal_error": 1011, "shutting_down": 1012, "server_full": 1013,
}  # fmt: skip
_POLICY_VIOLATED = 1008


def router(engine: Engine) -> APIRouter:
    routes, groups = APIRouter(), Taxonomy.load(engine.config.tags_table).groups

    @routes.websocket("/v1/realtime")
    async def realtime(websocket: WebSocket) -> None:
        await _Connection(engine, groups, websocket, Realtime).serve()

    @routes.websocket("/v1/audio/transcriptions/realtime")
    async def mistral(websocket: WebSocket) -> None:
        await _Connection(engine, groups, websocket, Mistral).serve()

    return routes


class _Closed(Exception):
    """The server ends the connection: normally, or for a reason that it tells the client."""

    def __init__(self, code: ErrorCode | None = None, what: str = ""):
        super().__init__(what)
        self.code, self.what = code, what


class _Connection:
    def __init__(self, engine: Engine, groups: dict[str, str], websocket: WebSocket, dialect: type[Dialect]):
        self._engine, self._limits, self._groups, self._websocket = engine, engine.config.limits, groups, websocket
        self._query = websocket.query_params
        config, rate = engine.config, self._query.get("rate")
        self._dialect = dialect(
            Session(
                uuid.uuid4().hex, int(time.time()), config.public_name, config.live.patience_s,
                int(rate) if rate in map(str, RATES_HZ) else None,
            )
        )  # fmt: skip
        self._stream: LiveStream | None = None
        self._opened: asyncio.Queue[LiveStream] = asyncio.Queue()
        self._pcm: PcmReader | None = None
        self._has_ended = False  # the client has ended the stream, which is not finished yet
        self._last_heard: Heard | None = None
        self._quiet_decoded_s: float | None = None  # how far the stream was when the client had been quiet for `limits.idle_s`
        self._sending = asyncio.Lock()

    async def serve(self) -> None:
        try:
            await self._websocket.accept(self._subprotocol())
            await self._converse()
        except _Closed as closed:
            await self._close(closed)
        except (WebSocketDisconnect, OSError):
            pass  # the client is gone
        except Exception:  # noqa: BLE001 - one connection's failure ends that connection alone
            _LOG.exception("a connection failed")
            await self._close(self._why_closed("internal_error"))

    async def _converse(self) -> NoReturn:
        """Raises _Closed, or WebSocketDisconnect. The stream is freed."""
        tasks: list[asyncio.Task] = []
        try:
            self._check_access_and_options()
            self._open_stream()
            for message in self._dialect.greet():
                await self._send(message)
            tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._stream is not None:
                self._stream.cancel()

    def _subprotocol(self) -> str | None:
        """A browser that offers some needs one of them in the answer."""
        offered = self._websocket.scope["subprotocols"]
        return next((name for name in offered if not name.startswith(access.KEY_PROTOCOL)), offered[0] if offered else None)

    def _check_access_and_options(self) -> None:
        try:
            access.check(self._engine.config, self._websocket.headers, self._query)
        except access.AccessDenied as denied:
            raise _Closed(denied.code, str(denied)) from None
        allowed = {"rate": [str(rate_hz) for rate_hz in RATES_HZ], "rows": ["base", "adapter", "both"], "events": ["evoxtral"]}
        for name, values in allowed.items():
            if self._query.get(name, values[0]) not in values:
                raise _Closed("invalid_message", f"in the address, `{name}` must be {' or '.join(values)}")

    def _open_stream(self) -> LiveStream:
        if not self._engine.is_ready:
            raise _Closed("server_full", "the model is not loaded yet; connect again later")
        try:
            self._stream = self._engine.open_stream(self._query.get("rows"))
        except ServerFull as full:
            raise _Closed("server_full", f"{full}; connect again later") from None
        except UsageError as error:
            raise _Closed("invalid_message" if self._engine.has_streams else "no_live_streams", str(error)) from None
        self._pcm, self._has_ended = None, False
        self._opened.put_nowait(self._stream)
        return self._stream

    async def _read(self) -> NoReturn:
        while True:
            text = await self._receive()
            try:
                message = parse(text, self._limits.message_bytes)
                self._dialect = self._dialect.chosen(message)
                for action in self._dialect.read(message):
                    await self._perform(action)
            except InvalidMessage as error:
                await self._send(self._dialect.error(error.code, error.what, error.event_id))
            await asyncio.sleep(0)  # thousands of small messages may have come at once, and others have sent some, too

    async def _receive(self) -> str | None:
        """The next text frame; None for a binary frame."""
        while True:
            try:
                async with asyncio.timeout(self._limits.idle_s):
                    message = await self._websocket.receive()
            except TimeoutError:
                if self._is_idle():
                    raise self._why_closed("idle") from None
                continue
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            return message.get("text")

    def _is_idle(self) -> bool:
        """Whether it is the client's turn: the engine has caught up, or waits for the end of an utterance."""
        decoded_s = self._last_heard and self._last_heard.decoded_s
        waits, self._quiet_decoded_s = decoded_s == self._quiet_decoded_s, decoded_s
        return not self._has_ended and (self._last_heard is None or self._last_heard.lag_s < 1 or waits)

    async def _perform(self, action: Feed | Commit | End | Reply) -> None:
        if isinstance(action, Reply):
            await self._send(action.message)
            return
        if self._has_ended:
            raise InvalidMessage("invalid_message", "the audio was ended; wait until it has been transcribed")
        stream = self._stream or self._open_stream()
        self._pcm = self._pcm or PcmReader(self._dialect.rate_hz)
        if isinstance(action, Feed):
            await stream.feed(self._pcm.read(action.pcm))
            return
        await stream.feed(self._pcm.flush())
        if isinstance(action, Commit):
            stream.commit()
        else:
            self._has_ended = True
            stream.end()

    async def _write(self) -> NoReturn:
        while True:
            ended = await self._tell(await self._opened.get())
            self._stream = self._last_heard = None
            self._has_ended = False
            if ended.code is not None or not self._dialect.lasts:
                raise self._why_closed(ended.code)

    async def _tell(self, stream: LiveStream) -> StreamEnded:
        """Send all of a stream's events, the last of which is returned."""
        async for event in stream.events():
            if isinstance(event, Heard):
                self._last_heard = event
            if "events" in self._query:
                await self._send(as_message(event, self._groups))
            for message in self._dialect.write(event):
                await self._send(message)
            if isinstance(event, StreamEnded):
                return event
        raise self._why_closed("too_slow")  # the engine holds only so many events for a client

    def _why_closed(self, code: ErrorCode | None) -> _Closed:
        limits = self._limits
        reasons = {
            "idle": f"nothing was sent for {limits.idle_s:g} s; send audio, or end the session",
            "too_slow": f"a message was not taken within {limits.send_s:g} s; read what the server sends",
            "session_too_long": f"a session holds at most {limits.session_s:g} s of audio; open a new connection",
            "shutting_down": "the server is shutting down; connect again later",
            "internal_error": "the server failed; try again",
        }
        return _Closed(code, reasons[code] if code else "")

    async def _send(self, message: dict) -> None:
        text = json.dumps(message, separators=(",", ":"), ensure_ascii=False)
        try:
            async with self._sending, asyncio.timeout(self._limits.send_s):
                await self._websocket.send_text(text)
        except TimeoutError:
            raise self._why_closed("too_slow") from None
        except RuntimeError:  # uvicorn has closed the connection: a frame that was too large, or no answer to its pings
            raise WebSocketDisconnect(1006) from None

    async def _close(self, closed: _Closed) -> None:
        """Say why, if the client still reads, and close."""
        try:
            if closed.code not in (None, "too_slow"):
                await self._send(self._dialect.error(closed.code, closed.what))
            async with asyncio.timeout(_CLOSE_S):
                await self._websocket.close(_CLOSE_CODES.get(closed.code, _POLICY_VIOLATED), closed.code)
        except (_Closed, WebSocketDisconnect, TimeoutError, OSError, RuntimeError):
            pass
