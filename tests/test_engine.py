"""The engine of `serve`: streams and files on one model, each as if it were alone."""

import asyncio
import json

import numpy as np
import pytest
import soundfile

from conftest import REPO, TINY_BASE
from evoxtral_train.config.serving import ServeConfig
from evoxtral_train.errors import RowError, UsageError
from evoxtral_train.serving.engine import Engine, ServerFull
from evoxtral_train.serving.events import Heard, StreamEnded, TagHeard, TextDelta, UtteranceEnded, UtteranceStarted, WordHeard
from evoxtral_train.serving.streams import LiveStream

TAGGER = REPO / "data" / "tiny-tagger"


@pytest.fixture(scope="module")
def paths(spoken) -> list:
    rows = [json.loads(line) for line in (spoken / "manifest.jsonl").read_text("utf-8").splitlines()]
    return [spoken / row["audio"] for row in rows[:8]]


@pytest.fixture(scope="module")
def clips(paths) -> list[np.ndarray]:
    return [soundfile.read(path, dtype="float32")[0] for path in paths]


def started(adapters, **settings) -> Engine:
    engine = Engine(ServeConfig(adapters=adapters, model={"base": str(TINY_BASE)}, **settings))
    engine.start()
    return engine


@pytest.fixture(scope="module")
def engine():
    engine = started([TAGGER], live={"streams": 9})
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def transcripts(engine, paths) -> list:
    """Of the files, one by one."""

    async def transcribe() -> list:
        return [await engine.transcribe(path) for path in paths]

    return asyncio.run(transcribe())


async def heard(stream: LiveStream, samples: np.ndarray, chunk_samples: int = 1600) -> list:
    """All events of a stream that is fed these samples, as fast as it takes them."""
    events = []

    async def read() -> None:
        async for event in stream.events():
            events.append(event)

    reader = asyncio.create_task(read())
    for start in range(0, len(samples), chunk_samples):
        await stream.feed(samples[start : start + chunk_samples])
    stream.end()
    await reader
    return events


def as_json(transcript) -> dict:
    return transcript.as_json() | {"timings": None}


def test_streams_beside_each_other_give_what_their_files_give(engine, clips, transcripts):
    async def speak() -> list:
        return await asyncio.gather(*[heard(engine.open_stream(), clip, 160 + 640 * n) for n, clip in enumerate(clips)])

    for events, transcript in zip(asyncio.run(speak()), transcripts, strict=True):
        assert as_json(events[-1].transcript) == as_json(transcript)
        assert "".join(event.text for event in events if isinstance(event, TextDelta)) == transcript.text
        assert [event.word.word for event in events if isinstance(event, WordHeard)] == transcript.text.split()
        assert [event.tag for event in events if isinstance(event, TagHeard)] == transcript.tags
        assert isinstance(events[-1], StreamEnded)
        assert (events[-1].code, events[-1].tokens > 20) == (None, True)
    assert sum(len(transcript.tags) for transcript in transcripts) > 5
    assert engine.stats().streams == 0


def test_the_events_of_two_utterances_with_silence_between_them(engine, clips, transcripts):
    """2.2 s of silence: the first ends before the second begins. Its times are on the stream's clock."""
    samples = np.concatenate([clips[0], np.zeros(35_200, np.float32), clips[1]])
    events = [event for event in asyncio.run(heard_alone(engine, samples)) if not isinstance(event, Heard)]
    kinds = [type(event) for event in events if isinstance(event, UtteranceStarted | UtteranceEnded | StreamEnded)]
    assert kinds == [UtteranceStarted, UtteranceEnded, UtteranceStarted, UtteranceEnded, StreamEnded]
    ends = [event for event in events if isinstance(event, UtteranceEnded)]
    assert [end.reason for end in ends] == ["silence", "end"]
    assert ends[0].segment.text == transcripts[0].text
    assert ends[1].segment.start_s == pytest.approx((len(clips[0]) + 35_200) / 16_000, abs=0.4)
    assert events[-1].transcript.merged == " ".join(end.merged for end in ends)


