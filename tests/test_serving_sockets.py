"""The WebSocket routes of a running server: the real clients hear what `transcribe` writes, and no client harms another."""

import asyncio
import base64
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile
import soxr
import websockets
from mistralai.client import Mistral
from mistralai.client.models import AudioFormat
from openai import AsyncOpenAI

from conftest import REPO, TINY_BASE
from evoxtral_train.config.serving import ServeConfig
from evoxtral_train.serving.engine import Engine
from evoxtral_train.serving.server import Server, address, listener
from evoxtral_train.transcription.transcriber import Transcriber
from evoxtral_train.transcription.transcript import Transcript

VLLM, MISTRAL = "/v1/realtime", "/v1/audio/transcriptions/realtime"
LIMIT_S = 60


@dataclass(frozen=True)
class Running:
    url: str
    engine: Engine

    @property
    def websocket_url(self) -> str:
        return self.url.replace("http:", "ws:")


def _config(**sections) -> ServeConfig:
    return ServeConfig(
        model={"base": str(TINY_BASE)}, adapters=[REPO / "data/tiny-tagger"], tags_table=REPO / "data/tags.yaml", **sections
    )  # fmt: skip


class Configured:
    """A running engine under other limits that the connections read. It is not drained."""

    def __init__(self, engine: Engine, **sections):
        self._engine, self.config = engine, _config(listen={"port": 0} | sections.pop("listen", {}), **sections)

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    async def drain(self) -> None:
        """Others use the engine."""


@contextmanager
def serving(engine, send_buffer_bytes: int | None = None):
    with listener(engine.config.listen) as listening:
        if send_buffer_bytes:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)  # its connections have the same
        server = Server(engine, engine.config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        yield Running(address(engine.config.listen, listening), engine)
        server.should_exit = True
        thread.join(LIMIT_S)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def engine():
    engine = Engine(_config(listen={"port": 0}, live={"streams": 4}))
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def server(engine):
    with serving(engine) as running:
        yield running


@pytest.fixture(scope="module")
def small_server():
    """One stream of at most 12 s, of which at most 1 s may wait."""
    engine = Engine(_config(listen={"port": 0}, live={"streams": 1}, limits={"queue_s": 1, "session_s": 12}))
    engine.start()
    with serving(engine) as running:
        yield running
    engine.stop()


@dataclass(frozen=True)
class Clip:
    pcm: bytes
    rate_hz: int
    transcript: Transcript

    @property
    def tags(self) -> list[tuple[str, bool]]:
        return [(tag.tag, tag.kept) for tag in self.transcript.tags]


@pytest.fixture(scope="module")
def clips(spoken, engine, tmp_path_factory) -> dict[int, Clip]:
    """A held-out clip with a gasp and a throat cleared, at each rate, and what `transcribe` writes for its file."""
    folder, path = tmp_path_factory.mktemp("clips"), spoken / "audio" / "test-00002.flac"
    found = {}
    for rate_hz in (16_000, 24_000):
        samples = soxr.resample(soundfile.read(path)[0], soundfile.info(path).samplerate, rate_hz)
        pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2")
        soundfile.write(folder / f"{rate_hz}.wav", pcm, rate_hz, subtype="PCM_16")
        (transcript,) = Transcriber(engine.transcriber.config).transcribe([folder / f"{rate_hz}.wav"])
        assert [tag.tag for tag in transcript.tags] == ["gasps", "clears throat"]
        found[rate_hz] = Clip(pcm.tobytes(), rate_hz, transcript)
    return found


def _pieces(pcm: bytes, size: int = 6_400) -> list[bytes]:
    return [pcm[start : start + size] for start in range(0, len(pcm), size)]


def _base64(pcm: bytes) -> str:
    return base64.b64encode(pcm).decode()


def _append(pcm: bytes) -> dict:
    return {"type": "input_audio_buffer.append", "audio": _base64(pcm)}


def _tags(tags: list[dict]) -> list[tuple[str, bool]]:
    return [(tag["tag"], tag["kept"]) for tag in tags]


def _run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, LIMIT_S))


