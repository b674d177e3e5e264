"""The server over HTTP: real clients get what `transcribe` writes; whatever else comes is refused in words, and harms nobody."""

import base64
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from mistralai.client import Mistral
from openai import APIStatusError, OpenAI
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from conftest import REPO, TINY_BASE, rows_of
from evoxtral_train.config.serving import ServeConfig
from evoxtral_train.data.audio import read_audio
from evoxtral_train.errors import UsageError
from evoxtral_train.serving.access import AccessDenied, check
from evoxtral_train.serving.forms import Form, TranscriptionForm, read_form
from evoxtral_train.serving.refusals import Refusal
from evoxtral_train.serving.server import listener
from evoxtral_train.transcription.formats import FORMATS
from evoxtral_train.transcription.transcriber import Transcriber
from evoxtral_train.transcription.transcript import Transcript
from serving import Configured, serving


@pytest.fixture(scope="module")
def clip(spoken) -> Path:
    """One whose tags the adapter knows: the first with the most tags."""
    rows = [row for row in rows_of(spoken) if row["split"] == "train"]
    return Path(max(rows, key=lambda row: row["text"].count("["))["audio"])


@pytest.fixture(scope="module")
def expected(server, clip) -> Transcript:
    """What `transcribe` writes for the clip, by another instance of the model."""
    transcript = next(Transcriber(server.config).transcribe([clip]))
    assert transcript.text and transcript.tags_filtered
    return transcript


