"""Faults that other servers have had (docs/serving.md): none kills, stalls or slows another client of the running server.

Beside every fault a witness speaks a clip, faster than real time. It must get the clip's text and tags, and its lag must stay
near that of the same witness alone, just before. A busy machine may slow it once, but not three times in a row.
"""

import asyncio
import base64
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import soundfile
import websockets

from conftest import REPO
from evoxtral_train.serving import server as server_module
from evoxtral_train.serving.engine import Engine
from evoxtral_train.transcription.transcript import Transcript
from serving import Configured, Running, config_of, serving, serving_anew

ROUTE = "/v1/realtime?rate=16000"
APPEND, END = "input_audio_buffer.append", {"type": "input_audio_buffer.commit", "final": True}
PIECE_SAMPLES = 1280  # 80 ms
QUEUE_S = 6.0
SLOTS = 20


@dataclass(frozen=True)
class Clip:
    samples: np.ndarray
    path: Path
    transcript: Transcript

    @property
    def tags(self) -> list[str]:
        return [tag.tag for tag in self.transcript.tags]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    limits = {"queue_s": QUEUE_S, "send_s": 2.0}
    with serving_anew(config_of(REPO / "data/tiny-tagger", live={"streams": SLOTS}, limits=limits)) as running:
        yield running


@pytest.fixture(scope="module")
def clips(running, spoken, tmp_path_factory) -> list[Clip]:
    """Held-out clips as PCM16, shortest first, and what `transcribe` writes for their files."""
    folder, found = tmp_path_factory.mktemp("clips"), []
    for path in sorted((spoken / "audio").glob("test-*.flac")):
        samples, rate_hz = soundfile.read(path, dtype="float32")
        assert rate_hz == 16_000
        copy = folder / f"{path.stem}.wav"
        soundfile.write(copy, samples, rate_hz, subtype="PCM_16")
        found.append(Clip(soundfile.read(copy, dtype="float32")[0], copy, asyncio.run(running.engine.transcribe(copy))))
    return sorted(found, key=lambda clip: len(clip.samples))


@pytest.fixture(scope="module")
def clip(clips) -> Clip:
    """The witness speaks it: the shortest that has a tag."""
    return next(clip for clip in clips if clip.tags and clip.transcript.text)


@pytest.fixture(autouse=True)
def _all_is_well_afterwards(running, caplog):
    """All slots and files are free, the engine lives, and nothing was logged as an error."""
    yield
    engine = running.engine
    _wait_until_idle(engine)
    decoder = engine._decoder
    assert (len(decoder._free_slots), len(set(decoder._free_rows))) == (SLOTS, 2 * SLOTS)
    assert engine.is_ready
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def _wait_until_idle(engine: Engine) -> None:
    until = time.monotonic() + 10
    while (held := [*engine._streams, *engine._live, *engine._segments._jobs]) or engine.stats().files:
        assert time.monotonic() < until, held
        time.sleep(0.02)


# Clients


def _append(samples: np.ndarray) -> str:
    pcm = np.round(np.clip(samples, -1, 32767 / 32768) * 32768).astype("<i2").tobytes()
    return json.dumps({"type": APPEND, "audio": base64.b64encode(pcm).decode()})


def _pieces(samples: np.ndarray, size: int = PIECE_SAMPLES) -> list[str]:
    return [_append(samples[start : start + size]) for start in range(0, len(samples), size)]


@asynccontextmanager
async def connected(running: Running, route: str = ROUTE, **options) -> AsyncIterator[websockets.ClientConnection]:
    async with websockets.connect(running.websocket_url + route, max_size=None, **options) as connection:
        try:
            await connection.recv()  # session.created
            yield connection
        finally:
            connection.transport.abort()


