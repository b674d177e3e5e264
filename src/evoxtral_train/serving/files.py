"""Recordings over HTTP: OpenAI's and Mistral's `/v1/audio/transcriptions`, the published `/transcribe`, and its stream."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from ..errors import RowError
from ..transcription.formats import FORMATS
from ..transcription.transcript import Transcript
from . import answers
from .forms import Form, TranscriptionForm, read_form
from .refusals import RETRY_AFTER_S, Refusal, refusal_of
from .uploads import Upload

ResultT = TypeVar("ResultT")

router = APIRouter(tags=["recordings"])


async def _received(request: Request) -> AsyncIterator[Upload]:
    if not request.app.state.engine.is_ready:
        raise Refusal(503, "not_ready", "the server is not ready; try again later", retry_after_s=RETRY_AFTER_S)
    async with request.app.state.uploads.receive(request) as upload:
        yield upload


Received = Annotated[Upload, Depends(_received)]


def _body(schema: type[Form]) -> dict:
    """The request's body for the API's documentation: handlers read it themselves, to limit it while it comes."""
    fields = schema.model_json_schema()
    properties = {"file": {"type": "string", "format": "binary", "description": "The recording."}} | fields["properties"]
    content = {"type": "object", "required": ["file"], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": content}}}}


@router.post(
    "/v1/audio/transcriptions", summary="A recording's text and tags, as OpenAI answers", openapi_extra=_body(TranscriptionForm)
)
async def transcriptions(request: Request, upload: Received) -> Response:
    """Answers as OpenAI's API does, and to Mistral's client (by its User-Agent) as Mistral's. `text` is the words alone; `tags`
    and `merged` are further fields. SRT and WebVTT hold the words with the tags."""
    form, name = read_form(TranscriptionForm, upload.fields), request.app.state.config.public_name
    is_mistral = request.headers.get("user-agent", "").startswith("mistral-client-python/")
    granularities, language = form.timestamp_granularities, form.language
    if form.stream:
        if is_mistral:
            return await _events(
                request, upload, form, answers.mistral_delta,
                lambda transcript: answers.mistral_done(transcript, granularities, language, name),
            )  # fmt: skip
        return await _events(request, upload, form, answers.openai_delta, answers.openai_done)
    transcript = await _transcript(request, upload, form)
    if is_mistral:
        return JSONResponse(answers.mistral_json(transcript, granularities, language, name))
    match form.response_format:
        case "json":
            return JSONResponse(answers.openai_json(transcript))
        case "verbose_json":
            return JSONResponse(answers.openai_verbose_json(transcript, granularities, language))
        case "text":
            return PlainTextResponse(f"{transcript.text}\n")
        case "srt" | "vtt":
            kind = {"srt": "application/x-subrip", "vtt": "text/vtt"}[form.response_format]
            return PlainTextResponse(FORMATS[form.response_format](transcript), media_type=kind)


@router.post("/transcribe", summary="A recording's transcript with everything in it", openapi_extra=_body(Form))
async def transcribe(request: Request, upload: Received) -> Response:
    """`text`, `tags_filtered`, `merged` and the other fields that `evoxtral transcribe` writes."""
    transcript = await _transcript(request, upload, read_form(Form, upload.fields))
    return JSONResponse(answers.our_json(transcript, upload.name, request.app.state.config.public_name))


@router.post("/transcribe/stream", summary="The same, as server-sent events", openapi_extra=_body(Form))
async def transcribe_stream(request: Request, upload: Received) -> Response:
    """`{"token": …}` for each stretch of text as it is written, then `{"done": true, "transcription": …}` with the merged text
    and all fields of `/transcribe`."""
    form, name = read_form(Form, upload.fields), request.app.state.config.public_name
    return await _events(
        request, upload, form, answers.our_delta, lambda transcript: answers.our_done(transcript, upload.name, name)
    )


async def _transcript(request: Request, upload: Upload, form: Form) -> Transcript:
    """Raises ClientDisconnect as soon as the client has left."""
    upload.job = asyncio.create_task(request.app.state.engine.transcribe(upload.path, form.rows, None, form.language))
    return await _unless_gone(request, _outcome(upload))


async def _events(
    request: Request, upload: Upload, form: Form, delta: Callable[[str], dict], done: Callable[[Transcript], dict]
) -> Response:
    """Server-sent events. What fails before the first of them is answered with a status, like any other request."""
    news: asyncio.Queue[str | None] = asyncio.Queue()
    engine = request.app.state.engine
    upload.job = asyncio.create_task(engine.transcribe(upload.path, form.rows, news.put_nowait, form.language))
    upload.job.add_done_callback(lambda _: news.put_nowait(None))

    async def contents(first: str | None) -> AsyncIterator[str]:
        try:
            text = first
            while text is not None:
                yield _event(delta(text))
                text = await news.get()
            yield _event(done(await _outcome(upload)))
        except Exception as error:  # noqa: BLE001 - the status has been sent, so the client is told in an event
            yield _event({"type": "error"} | refusal_of(error).as_json())

    first = await _unless_gone(request, news.get())
    if first is None:
        await _outcome(upload)
    return _EventStream(contents(first), request.app.state.config.limits.send_s)


async def _outcome(upload: Upload) -> Transcript:
    try:
        return await upload.job
    except RowError as error:
        # The path is that of our copy, which is nobody else's business.
        raise Refusal(400, "invalid_audio", str(RowError(error.what, where=upload.name, fix=error.fix)), "file") from None


async def _unless_gone(request: Request, work: Awaitable[ResultT]) -> ResultT:
    """Raises ClientDisconnect as soon as the client has left."""
    task, gone = asyncio.ensure_future(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(content: dict) -> str:
    name = f"event: {content['type']}\n" if "type" in content else ""
    return f"{name}data: {json.dumps(content)}\n\n"


class _EventStream(StreamingResponse):
    """Gives up on a client that does not take an event within `send_s`."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[str], send_s: float):
        super().__init__(content, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._send_s = send_s

    async def __call__(self, scope, receive, send) -> None:
        async def send_in_time(message) -> None:
            async with asyncio.timeout(self._send_s):
                await send(message)

        with suppress(TimeoutError):
            await super().__call__(scope, receive, send_in_time)
