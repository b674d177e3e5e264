"""Recordings that clients send as forms (multipart/form-data): each in a temporary file, its limits checked while it is read."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ..config.serving import Limits
from .refusals import RETRY_AFTER_S, Refusal

_FORM_BYTES = 2**16  # of the other fields, all together


@dataclass
class Upload:
    """`name`: the file's, as the client calls it. `fields`: the form's other fields, in order. `job`: the work on it, which ends
    when the request does."""

    path: Path
    name: str
    fields: list[tuple[str, str]]
    job: asyncio.Task | None = None


class Uploads:
    """Counts those that are being received or transcribed."""

    def __init__(self, limits: Limits):
        self._limits, self._open = limits, 0

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[Upload]:
        """The request's file, until its answer has been sent. Raises Refusal; ClientDisconnect."""
        if self._open >= self._limits.uploads:
            message = f"{self._open} files are in work, as many as this server takes; try again later"
            raise Refusal(503, "server_full", message, retry_after_s=RETRY_AFTER_S)
        self._open += 1
        try:
            with TemporaryDirectory(prefix="evoxtral-") as folder:
                upload = await self._read(request, Path(folder) / "recording")
                try:
                    yield upload
                finally:
                    if upload.job is not None:
                        upload.job.cancel()
                        await asyncio.gather(upload.job, return_exceptions=True)
        finally:
            self._open -= 1

    async def _read(self, request: Request, path: Path) -> Upload:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            raise Refusal(415, "not_a_form", "send a form (multipart/form-data) with the recording in the field `file`", "file")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limits.upload_bytes + _FORM_BYTES:
            raise self._too_large()
        parser = MultiPartParser(request.headers, self._chunks(request), max_files=1, max_fields=100, max_part_size=_FORM_BYTES)
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise Refusal(400, "invalid_form", f"the form cannot be read: {error.message}") from None
        file = form.get("file")
        try:
            if not isinstance(file, UploadFile):
                raise Refusal(422, "missing_file", "file: the form has no file in this field", "file")
            if file.size > self._limits.upload_bytes:
                raise self._too_large()
            await asyncio.to_thread(_copy, file.file, path)
        finally:
            await form.close()
        fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        return Upload(path, file.filename or "recording", fields)

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        """The body. Its length may be unknown, or wrong: what counts is what comes."""
        received, chunks = 0, request.stream()
        while True:
            try:
                async with asyncio.timeout(self._limits.idle_s):
                    chunk = await anext(chunks, None)
            except TimeoutError:
                message = f"nothing came for {self._limits.idle_s:g} s, and the form is not complete"
                raise Refusal(408, "idle", message) from None
            if chunk is None:
                return
            received += len(chunk)
            if received > self._limits.upload_bytes + _FORM_BYTES:
                raise self._too_large()
            yield chunk

    def _too_large(self) -> Refusal:
        limit = f"{self._limits.upload_bytes:,} bytes"
        return Refusal(413, "file_too_large", f"the file is larger than {limit}, this server's limit; send it in parts", "file")


def _copy(source: IO[bytes], path: Path) -> None:
    with path.open("wb") as target:
        shutil.copyfileobj(source, target, 2**20)