@dataclass
class Heard:
    """All messages of a session; `lag_s`: audio that was sent and not decoded when the server said how far it was, at most."""

    messages: list[dict]
    lag_s: float = 0.0

    def of(self, kind: str) -> list[dict]:
        return [message for message in self.messages if message["type"] == kind]

    @property
    def text(self) -> str:
        return self.messages[-1]["text"]

    @property
    def tags(self) -> list[str]:
        return [tag["tag"] for tag in self.messages[-1]["tags"]]

    @property
    def transcript(self) -> dict:
        return self.of("evoxtral.ended")[-1]["transcript"]


async def speak(running: Running, samples: np.ndarray, times_real: float, pieces: int = PIECE_SAMPLES) -> Heard:
    """One session. `times_real`: how fast it speaks; infinite: as fast as the server reads."""
    sent_s, heard = 0.0, Heard([])
    async with connected(running, f"{ROUTE}&events=evoxtral", ping_interval=None) as connection:

        async def read() -> None:
            while not heard.messages or heard.messages[-1]["type"] != "transcription.done":
                heard.messages.append(json.loads(await connection.recv()))
                if heard.messages[-1]["type"] == "evoxtral.heard":
                    heard.lag_s = max(heard.lag_s, sent_s - heard.messages[-1]["decoded_s"])

        reader, begun = asyncio.create_task(read()), time.monotonic()
        for start in range(0, len(samples), pieces):
            piece = samples[start : start + pieces]
            await asyncio.sleep(max(begun + (start + len(piece)) / 16_000 / times_real - time.monotonic(), 0))
            await connection.send(_append(piece))
            sent_s += len(piece) / 16_000
        await connection.send(json.dumps(END))
        await reader
    return heard


FAST = float("inf")


async def witness(running: Running, clip: Clip) -> float:
    """Speaks the clip at 1.5 times real time, and gets its text and tags. Returns its lag."""
    heard = await speak(running, clip.samples, 1.5)
    assert (heard.text, heard.tags) == (clip.transcript.text, clip.tags)
    return heard.lag_s


Fault = Callable[[Running, "Sounds"], Coroutine]


@dataclass(frozen=True)
class Sounds:
    """What faulty clients send."""

    speech: np.ndarray  # a minute
    file: bytes  # the same, as a wav


@pytest.fixture(scope="module")
def sounds(clips, tmp_path_factory) -> Sounds:
    speech, path = _joined(clips, 60), tmp_path_factory.mktemp("sounds") / "minute.wav"
    soundfile.write(path, speech, 16_000, subtype="PCM_16")
    return Sounds(speech, path.read_bytes())


def _joined(clips: list[Clip], seconds: int, pauses_s: tuple[float, float] | None = (0.5, 1.5)) -> np.ndarray:
    """Clips in random order; between them, silence that is too short to end an utterance."""
    random, parts, count = np.random.default_rng(7), [], seconds * 16_000
    while sum(map(len, parts)) < count:
        parts.append(clips[random.integers(len(clips))].samples)
        if pauses_s is not None:
            parts.append(np.zeros(int(random.uniform(*pauses_s) * 16_000), np.float32))
    return np.concatenate(parts)[:count]


# Faulty clients. Each goes on until it is cancelled.


async def leaves_after_each_message(running: Running, sounds: Sounds) -> None:
    messages = [json.dumps({"type": "session.update", "model": "any"}), *_pieces(sounds.speech[:80_000], 16_000), json.dumps(END)]
    while True:
        for count in range(len(messages) + 1):
            async with connected(running) as connection:
                for message in messages[:count]:
                    await connection.send(message)
                await asyncio.sleep(0.02 * (count % 3))  # before, while and after the server reads it


async def garbage(running: Running, sounds: Sounds) -> None:
    bad_audio = json.dumps({"type": APPEND, "audio": "*"})
    frames = ["", "{", b"\0\1", "[]", '{"type": 7}', '{"type": "none"}', "[" * 100_000, bad_audio]
    while True:
        async with connected(running) as connection:
            for frame in frames * 5:
                await connection.send(frame)
                assert json.loads(await connection.recv())["type"] == "error"