async def heard_alone(engine: Engine, samples: np.ndarray, rows=None) -> list:
    return await heard(engine.open_stream(rows), samples)


def test_a_commit_ends_an_utterance_where_it_is(engine, clips, transcripts):
    async def speak() -> list:
        stream, events = engine.open_stream(), []
        stream.commit()  # nothing was said yet
        for clip in clips[:2]:
            await stream.feed(clip)
            stream.commit()
        stream.commit()
        stream.end()
        async for event in stream.events():
            events.append(event)
        return [event for event in events if isinstance(event, UtteranceEnded)]

    ends = asyncio.run(speak())
    assert [(end.reason, end.segment.text) for end in ends] == [("commit", transcripts[0].text), ("commit", transcripts[1].text)]


def test_rows_of_one_kind_alone(engine, clips, transcripts):
    base = asyncio.run(heard_alone(engine, clips[0], "base"))[-1].transcript
    tags = asyncio.run(heard_alone(engine, clips[0], "adapter"))[-1].transcript
    assert (base.text, base.tags) == (transcripts[0].text, [])
    assert (tags.text, tags.tags) == ("", transcripts[0].tags)
    with pytest.raises(UsageError, match="there are no rows 'all'"):
        asyncio.run(heard_alone(engine, clips[0], "all"))


def test_silence_and_nothing_at_all(engine):
    for samples in (np.zeros(0, np.float32), np.zeros(160_000, np.float32)):
        events = [event for event in asyncio.run(heard_alone(engine, samples)) if not isinstance(event, Heard)]
        assert [type(event) for event in events] == [StreamEnded]
        assert events[0].transcript.segments == []
        assert events[0].transcript.duration_s == len(samples) / 16_000


def test_a_full_server_says_so_and_a_client_that_leaves_frees_its_slot(engine, clips):
    async def fill() -> None:
        streams = [engine.open_stream() for _ in range(9)]
        for stream in streams:
            await stream.feed(clips[0])
        with pytest.raises(ServerFull, match="all 9 streams are in use"):
            engine.open_stream()
        for stream in streams:
            stream.cancel()
            stream.cancel()
        again = [engine.open_stream() for _ in range(9)]
        texts = await asyncio.gather(*[heard(stream, clips[1]) for stream in again])
        assert len({events[-1].transcript.text for events in texts}) == 1

    asyncio.run(fill())
    assert engine.stats().streams == 0


def test_a_session_that_is_too_long_ends_with_what_was_heard(engine, clips, transcripts, monkeypatch):
    config = engine.config.model_copy(update={"limits": engine.config.limits.model_copy(update={"session_s": 20.0})})
    monkeypatch.setattr(engine, "config", config)
    samples = np.concatenate([clips[0], np.zeros(400_000, np.float32)])
    ended = asyncio.run(heard_alone(engine, samples))[-1]
    assert (ended.code, ended.transcript.text, ended.transcript.duration_s) == ("session_too_long", transcripts[0].text, 20.0)


def test_a_stream_that_is_sent_too_fast_waits(engine, clips, monkeypatch):
    """Feeding returns once no more than `queue_s` of audio waits."""
    config = engine.config.model_copy(update={"limits": engine.config.limits.model_copy(update={"queue_s": 1.0})})
    monkeypatch.setattr(engine, "config", config)

    async def rush() -> float:
        stream, most_s = engine.open_stream(), 0.0
        reader = asyncio.create_task(_drained(stream))
        for _ in range(4):
            for start in range(0, len(clips[0]), 8000):
                await stream.feed(clips[0][start : start + 8000])
                most_s = max(most_s, stream.channel.waiting_samples / 16_000)
        stream.end()
        await reader
        return most_s

    assert asyncio.run(rush()) <= 1.1


async def _drained(stream: LiveStream) -> None:
    async for _ in stream.events():
        pass


def test_files_beside_a_stream(engine, paths, clips, transcripts):
    async def both() -> tuple:
        return await asyncio.gather(heard(engine.open_stream(), clips[3]), *[engine.transcribe(path) for path in paths[:3]])

    events, *files = asyncio.run(both())
    assert as_json(events[-1].transcript) == as_json(transcripts[3])
    assert [as_json(file) for file in files] == [as_json(transcript) for transcript in transcripts[:3]]


