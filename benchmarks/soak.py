"""A server under load for half an hour: does it grow, slow down or lose anything?

`evoxtral serve` in a process of its own, with one thread, and real clients over real sockets:

    4 speakers     speak demo clips in real time with pauses between them, in all three dialects; connect anew every few clips
    a visitor      vanishes in the middle of a word, sends garbage, says nothing
    uploads        a file now and then; its text must always be the same

Checked: memory and the median step grow by at most 10% from the first third to the last, after a warm-up; every clip is heard by
an utterance, in order, and nothing that was heard is lost; the texts of a stream are those of its events; the server ends with 0
on SIGTERM. Exit code 1 if something fails. Of each third, the fastest minute's step counts: other work can only add to it.

    OMP_NUM_THREADS=1 python benchmarks/soak.py [--minutes 30] [--json docs/serving-soak.json] [--document docs/benchmarks.md]
"""

import argparse
import asyncio
import base64
import json
import os
import re
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from measuring import machine
from speech import Clip, Placed, account, quiet, read_clips
from studies import filled
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from evoxtral_train.files import write_atomic
from evoxtral_train.reporting.tables import markdown_table
from evoxtral_train.units import SAMPLE_RATE_HZ

SPEAKERS, CLIPS, QUIET_S, CHUNKS_S = 4, (3, 12), (2.2, 4.0), (0.02, 0.04, 0.08, 0.1)
VISIT_S, UPLOAD_S, SAMPLE_S, FINISH_S = (10.0, 30.0), 30.0, 5.0, 30.0
MOST_GROWTH, WARM_UP = 1.10, 0.1
GARBAGE = (
    "{", "[]", '"text"', b"\x00" * 100, '{"type": "no such type"}', '{"type": "input_audio_buffer.append"}',
    '{"type": "input_audio_buffer.append", "audio": "no base64"}', '{"type": "input_audio_buffer.commit", "final": "perhaps"}',
    json.dumps({"type": "input_audio_buffer.append", "audio": "A" * 1_500_000}),
)  # fmt: skip


@dataclass(frozen=True)
class Dialect:
    """`first` and `last`: what a client sends around its audio; after OpenAI's `last`, the client leaves."""

    path: str
    first: dict
    append: str
    last: dict
    has_end: bool = True


DIALECTS = {
    "vllm": Dialect(
        "/v1/realtime", {"type": "session.update", "model": "evoxtral"}, "input_audio_buffer.append",
        {"type": "input_audio_buffer.commit", "final": True},
    ),
    "openai": Dialect(
        "/v1/realtime?rate=16000", {"type": "session.update", "session": {"type": "transcription"}}, "input_audio_buffer.append",
        {"type": "input_audio_buffer.commit"}, has_end=False,
    ),
    "mistral": Dialect(
        "/v1/audio/transcriptions/realtime", {"type": "session.update", "session": {}}, "input_audio.append",
        {"type": "input_audio.end"},
    ),
}  # fmt: skip


def message_of(dialect: Dialect, samples: np.ndarray) -> str:
    pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    return json.dumps({"type": dialect.append, "audio": base64.b64encode(pcm).decode()})