async def huge_frames(running: Running, sounds: Sounds) -> None:
    most = running.config.limits.message_bytes
    while True:
        async with connected(running) as connection:
            await connection.send("x" * (most + 1))
            assert "message_too_large" in await connection.recv()
            with suppress(websockets.ConnectionClosed):
                await connection.send("x" * (2 * most + 1))
                await connection.recv()
            assert connection.close_code == 1009


async def never_commits(running: Running, sounds: Sounds) -> None:
    """It hears text all the same."""
    async with connected(running) as connection:
        for piece in _pieces(sounds.speech[:160_000]):
            await connection.send(piece)
            await asyncio.sleep(0.01)
        while json.loads(await connection.recv())["type"] != "transcription.delta":
            pass
        await asyncio.Event().wait()


async def empty_commits(running: Running, sounds: Sounds) -> None:
    commit = json.dumps({"type": "input_audio_buffer.commit"})
    while True:
        for first in (json.dumps({"type": "session.update", "session": {}}), json.dumps({"type": "session.update"})):
            async with connected(running) as connection:
                await connection.send(first)
                for _ in range(200):
                    await connection.send(commit)
                await connection.send(json.dumps(END))
                with suppress(TimeoutError):
                    while True:
                        async with asyncio.timeout(0.2):  # wait_for of Python 3.11 can lose a cancellation
                            await connection.recv()


async def never_reads(running: Running, sounds: Sounds) -> None:
    """Asks for answers until the server's are taken no more, and waits to be closed."""
    while True:
        with socket.socket() as client, suppress(OSError):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            await _flood(running, client)


async def floods_garbage(running: Running, sounds: Sounds) -> None:
    """The same, but it reads the answers."""
    while True:
        with socket.socket() as client, suppress(OSError):
            flooding = asyncio.create_task(_flood(running, client))
            try:
                await asyncio.sleep(0.1)
                while await asyncio.get_running_loop().sock_recv(client, 2**20):
                    pass
            finally:
                flooding.cancel()


async def _flood(running: Running, client: socket.socket) -> None:
    """The smallest frames that must be answered."""
    host, port = running.url.removeprefix("http://").split(":")
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, (host, int(port)))
    key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    hello = f"GET /v1/realtime HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}"
    await loop.sock_sendall(client, hello.encode())
    while True:
        await loop.sock_sendall(client, b"\x81\x82\0\0\0\0{}" * 500)
        await asyncio.sleep(0.001)


async def reads_slowly(running: Running, sounds: Sounds) -> None:
    """One message a second."""
    async with connected(running, f"{ROUTE}&events=evoxtral", max_queue=1) as connection:
        for piece in _pieces(sounds.speech):
            await connection.send(piece)
            await asyncio.sleep(0.02)
            if np.random.default_rng().random() < 0.02:
                await connection.recv()


async def sends_too_fast(running: Running, sounds: Sounds) -> None:
    """The longest messages that are allowed: 20 s each."""
    async with connected(running, ping_interval=None) as connection:
        while True:
            for piece in _pieces(sounds.speech, 320_000):
                await connection.send(piece)


async def many_tiny_messages(running: Running, sounds: Sounds) -> None:
    """A sample in each."""
    async with connected(running, ping_interval=None) as connection:
        piece = _append(np.zeros(1, np.float32))
        while True:
            for _ in range(100):
                await connection.send(piece)
            await asyncio.sleep(0.01)


async def sends_silence(running: Running, sounds: Sounds) -> None:
    """Ten minutes, as fast as the server reads."""
    while True:
        await speak(running, np.zeros(600 * 16_000, np.float32), FAST, 32_000)


async def is_held_back_and_leaves(running: Running, sounds: Sounds) -> None:
    while True:
        async with connected(running, ping_interval=None) as connection:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    for piece in _pieces(sounds.speech, 16_000) * 100:
                        await connection.send(piece)


