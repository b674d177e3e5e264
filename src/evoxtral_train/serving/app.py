"""The web application: routes, errors, access, headers. `create_app` takes an engine; whoever calls it starts and stops that.

    app.state.engine, .config, .uploads, .metrics    what handlers use
    app.state.is_draining                            set by whoever shuts the server down
"""

from importlib import metadata
from pathlib import Path

from fastapi import APIRouter, Depends, FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import EvoxtralError
from ..text.taxonomy import Taxonomy
from . import api_page, files, sockets
from .access import check
from .engine import Engine, ServerFull
from .metrics import Metrics
from .refusals import Refusal, refusal_of
from .uploads import Uploads

_VERSION = metadata.version("evoxtral")
PAGE = Path(__file__).parent / "page"
_DESCRIPTION = "Words and expressive tags: of recordings over HTTP, and while people speak over WebSockets."
_HEADERS = {
    # The page plays recordings from blobs; scripts come from the server's own files only.
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self' blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # an address may hold a key
    "Permissions-Policy": "microphone=(self)",
}

_open, _guarded = APIRouter(tags=["server"]), APIRouter(tags=["server"])


def create_app(engine: Engine) -> FastAPI:
    """Every request may come before the engine is ready: it is then refused with 503."""
    config = engine.config
    app = FastAPI(title="evoxtral", version=_VERSION, description=_DESCRIPTION, docs_url=None, redoc_url=None)
    app.state.engine, app.state.config = engine, config
    app.state.groups = Taxonomy.load(config.tags_table).groups
    app.state.uploads, app.state.metrics = Uploads(config.limits), Metrics(engine)
    app.state.is_draining = False
    app.include_router(_open)
    for router in (_guarded, files.router):
        app.include_router(router, dependencies=[Depends(_check)])
    app.include_router(sockets.router(engine))  # checks access itself: a refusal is a message there
    _serve_page(app)
    for error in (Refusal, EvoxtralError, ServerFull, HTTPException):
        app.add_exception_handler(error, _refuse)
    app.add_exception_handler(ClientDisconnect, _nobody)
    app.add_middleware(_EveryAnswer, metrics=app.state.metrics)
    if config.listen.allowed_origins:
        cors = {"allow_origins": config.listen.allowed_origins, "allow_methods": ["*"], "allow_headers": ["*"]}
        app.user_middleware.append(Middleware(CORSMiddleware, expose_headers=["Retry-After"], **cors))
    return app


async def _check(connection: HTTPConnection) -> None:
    check(connection.app.state.config, connection.headers, connection.query_params)


@_open.get("/health", summary="What this server is, and what it does now")
async def health(request: Request) -> Response:
    """`status`: starting, ok, or, with 503, stopped: then only a restart helps. `live`: whether the WebSocket routes transcribe.
    `tags`: tag -> group."""
    engine, config, state = request.app.state.engine, request.app.state.config, request.app.state
    is_ready = engine.is_ready
    status = "ok" if is_ready else "stopped" if engine.was_started else "starting"
    facts = {
        "status": status, "model": config.public_name, "base": engine.transcriber.model.base,
        "adapters": [path.name for path in config.adapters], "merge": engine.transcriber.merge, "rows": config.live.rows,
        "live": engine.has_streams, "version": _VERSION, "tags": state.groups,
    }  # fmt: skip
    if is_ready:
        stats = engine.stats()
        facts |= {"slots": stats.slots, "streams": stats.streams, "files": stats.files}
    return JSONResponse(facts, 503 if status == "stopped" else 200)


@_open.get("/ready", summary="Whether the server takes work")
async def ready(request: Request) -> Response:
    """200 if it does; 503 while it starts, while it shuts down, and if it has failed."""
    is_ready = request.app.state.engine.is_ready and not request.app.state.is_draining
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


@_guarded.get("/metrics", summary="Measurements for Prometheus")
async def measurements(request: Request) -> Response:
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@_guarded.get("/v1/models", summary="The model, as OpenAI lists models")
async def models(request: Request) -> Response:
    model = {"id": request.app.state.config.public_name, "object": "model", "created": 0, "owned_by": "evoxtral"}
    return JSONResponse({"object": "list", "data": [model]})


@_open.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    return HTMLResponse(api_page.render(request.app.openapi()))


def _serve_page(app: FastAPI) -> None:
    """The web page's files; index.html at /."""
    for path in sorted(PAGE.rglob("*")):
        if path.is_file():
            name = path.relative_to(PAGE).as_posix()
            app.router.routes.append(Route("/" if name == "index.html" else f"/{name}", _file(path)))


def _file(path: Path):
    async def send(request: Request) -> Response:
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    return send


async def _refuse(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    return JSONResponse(refusal.as_json(), refusal.status, headers=refusal.headers)


async def _nobody(request: Request, error: Exception) -> Response:
    """The client has left; nobody reads this."""
    return Response(status_code=499)


class _EveryAnswer:
    """Adds headers to each HTTP answer and counts it. What no handler foresaw is answered, too, before the log gets it."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_answered = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.answers.labels(scope["method"], route, str(message["status"])).inc()
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            if not is_answered:
                answer = await _refuse(Request(scope), error)
                await answer(scope, receive, send_with_headers)
            raise
