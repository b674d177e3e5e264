"""What a base, an adapter, a dataset and a config may not do to a machine, and what never leaves it (SECURITY.md)."""

import http.server
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from evoxtral_train.config.sections import Section, Tracking
from evoxtral_train.files import fingerprint_files
from evoxtral_train.plain_text import code, escape_markdown, one_line, without_places
from evoxtral_train.reporting.tables import per_tag_table
from evoxtral_train.synthesis import elevenlabs
from evoxtral_train.tracking import Tracker

REPO = Path(__file__).parents[2]
TINY_BASE = REPO / "data" / "tiny-base"
EVOXTRAL = Path(sys.executable).with_name("evoxtral")
HOSTILE = (
    "corpus\n## Results\n\n| micro F1 | 0.987 |\n|---|---|\n\n<b>0.987</b> [0.987](https://evil.example) `x` www.evil.example"
)


def evoxtral(*arguments, **settings) -> subprocess.CompletedProcess:
    """The command in a process of its own, with someone at the keyboard who says yes to everything."""
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
    command = [str(each) for each in (EVOXTRAL, *arguments, *overrides)]
    return subprocess.run(command, cwd=REPO, input="y\n" * 9, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def base(tmp_path) -> Path:
    """The tiny base, to be made hostile."""
    shutil.copytree(TINY_BASE, tmp_path / "base")
    return tmp_path / "base"


class Payload:
    """Pickled, it writes a file when it is opened."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.write_text, (self.marker, "code was run"))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer_config.json"])
@pytest.mark.slow
def test_a_base_that_brings_code_is_refused_and_nobody_is_asked(base, clip_row, write_manifest, tmp_path, name):
    marker, path = tmp_path / "code-was-run", base / name
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    classes = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer", "AutoFeatureExtractor")
    content |= {"model_type": "mine", "auto_map": {each: "mine.Mine" for each in classes}}
    for key in ("processor_class", "feature_extractor_type", "tokenizer_class"):
        content.pop(key, None)
    path.write_text(json.dumps(content), "utf-8")
    (base / "mine.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Mine: pass\n", "utf-8")
    manifest = write_manifest([clip_row("a")])
    packs = evoxtral("data", "pack", "configs/demo/pack.yaml", manifest=manifest, base=base, output=tmp_path / "packed")
    plans = evoxtral("sft", "configs/demo/sft.yaml", "--dry-run", model__base=base, output=tmp_path / "sft")
    for done in (packs, plans):
        assert done.returncode == 2, done.stderr
        assert f"{path}: this base contains Python code (`auto_map`), which evoxtral does not run" in done.stderr
        assert "[y/N]" not in done.stdout + done.stderr
    assert not marker.exists()
    assert not (tmp_path / "packed").exists()


@pytest.fixture
def evaluate(packed, call, tmp_path):
    def evaluate(**settings):
        settings = {"dataset": packed["deferred"], "output": tmp_path / "eval", "tracking.mode": "disabled"} | {
            "systems": "[{name: base}]", "model.dtype": "float32", "decode.max_new_tokens": 1, "bootstrap.samples": 10,
        } | {key.replace("__", "."): value for key, value in settings.items()}  # fmt: skip
        return call("eval", REPO / "configs/demo/eval-sft.yaml", *(p for k, v in settings.items() for p in ("--set", f"{k}={v}")))

    return evaluate


def test_weights_that_are_a_pickle_are_not_opened(base, evaluate, tmp_path):
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "code-was-run")))
    result = evaluate(model__base=base)
    assert result.exit_code == 2
    assert "pickled weights (*.bin) can run code and are not opened: convert them to safetensors" in result.stderr
    assert not (tmp_path / "code-was-run").exists()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}', "utf-8")
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "code-was-run")))
    result = evaluate(systems=f"[{{name: a, adapter: {adapter}}}]")
    assert result.exit_code == 2
    assert "its weights are pickled (adapter_model.bin), which can run code" in result.stderr
    assert not (tmp_path / "code-was-run").exists()


def test_only_lora_is_an_adapter_and_no_adapter_is_a_base(base, evaluate, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").touch()
    for content, reason in (
        ('{"peft_type": "XLORA", "adapters": {"0": "/somewhere/else"}}', "is an adapter of type 'XLORA', not LoRA"),
        ("[" * 100_000, "cannot be read: RecursionError"),
        ("[]", "cannot be read: TypeError"),
    ):
        (adapter / "adapter_config.json").write_text(content, "utf-8")
        result = evaluate(systems=f"[{{name: a, adapter: {adapter}}}]")
        assert (result.exit_code, reason in result.stderr) == (2, True), result.stderr
    # transformers opens the base that such a file names, in place of the folder
    (base / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}', "utf-8")
    result = evaluate(model__base=base)
    assert result.exit_code == 2
    assert "is an adapter, not a base" in result.stderr


def test_a_loading_script_of_a_dataset_is_not_run(call, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "corpus.py").write_text(f"open({str(tmp_path / 'code-was-run')!r}, 'w')\n", "utf-8")
    sets = (f"source.path={folder}", "source.kind=hub", f"output={tmp_path / 'out'}", "tracking.mode=disabled")
    result = call("data", "import", REPO / "configs/import.yaml", *(part for each in sets for part in ("--set", each)))
    assert result.exit_code == 2
    assert "Dataset scripts are no longer supported" in result.stderr
    assert not (tmp_path / "code-was-run").exists()


@pytest.fixture
def release(demo, call, tmp_path):
    """`export` from a manifest, tags and records that are hostile, in folders whose place nobody should learn: the folder that
    it writes."""

    def release(*overrides) -> Path:
        runs = tmp_path / "secret-place"
        unneeded = shutil.ignore_patterns("wandb", "checkpoints", "audio-cache")
        shutil.copytree(demo / "runs", runs, ignore=unneeded, dirs_exist_ok=True)
        rows = [json.loads(line) for line in (runs / "data/manifest.jsonl").read_text("utf-8").splitlines()]
        manifest = runs / "manifest.jsonl"
        rows = [row | {"source": HOSTILE, "license": f"free\n# {HOSTILE}"} for row in rows]
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        for path in (*runs.rglob("config.yaml"), *runs.rglob("adapter_config.json")):
            path.write_text(path.read_text("utf-8").replace(str(demo / "runs"), str(runs)), "utf-8")
        change(runs / "packed/config.yaml", manifest=str(manifest))
        change(runs / "packed/run.json", inputs={"manifest": fingerprint_files([manifest])})
        change(runs / "eval-raft/run.json", inputs={})
        metrics = json.loads((runs / "eval-raft/metrics.json").read_text("utf-8"))
        metrics["systems"]["RAFT"]["per_tag"][HOSTILE] = {"f1": 0.0, "support": 1}
        (runs / "eval-raft/metrics.json").write_text(json.dumps(metrics), "utf-8")
        record = json.loads((runs / "eval-raft/run.json").read_text("utf-8"))
        record["inputs"] = {key.replace(str(demo / "runs"), str(runs)): value for key, value in record["inputs"].items()}
        (runs / "eval-raft/run.json").write_text(json.dumps(record), "utf-8")
        shutil.copytree(TINY_BASE, runs / "base", dirs_exist_ok=True)
        sets = [f"output={tmp_path / 'out'}", f"adapter={runs}/raft/result", f"evaluation={runs}/eval-raft", "system=RAFT"]
        sets += [f"model.base={runs}/base", "model.dtype=float32", "tracking.mode=disabled", *overrides]
        result = call("export", REPO / "configs/export.yaml", *(part for each in sets for part in ("--set", each)))
        assert result.exit_code == 0, result.stderr
        return tmp_path / "out"

    return release


def change(path: Path, **changes) -> None:
    """Replace keys of a YAML or JSON file, those of its mappings one by one."""
    content = yaml.safe_load(path.read_text("utf-8"))
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(content), "utf-8")


def test_a_release_holds_no_local_path(release, demo, tmp_path):
    out = release("format=transformers", "vllm_names=true")
    for path in (each for name in ("release", "merged", "vllm") for each in (out / name).rglob("*") if each.is_file()):
        content = path.read_bytes()
        for place in (tmp_path, demo, REPO, Path.home(), "secret-place"):
            assert str(place).encode() not in content, f"{path.name} holds {place}"
    for name in ("release", "vllm"):
        assert json.loads((out / name / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"] == "base"
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".json", ".safetensors", ".md", ".yaml", ".txt"}
    assert 'from_pretrained("path/to/base"' in (out / "release/README.md").read_text("utf-8")


HEADINGS = ["Results", "How to load it", "Training", "Data", "Limits", "Provenance"]


def test_no_string_can_add_to_a_card(release, tmp_path):
    named = json.dumps({"name": HOSTILE, "license": HOSTILE, "language": [HOSTILE], "limits": [HOSTILE], "intended_use": HOSTILE})
    text = (release(f"card={named}") / "release/README.md").read_text("utf-8")
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()
    front = yaml.safe_load(front)
    assert set(front) == {"language", "license", "library_name", "tags", "pipeline_tag", "model-index"}
    assert front["license"] == one_line(HOSTILE)
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    titles = [tokens[place + 1].content for place, each in enumerate(tokens) if each.type == "heading_open"]
    assert titles == [escape_markdown(HOSTILE), *HEADINGS]
    assert [each.type for each in tokens].count("table_open") == 1
    inline = [child for each in tokens if each.type == "inline" for child in each.children]
    assert {each.type for each in inline} <= {"text", "code_inline", "softbreak"}, "no link, no HTML, no emphasis"
    assert "html_block" not in {each.type for each in tokens}
    # Every number of the results is measured, and 0.987 stands where it is quoted or the exporter's own words alone.
    results = body[body.index("## Results") : body.index("## How to load it")]
    assert "0.987" not in results
    measured = {each["value"] for each in front["model-index"][0]["results"][0]["metrics"]}
    report = json.loads((tmp_path / "secret-place/eval-raft/metrics.json").read_text("utf-8"))["systems"]["RAFT"]
    assert round(report["micro"]["f1"]["value"], 4) in measured
    assert 0.987 not in measured
    data = body[body.index("## Data") : body.index("## Limits")]
    assert data.count("0.987") == data.count(code(HOSTILE)) * 3 + data.count(code(f"free\n# {HOSTILE}")) * 3


TEXTS = st.text() | st.text(alphabet=st.sampled_from(list("#*_`|[]()<>!&~$-+=.:1/ \n\\aw@")))


def inline_of(block: str) -> list:
    """Of Markdown that is one item of a list: what is on its one line."""
    tokens = MarkdownIt("commonmark").enable("table").parse(block)
    assert [each.type for each in tokens] == [
        "bullet_list_open", "list_item_open", "paragraph_open", "inline", "paragraph_close", "list_item_close",
        "bullet_list_close",
    ], block  # fmt: skip
    return tokens[3].children


@given(TEXTS)
def test_escaped_text_reads_as_it_was_and_is_nothing_but_text(text):
    found = inline_of(f"- x {escape_markdown(text)}")
    assert {each.type for each in found} <= {"text"}
    assert "".join(each.content for each in found) == f"x {one_line(text)}".strip()
    if one_line(text):
        assert "".join(each.content for each in inline_of(f"- {escape_markdown(text)}")) == one_line(text)


@given(TEXTS)
def test_a_code_span_holds_all_of_a_text(text):
    _, span, _ = inline_of(f"- x {code(text)} x")
    assert span.type == "code_inline"
    assert span.content == (one_line(text) or " ")


@given(st.lists(TEXTS.filter(one_line), min_size=1, unique=True))
def test_tags_cannot_break_a_table(tags):
    row = {"support": 1, "f1": 0.5, "matched": 1, "predicted": 2}
    tokens = MarkdownIt("commonmark").enable("table").parse(per_tag_table({"a": {"per_tag": dict.fromkeys(tags, row)}}))
    assert [each.type for each in tokens].count("table_open") == 1
    assert tokens[-1].type == "table_close"
    cells = ["".join(child.content for child in each.children) for each in tokens if each.type == "inline"]
    assert cells[:3] == ["tag", "support", "a"]
    assert cells[3::3] == [one_line(tag) for tag in sorted(tags)]


class Recorder:
    """A W&B run: what is handed to it would be uploaded."""

    def __init__(self, **settings):
        self.settings, self.logged, self.files, self.summary = settings, {}, [], {}

    def log(self, content, step=None):
        self.logged |= content

    def log_artifact(self, artifact):
        self.files += list(artifact.manifest.entries)

    def finish(self, exit_code):
        pass


@pytest.fixture
def uploads(monkeypatch):
    """What goes to W&B with a key in the environment."""
    import wandb

    runs = []
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "init", lambda **settings: runs.append(Recorder(**settings)) or runs[-1])
    return runs


@pytest.mark.parametrize("upload_media", [False, True])
def test_audio_and_transcripts_leave_only_when_asked(uploads, evaluate, packed, tmp_path, upload_media):
    rows = [json.loads(line) for line in (packed["deferred"].parent.parent / "spoken/data/manifest.jsonl").open(encoding="utf-8")]
    path = tmp_path / "mine.jsonl"
    mine = [{"id": row["id"], "reference": "", "prediction": "[sighs]"} for row in rows if row["split"] == "test"]
    path.write_text("".join(json.dumps(row) + "\n" for row in mine), "utf-8")
    more = {"tracking.mode": "auto", "tracking.upload_media": str(upload_media).lower()}
    result = evaluate(systems=f"[{{name: mine, predictions: {path}}}]", **more)
    assert result.exit_code == 0, result.stderr
    [run] = uploads
    assert run.settings["mode"] == "online"
    assert run.summary["mine/micro/f1/value"] is not None, "numbers go in either case"
    assert {"eval/systems", "eval/per_tag"} <= set(run.logged)
    assert ("report.html" in run.files, "mine.jsonl" in run.files) == (upload_media, upload_media)
    assert {"table.md"} <= set(run.files)
    assert run.settings["settings"].console == "off", "the terminal quotes clips"
    assert str(tmp_path) not in json.dumps(run.settings["config"])
    assert run.settings["name"] == "eval: eval"


@pytest.mark.parametrize("upload_media", [False, True])
def test_a_probe_leaves_and_what_it_heard_only_when_asked(uploads, call, one_tag, tmp_path, upload_media):
    settings = (f"dataset={one_tag('deferred')}", f"output={tmp_path}/probe", "probabilities=[raft]", "bootstrap.samples=10",
                f"tracking.upload_media={upload_media}", "tracking.mode=auto")  # fmt: skip
    result = call("probe", "configs/demo/probe.yaml", *(part for setting in settings for part in ("--set", setting)))
    assert result.exit_code == 0, result.stderr
    [run] = uploads
    assert "probe.safetensors" in run.files
    assert ("report.html" in run.files, "raft.jsonl" in run.files) == (upload_media, upload_media)


def test_texts_of_candidates_stay_here(uploads, tmp_path):
    for upload_media in (False, True):
        with Tracker(Tracking(upload_media=upload_media), "raft score", tmp_path / "scores", Section()) as tracker:
            tracker.media_table("raft/candidates", ["text"], [["[sighs] what was said"]])
            tracker.media_artifact("predictions", "predictions", [])
            tracker.summary({"mean_reward": 0.5})
    private, public = uploads
    assert (private.logged, private.summary) == ({}, {"mean_reward": 0.5})
    assert set(public.logged) == {"raft/candidates"}


def test_places_are_cut_to_names():
    assert without_places({"a": ["/home/me/x.jsonl", "~/y", "runs/z", 1, None]}) == {"a": ["x.jsonl", "y", "runs/z", 1, None]}


class Service:
    """A local stand-in of ElevenLabs: `answer(text)` -> (status, headers, body)."""

    def __init__(self, answer):
        self.keys = keys = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802
                keys.append(self.headers.get("xi-api-key"))
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, content = answer(body["text"])
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def speech(seconds: float = 1.0, kind: str = "MP3") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(np.arange(int(seconds * 44_100)) / 30), 44_100, format=kind)
    return buffer.getvalue()


@pytest.fixture
def synth(call, tmp_path, monkeypatch):
    """synth(answers by text, …) -> the result, and the service that answered."""
    monkeypatch.setenv("ELEVENLABS_API_KEY", "secret")

    def synth(answers: dict, **settings):
        path = tmp_path / "scripts.jsonl"
        rows = [{"id": f"s{place}", "text": text} for place, text in enumerate(answers)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        service = Service(answers.get)
        settings = {
            "output": tmp_path / "out", "scripts": path, "voices": "[ann]", "elevenlabs.base_url": service.url,
            "elevenlabs.paid_audio": tmp_path / "paid", "elevenlabs.max_characters": 1000, "tracking.mode": "disabled",
        } | settings  # fmt: skip
        overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        return call("data", "synth", REPO / "configs/synth.yaml", "--engine", "elevenlabs", *overrides), service

    return synth


def test_the_key_follows_no_redirect(synth, tmp_path):
    other = Service(lambda text: (200, {}, speech()))
    result, service = synth({"hello there.": (307, {"Location": f"{other.url}/v1/text-to-speech/ann"}, b"")})
    assert service.keys == ["secret"]
    assert other.keys == []
    assert result.exit_code == 2
    assert f"ElevenLabs redirects to {other.url}/v1/text-to-speech/ann; your key was not sent there" in result.stderr
    assert not (tmp_path / "paid").exists()


@pytest.mark.parametrize(
    ("output_format", "content", "reason"),
    [
        ("mp3_44100_128", b"<html>Sign in to this network</html>", "it is text: '<html>Sign in to this network</html>'"),
        ("pcm_44100", b'{"detail": "try again later"}' * 400, "it is text"),
        ("mp3_44100_128", bytes(range(256)) * 20, "did not answer with speech"),
        ("mp3_44100_128", b"", "it is text: ''"),
        ("mp3_44100_128", speech(kind="WAV"), "it is not mp3"),
        ("mp3_44100_128", speech(90), "it lasts 90"),
        ("pcm_44100", b"\0\1" * 40, "it lasts 0.00 s"),
        ("pcm_44100", b"\0\1" * 40_000 + b"\0", "80001 bytes are not 16-bit samples"),
    ],
)
def test_an_answer_that_is_no_speech_is_never_kept(synth, tmp_path, output_format, content, reason):
    good = speech() if output_format.startswith("mp3") else (np.sin(np.arange(44_100) / 30) * 9_000).astype("<i2").tobytes()
    answers = {"hello there.": (200, {}, content), "good morning.": (200, {}, good)}
    result, service = synth(answers, **{"elevenlabs.output_format": output_format})
    assert result.exit_code == 0, result.stderr
    assert len(list((tmp_path / "paid").iterdir())) == 1, "the good one alone"
    [rejected] = map(json.loads, (tmp_path / "out/rejected.jsonl").read_text("utf-8").splitlines())
    assert rejected["id"] == "s0"
    assert reason in rejected["reason"]
    assert "the answer was not kept" in rejected["reason"]
    assert len(service.keys) == 2, "it may have been charged, so it is not requested again by itself"


def test_what_would_go_wrong_is_refused_before_anything_is_paid_for(synth):
    for settings, reason in (
        ({"elevenlabs.base_url": "http://elsewhere.example"}, "would get your key unencrypted"),
        ({"elevenlabs.output_format": "ulaw_8000"}, "audio as 'ulaw_8000' cannot be read"),
    ):
        result, service = synth({"hello there.": (200, {}, speech())}, **settings)
        assert (result.exit_code, service.keys) == (2, [])
        assert reason in result.stderr


def test_paid_audio_that_went_bad_says_which_file(tmp_path):
    request = elevenlabs.Request("hello", "ann", "eleven_v3", "mp3_44100_128", 0)
    (tmp_path / request.file_name).write_bytes(b"garbage")
    with pytest.raises(elevenlabs.RowError, match=f"{request.file_name}: .* — remove this file to pay for it again"):
        elevenlabs.read_paid(request, tmp_path)


def test_every_promise_names_a_test_that_exists():
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (REPO / "SECURITY.md").read_text("utf-8"))
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in tests] == []