async def leaves_uploads(running: Running, sounds: Sounds) -> None:
    """In the middle of the form, before the answer, and in the middle of its events."""
    host, port = running.url.removeprefix("http://").split(":")
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + sounds.file + b"\r\n--x--\r\n"
    head = f"HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(form)}\r\n\r\n"
    while True:
        for path, sent, answered in (("", 0.5, 0), ("", 1, 0), ("/stream", 1, 1)):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"POST /transcribe{path} {head}".encode() + form[: int(sent * len(form))])
            await writer.drain()
            await (reader.readexactly(answered) if answered else asyncio.sleep(0.2))
            writer.transport.abort()


async def uploads(running: Running, sounds: Sounds) -> None:
    """A minute of speech again and again, two at a time."""
    host, port = running.url.removeprefix("http://").split(":")
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + sounds.file + b"\r\n--x--\r\n"
    head = f"HTTP/1.0\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(form)}\r\n\r\n"

    async def upload() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST /transcribe {head}".encode() + form)
        assert b" 200 " in await reader.readline()
        await reader.read()
        writer.close()

    while True:
        await asyncio.gather(upload(), upload())


FAULTS = [
    leaves_after_each_message, garbage, huge_frames, never_commits, empty_commits, never_reads, floods_garbage, reads_slowly,
    sends_too_fast, many_tiny_messages, sends_silence, is_held_back_and_leaves, leaves_uploads, uploads,
]  # fmt: skip


async def persist(fault: Fault, running: Running, sounds: Sounds) -> None:
    """Those who have left may still have a slot for a moment."""
    while True:
        try:
            await fault(running, sounds)
        except websockets.ConnectionClosed as closed:
            if closed.rcvd is None or closed.rcvd.reason != "server_full":
                raise
            await asyncio.sleep(0.1)


async def compare(running: Running, clip: Clip, sounds: Sounds, faults: tuple[Fault, ...]) -> tuple[float, float]:
    """The witness's lag alone and beside the faults."""
    alone_s = await witness(running, clip)
    tasks = [asyncio.create_task(persist(fault, running, sounds)) for fault in faults]
    await asyncio.sleep(0.5)
    beside_s = await witness(running, clip)
    for task in tasks:
        if task.done():
            task.result()
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=1)  # again: a library may have lost the cancellation
    return alone_s, beside_s


def check_lag(running: Running, clip: Clip, sounds: Sounds, *faults: Fault, spare_s: float = 0.5) -> None:
    """At most twice that of the witness alone and `spare_s`, at least once in three times."""
    found = []
    while len(found) < 3 and not (found and found[-1][1] <= 2 * found[-1][0] + spare_s):
        _wait_until_idle(running.engine)
        found.append(asyncio.run(compare(running, clip, sounds, faults)))
    print(f"\n{', '.join(fault.__name__ for fault in faults)}: {found}")
    assert found[-1][1] <= 2 * found[-1][0] + spare_s, found


def test_all_of_them_at_once(running, clip, sounds):
    """Several of them have audio to be decoded as fast as the server can: each frame waits for a frame of theirs."""
    check_lag(running, clip, sounds, *FAULTS, spare_s=3)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_one_alone(running, clip, sounds, fault):
    check_lag(running, clip, sounds, fault)


def test_a_client_that_does_not_answer_pings_in_time_is_not_closed(running, clip, monkeypatch):
    """Its interpreter is busy for many pings."""
    monkeypatch.setattr(server_module, "_PING_S", 0.1)

    async def busy(again: Running) -> str:
        async with connected(again) as connection:
            for piece in _pieces(clip.samples):
                await connection.send(piece)
            time.sleep(1)
            await connection.send(json.dumps(END))
            while (message := json.loads(await connection.recv()))["type"] != "transcription.done":
                pass
            return message["text"]

    with serving(Configured(running.engine)) as again:
        assert asyncio.run(busy(again)) == clip.transcript.text