@dataclass
class Session:
    """What was said on a connection, and what was heard."""

    name: str
    placed: list[Placed] = field(default_factory=list)
    sent_s: float = 0.0
    started: list[int] = field(default_factory=list)
    ended: list[dict] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    transcript: dict | None = None
    decoded_s: float = 0.0
    begun: float = 0.0  # when the first sample was sent, on time.monotonic
    lags_s: list[float] = field(default_factory=list)  # from the end of a word or tag in the audio to its event
    errors: list[str] = field(default_factory=list)

    def receive(self, message: dict) -> None:
        match message["type"]:
            case "evoxtral.utterance.started":
                self.started.append(message["utterance"])
            case "evoxtral.text":
                number = message["utterance"]
                self.texts[number] = self.texts.get(number, "") + message["delta"]
            case "evoxtral.word" | "evoxtral.tag":
                at_s = message["end_s"] if message["type"] == "evoxtral.word" else message["at_s"]
                self.lags_s.append(time.monotonic() - self.begun - at_s)
            case "evoxtral.utterance.ended":
                self.ended.append(message)
            case "evoxtral.heard":
                self.decoded_s = message["decoded_s"]
            case "evoxtral.ended":
                self.transcript = message["transcript"]
            case "error":
                self.errors.append(json.dumps(message))

    @property
    def is_heard(self) -> bool:
        """Whether all that was sent has been heard."""
        return len(self.started) == len(self.ended) and bool(self.ended) and self.decoded_s >= self.sent_s - 0.01

    def faults(self) -> list[str]:
        faults = [f"the server sent {error}" for error in self.errors]
        numbers = [message["utterance"] for message in self.ended]
        if not self.started == numbers == list(range(len(numbers))):
            faults.append(f"utterances {self.started} began, {numbers} ended")
        texts = [message["segment"]["text"] for message in self.ended]
        if texts != [self.texts.get(number, "") for number in numbers]:
            faults.append("an utterance's text is not that of its events")
        if self.transcript is not None and self.transcript["text"] != " ".join(filter(None, texts)):
            faults.append("the transcript's text is not that of its utterances")
        starts = [message["segment"]["start_s"] for message in self.ended]
        if starts != sorted(starts):
            faults.append("the utterances are not in order")
        done = account(self.placed, [(message["segment"]["start_s"], message["segment"]["end_s"]) for message in self.ended])
        if done.lost or done.extra:
            faults.append(f"{done.lost} clips were not heard, {done.extra} utterances are of no clip")
        return [f"{self.name}: {fault}" for fault in faults]