def test_a_long_file_in_pieces_as_it_is_written(engine, tmp_path, clips, transcripts):
    path = tmp_path / "long.wav"
    quiet = np.zeros(40_000, np.float32)
    soundfile.write(path, np.concatenate([part for clip in clips for part in (clip, quiet)]), 16_000, subtype="FLOAT")
    pieces = []
    transcript = asyncio.run(engine.transcribe(path, on_delta=pieces.append))
    assert "".join(pieces) == transcript.text
    assert len(pieces) > 2 * len(clips)
    assert len(transcript.segments) == len(clips)


def test_a_step_of_the_files_reads_one_long_segment(engine, tmp_path, clips, monkeypatch):
    """Streams wait for it."""
    path, samples = tmp_path / "long.wav", np.tile(np.concatenate(clips), 4)[: 80 * 16_000]
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    encode, step, read = engine._segments._audio._encode, engine._segments._decoder.step, []
    monkeypatch.setattr(engine._segments._decoder, "step", lambda: (read.append(0), step())[1])

    def counted(missing: list[int]) -> None:
        read[-1] += len(missing)
        encode(missing)

    monkeypatch.setattr(engine._segments._audio, "_encode", counted)
    transcript = asyncio.run(engine.transcribe(path))
    assert (max(read), sum(read)) == (1, len(transcript.segments))
    assert len(transcript.segments) > 2


def test_a_cancelled_file_frees_its_rows(engine, paths, transcripts):
    async def cancel() -> None:
        task = asyncio.create_task(engine.transcribe(paths[0]))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert as_json(await engine.transcribe(paths[1])) == as_json(transcripts[1])

    asyncio.run(cancel())
    assert (engine.stats().files, len(engine._segments), engine._segments.are_waiting) == (0, 0, False)


def test_files_that_cannot_be_transcribed(engine, tmp_path, monkeypatch):
    (tmp_path / "noise.wav").write_bytes(b"RIFF of no use")
    with pytest.raises(RowError):
        asyncio.run(engine.transcribe(tmp_path / "noise.wav"))
    soundfile.write(tmp_path / "long.wav", np.zeros(32_000, np.float32), 16_000)
    limits = engine.config.limits.model_copy(update={"upload_s": 1.0})
    monkeypatch.setattr(engine, "config", engine.config.model_copy(update={"limits": limits}))
    with pytest.raises(RowError, match="longer than 1 s"):
        asyncio.run(engine.transcribe(tmp_path / "long.wav"))


def test_a_blank_rut_is_ended_and_counted(engine, monkeypatch):
    """Noise in bursts for 8 s: the base writes nothing. With any margin, that counts after 3 s."""
    live = engine.config.live.model_copy(update={"blank_rut_s": 3.0, "blank_rut_margin": 1e9})
    monkeypatch.setattr(engine, "config", engine.config.model_copy(update={"live": live}))
    samples = (0.05 * np.random.default_rng(0).standard_normal(128_000)).astype(np.float32)
    samples[np.arange(128_000) % 8000 < 3000] = 0.0
    before = engine.stats().blank_ruts_total

    async def speak() -> list[str]:
        stream = engine.open_stream()
        for start in range(0, len(samples), 1280):  # as fast as it is decoded: the end is not known yet
            await stream.feed(samples[start : start + 1280])
            while stream.channel.received_s < (start + 1280) / 16_000 or stream.channel.waiting_samples > 3000:
                await asyncio.sleep(0.001)
        stream.end()
        return [event.reason async for event in stream.events() if isinstance(event, UtteranceEnded)]

    assert asyncio.run(speak()) == ["rut", "rut", "end"]
    assert engine.stats().blank_ruts_total - before == 2


def test_output_that_is_not_finite_ends_that_stream_alone(engine, clips, transcripts):
    """No client can send such samples; weights may be broken."""

    async def speak() -> list:
        bad = np.full(16_000, np.nan, np.float32)
        return await asyncio.gather(heard(engine.open_stream(), bad), heard(engine.open_stream(), clips[0]))

    bad, good = asyncio.run(speak())
    assert bad[-1].code == "internal_error"
    assert as_json(good[-1].transcript) == as_json(transcripts[0])