class Client:
    """A bare connection that speaks JSON."""

    def __init__(self, socket):
        self.socket = socket

    async def send(self, *messages: dict) -> None:
        for message in messages:
            await self.socket.send(json.dumps(message))

    async def receive(self) -> dict:
        return json.loads(await self.socket.recv())

    async def until(self, kind: str) -> list[dict]:
        messages = [await self.receive()]
        while messages[-1]["type"] != kind:
            messages.append(await self.receive())
        return messages

    async def rest(self) -> list[dict]:
        """Until the server closes, for whatever reason."""
        messages = []
        with suppress(websockets.ConnectionClosed):
            while True:
                messages.append(await self.receive())
        return messages


@asynccontextmanager
async def connected(running: Running, route: str = VLLM, **options) -> AsyncIterator[Client]:
    async with websockets.connect(running.websocket_url + route, max_size=None, **options) as socket:
        yield Client(socket)


async def _vllm(running: Running, clip: Clip, route: str = f"{VLLM}?rate=16000") -> list[dict]:
    """All messages of one transcription."""
    async with connected(running, route) as client:
        assert (await client.receive())["type"] == "session.created"
        await client.send({"type": "session.update", "model": "any"}, {"type": "input_audio_buffer.commit"})
        await client.send(*map(_append, _pieces(clip.pcm)), {"type": "input_audio_buffer.commit", "final": True})
        return await client.until("transcription.done")


async def _openai(running: Running, clip: Clip) -> list:
    """All events until the client's commit has been answered."""
    client, events = AsyncOpenAI(base_url=f"{running.url}/v1", api_key="any"), []
    async with client.realtime.connect(model="any", extra_query={"intent": "transcription"}) as connection:
        audio_format = {"type": "audio/pcm", "rate": clip.rate_hz}
        await connection.session.update(session={"type": "transcription", "audio": {"input": {"format": audio_format}}})
        for piece in _pieces(clip.pcm):
            await connection.input_audio_buffer.append(audio=_base64(piece))
        await connection.input_audio_buffer.commit()
        async for event in connection:
            events.append(event)
            if event.type == "conversation.item.input_audio_transcription.completed":
                return events
    raise AssertionError("closed")


async def _mistral(running: Running, clip: Clip) -> list:
    async def audio():
        for piece in _pieces(clip.pcm):
            yield piece

    client = Mistral(api_key="any", server_url=running.url)
    audio_format = AudioFormat(encoding="pcm_s16le", sample_rate=clip.rate_hz)
    return [event async for event in client.audio.realtime.transcribe_stream(audio(), model="any", audio_format=audio_format)]


def _check_vllm(messages: list[dict], clip: Clip) -> None:
    done = messages[-1]
    assert (done["text"], done["merged"]) == (clip.transcript.text, clip.transcript.merged)
    assert "".join(message["delta"] for message in messages[:-1]) == clip.transcript.text
    assert _tags(done["tags"]) == clip.tags
    assert [tag["tag"] for message in messages[:-1] for tag in message.get("tags", [])] == [name for name, _ in clip.tags]


def _check_openai(events: list, clip: Clip) -> None:
    completed = events[-1]
    assert [event.type for event in events[:2]] == ["session.created", "session.updated"]
    assert (completed.transcript, completed.merged) == (clip.transcript.text, clip.transcript.merged)
    assert "".join(event.delta for event in events if event.type.endswith("transcription.delta")) == clip.transcript.text
    assert _tags(completed.tags) == clip.tags
    assert completed.usage.seconds == pytest.approx(clip.transcript.duration_s, abs=0.001)
    (committed,) = [event for event in events if event.type == "input_audio_buffer.committed"]
    assert committed.item_id == completed.item_id


