"""`data synth --engine elevenlabs` through the official SDK, against a local stand-in of the service.

Nothing here has talked to ElevenLabs itself: what the stand-in answers is what the SDK's types and errors say.
"""

import io
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
import soundfile

from conftest import REPO
from evoxtral_train.synthesis import elevenlabs

TEXTS = ["[whispers] come closer.", "[laughs] no way!", "plain words.", "[sighs] again.", "the last one.", "plain words."]


class StandIn:
    """POST /v1/text-to-speech/{voice}: MP3 or PCM. `script`: text -> statuses to answer before the audio."""

    def __init__(self):
        self.requests, self.script, self.active, self.most_at_once = [], {}, 0, 0
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802
                owner.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, handler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        place = urlparse(handler.path)
        with self.lock:
            self.active += 1
            self.most_at_once = max(self.most_at_once, self.active)
            voice, query = place.path.rpartition("/")[2], parse_qs(place.query)
            self.requests.append((body["text"], voice, handler.headers["xi-api-key"], query["output_format"][0], body))
            waiting = self.script.get(body["text"], [])
            status = waiting.pop(0) if waiting else 200
        threading.Event().wait(0.05)
        content, kind = self.audio(body["text"], query["output_format"][0]), "audio/mpeg"
        if status == "cut":  # the connection is lost half way
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content[: len(content) // 2])
            handler.wfile.flush()
            handler.connection.close()
        else:
            if status != 200:
                content, kind = (
                    json.dumps({"detail": {"status": "x", "message": f"answer {status}"}}).encode(),
                    "application/json",
                )
            handler.send_response(status)
            handler.send_header("Content-Type", kind)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        with self.lock:
            self.active -= 1

    def audio(self, text: str, output_format: str) -> bytes:
        codec, rate_hz = output_format.split("_")[:2]
        tone = 0.3 * np.sin(2 * np.pi * (200 + len(text)) * np.arange(int(rate_hz)) / int(rate_hz)).astype(np.float32)
        if codec == "pcm":
            return (tone * 32767).astype("<i2").tobytes()
        buffer = io.BytesIO()
        soundfile.write(buffer, tone, int(rate_hz), format="MP3")
        return buffer.getvalue()


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(elevenlabs, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(elevenlabs, "_LONGEST_WAIT_S", 0.05)
    monkeypatch.setenv("ELEVENLABS_API_KEY", "secret")
    found = StandIn()
    yield found
    found.server.shutdown()


@pytest.fixture
def synth(service, call, tmp_path):
    path = tmp_path / "scripts.jsonl"
    path.write_text("".join(json.dumps({"id": f"s{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS)), "utf-8")

    def synth(*options, **settings):
        everything = {
            "output": tmp_path / "out", "scripts": path, "voices": "[ann, bob]", "elevenlabs.base_url": service.url,
            "elevenlabs.paid_audio": tmp_path / "paid", "elevenlabs.max_characters": 1000, "tracking.mode": "disabled",
        } | {key.replace("__", "."): value for key, value in settings.items()}  # fmt: skip
        overrides = [part for key, value in everything.items() for part in ("--set", f"{key}={value}")]
        return call("data", "synth", REPO / "configs/synth.yaml", "--engine", "elevenlabs", *overrides, *options)

    return synth


def rows(tmp_path, name="manifest.jsonl") -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out" / name).read_text("utf-8").splitlines()]


def test_it_speaks_every_script_and_cycles_the_voices(synth, service, tmp_path):
    result = synth()
    assert result.exit_code == 0, result.stderr
    manifest = rows(tmp_path)
    assert [row["text"] for row in manifest] == TEXTS
    assert [row["speaker"] for row in manifest] == ["ann", "bob"] * 3
    assert {row["source"] for row in manifest} == {"elevenlabs eleven_v3"}
    for row in manifest:
        samples, rate_hz = soundfile.read(tmp_path / "out" / row["audio"])
        assert rate_hz == 16_000
        assert len(samples) == pytest.approx(16_000, abs=2_000)
        peak_hz = np.argmax(np.abs(np.fft.rfft(samples[2_000:10_000]))) * 2
        assert peak_hz == pytest.approx(200 + len(row["text"]), abs=2), "each row has its own audio"
    _, _, key, output_format, body = service.requests[0]
    assert (key, output_format, body["model_id"], body["seed"]) == ("secret", "mp3_44100_128", "eleven_v3", 0)
    assert {text for text, *_ in service.requests} == set(TEXTS), "tags and all: v3 acts them"


def test_the_same_text_and_voice_are_paid_for_once(synth, service, tmp_path):
    assert synth(voices="[ann]").exit_code == 0
    assert Counter(text for text, *_ in service.requests) == Counter(set(TEXTS))
    assert len(rows(tmp_path)) == 6


def test_a_plan_first_and_a_limit_and_nothing_paid_twice(synth, service, tmp_path):
    characters = sum(len(text) for text in TEXTS)
    plan = synth("--dry-run", elevenlabs__usd_per_1000_characters=0.5, elevenlabs__max_characters=0)
    assert plan.exit_code == 0, plan.stderr
    assert f"6 requests, {characters} characters (tags included)" in plan.stdout
    assert f"{characters * 0.5 / 1000:.2f} USD" in plan.stdout
    refused = synth(elevenlabs__max_characters=characters - 1)
    assert refused.exit_code == 2
    assert f"{characters} characters, but only {characters - 1} are allowed" in refused.stderr
    assert service.requests == []
    assert not (tmp_path / "out").exists()
    assert synth(elevenlabs__max_characters=characters).exit_code == 0
    assert len(service.requests) == 6
    again = synth("--overwrite", elevenlabs__max_characters=0)
    assert again.exit_code == 0, again.stderr
    assert len(service.requests) == 6
    assert "0 requests, 0 characters" in again.stdout


def test_a_busy_service_is_asked_again(synth, service, tmp_path):
    service.script = {TEXTS[0]: [429, 503, "cut"], TEXTS[1]: [500]}
    result = synth()
    assert result.exit_code == 0, result.stderr
    asked = Counter(text for text, *_ in service.requests)
    assert (asked[TEXTS[0]], asked[TEXTS[1]], asked[TEXTS[3]]) == (4, 2, 1)
    assert len(rows(tmp_path)) == 6


def test_no_more_requests_at_once_than_asked_for(synth, service):
    assert synth(elevenlabs__concurrent_requests=2).exit_code == 0
    assert service.most_at_once == 2


def test_when_it_stays_away_what_came_is_kept_and_resume_goes_on(synth, service, tmp_path):
    service.script = {TEXTS[3]: [503] * 3}
    stopped = synth(elevenlabs__max_retries=2, elevenlabs__concurrent_requests=1)
    assert stopped.exit_code == 1
    assert "ElevenLabs still answers 503 after 2 retries: answer 503 — resume later with --resume" in stopped.stderr
    before = Counter(text for text, *_ in service.requests)
    kept = len(list((tmp_path / "paid").iterdir()))
    assert kept >= 3
    result = synth("--resume")
    assert result.exit_code == 0, result.stderr
    assert len(service.requests) - before.total() == 6 - kept
    assert len(rows(tmp_path)) == 6


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, 2, "ELEVENLABS_API_KEY: ElevenLabs: the key is not accepted, or its credits are used up: answer 401"),
        (402, 2, "payment is required"),
        (404, 2, "voices: ElevenLabs does not know the voice"),
    ],
)
def test_what_stops_everything(synth, service, status, code, message):
    service.script = {text: [status] for text in TEXTS}
    result = synth()
    assert result.exit_code == code
    assert message in result.stderr
    assert "secret" not in result.stderr


def test_a_refused_text_is_rejected_and_the_others_go_on(synth, service, tmp_path):
    service.script = {TEXTS[1]: [400]}
    result = synth()
    assert result.exit_code == 0, result.stderr
    assert [row["id"] for row in rows(tmp_path)] == ["s0", "s2", "s3", "s4", "s5"]
    [rejected] = rows(tmp_path, "rejected.jsonl")
    assert (rejected["id"], rejected["reason"]) == ("s1", "ElevenLabs refused the text (400): answer 400")


def test_pcm_is_read_at_its_rate(synth, tmp_path):
    assert synth(elevenlabs__output_format="pcm_24000").exit_code == 0
    samples, rate_hz = soundfile.read(tmp_path / "out" / rows(tmp_path)[0]["audio"])
    assert (len(samples), rate_hz) == (16_000, 16_000)


def test_without_key_or_voices(synth, monkeypatch):
    result = synth(voices="null")
    assert result.exit_code == 2
    assert "engine elevenlabs needs voices" in result.stderr
    monkeypatch.delenv("ELEVENLABS_API_KEY")
    result = synth()
    assert result.exit_code == 2
    assert "no key for ElevenLabs" in result.stderr