def test_a_client_that_leaves_while_it_is_held_back_frees_its_slot(running, sounds, monkeypatch):
    """At once, and not when all that it sent has been decoded, in real time here."""
    step = running.engine._decoder.step
    monkeypatch.setattr(running.engine._decoder, "step", lambda utterances: (time.sleep(0.08), step(utterances)))

    async def leave() -> float:
        async with connected(running, ping_interval=None) as connection:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    for piece in _pieces(sounds.speech, 320_000) * 10:
                        await connection.send(piece)
        left = time.monotonic()
        while running.engine.stats().streams:
            await asyncio.sleep(0.01)
        return time.monotonic() - left

    assert asyncio.run(leave()) < QUEUE_S / 2


# Minutes


@dataclass
class Watched:
    """What the engine holds, after each live step: the most of it."""

    waiting_s: float = 0.0
    recent_s: float = 0.0
    arrivals: int = 0
    events: int = 0
    position: int = 0
    step_cpu_s: list[float] = field(default_factory=list)


@pytest.fixture
def watched(running, monkeypatch) -> Watched:
    """Looked at by the engine's own thread, once a turn."""
    engine, watched = running.engine, Watched()
    obey, step = engine._obey, engine._decoder.step

    def look() -> None:
        obey()
        for stream in engine._live:
            channel = stream.channel
            held = (stream._fed - channel.received_samples + channel.waiting_samples) / 16_000
            watched.waiting_s = max(watched.waiting_s, held)
            watched.recent_s = max(watched.recent_s, sum(map(len, channel._recent)) / 16_000)
            watched.arrivals = max(watched.arrivals, len(channel._arrivals))
            watched.events = max(watched.events, stream._events.qsize())

    def timed(utterances) -> None:
        begun = time.thread_time()
        step(utterances)
        watched.step_cpu_s.append(time.thread_time() - begun)
        watched.position = max(watched.position, *(utterance.position for utterance in utterances))

    monkeypatch.setattr(engine, "_obey", look)
    monkeypatch.setattr(engine._decoder, "step", timed)
    return watched


SILENCE = np.zeros(600 * 16_000, np.float32)


@pytest.mark.parametrize("level", [0.0, 0.0003], ids=["digital", "noise"])
def test_ten_minutes_of_silence_and_then_a_clip(running, clip, watched, level, tmp_path):
    """In pieces of 0.1 s. Nothing is decoded, nothing is held, and the clip is heard like one alone."""
    noise = (level * np.random.default_rng(1).standard_normal(len(SILENCE))).astype(np.float32)
    samples = np.concatenate([noise, clip.samples])
    soundfile.write(tmp_path / "long.wav", samples, 16_000, subtype="FLOAT")
    offline = asyncio.run(running.engine.transcribe(tmp_path / "long.wav"))
    heard = asyncio.run(speak(running, samples, FAST, 1_600))
    assert (heard.text, heard.tags) == (offline.text, [tag.tag for tag in offline.tags])
    assert heard.tags == clip.tags
    (segment,) = heard.transcript["segments"]
    assert segment["start_s"] == pytest.approx(600, abs=0.5)
    assert len(watched.step_cpu_s) < len(clip.samples) / PIECE_SAMPLES + 100
    assert (watched.recent_s < 6, watched.arrivals < 300, watched.waiting_s < QUEUE_S + 0.2) == (True, True, True), watched