@pytest.fixture(scope="module")
def openai(server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def mistral(server) -> Mistral:
    return Mistral(server_url=server.url, api_key="none")


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def _post(client: httpx.Client, clip: Path, path: str = "/transcribe", **fields: str) -> httpx.Response:
    return client.post(path, files={"file": (clip.name, clip.read_bytes())}, data=fields)


def _tags(transcript: Transcript) -> list[dict]:
    return transcript.as_json()["tags"]


# Clients


def test_the_openai_client_gets_text_and_tags(openai, clip, expected):
    answer = openai.audio.transcriptions.create(model="evoxtral", file=clip)
    assert answer.text == expected.text
    assert answer.usage.type == "duration" and answer.usage.seconds == pytest.approx(expected.duration_s, abs=1e-3)
    assert answer.tags == _tags(expected) and answer.merged == expected.merged


def test_the_openai_client_gets_every_format(openai, clip, expected):
    def created(**settings):
        return openai.audio.transcriptions.create(model="whisper-1", file=clip, language="en", prompt="hints", **settings)

    assert created(response_format="text") == f"{expected.text}\n"
    assert created(response_format="srt") == FORMATS["srt"](expected)
    assert created(response_format="vtt") == FORMATS["vtt"](expected)
    verbose = created(response_format="verbose_json", timestamp_granularities=["word", "segment"], temperature=0)
    assert (verbose.language, verbose.text, verbose.merged) == ("en", expected.text, expected.merged)
    assert verbose.duration == pytest.approx(expected.duration_s, abs=1e-3)
    assert [word.word for word in verbose.words] == [word.word for word in expected.words]
    assert [word.end for word in verbose.words] == pytest.approx([word.end_s for word in expected.words], abs=1e-3)
    segment = verbose.segments[0]
    assert (segment.id, segment.seek, segment.text, segment.tokens) == (0, 0, expected.segments[0].text, [])
    assert segment.temperature == segment.avg_logprob == segment.no_speech_prob == 0 < segment.compression_ratio
    assert [tag["tag"] for tag in segment.tags] == [tag.tag for tag in expected.tags]
    assert created(response_format="verbose_json").words is None


def test_the_openai_client_gets_a_stream(openai, clip, expected):
    events = list(openai.audio.transcriptions.create(model="evoxtral", file=clip, stream=True))
    assert {event.type for event in events[:-1]} == {"transcript.text.delta"} and events[-1].type == "transcript.text.done"
    assert len(events) > 2
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == expected.text
    assert events[-1].tags == _tags(expected) and events[-1].merged == expected.merged


def test_the_mistral_client_gets_text_and_tags(mistral, clip, expected):
    file = {"file_name": clip.name, "content": clip.read_bytes()}
    answer = mistral.audio.transcriptions.complete(model="voxtral-mini-latest", file=file, language="en")
    assert (answer.model, answer.text, answer.language) == ("evoxtral", expected.text, "en")
    assert answer.additional_properties["tags"] == _tags(expected)
    assert [segment.text for segment in answer.segments] == [segment.text for segment in expected.segments]
    assert answer.usage.prompt_audio_seconds == int(np.ceil(expected.duration_s))
    words = mistral.audio.transcriptions.complete(model="x", file=file, timestamp_granularities=["word"]).segments
    assert [word.text for word in words] == [word.word for word in expected.words]


def test_the_mistral_client_gets_a_stream(mistral, clip, expected):
    file = {"file_name": clip.name, "content": clip.read_bytes()}
    events = [event.data for event in mistral.audio.transcriptions.stream(model="voxtral", file=file)]
    assert {event.type for event in events[:-1]} == {"transcription.text.delta"} and events[-1].type == "transcription.done"
    assert "".join(event.text for event in events[:-1]) == events[-1].text == expected.text
    assert events[-1].additional_properties["merged"] == expected.merged


def test_transcribe_answers_with_all_that_transcribe_writes(client, clip, expected):
    answer = _post(client, clip).json()
    assert answer.pop("timings").keys() == {"seconds"} and answer.pop("model") == "evoxtral"
    content = expected.as_json() | {"file": clip.name}
    del content["timings"]
    assert answer == content


def test_transcribe_stream_sends_tokens_then_the_transcript(client, clip, expected):
    answer = _post(client, clip, "/transcribe/stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert "".join(event["token"] for event in events[:-1]) == events[-1]["text"] == expected.text
    assert events[-1]["done"] is True and events[-1]["transcription"] == expected.merged
    assert events[-1]["tags"] == _tags(expected) and events[-1]["file"] == clip.name


def test_rows_chooses_what_is_decoded(client, clip, expected):
    answer = _post(client, clip, rows="base").json()
    assert (answer["text"], answer["tags"]) == (expected.text, [])


# What the server says about itself


def test_health_ready_and_models(client, server, openai):
    health = client.get("/health").json()
    assert {"status": "ok", "model": "evoxtral", "base": str(TINY_BASE), "streams": 0}.items() <= health.items()
    assert health["adapters"] == ["tiny-tagger"]
    assert client.get("/ready").json() == {"ready": True}
    assert [model.id for model in openai.models.list()] == ["evoxtral"]


def test_metrics_count_answers_and_work(client, clip):
    _post(client, clip)
    client.get("/nowhere")
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#"))
    assert float(lines["evoxtral_ready"]) == 1 and float(lines["evoxtral_slots"]) >= 1
    assert float(lines["evoxtral_audio_seconds_total"]) > 1
    assert float(lines['evoxtral_http_answers_total{method="POST",route="/transcribe",status="200"}']) >= 1
    assert float(lines['evoxtral_http_answers_total{method="GET",route="other",status="404"}']) >= 1
    assert float(lines["process_resident_memory_bytes"]) > 1e6


def test_the_documentation_loads_nothing_from_elsewhere(client):
    page = client.get("/docs")
    assert "/v1/audio/transcriptions" in page.text and "verbose_json" in page.text
    assert "<script" not in page.text and "src=" not in page.text and "https://" not in page.text
    routes = client.get("/openapi.json").json()["paths"]
    assert {"/transcribe", "/transcribe/stream", "/health", "/ready", "/metrics", "/v1/models"} <= routes.keys()
    form = routes["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file"] and "srt" in form["properties"]["response_format"]["enum"]


def test_every_answer_has_the_headers(client):
    for path in ("/health", "/docs", "/nowhere"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "script-src" not in headers["content-security-policy"]


# Refusals


def _error(answer: httpx.Response, status: int, code: str) -> str:
    """The message of an error, after a look at its shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["code"] == code
    return error["message"]


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/transcribe", "/transcribe/stream"])
def test_what_is_no_recording_is_refused(client, path):
    message = _error(client.post(path, files={"file": ("talk.wav", b"no sound at all")}), 400, "invalid_audio")
    assert message.startswith("talk.wav: ") and "/tmp" not in message
    _error(client.post(path, files={"file": ("talk.wav", b"")}), 400, "invalid_audio")
    _error(client.post(path, files={"other": ("talk.wav", b"x")}), 422, "missing_file")
    _error(client.post(path, files={"rows": (None, "both")}), 422, "missing_file")
    _error(client.post(path, json={"file": "talk.wav"}), 415, "not_a_form")
    _error(client.post(path, content=b"junk", headers={"content-type": "multipart/form-data"}), 400, "invalid_form")
    _error(
        client.post(path, content=b"junk", headers={"content-type": "multipart/form-data; boundary=x"}), 400, "invalid_form"
    )
    two = [("file", ("a.wav", b"x")), ("file", ("b.wav", b"x"))]
    _error(client.post(path, files=two), 400, "invalid_form")


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"response_format": "xml"}, "response_format: 'xml' is not known; use json, text, srt, vtt or verbose_json"),
        ({"temperature": "0.5"}, "temperature: decoding is greedy; send 0, or leave it out"),
        ({"diarize": "true"}, "diarize: the model does not tell speakers apart; send false, or leave it out"),
        ({"timestamp_granularities[]": "line"}, "timestamp_granularities: 'line' is not known; use word or segment"),
        ({"rows": "all"}, "rows: 'all' is not known; use base, adapter or both"),
        ({"respons_format": "json"}, "unknown field 'respons_format'; did you mean response_format?"),
        ({"stream": "true", "response_format": "srt"}, "stream: true answers with events, not as srt; leave one of the two out"),
    ],
)
def test_unknown_fields_and_values_are_refused_with_the_known_ones(sent, message):
    with pytest.raises(Refusal) as refused:
        read_form(TranscriptionForm, [*sent.items()])
    assert (refused.value.status, refused.value.message) == (422, message)


def test_forms_take_lists_and_leave_out_what_is_empty():
    sent = [("timestamp_granularities[]", value) for value in ("word", "segment")] + [("language", ""), ("stream", "false")]
    form = read_form(TranscriptionForm, sent)
    assert form.timestamp_granularities == ["word", "segment"] and form.language is None and not form.stream
    with pytest.raises(Refusal, match="sent twice"):
        read_form(Form, [("rows", "base"), ("rows", "both")])


def test_a_bad_value_reaches_the_openai_client_as_an_error(openai, clip):
    with pytest.raises(APIStatusError) as refused:
        openai.audio.transcriptions.create(model="evoxtral", file=clip, temperature=0.5)
    assert refused.value.status_code == 422 and "greedy" in refused.value.message


def test_unknown_addresses_and_methods_are_refused(client):
    _error(client.post("/v1/audio/translations"), 404, "not_found")
    _error(client.get("/transcribe"), 405, "http_error")
    _error(client.get("/../pyproject.toml"), 404, "not_found")


# Limits


@pytest.fixture(scope="module")
def narrow(server):
    """The same engine behind narrow limits."""
    limits = {"upload_bytes": 3_000_000, "uploads": 1, "idle_s": 1.0}
    with serving(Configured(server.engine, limits=limits)) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


def test_a_file_that_is_too_large_is_refused_while_it_is_read(narrow, clip):
    big = {"file": ("big.wav", bytes(4_000_000))}
    message = _error(narrow.post("/transcribe", files=big), 413, "file_too_large")
    assert message == "the file is larger than 3,000,000 bytes, this server's limit; send it in parts"
    _error(narrow.post("/transcribe", files={"file": ("big.wav", bytes(3_000_001))}), 413, "file_too_large")
    with socket.create_connection((narrow.base_url.host, narrow.base_url.port), timeout=20) as connection:
        connection.sendall(b"POST /transcribe HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n")
        connection.sendall(b"Content-Type: multipart/form-data; boundary=x\r\n\r\n")
        header = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for part in (header, bytes(2_000_000), bytes(2_000_000)):
            connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        assert b" 413 " in connection.recv(4096)  # and the body has not ended
    assert _post(narrow, clip).status_code == 200


def test_a_length_that_lies_is_refused(narrow, clip):
    with socket.create_connection((narrow.base_url.host, narrow.base_url.port), timeout=20) as connection:
        connection.sendall(b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n")
        connection.sendall(b"Content-Type: multipart/form-data; boundary=x\r\n\r\n")
        connection.sendall(b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(1000))
        assert b" 422 " in connection.recv(4096)
    assert _post(narrow, clip).status_code == 200


def test_too_many_files_are_refused_and_a_silent_sender_frees_its_place(narrow, clip):
    with socket.create_connection((narrow.base_url.host, narrow.base_url.port), timeout=20) as connection:
        connection.sendall(b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n")
        connection.sendall(b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n")
        time.sleep(0.2)
        refused = _post(narrow, clip)
        _error(refused, 503, "server_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert b" 408 " in connection.recv(4096)  # after idle_s
    assert _post(narrow, clip).status_code == 200


def test_a_client_that_leaves_frees_its_place(server, narrow, clip, tmp_path):
    samples, rate_hz = soundfile.read(clip)
    soundfile.write(tmp_path / "long.flac", np.tile(samples[:: rate_hz // 8000], 60), 8000)
    file = {"file": ("long.flac", (tmp_path / "long.flac").read_bytes())}
    read_s = httpx.Timeout(10, read=0.3)
    for path in ("/transcribe", "/transcribe/stream"):
        with pytest.raises(httpx.ReadTimeout), narrow.stream("POST", path, files=file, timeout=read_s) as answer:
            assert server.engine.stats().files == 1
            next(answer.iter_raw())  # of a stream
            raise httpx.ReadTimeout("the answer has begun")
        until = time.monotonic() + 5
        while server.engine.stats().files:
            assert time.monotonic() < until, "the job was not cancelled"
            time.sleep(0.02)
    assert _post(narrow, clip).status_code == 200


# Access


def _config(host: str = "127.0.0.1", key: str | None = None, origins: tuple[str, ...] = ()) -> ServeConfig:
    return ServeConfig(listen={"host": host, "api_key": key, "allowed_origins": list(origins)})


def _denied(config: ServeConfig, headers: dict, query: dict | None = None) -> int | None:
    try:
        check(config, headers, query or {})
    except AccessDenied as denied:
        return denied.status
    return None


def test_the_key_may_come_in_three_ways(monkeypatch):
    monkeypatch.delenv("EVOXTRAL_API_KEY", raising=False)
    assert _denied(_config(), {}) is None
    config = _config(key="schlüssel")
    sent = "schlüssel".encode().decode("latin-1")
    assert _denied(config, {}) == 401
    assert _denied(config, {"authorization": "Bearer wrong"}) == _denied(config, {"authorization": f"Basic {sent}"}) == 401
    assert _denied(config, {"authorization": f"Bearer {sent}"}) is None
    assert _denied(config, {}, {"api_key": "schlüssel"}) is None
    assert _denied(config, {"sec-websocket-protocol": f"realtime, openai-insecure-api-key.{sent}"}) is None
    monkeypatch.setenv("EVOXTRAL_API_KEY", "k")
    assert _denied(_config(), {}) == 401 and _denied(_config(), {"authorization": "Bearer k"}) is None


def test_pages_from_elsewhere_are_refused(monkeypatch):
    monkeypatch.delenv("EVOXTRAL_API_KEY", raising=False)
    own = {"origin": "http://localhost:8000", "host": "localhost:8000"}
    assert _denied(_config(), own) is None
    assert _denied(_config(), {"origin": "https://evil.example", "host": "localhost:8000"}) == 403
    assert _denied(_config(), {"origin": "http://localhost:9000", "host": "localhost:8000"}) == 403
    assert _denied(_config(), {"origin": "null", "host": "localhost:8000"}) == 403
    assert _denied(_config(), {"origin": "http://[bad", "host": "[bad"}) == 403
    assert _denied(_config(origins=("https://my.example",)), {"origin": "https://my.example", "host": "localhost:8000"}) is None
    assert _denied(_config(origins=("*",)), {"origin": "https://evil.example"}) is None


def test_a_foreign_name_that_points_here_is_refused(monkeypatch):
    monkeypatch.delenv("EVOXTRAL_API_KEY", raising=False)
    rebound = {"origin": "http://evil.example:8000", "host": "evil.example:8000"}
    assert _denied(_config(), rebound) == 403
    assert _denied(_config(host="0.0.0.0"), rebound) is None  # a machine in the network has a name
    assert _denied(_config(key="k"), rebound | {"authorization": "Bearer k"}) is None


@pytest.fixture(scope="module")
def locked(server):
    listen = {"port": 0, "api_key": "k", "allowed_origins": ["https://my.example"]}
    with serving(Configured(server.engine, listen=listen)) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


def test_a_key_guards_all_but_the_pages_and_the_health(locked, clip):
    for path in ("/v1/models", "/metrics", "/v1/models?api_key=wrong"):
        _error(locked.get(path), 401, "unauthorized")
    for path in ("/v1/audio/transcriptions", "/transcribe", "/transcribe/stream"):
        _error(_post(locked, clip, path), 401, "unauthorized")
    for path in ("/health", "/ready", "/docs", "/openapi.json"):
        assert locked.get(path).status_code == 200
    key = {"Authorization": "Bearer k"}
    assert locked.get("/v1/models?api_key=k").status_code == locked.get("/metrics", headers=key).status_code == 200
    answer = locked.post("/transcribe", files={"file": clip.read_bytes()}, headers=key)
    assert answer.status_code == 200


def test_allowed_pages_are_told_so_by_cors(locked, clip):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    asked |= {"Origin": "https://my.example"}
    preflight = locked.options("/transcribe", headers=asked)
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == "https://my.example"
    assert locked.options("/transcribe", headers=asked | {"Origin": "https://evil.example"}).status_code == 400
    foreign = {"Origin": "https://evil.example", "Authorization": "Bearer k"}
    _error(locked.post("/transcribe", files={"file": clip.read_bytes()}, headers=foreign), 403, "origin_not_allowed")
    allowed = locked.get("/v1/models", headers=foreign | {"Origin": "https://my.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://my.example"


# The process


@pytest.mark.slow  # a process with a model of its own
def test_sigterm_finishes_what_was_heard(clip, expected, tmp_path):
    """A file that is being transcribed and a stream without an end, both when the signal comes."""
    samples, rate_hz = soundfile.read(clip)
    soundfile.write(tmp_path / "long.flac", np.tile(samples[:: rate_hz // 8000], 40), 8000)
    pcm = (read_audio(clip, 30) * 32767).astype("<i2").tobytes()
    command = [sys.executable, "-m", "evoxtral_train.cli", "serve", "configs/serve.yaml", "--base", "data/tiny-base"]
    command += ["--adapter", "data/tiny-tagger", "--port", "0"]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = next(line for line in process.stdout if line.startswith("ready: ")).split()[1]
            with ThreadPoolExecutor() as pool, connect(url.replace("http", "ws", 1) + "/v1/realtime") as stream:
                file = {"file": (tmp_path / "long.flac").read_bytes()}
                answer = pool.submit(httpx.post, f"{url}/transcribe", files=file, timeout=60)
                stream.send(json.dumps({"type": "session.update", "model": "evoxtral"}))
                stream.send(json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm).decode()}))
                while not httpx.get(f"{url}/health").json()["files"]:
                    time.sleep(0.02)
                process.terminate()
                events = []
                with pytest.raises(ConnectionClosed) as closed:
                    while True:
                        events.append(json.loads(stream.recv(timeout=30)))
                assert len(answer.result().json()["text"]) > 20 * len(expected.text)
            assert process.wait(timeout=30) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "shutting_down")
    done = next(event for event in events if event["type"] == "transcription.done")
    assert (done["text"], done["code"]) == (expected.text, "shutting_down")


@pytest.mark.slow
def test_a_signal_while_the_model_loads_ends_the_command_in_order():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "evoxtral_train.cli", "serve", "--base", "data/tiny-base", "--port", str(port)]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while True:
                with suppress(httpx.TransportError):
                    assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=30).json()["status"] == "starting"
                    break
                time.sleep(0.02)
            process.terminate()
            assert process.wait(timeout=60) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_a_port_in_use_ends_the_command_in_one_line(server, call):
    port = server.url.rsplit(":", 1)[1]
    result = call("serve", "configs/serve.yaml", "--base", TINY_BASE, "--adapter", REPO / "data/tiny-tagger", "--port", port)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: listen: cannot listen on 127.0.0.1:{port}: ") and result.stderr.count("\n") == 1

def test_a_port_in_use_is_named(server):
    port = int(server.url.rsplit(":", 1)[1])
    with pytest.raises(UsageError, match=rf"^listen: cannot listen on 127.0.0.1:{port}: .* — choose another port with --port"):
        listener(server.config.listen.model_copy(update={"port": port}))
    with pytest.raises(UsageError, match="set listen.host to this machine's address"):
        listener(server.config.listen.model_copy(update={"host": "192.0.2.1"}))