def _check_mistral(events: list, clip: Clip) -> None:
    assert [event.type for event in events[:2]] == ["session.created", "session.updated"]
    assert events[1].session.audio_format.sample_rate == clip.rate_hz
    done = events[-1]
    assert (done.type, done.text, done.merged) == ("transcription.done", clip.transcript.text, clip.transcript.merged)
    assert "".join(event.text for event in events if event.type == "transcription.text.delta") == clip.transcript.text
    assert _tags(done.tags) == clip.tags
    (segment,) = [event for event in events if event.type == "transcription.segment"]
    assert (segment.start, segment.text) == (0.0, clip.transcript.text)


# The clients that exist


@pytest.mark.parametrize("rate_hz", [16_000, 24_000])
def test_openais_client_hears_what_transcribe_writes(server, clips, rate_hz):
    _check_openai(_run(_openai(server, clips[rate_hz])), clips[rate_hz])


@pytest.mark.parametrize("rate_hz", [16_000, 24_000])
def test_mistrals_client_hears_what_transcribe_writes(server, clips, rate_hz):
    _check_mistral(_run(_mistral(server, clips[rate_hz])), clips[rate_hz])


@pytest.mark.parametrize("rate_hz", [16_000, 24_000])
def test_a_client_of_vllm_hears_what_transcribe_writes(server, clips, rate_hz):
    _check_vllm(_run(_vllm(server, clips[rate_hz], f"{VLLM}?rate={rate_hz}")), clips[rate_hz])


def test_all_of_them_at_once(server, clips):
    async def all_of_them():
        clip = clips[16_000]
        return await asyncio.gather(_openai(server, clips[24_000]), _mistral(server, clip), _vllm(server, clip))

    openai, mistral, vllm = _run(all_of_them())
    _check_openai(openai, clips[24_000])
    _check_mistral(mistral, clips[16_000])
    _check_vllm(vllm, clips[16_000])


def test_a_client_of_vllm_may_leave_out_the_beginning_and_go_on_after_the_end(server, clips):
    async def two() -> list[list[dict]]:
        async with connected(server) as client:
            await client.receive()
            found = []
            for _ in range(2):
                await client.send(*map(_append, _pieces(clips[16_000].pcm)))
                await client.send({"type": "input_audio_buffer.commit", "final": True})
                found.append(await client.until("transcription.done"))
            return found

    for messages in _run(two()):
        _check_vllm(messages, clips[16_000])


def test_rows_may_be_chosen(server, clips):
    clip = clips[16_000]
    assert _run(_vllm(server, clip, f"{VLLM}?rows=base"))[-1]["tags"] == []
    assert _tags(_run(_vllm(server, clip, f"{VLLM}?rows=adapter"))[-1]["tags"]) == clip.tags


def test_our_own_events_tell_all(server, clips):
    clip = clips[16_000]
    messages = _run(_vllm(server, clip, f"{VLLM}?events=evoxtral"))
    own = [message for message in messages if message["type"].startswith("evoxtral.")]
    told = [message["type"].removeprefix("evoxtral.") for message in own if message["type"] != "evoxtral.heard"]
    assert (told[0], told[-2:]) == ("utterance.started", ["utterance.ended", "ended"])
    words = [message["word"] for message in own if message["type"] == "evoxtral.word"]
    assert words == [word.word for word in clip.transcript.words]
    assert [message["tag"] for message in own if message["type"] == "evoxtral.tag"] == [name for name, _ in clip.tags]
    live, offline = own[-1]["transcript"], clip.transcript.as_json()
    same = ("duration_s", "text", "tags", "tags_filtered", "merge", "merged", "segments")
    assert {name: live[name] for name in same} == {name: offline[name] for name in same}


# Little or nothing to hear

SECOND_OF_SILENCE = b"\0\0" * 16_000