def test_an_adapter_that_needs_the_whole_utterance(tagging, spoken, paths, clips):
    """Layout deferred: its tags come when the utterance has ended. Stopping finishes what was heard."""
    engine = started([tagging], live={"streams": 1})
    try:

        async def speak() -> tuple:
            transcript = await engine.transcribe(paths[2])
            events = await heard(engine.open_stream(), clips[2])
            stream = engine.open_stream()
            await stream.feed(clips[2])
            draining = asyncio.create_task(engine.drain())
            last = [event async for event in stream.events()][-1]
            await draining
            with pytest.raises(ServerFull, match="the server is shutting down"):
                engine.open_stream()
            return transcript, events[-1].transcript, last

        transcript, live, last = asyncio.run(speak())
        assert as_json(live) == as_json(transcript) == as_json(last.transcript)
        assert len(transcript.tags) > 0
        assert last.code == "shutting_down"
    finally:
        engine.stop()
    assert not engine.is_ready


def test_slots_are_what_fits_into_memory(monkeypatch):
    engine = Engine(ServeConfig(adapters=[TAGGER], model={"base": str(TINY_BASE)}, live={"memory_share": 0.5}))
    monkeypatch.setattr("evoxtral_train.serving.engine._free_bytes", lambda device: 30_000_000)
    engine.start()
    engine.stop()
    assert engine.slots == 3
    too_many = Engine(ServeConfig(model={"base": str(TINY_BASE)}, live={"streams": 1000}))
    with pytest.raises(UsageError, match="1000 live streams need .* GB"):
        too_many.start()


def test_late_rows_hold_back_a_client_that_sends_too_fast_and_no_utterance_is_too_long_for_the_queue(tagging, paths, clips):
    engine = started([tagging], live={"streams": 1}, limits={"queue_s": 1.0})

    async def rush() -> tuple[float, list]:
        stream, most_s = engine.open_stream("adapter"), 0.0
        reader = asyncio.create_task(_all_of(stream))
        samples = np.concatenate([np.concatenate([clip, np.zeros(40_000, np.float32)]) for clip in clips[:4]])
        for start in range(0, len(samples), 1600):
            await stream.feed(samples[start : start + 1600])
            most_s = max(most_s, stream.channel.queued_samples / 16_000)
        stream.end()
        return most_s, await reader

    try:
        most_s, events = asyncio.run(asyncio.wait_for(rush(), 120))
    finally:
        engine.stop()
    ended = [event.segment for event in events if isinstance(event, UtteranceEnded)]
    assert len(ended) == 4
    assert most_s <= max(segment.end_s - segment.start_s for segment in ended) + 0.1


async def _all_of(stream: LiveStream) -> list:
    return [event async for event in stream.events()]


def test_a_client_that_posts_without_end_waits_and_the_others_do_not(engine, clips, transcripts):
    async def beside() -> tuple[int, list]:
        flood, most = engine.open_stream(), 0
        reader = asyncio.create_task(_drained(flood))

        async def post() -> None:
            nonlocal most
            while True:
                flood.commit()
                await flood.feed(np.zeros(1, np.float32))
                most = max(most, len(engine._inbox))
                await asyncio.sleep(0)

        flooding = asyncio.create_task(post())
        events = await asyncio.wait_for(heard(engine.open_stream(), clips[0]), 60)
        flooding.cancel()
        flood.cancel()
        await reader
        return most, events

    most, events = asyncio.run(beside())
    assert most < 500
    assert as_json(events[-1].transcript) == as_json(transcripts[0])


def test_arrivals_are_forgotten_in_silence(engine):
    async def listen() -> int:
        stream = engine.open_stream()
        reader = asyncio.create_task(_drained(stream))
        for _ in range(2000):
            await stream.feed(np.zeros(160, np.float32))
        kept = len(stream.channel._arrivals)
        stream.cancel()
        await reader
        return kept

    assert asyncio.run(listen()) < 1000