class Soak:
    def __init__(self, address: str, clips: Sequence[Clip], minutes: float, pid: int):
        self.address, self.clips, self.pid = address, clips, pid
        self.begun, self.until = time.monotonic(), time.monotonic() + minutes * 60
        self.sessions: list[Session] = []
        self.samples: list[dict[str, float]] = []
        self.visits, self.uploads = Counter(), Counter()
        self.faults: list[str] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(SPEAKERS):
                tasks.create_task(self._speaker(number))
            tasks.create_task(self._visitor())
            async with httpx.AsyncClient(base_url=self.address, timeout=60) as client:
                await asyncio.gather(self._upload(client), self._watch(client))
        async with httpx.AsyncClient(base_url=self.address) as client:
            left = metrics_in((await client.get("/metrics")).text)
        if left["evoxtral_streams_open"] or left["evoxtral_files_open"]:
            self.faults.append(f"{left['evoxtral_streams_open']:g} streams and {left['evoxtral_files_open']:g} files are left")

    @property
    def left_s(self) -> float:
        return self.until - time.monotonic()

    async def _speaker(self, number: int) -> None:
        random = np.random.default_rng([0, number])
        await asyncio.sleep(random.uniform(0, 3))
        while self.left_s > 20:
            name = list(DIALECTS)[int(random.integers(len(DIALECTS)))]
            session = Session(f"speaker {number}, session {len(self.sessions)}, {name}")
            self.sessions.append(session)
            try:
                await self._speak(session, DIALECTS[name], random, float(random.choice(CHUNKS_S)))
            except (OSError, ConnectionClosed, TimeoutError) as error:
                self.faults.append(f"{session.name}: {type(error).__name__}: {error}")
            self.faults += session.faults()
            await asyncio.sleep(random.uniform(0, 1))

    def _connect(self, path: str) -> connect:
        joint = "&" if "?" in path else "?"
        return connect(f"{self.address.replace('http', 'ws', 1)}{path}{joint}events=evoxtral", max_size=2**24, compression=None)

    async def _speak(self, session: Session, dialect: Dialect, random: np.random.Generator, chunk_s: float) -> None:
        """Some clips, with quiet between them."""
        async with self._connect(dialect.path) as socket:
            listening = asyncio.create_task(self._listen(session, socket))
            await socket.send(json.dumps(dialect.first))
            for _ in range(int(random.integers(*CLIPS))):
                if session.placed:
                    await self._send(session, socket, dialect, quiet(random.uniform(*QUIET_S)), chunk_s)
                clip = self.clips[int(random.integers(len(self.clips)))]
                session.placed.append(Placed(clip, session.sent_s))
                await self._send(session, socket, dialect, clip.samples, chunk_s)
                if self.left_s < 15:
                    break
            await socket.send(json.dumps(dialect.last))
            async with asyncio.timeout(FINISH_S):
                while not (session.is_heard if not dialect.has_end else session.transcript):
                    await asyncio.sleep(0.05)
            listening.cancel()

    async def _send(
        self, session: Session, socket: ClientConnection, dialect: Dialect, samples: np.ndarray, chunk_s: float
    ) -> None:
        """In real time: a chunk is sent when its last sample has been spoken."""
        session.begun = session.begun or time.monotonic()
        for start in range(0, len(samples), round(chunk_s * SAMPLE_RATE_HZ)):
            chunk = samples[start : start + round(chunk_s * SAMPLE_RATE_HZ)]
            session.sent_s += len(chunk) / SAMPLE_RATE_HZ
            await asyncio.sleep(session.begun + session.sent_s - time.monotonic())
            await socket.send(message_of(dialect, chunk))

    async def _listen(self, session: Session, socket: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            async for message in socket:
                session.receive(json.loads(message))

    async def _visitor(self) -> None:
        random, visits = np.random.default_rng(1), [self._vanish, self._send_garbage, self._say_nothing]
        while self.left_s > 40:
            await asyncio.sleep(random.uniform(*VISIT_S))
            visit = visits[int(random.integers(len(visits)))]
            self.visits[visit.__name__.strip("_").replace("_", " ")] += 1
            with suppress(ConnectionClosed):  # the server may end it
                await visit(random)

    async def _vanish(self, random: np.random.Generator) -> None:
        """In the middle of a clip, without closing the connection."""
        dialect = DIALECTS["vllm"]
        async with self._connect(dialect.path) as socket:
            clip = self.clips[int(random.integers(len(self.clips)))]
            await socket.send(message_of(dialect, clip.samples[: len(clip.samples) // 2]))
            await asyncio.sleep(random.uniform(0, 1))
            socket.transport.abort()

    async def _send_garbage(self, random: np.random.Generator) -> None:
        async with self._connect(list(DIALECTS.values())[int(random.integers(len(DIALECTS)))].path) as socket:
            for message in random.permutation(np.array(GARBAGE, object)):
                await socket.send(message)
                await asyncio.sleep(0.05)

    async def _say_nothing(self, random: np.random.Generator) -> None:
        async with self._connect(list(DIALECTS.values())[int(random.integers(len(DIALECTS)))].path):
            await asyncio.sleep(random.uniform(0, 10))

    async def _upload(self, client: httpx.AsyncClient) -> None:
        files, texts = [clip.file for clip in self.clips[:5]], {}
        while self.left_s > 20:
            path = files[self.uploads.total() % len(files)]
            answer = await client.post("/transcribe", files={"file": (path.name, path.read_bytes())})
            self.uploads[answer.status_code] += 1
            merged = answer.json().get("merged")
            if answer.status_code != 200 or texts.setdefault(path, merged) != merged:
                self.faults.append(f"{path.name}: {answer.status_code}, {answer.text[:200]}")
            await asyncio.sleep(UPLOAD_S)

    async def _watch(self, client: httpx.AsyncClient) -> None:
        while self.left_s > 0:
            values = metrics_in((await client.get("/metrics")).text)
            self.samples.append(values | {"at_s": time.monotonic() - self.begun})
            await asyncio.sleep(SAMPLE_S)


def metrics_in(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(evoxtral_\S+|process_\S+) (\S+)$", text, re.MULTILINE)}


STEP, LAG = 'evoxtral_step_seconds{quantile="0.5"}', 'evoxtral_lag_seconds{{quantile="{}"}}'


def by_minute(samples: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Medians of each minute."""
    minutes: dict[int, list[dict[str, float]]] = {}
    for sample in samples:
        if STEP in sample:
            minutes.setdefault(int(sample["at_s"] // 60), []).append(sample)
    rows = []
    for minute, among in minutes.items():
        middle = {name: statistics.median(sample[name] for sample in among) for name in among[0] if name in among[-1]}
        used = {name: among[-1][name] - among[0][name] for name in ("process_cpu_seconds_total", "evoxtral_audio_seconds_total")}
        rows.append({
            "minute": minute + 1, "memory_mb": round(middle["process_resident_memory_bytes"] / 1e6, 1),
            "step_ms": round(middle[STEP] * 1000, 2), "lag_p50_ms": round(middle[LAG.format("0.5")] * 1000, 1),
            "lag_p95_ms": round(middle[LAG.format("0.95")] * 1000, 1),
            "cpu_s_per_audio_s": round(used["process_cpu_seconds_total"] / max(used["evoxtral_audio_seconds_total"], 1e-9), 3),
            "open_files": middle["process_open_fds"],
        })  # fmt: skip
    return rows


def thirds(
    rows: Sequence[dict[str, float]], name: str, of: Callable[[list[float]], float] = statistics.median
) -> tuple[float, float]:
    """Of the first and the last third of the minutes, after the warm-up."""
    values = [row[name] for row in rows[max(1, round(len(rows) * WARM_UP)) :]]
    third = max(len(values) // 3, 1)
    return of(values[:third]), of(values[-third:])


def summary_of(soak: Soak, rows: Sequence[dict[str, float]], minutes: float) -> dict:
    sessions = soak.sessions
    accounts = [account(each.placed, [(one["segment"]["start_s"], one["segment"]["end_s"]) for one in each.ended])
                for each in sessions]  # fmt: skip
    lags = [lag for session in sessions for lag in session.lags_s]
    return {
        "machine": machine(), "minutes": minutes, "sessions": len(sessions),
        "dialects": dict(Counter(session.name.rpartition(" ")[2] for session in sessions)),
        "clips": sum(len(session.placed) for session in sessions),
        "utterances": sum(len(session.ended) for session in sessions),
        "reasons": dict(Counter(message["reason"] for session in sessions for message in session.ended)),
        "lost": sum(each.lost for each in accounts), "extra": sum(each.extra for each in accounts),
        "split": sum(each.split for each in accounts), "joined": sum(each.joined for each in accounts),
        "words_outside": sum(each.words_outside for each in accounts),
        "events_outside": sum(each.events_outside for each in accounts),
        "visits": dict(soak.visits), "uploads": soak.uploads.total(),
        "memory_mb": thirds(rows, "memory_mb"),
        "step_ms": thirds(rows, "step_ms", min), "median_step_ms": thirds(rows, "step_ms"),
        "cpu_s_per_audio_s": thirds(rows, "cpu_s_per_audio_s"),
        "lag_p50_ms": statistics.median(row["lag_p50_ms"] for row in rows),
        "lag_p95_ms": statistics.median(row["lag_p95_ms"] for row in rows),
        "worst_minute_lag_p95_ms": max(row["lag_p95_ms"] for row in rows),
        "word_to_client_p50_s": round(float(np.quantile(lags, 0.5)), 3),
        "word_to_client_p95_s": round(float(np.quantile(lags, 0.95)), 3),
        "faults": soak.faults, "per_minute": rows,
    }  # fmt: skip


def table_of(summary: dict) -> str:
    def change(name: str, unit: str) -> str:
        first, last = summary[name]
        return f"{first:g} → {last:g} {unit}: {100 * (last / first - 1):+.1f}%"

    lines = [
        ["memory (resident set), first → last third", change("memory_mb", "MB")],
        ["median step of the fastest minute, first → last third", change("step_ms", "ms")],
        ["median step of the median minute", change("median_step_ms", "ms")],
        ["CPU time per second of audio, first → last third", change("cpu_s_per_audio_s", "s")],
        ["lag from a frame's arrival to its tokens: p50, p95", f"{summary['lag_p50_ms']:g}, {summary['lag_p95_ms']:g} ms"],
        ["p95 of the worst minute", f"{summary['worst_minute_lag_p95_ms']:g} ms"],
        ["from the end of a word or tag to its event at the client: p50, p95",
         f"{summary['word_to_client_p50_s']:g}, {summary['word_to_client_p95_s']:g} s"],
        ["sessions; clips spoken; utterances ended",
         f"{summary['sessions']}; {summary['clips']}; {summary['utterances']}"],
        ["clips lost, split, joined; utterances of no clip",
         f"{summary['lost']}, {summary['split']}, {summary['joined']}; {summary['extra']}"],
        ["words and events outside of an utterance", f"{summary['words_outside']}, {summary['events_outside']}"],
        ["bad visits", ", ".join(f"{count} × {name}" for name, count in sorted(summary["visits"].items()))],
        ["uploads, all with the same text as before", f"{summary['uploads']}"],
        ["faults", f"{len(summary['faults'])}"],
    ]  # fmt: skip
    return markdown_table([f"{summary['minutes']:g} minutes, {SPEAKERS} streams", ""], lines)


async def start(base: Path, adapter: Path, log: Path) -> tuple[asyncio.subprocess.Process, str]:
    """The server, and its address."""
    words = ["serve", "configs/serve.yaml", "--base", str(base), "--adapter", str(adapter), "--port", "0"]
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "evoxtral_train.cli", *words, stdout=asyncio.subprocess.PIPE, stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        )  # fmt: skip
    async for line in process.stdout:
        if found := re.search(rb"ready: (\S+)", line):
            return process, found[1].decode()
    raise SystemExit(f"the server did not start\n{log.read_text('utf-8')[-2000:]}")


async def measure(arguments: argparse.Namespace) -> dict:
    arguments.log.parent.mkdir(parents=True, exist_ok=True)
    process, address = await start(arguments.base, arguments.adapter, arguments.log)
    try:
        soak = Soak(address, read_clips(arguments.manifest, "test"), arguments.minutes, process.pid)
        await soak.run()
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            code = await process.wait()
    if code:
        soak.faults.append(f"the server ended with {code}")
    if "Traceback" in (log := arguments.log.read_text("utf-8")):
        soak.faults.append(f"the server's log has a traceback:\n{log[-2000:]}")
    summary = summary_of(soak, by_minute(soak.samples), arguments.minutes)
    for name in ("memory_mb", "step_ms"):
        first, last = summary[name]
        if last > MOST_GROWTH * first:
            soak.faults.append(f"{name} grew from {first:g} to {last:g}")
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--base", type=Path, default=Path("data/tiny-base"))
    parser.add_argument("--adapter", type=Path, default=Path("data/tiny-tagger"))
    parser.add_argument("--manifest", type=Path, default=Path("runs/demo/data/manifest.jsonl"))
    parser.add_argument("--log", type=Path, default=Path("runs/soak/server.log"))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--document", type=Path, help="Markdown file whose table `soak` to update")
    arguments = parser.parse_args()
    summary = asyncio.run(measure(arguments))
    section = f"{table_of(summary)}\n\n{summary['machine']}, date and threads of the client; the server has one thread."
    print(section)
    if arguments.json:
        write_atomic(arguments.json, json.dumps(summary, indent=1) + "\n")
    if arguments.document:
        write_atomic(arguments.document, filled(arguments.document.read_text("utf-8"), {"soak": section}))
    if summary["faults"]:
        print(*summary["faults"], sep="\n", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