@pytest.mark.slow
@pytest.mark.limit(1800)
def test_twenty_minutes_of_speech(running, clips, clip, watched):
    """Two clients, as fast as the server takes it: clips joined by pauses that end no utterance, and without a pause. A witness
    speaks meanwhile. Memory and the time of a step stay as they are, and all of the audio is in a segment."""
    longest_tokens = running.engine._sizes(running.engine._decoder._network, running.engine._decoder._settings)[0]
    process, rss = psutil.Process(), []
    long = {pauses_s: _joined(clips, 1200, pauses_s) for pauses_s in ((0.5, 1.5), None)}

    async def both() -> tuple[list[Heard], list[float]]:
        speaking = [asyncio.create_task(speak(running, samples, FAST, 3_200)) for samples in long.values()]
        lags = []
        while not all(task.done() for task in speaking):
            rss.append(process.memory_info().rss)
            lags.append(await witness(running, clip))
            await asyncio.sleep(1)
        return [task.result() for task in speaking], lags

    heard, lags = asyncio.run(both())
    for session in heard:
        transcript, ends = session.transcript, session.of("evoxtral.utterance.ended")
        segments = transcript["segments"]
        assert (transcript["duration_s"], session.of("evoxtral.ended")[0]["code"]) == (1200.0, None)
        assert [segment["start_s"] for segment in segments] == [end["segment"]["start_s"] for end in ends]
        assert {end["reason"] for end in ends} <= {"length", "end", "silence"}
        for one, next_one in zip(segments, segments[1:], strict=False):
            assert one["end_s"] <= next_one["start_s"] + 1e-6 < one["end_s"] + 3
        assert segments[0]["start_s"] < 1 < 1198 < segments[-1]["end_s"] <= 1200
        assert all(0 < segment["end_s"] - segment["start_s"] <= 30 for segment in segments)
        assert all(len(segment["text"]) > 20 for segment in segments[:-1])
        words = " ".join(segment["text"] for segment in segments)
        assert transcript["text"] == session.text == words
        assert "".join(message["delta"] for message in session.of("transcription.delta")) == words
        tokens = session.of("evoxtral.ended")[0]["tokens"]
        most = running.engine._decoder._settings.max_new_tokens  # after the audio, in each of two rows
        assert tokens <= 2 * (1200 / 0.08 + most * len(segments))
    assert watched.position < longest_tokens
    assert watched.waiting_s < QUEUE_S + 3  # an utterance begins a little before its first sound
    assert (watched.recent_s < 6, watched.arrivals < 300, watched.events < 1000) == (True, True, True), watched
    quarter = len(watched.step_cpu_s) // 4
    first, last = (np.median(times) for times in (watched.step_cpu_s[:quarter], watched.step_cpu_s[-quarter:]))
    grown = max(rss[-len(rss) // 4 :]) - max(rss[: len(rss) // 4])
    print(f"\nsteps {len(watched.step_cpu_s):,}, CPU time of one {first * 1e3:.1f} ms, later {last * 1e3:.1f} ms; memory grew by "
          f"{grown / 1e6:.0f} MB; witness: lag {np.median(lags):.2f} s, at most {max(lags):.2f} s; {watched.position=} of "
          f"{longest_tokens}; {[len(session.transcript['segments']) for session in heard]} segments")  # fmt: skip
    assert last <= 1.3 * first
    assert grown < 50e6


@pytest.mark.slow
@pytest.mark.limit(1200)
def test_a_file_of_twenty_minutes_beside_a_stream(running, clips, clip, tmp_path, monkeypatch):
    """Its steps come between those of the stream. Each reads one segment at most."""
    path, samples, took_s = tmp_path / "long.wav", _joined(clips, 1200), []
    soundfile.write(path, samples, 16_000, subtype="PCM_16")
    step = running.engine._segments._decoder.step

    def timed() -> list:
        begun = time.thread_time()
        completions = step()
        took_s.append(time.thread_time() - begun)
        return completions

    monkeypatch.setattr(running.engine._segments._decoder, "step", timed)

    async def upload() -> dict:
        async with httpx.AsyncClient(timeout=1100) as client:
            return (await client.post(f"{running.url}/transcribe", files={"file": path.read_bytes()})).json()

    async def both() -> tuple[dict, float, list[float]]:
        alone_s, uploading, lags = await witness(running, clip), asyncio.create_task(upload()), []
        while not uploading.done():
            lags.append(await witness(running, clip))
        return uploading.result(), alone_s, lags

    answer, alone_s, lags = asyncio.run(both())
    assert answer["duration_s"] == 1200.0
    assert answer["segments"][-1]["end_s"] > 1195
    print(f"\n{len(took_s):,} steps of the file, at most {max(took_s):.2f} s CPU time; the stream's lag alone {alone_s:.2f} s, "
          f"beside it {np.median(lags):.2f} s, at most {max(lags):.2f} s")  # fmt: skip
    assert np.median(lags) <= 2 * alone_s + 0.5