@pytest.mark.parametrize("audio", [[], [_append(SECOND_OF_SILENCE)], [_append(b"\0")]])
def test_an_end_without_sound_is_answered(server, audio):
    async def vllm() -> dict:
        async with connected(server) as client:
            await client.send(*audio, {"type": "input_audio_buffer.commit", "final": True})
            return (await client.until("transcription.done"))[-1]

    async def mistral() -> list[dict]:
        async with connected(server, MISTRAL) as client:
            await client.send(*[message | {"type": "input_audio.append"} for message in audio])
            await client.send({"type": "input_audio.flush"}, {"type": "input_audio.end"})
            return await client.rest()

    for done in (_run(vllm()), _run(mistral())[-1]):
        assert (done["type"], done["text"], done["tags"]) == ("transcription.done", "", [])


@pytest.mark.parametrize("audio", [[], [_append(SECOND_OF_SILENCE)]])
def test_a_commit_without_sound_is_answered(server, audio):
    async def openai() -> list[str]:
        async with connected(server) as client:
            await client.send({"type": "session.update", "session": {}}, *audio, {"type": "input_audio_buffer.commit"})
            return [message["type"].split(".")[-1] for message in await client.until(COMPLETED)]

    assert _run(openai()) == ["created", "updated", "committed", "completed"]


COMPLETED = "conversation.item.input_audio_transcription.completed"

# Faults

LONG = json.dumps({"type": "session.update", "padding": "x" * 600_000})
FRAMES = ["", "nonsense", b"\0\1\2", "[]", "{}", '{"type": 7}', '{"type": "nonsense"}', "[" * 50_000, LONG]
BAD = [{"audio": None}, {"audio": 7}, {"audio": "***"}, {"audio": "AAA"}]


@pytest.mark.parametrize(
    ("route", "prefix", "begin"),
    [
        (VLLM, "input_audio_buffer", {"type": "session.update", "model": "any"}),
        (VLLM, "input_audio_buffer", {"type": "session.update", "session": {"audio": {"input": {"format": {"rate": 16_000}}}}}),
        (MISTRAL, "input_audio", {"type": "session.update", "session": {}}),
    ],
    ids=["vllm", "openai", "mistral"],
)
def test_garbage_is_answered_and_the_session_goes_on(engine, clips, caplog, route, prefix, begin):
    clip, pieces = clips[16_000], _pieces(clips[16_000].pcm)
    codes = {"invalid_json", "invalid_message", "invalid_audio", "message_too_large"}

    async def with_garbage(running: Running) -> list[dict]:
        async with connected(running, route) as client:
            await client.receive()
            await client.send(begin)
            for frame in FRAMES:
                await client.socket.send(frame)
            for bad, piece in zip([*BAD, *[{}] * len(pieces)], pieces, strict=False):
                await client.send({"type": f"{prefix}.append", **bad}) if bad else None
                await client.send({"type": f"{prefix}.append", "audio": _base64(piece)})
            await client.send({"type": f"{prefix}.commit", "final": True} if route == VLLM else {"type": "input_audio.end"})
            messages = []
            while not messages or messages[-1]["type"] not in ("transcription.done", COMPLETED):
                messages.append(await client.receive())
            return messages

    with serving(Configured(engine, limits={"message_bytes": 500_000})) as running:
        messages = _run(with_garbage(running))
    errors = [message for message in messages if message["type"] == "error"]
    assert len(errors) == len(FRAMES) + len(BAD)
    for error in errors:
        detail = error["error"] if isinstance(error["error"], dict) else error
        assert {detail["code"], detail.get("type")} & codes
    assert messages[-1].get("text", messages[-1].get("transcript")) == clip.transcript.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_huge_frame_ends_its_own_connection(engine):
    async def huge(running: Running) -> int:
        async with connected(running) as client:
            await client.receive()
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await client.socket.send("x" * 100_000)
                await client.receive()
            return closed.value.rcvd.code

    with serving(Configured(engine, limits={"message_bytes": 10_000})) as running:
        assert _run(huge(running)) == 1009
    _no_streams(engine)


