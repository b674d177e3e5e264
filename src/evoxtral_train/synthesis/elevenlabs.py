"""Tagged scripts to audio with ElevenLabs v3, the source of the published data (Evoxtral model cards).

- Paid audio is kept as received, under a hash of the request, in a folder that no run removes. It is never paid for again: not
  with `--overwrite`, not from another config, not for a repeated script.
- Requests go through the official SDK, several at a time. Temporary failures (too many requests, server errors, a lost
  connection) are retried after 1, 2, 4 … seconds with jitter.
- The key is sent to the service's own address only: redirects are not followed.
- An answer that is not speech is never kept. It is not requested again in the same run, because it may have been charged.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import soundfile

from ..config.data import ElevenLabs
from ..data.audio import decode_audio, to_model_rate
from ..errors import EvoxtralError, RowError, UsageError
from ..files import write_atomic
from ..plain_text import one_line
from ..units import SAMPLE_RATE_HZ

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_RETRIED = {408, 409, 429}
_CODECS = {"mp3": "MP3", "opus": "OGG", "pcm": None, "wav": "WAV"}  # libsndfile's names; pcm is raw samples
_LOCAL = ("localhost", "127.0.0.1", "::1")
_LEAST_S, _MOST_S_PER_CHARACTER = 0.1, 1.0  # plausible lengths of speech; up to a minute is always allowed
_NOT_ALLOWED = {401: "the key is not accepted, or its credits are used up", 402: "payment is required", 403: "not allowed"}


@dataclass(frozen=True)
class Request:
    """One request to the service. Equal requests are paid for once."""

    text: str
    voice: str
    model: str
    output_format: str
    seed: int

    @property
    def file_name(self) -> str:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode("utf-8")).hexdigest()
        return f"{digest[:32]}.{self.output_format.partition('_')[0]}"


def not_paid_yet(requests: Iterable[Request], folder: Path) -> list[Request]:
    """The requests whose audio is not in `folder`, each once."""
    return [request for request in dict.fromkeys(requests) if not (folder / request.file_name).is_file()]


def fetch(requests: list[Request], config: ElevenLabs, key: str, on_done: Callable[[], None]) -> dict[Request, str]:
    """Download the audio of `requests` into `config.paid_audio`. Returns the requests that the service refuses, with its reasons.

    Raises UsageError if the key is refused or a voice does not exist, EvoxtralError if the service stays unreachable. Audio
    received before that is kept.
    """
    client, refused = _client(config, key), {}
    pool = ThreadPoolExecutor(config.concurrent_requests)
    try:
        running = {pool.submit(_fetch_one, client, request, config): request for request in requests}
        for done in as_completed(running):
            try:
                done.result()
            except RowError as error:
                refused[running[done]] = str(error)
            on_done()
    finally:
        pool.shutdown(cancel_futures=True)  # waits for running requests: they are paid for
    return refused


def read_paid(request: Request, folder: Path) -> np.ndarray:
    """Mono float32 samples at 16 kHz. Raises RowError if the file is not audio."""
    content = (folder / request.file_name).read_bytes()
    try:
        return _decode(content, request)
    except RowError as error:
        raise RowError(f"{folder / request.file_name}: {error}", fix="remove this file to pay for it again") from None


def _decode(content: bytes, request: Request) -> np.ndarray:
    codec, _, rest = request.output_format.partition("_")
    if codec == "pcm":
        if len(content) % 2:
            raise RowError(f"{len(content)} bytes are not 16-bit samples")
        return to_model_rate(np.frombuffer(content, "<i2").astype(np.float32) / 32768.0, int(rest.partition("_")[0]))
    return decode_audio(io.BytesIO(content))


def _require_speech(content: bytes, request: Request) -> None:
    """Raises RowError for an answer that is not audio in the requested format, or whose length is implausible for the text."""
    start, codec = content[:1000], request.output_format.partition("_")[0]
    try:
        if start.isascii() and b"\0" not in start:
            raise RowError(f"it is text: {one_line(start.decode('ascii'), 80)!r}")
        if codec != "pcm" and soundfile.info(io.BytesIO(content)).format != _CODECS[codec]:
            raise RowError(f"it is not {codec}")
        seconds = len(_decode(content, request)) / SAMPLE_RATE_HZ
        most = max(60.0, _MOST_S_PER_CHARACTER * len(request.text))
        if not _LEAST_S <= seconds <= most:
            raise RowError(f"it lasts {seconds:.2f} s, for {len(request.text)} characters")
    except (RuntimeError, RowError) as error:
        what = f"ElevenLabs did not answer with speech ({error}); the answer was not kept"
        raise RowError(what, fix="run again to request it again") from None


def check_settings(config: ElevenLabs) -> None:
    """Before paying for anything, refuse an unreadable audio format and an address that would get the key unencrypted."""
    codec = config.output_format.partition("_")[0]
    if codec not in _CODECS:
        fix = f"use a format of {', '.join(_CODECS)}, such as mp3_44100_128"
        raise UsageError(f"audio as {config.output_format!r} cannot be read", where="elevenlabs.output_format", fix=fix)
    url = urlsplit(config.base_url or "https://")
    if url.scheme != "https" and url.hostname not in _LOCAL:
        what = f"{config.base_url!r} would get your key unencrypted"
        raise UsageError(what, where="elevenlabs.base_url", fix="use an address that begins with https://")


def _client(config: ElevenLabs, key: str):
    try:
        from elevenlabs.client import ElevenLabs as Client
    except ImportError:
        raise UsageError("the ElevenLabs SDK is not installed", fix="run: pip install 'evoxtral[elevenlabs]'") from None
    return Client(api_key=key, base_url=config.base_url, timeout=config.timeout_s, follow_redirects=False)


def _fetch_one(client, request: Request, config: ElevenLabs) -> None:
    import httpx
    from elevenlabs.core.api_error import ApiError
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

    def passing(error: BaseException) -> bool:
        if isinstance(error, ApiError):
            return error.status_code in _RETRIED or (error.status_code or 0) >= 500
        return isinstance(error, httpx.TransportError)

    retrying = Retrying(
        stop=stop_after_attempt(config.max_retries + 1),
        wait=wait_exponential_jitter(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S, jitter=_FIRST_WAIT_S),
        retry=retry_if_exception(passing),
        reraise=True,
    )
    try:
        content = retrying(_ask, client, request)
    except ApiError as error:
        _explain(error, request, config)
    except httpx.TransportError as error:
        raise EvoxtralError(
            f"ElevenLabs cannot be reached: {type(error).__name__}: {error}", fix="resume later with --resume"
        ) from None
    else:
        _require_speech(content, request)
        write_atomic(config.paid_audio / request.file_name, content)


def _ask(client, request: Request) -> bytes:
    parts = client.text_to_speech.convert(
        request.voice, text=request.text, model_id=request.model, output_format=request.output_format, seed=request.seed
    )
    return b"".join(parts)


def _explain(error, request: Request, config: ElevenLabs) -> None:
    """Raises the error that a refusal stands for: RowError for this text only, UsageError for the whole run."""
    detail = error.body.get("detail", error.body) if isinstance(error.body, dict) else error.body
    message = one_line(detail.get("message", detail) if isinstance(detail, dict) else detail, 200)
    if 300 <= (error.status_code or 0) < 400:
        to = one_line((error.headers or {}).get("location", "another address"), 100)
        what = f"ElevenLabs redirects to {to}; your key was not sent there"
        raise UsageError(what, where="elevenlabs.base_url", fix="set it to the service's own address, or to null") from None
    if error.status_code in _NOT_ALLOWED:
        raise UsageError(f"ElevenLabs: {_NOT_ALLOWED[error.status_code]}: {message}", where="ELEVENLABS_API_KEY") from None
    if error.status_code == 404:
        raise UsageError(
            f"ElevenLabs does not know the voice {request.voice!r} or the model {request.model!r}: {message}",
            where="voices",
            fix="use the ids of voices in your account",
        ) from None
    if error.status_code in _RETRIED or (error.status_code or 0) >= 500:
        raise EvoxtralError(
            f"ElevenLabs still answers {error.status_code} after {config.max_retries} retries: {message}",
            fix="resume later with --resume, or lower elevenlabs.concurrent_requests",
        ) from None
    raise RowError(f"ElevenLabs refused the text ({error.status_code}): {message}") from None
