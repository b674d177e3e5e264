"""Listens, and stops in order: uvicorn in this process, with the engine beside it.

A signal (SIGTERM, SIGINT) ends the server in order: the engine takes nothing new and finishes what it has heard; the answers are
sent; the connections close. A second SIGINT ends it at once.
"""

import asyncio
import errno
import math
import os
import signal
import socket
import sys
import threading

import uvicorn
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

from ..config.serving import Listen, ServeConfig
from ..errors import UsageError
from .access import api_key, is_loopback
from .app import create_app
from .engine import Engine

_PING_S = 20.0
_READ_BYTES = 2**14  # of a WebSocket


def run(engine: Engine, config: ServeConfig) -> None:
    """Serves until a signal. Starts the engine, unless it is started; /health and /ready answer meanwhile. Raises UsageError,
    before any weights are loaded, if the address cannot be used; and what `engine.start` raises."""
    with listener(config.listen) as listening:
        if not is_loopback(config.listen.host) and api_key(config.listen) is None:
            what = f"anybody who can reach {config.listen.host} may use this server"
            print(f"warning: {what}; set listen.api_key or EVOXTRAL_API_KEY", file=sys.stderr)
        asyncio.run(_serve(engine, config, listening))


async def _serve(engine: Engine, config: ServeConfig, listening: socket.socket) -> None:
    server = Server(engine, config)
    serving, starting = asyncio.create_task(server.serve(sockets=[listening])), _start(engine)
    try:
        await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            print(f"ready: {address(config.listen, listening)}", flush=True)
            await serving
    finally:
        server.should_exit = True
        await serving
        if starting.done() and starting.exception() is None:
            engine.stop()
    if not starting.done():  # an interpreter that ends around the thread that loads is aborted (exit code 134)
        print("stopped while the model was loading", flush=True)
        os._exit(0)


def _start(engine: Engine) -> asyncio.Future[None]:
    """Loading takes a minute; a thread that no exit waits for does it."""
    loop = asyncio.get_running_loop()
    started: asyncio.Future[None] = loop.create_future()

    def start() -> None:
        try:
            if not engine.is_ready:
                engine.start()
        except BaseException as error:  # noqa: BLE001 - raised where the future is awaited
            loop.call_soon_threadsafe(started.set_exception, error)
        else:
            loop.call_soon_threadsafe(started.set_result, None)

    threading.Thread(target=start, name="engine start", daemon=True).start()
    return started


class _Connection(AutoWebSocketsProtocol):
    """Reads little at a time, since all of it is parsed at once: tiny frames would hold up the others."""

    def connection_made(self, transport) -> None:
        transport.max_size = _READ_BYTES  # asyncio's own transports
        super().connection_made(transport)


class Server(uvicorn.Server):
    """Drains the engine before it closes connections. Forgets the signal in the end: uvicorn would raise it again, and the
    process would not exit with 0."""

    def __init__(self, engine: Engine, config: ServeConfig):
        self._app = create_app(engine)
        super().__init__(
            uvicorn.Config(
                self._app, lifespan="off", log_level="warning", access_log=False, server_header=False,
                ws=_Connection, ws_max_size=2 * config.limits.message_bytes,  # see sockets.py
                # PCM hardly shrinks, and unpacking is work for the event loop.
                ws_per_message_deflate=False,
                # Pings keep proxies from closing the connection. A missing answer proves nothing: it waits behind the audio of a
                # client that sends faster than the server reads. Dead clients meet `limits.idle_s`.
                ws_ping_interval=_PING_S, ws_ping_timeout=None,
                timeout_graceful_shutdown=math.ceil(config.limits.send_s),
            )
        )  # fmt: skip
        self._engine, self._send_s = engine, config.limits.send_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """A client that takes nothing for `limits.send_s` is cut off by the kernel, even after the handler has given it up."""
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; accepted connections inherit it
            for listening in sockets or []:
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(self._send_s * 1000))
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: object) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.is_draining = True
        if self._engine.is_ready:
            await self._unless_forced(self._engine.drain())
        if self.server_state.tasks:  # handlers that still send what was heard
            await self._unless_forced(asyncio.wait(set(self.server_state.tasks), timeout=self._send_s))
        await super().shutdown(sockets)

    async def _unless_forced(self, work) -> None:
        task = asyncio.ensure_future(work)
        while not (task.done() or self.force_exit):
            await asyncio.wait([task], timeout=0.1)
        if task.done():
            task.result()


def listener(listen: Listen) -> socket.socket:
    """A socket that listens. Raises UsageError if the address is not this machine's, or in use."""
    try:
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        return socket.create_server((listen.host, listen.port), family=family, backlog=256)
    except OSError as error:
        what, fix = f"cannot listen on {listen.host}:{listen.port}: {error.strerror}", "set listen.host to this machine's address"
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            fix = "choose another port with --port; 0 takes any free one"
        raise UsageError(what, where="listen", fix=fix) from None


def address(listen: Listen, listening: socket.socket) -> str:
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(listen.host, listen.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