def _no_streams(engine: Engine) -> None:
    """All slots are free again, soon."""
    until = time.monotonic() + 5
    while engine.stats().streams and time.monotonic() < until:
        time.sleep(0.01)
    assert engine.stats().streams == 0


@pytest.mark.parametrize("is_abrupt", [False, True])
@pytest.mark.parametrize("route", [VLLM, MISTRAL])
def test_a_client_may_leave_after_any_message(server, clips, caplog, route, is_abrupt):
    prefix, end = ("input_audio_buffer", "commit") if route == VLLM else ("input_audio", "end")
    audio = {"type": f"{prefix}.append", "audio": _base64(clips[16_000].pcm[:64_000])}
    messages = [{"type": "session.update"}, audio, audio, {"type": f"{prefix}.{end}", "final": True}]

    async def leave(after: int) -> None:
        async with connected(server, route) as client:
            await client.send(*messages[:after])
            if is_abrupt:
                client.socket.transport.abort()

    for after in range(len(messages) + 1):
        _run(leave(after))
    _check_vllm(_run(_vllm(server, clips[16_000])), clips[16_000])
    _no_streams(server.engine)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_client_that_never_reads_loses_its_connection_alone(engine, clips, caplog):
    def fill(client: socket.socket, address: tuple[str, int]) -> None:
        """Until the server reads no more, since its answers are not taken."""
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.settimeout(1)
        client.connect(address)
        client.sendall(
            f"GET {VLLM} HTTP/1.1\r\nHost: {address[0]}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        with suppress(OSError):
            while True:
                client.sendall(b"\x81\x82\0\0\0\0{}" * 1_000)  # each frame is answered by an error

    with serving(Configured(engine, limits={"send_s": 0.5}), send_buffer_bytes=4_096) as running, socket.socket() as client:
        assert _run(_refused(running, f"{VLLM}?rows=all"))[1] == 1008  # the server has started
        host, port = running.url.removeprefix("http://").split(":")
        thread = threading.Thread(target=fill, args=(client, (host, int(port))))
        thread.start()
        _check_vllm(_run(_vllm(running, clips[16_000])), clips[16_000])
        thread.join(LIMIT_S)
        _no_streams(engine)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            with pytest.raises(ConnectionError):  # a connection that merely stalls is a TimeoutError
                while True:
                    client.sendall(bytes(100_000))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_client_that_sends_too_fast_has_to_wait(small_server, clips):
    clip = clips[16_000]

    async def fast() -> list[dict]:
        async with connected(small_server, f"{VLLM}?events=evoxtral") as client:
            await client.send(*map(_append, _pieces(clip.pcm * 2, 3_200)), {"type": "input_audio_buffer.commit", "final": True})
            return await client.until("transcription.done")

    messages = _run(fast())
    assert max(message["lag_s"] for message in messages if message["type"] == "evoxtral.heard") < 1.5
    assert messages[-2]["transcript"]["duration_s"] == pytest.approx(2 * clip.transcript.duration_s, abs=0.001)


def _only_error(messages: list[dict]) -> tuple[str, str]:
    (error,) = [message for message in messages if message["type"] == "error"]
    detail = error["error"]
    return error.get("code", detail.get("type")), detail["message"] if isinstance(detail, dict) else detail


async def _refused(running: Running, route: str = VLLM, **options) -> tuple[tuple[str, str], int]:
    """((error's code, its message), the code of the close)"""
    async with connected(running, route, **options) as client:
        messages = [json.loads(await client.socket.recv())]
        with pytest.raises(websockets.ConnectionClosed) as closed:
            while True:
                messages.append(await client.receive())
        return _only_error(messages), closed.value.rcvd.code


@pytest.mark.parametrize("route", [VLLM, MISTRAL])
def test_a_full_server_says_so_at_once(small_server, route):
    async def second() -> tuple[tuple[str, str], int]:
        async with connected(small_server) as client:
            await client.receive()
            return await _refused(small_server, route)

    assert _run(second()) == (("server_full", "all 1 streams are in use; connect again later"), 1013)
    _no_streams(small_server.engine)


@pytest.mark.parametrize("option", ["rows=all", "rate=8000", "events=all"])
def test_wrong_options_are_refused(server, option):
    (code, what), closed = _run(_refused(server, f"{VLLM}?{option}"))
    assert (code, closed) == ("invalid_message", 1008)
    assert option.split("=")[0] in what


def test_a_key_is_needed_where_there_is_one(engine, clips):
    with serving(Configured(engine, listen={"api_key": "secret"})) as running:
        (code, _), closed = _run(_refused(running))
        assert (code, closed) == ("unauthorized", 1008)
        assert _run(_refused(running, f"{MISTRAL}?api_key=wrong"))[0][0] == "unauthorized"
        _check_vllm(_run(_vllm(running, clips[16_000], f"{VLLM}?api_key=secret")), clips[16_000])

        async def from_a_browser() -> str:
            protocols = ["realtime", "openai-insecure-api-key.secret"]
            async with connected(running, subprotocols=protocols) as client:
                assert (await client.receive())["type"] == "session.created"
                return client.socket.subprotocol

        assert _run(from_a_browser()) == "realtime"


def test_another_sites_page_is_refused(server):
    (code, _), closed = _run(_refused(server, origin="https://example.org"))
    assert (code, closed) == ("origin_not_allowed", 1008)


def test_an_idle_client_is_closed(engine):
    with serving(Configured(engine, limits={"idle_s": 0.3})) as running:
        (code, what), closed = _run(_refused(running))
    assert (code, what, closed) == ("idle", "nothing was sent for 0.3 s; send audio, or end the session", 1008)
    _no_streams(engine)


def test_a_session_that_is_too_long_ends_with_what_was_heard(small_server, clips):
    async def long() -> list[dict]:
        async with connected(small_server, MISTRAL) as client:
            pieces = _pieces((clips[16_000].pcm + SECOND_OF_SILENCE * 3) * 4)
            sending = asyncio.create_task(
                client.send(*[{"type": "input_audio.append", "audio": _base64(piece)} for piece in pieces])
            )
            messages = await client.rest()
            await asyncio.gather(sending, return_exceptions=True)
            return messages

    messages = _run(long())
    assert [message["type"] for message in messages[-2:]] == ["transcription.done", "error"]
    assert (messages[-2]["code"], messages[-2]["usage"]["prompt_audio_seconds"]) == ("session_too_long", 12)
    assert messages[-2]["text"].startswith(clips[16_000].transcript.text)
    assert _only_error(messages) == ("session_too_long", "a session holds at most 12 s of audio; open a new connection")
    _no_streams(small_server.engine)


def test_a_server_that_shuts_down_finishes_what_it_heard(clips):
    engine = Engine(_config(listen={"port": 0}, live={"streams": 1}))
    engine.start()

    async def interrupted(running: Running) -> list[dict]:
        async with connected(running, MISTRAL) as client:
            pieces = _pieces(clips[16_000].pcm)
            await client.send(*[{"type": "input_audio.append", "audio": _base64(piece)} for piece in pieces])
            messages = await client.until("transcription.text.delta")
            heard = asyncio.create_task(client.rest())
            await asyncio.to_thread(asyncio.run, engine.drain())
            return messages + await heard

    with serving(engine) as running:
        messages = _run(interrupted(running))
    engine.stop()
    assert [message["type"] for message in messages[-2:]] == ["transcription.done", "error"]
    assert messages[-2]["code"] == _only_error(messages)[0] == "shutting_down"
