"""A model that hears a whole clip before it writes: `transcribe`, `serve` and `export` with it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoProcessor, VoxtralForConditionalGeneration

from conftest import REPO, TINY_OFFLINE_BASE
from evoxtral_train.config.sections import Model
from evoxtral_train.config.serving import ServeConfig
from evoxtral_train.config.training import Lora
from evoxtral_train.data.segments import SoundSegment
from evoxtral_train.decoding.decoder import Completion
from evoxtral_train.errors import UsageError
from evoxtral_train.families.checkpoint import base_fingerprint, open_family
from evoxtral_train.modeling.adapter_record import AdapterRecord
from evoxtral_train.modeling.adapters import add_lora
from evoxtral_train.serving.engine import Engine
from evoxtral_train.serving.file_transcription import certain_words
from evoxtral_train.text.taxonomy import Taxonomy
from evoxtral_train.transcription.formats import FORMATS
from evoxtral_train.transcription.transcriber import Transcriber

BASE = ("--base", TINY_OFFLINE_BASE)
NEW_TOKENS = 24
SETTINGS = {"decode": {"max_new_tokens": NEW_TOKENS, "known_tags_only": False}, "language": "en"}


@pytest.fixture(scope="module")
def family():
    return open_family(TINY_OFFLINE_BASE)


@pytest.fixture(scope="module")
def clip(spoken) -> Path:
    return sorted((spoken / "audio").glob("train-*.flac"))[0]


@pytest.fixture(scope="module")
def adapters(family, made_once) -> Path:
    """{tagged_text, text, tags, projector}: adapters of random weights, far from zero, that record these targets."""

    def make(folder: Path) -> None:
        targets = {"tagged_text": "tagged_text", "text": "text", "tags": "tags", "projector": "tagged_text"}
        for name, target in targets.items():
            torch.manual_seed(0)
            lora = Lora(target_modules=".*linear_1") if name == "projector" else Lora()
            network = add_lora(family.load("float32"), lora, Model(base=str(TINY_OFFLINE_BASE)))
            for parameter_name, parameter in network.model.named_parameters():
                if "lora_B" in parameter_name:
                    torch.nn.init.normal_(parameter, std=0.3)
            network.model.save_pretrained(folder / name)
            AdapterRecord(
                layout=family.own_layout(256).record(), target=target, prepad_samples=0,
                tags=list(Taxonomy.load(REPO / "data/tags.yaml").tags), base=base_fingerprint(TINY_OFFLINE_BASE),
            ).write(folder / name)  # fmt: skip

    return made_once("offline-adapters", make)


def stock_text(clip: Path, adapter: Path | None = None, language: str | None = "en", model: Path = TINY_OFFLINE_BASE) -> str:
    """What transformers' own classes write for a recording."""
    processor = AutoProcessor.from_pretrained(TINY_OFFLINE_BASE)
    stock = VoxtralForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    if adapter is not None:
        stock = PeftModel.from_pretrained(stock, adapter).eval()
    samples, _ = soundfile.read(clip, dtype="float32")
    inputs = processor.apply_transcription_request(samples, "", language, sampling_rate=16_000, format=["WAV"])
    with torch.inference_mode():
        written = stock.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return processor.batch_decode(written[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)[0].strip()


@pytest.fixture(scope="module")
def base_text(clip) -> str:
    text = stock_text(clip)
    assert len(text) > 20, "it must write something for this to mean anything"
    return text


@pytest.fixture(scope="module")
def adapted_text(clip, adapters) -> str:
    return stock_text(clip, adapters / "tagged_text")


# Transcripts


def test_words_of_the_base_and_of_an_adapter_are_those_of_stock_generate(clip, adapters, base_text, adapted_text):
    base = {"base": str(TINY_OFFLINE_BASE)} | SETTINGS
    [alone] = Transcriber.of(**base).transcribe([clip])
    assert (alone.merge, " ".join(alone.text.split())) == ("front", " ".join(base_text.split()))
    transcriber = Transcriber.of([adapters / "tagged_text"], **base)
    [written] = transcriber.transcribe([clip])
    assert (transcriber.merge, len(transcriber.used_rows)) == ("written", 1), "one row writes words and tags"
    assert written.merged == " ".join(adapted_text.split()) != alone.text
    [front] = Transcriber.of([adapters / "tagged_text"], **base, merge="front").transcribe([clip])
    assert front.text == alone.text
    [words] = Transcriber.of([adapters / "text"], **base).transcribe([clip])
    assert words.text == written.text
    [tagged] = Transcriber.of([adapters / "tags"], **base).transcribe([clip])
    assert (tagged.merge, tagged.text) == ("front", alone.text)


def test_a_row_that_reaches_its_last_token_is_counted(call, clip, tmp_path):
    arguments = ("transcribe", clip, *BASE, "--output", tmp_path / "out", "--set", "tracking.mode=disabled")
    result = call(*arguments, "--set", "decode.max_new_tokens=5", "--language", "en")
    assert result.exit_code == 0, result.stderr
    assert "cut short    1 segments had more to write: raise decode.max_new_tokens" in result.stdout
    assert json.loads((tmp_path / "out" / f"{clip.stem}.json").read_text("utf-8"))["segments"][0]["is_cut"]
    assert json.loads((tmp_path / "out" / "recordings.jsonl").read_text("utf-8"))["cut_segments"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": "xx"}, "unknown language 'xx'"),
        ({"merge": "timed"}, "its layout has no times"),
        ({"adapters": ["projector"]}, "merge it into the base"),
        ({"adapters": ["tags"], "merge": "written"}, "name one adapter that was trained with target tagged_text"),
        ({"adapters": ["tagged_text", "text"], "merge": "written"}, "name one adapter"),
        ({"base": "data/tiny-base", "adapters": [], "language": "en"}, "its prompt names none"),
    ],
)
def test_what_cannot_be_done_is_said(adapters, settings, message):
    settings = {"base": str(TINY_OFFLINE_BASE), "adapters": ["tagged_text"], **settings}
    settings["adapters"] = [adapters / name for name in settings["adapters"]]
    with pytest.raises(UsageError, match=message) as error:
        _ = Transcriber.of(**settings).loaded
    assert len(str(error.value).splitlines()) == 1


def completion(family, text: str, number: int = 1) -> Completion:
    ids = family.tokenizer.encode(text, bos=False, eos=False)
    return Completion("0", 0, ids, "eos", -0.1, [-0.1] * len(ids), number)


def test_tags_stand_where_the_adapter_wrote_them(family, adapters):
    """A language at the beginning is no word. A tag that a filter drops leaves the words as they are."""
    sound = SoundSegment(0, np.zeros(160_000, np.float32), ())
    written = "lang:en [sighs] I told you. [whispers] Come closer. [laughs]"
    transcriber = Transcriber.of([adapters / "tagged_text"], str(TINY_OFFLINE_BASE))
    segment = transcriber.segment_of(sound, {1: completion(family, written)})
    assert (segment.text, segment.merged(transcriber.merge)) == ("I told you. Come closer.", written.removeprefix("lang:en "))
    fewer = replace(segment, tags=[replace(tag, kept=tag.tag != "whispers") for tag in segment.tags])
    assert fewer.merged("written") == "[sighs] I told you. Come closer. [laughs]"
    assert segment.merged("front") == "[sighs] [whispers] [laughs] I told you. Come closer."
    only = transcriber.segment_of(sound, {1: completion(family, "[sighs] [pause]")})
    assert (only.text, only.merged("written")) == ("", "[sighs] [pause]")


def test_a_full_model_that_writes_tags_is_a_base_of_its_own(family, adapters, tmp_path):
    folder = shutil.copytree(TINY_OFFLINE_BASE, tmp_path / "model", ignore=shutil.ignore_patterns("run.json"))
    shutil.copyfile(adapters / "tagged_text" / "evoxtral.json", folder / "evoxtral.json")
    transcriber = Transcriber.of(base=str(folder), kept_tags={"top_k": 1})
    assert (transcriber.merge, transcriber.loaded[2].known_tags is None) == ("written", False)
    written = completion(family, "I told you. [whispers] Come closer. [laughs]", 0)
    segment = transcriber.segment_of(SoundSegment(0, np.zeros(160_000, np.float32), ()), {0: written})
    assert (segment.text, segment.merged("written")) == ("I told you. Come closer.", "I told you. [whispers] Come closer.")
    plain = Transcriber.of(base=str(TINY_OFFLINE_BASE))
    assert (plain.merge, set(plain.fingerprints)) == ("front", {"base"})
    assert set(transcriber.fingerprints) == {"base", "evoxtral.json of the base"}
    with pytest.raises(UsageError, match="this server has no adapter, and its base writes the tags itself — use rows: base"):
        Engine(ServeConfig(model={"base": str(folder)}))._kinds("both")


def test_subtitles_have_the_tags_where_they_were_written(family, adapters):
    from evoxtral_train.transcription.transcript import Transcript

    sound = SoundSegment(0, np.zeros(160_000, np.float32), ())
    transcriber = Transcriber.of([adapters / "tagged_text"], str(TINY_OFFLINE_BASE))
    segment = transcriber.segment_of(sound, {1: completion(family, "I told you. [whispers] Come closer. [laughs]")})
    lines = FORMATS["tsv"](Transcript(None, 10.0, [segment], "written")).splitlines()
    assert [line.split("\t")[2] for line in lines[1:]] == ["I told you.", "[whispers] Come closer. [laughs]"]


@pytest.mark.parametrize("written", ["lang:en [sighs] I told [pause] you. [laughs]", "lan", "language [sig", "[sighs] language"])
def test_streamed_words_only_grow(written):
    growing = [certain_words(written[:end].strip(), has_tags=True) for end in range(len(written) + 1)]
    assert all(later.startswith(earlier) for earlier, later in zip(growing, growing[1:], strict=False))
    final = {"lang:en [sighs] I told [pause] you. [laughs]": "I told you.", "[sighs] language": "language"}
    assert growing[-1] == final.get(written, growing[-1])


# Serving


@pytest.fixture(scope="module")
def running(adapters):
    from serving import serving_anew

    content = {"model": {"base": str(TINY_OFFLINE_BASE)}, "adapters": [adapters / "tagged_text"], "listen": {"port": 0}}
    with serving_anew(ServeConfig(**content, **SETTINGS, tags_table=REPO / "data/tags.yaml")) as running:
        yield running


def test_files_over_http_give_what_transcribe_writes(running, clip, adapted_text, base_text):
    with httpx.Client(base_url=running.url, timeout=60) as client:

        def post(path: str, **fields: str) -> httpx.Response:
            return client.post(path, files={"file": (clip.name, clip.read_bytes())}, data=fields)

        whole = post("/transcribe").json()
        assert (whole["merged"], whole["merge"]) == (" ".join(adapted_text.split()), "written")
        assert " ".join(post("/transcribe", rows="base").json()["text"].split()) == " ".join(base_text.split())
        assert post("/v1/audio/transcriptions", language="en").json()["text"] == whole["text"]
        assert post("/v1/audio/transcriptions", language="de").json()["text"] != whole["text"], "the prompt names it"
        refused = post("/v1/audio/transcriptions", language="xx")
        assert refused.status_code == 422 and "unknown language 'xx'" in refused.json()["error"]["message"]
        events = [json.loads(line[6:]) for line in post("/transcribe/stream").text.splitlines() if line.startswith("data: ")]
        assert "".join(event["token"] for event in events[:-1]) == events[-1]["text"] == whole["text"]
        health = client.get("/health").json()
        assert (health["status"], health["live"], health["slots"]) == ("ok", False, 0)
        assert client.get("/ready").status_code == 200 and b"evoxtral_slots 0.0" in client.get("/metrics").content


@pytest.mark.parametrize("route", ["/v1/realtime", "/v1/audio/transcriptions/realtime"])
def test_live_routes_say_that_there_are_no_streams(running, route):
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    with connect(running.websocket_url + route) as socket:
        message = json.loads(socket.recv())
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv()
    error = message.get("error", message)
    assert "hears a whole recording before it writes" in json.dumps(error) and "no_live_streams" in json.dumps(message)
    assert closed.value.rcvd.code == 1008


def test_the_plan_has_no_streams(call, adapters):
    result = call("serve", *BASE, "--adapter", adapters / "tagged_text", "--dry-run")
    assert result.exit_code == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert "streams none: this model hears a whole recording before it writes" in said
    assert "tags of whole segments" in said


def test_live_words_cannot_be_an_adapters():
    tagger = REPO / "data/tiny-tagger"
    with pytest.raises(UsageError, match="merge: written"):
        Engine(ServeConfig(model={"base": "data/tiny-base"}, adapters=[tagger], merge="written"))


# Export


def test_the_merged_model_is_stock_and_writes_the_same(call, clip, adapters, adapted_text, tmp_path):
    sets = [f"output={tmp_path / 'out'}", f"adapter={adapters / 'tagged_text'}", f"model.base={TINY_OFFLINE_BASE}"]
    sets += ["model.dtype=float32", "tracking.mode=disabled", "evaluation=null", "system=null", "push_to=null"]
    arguments = ["export", REPO / "configs/export.yaml", *(part for each in sets for part in ("--set", each))]
    for options in ((), ("--dry-run",)):
        refused = call(*arguments, "--set", "format=mistral", *options)
        assert refused.exit_code == 2 and "Voxtral is not written in Mistral's own format" in refused.stderr
    assert not (tmp_path / "out").exists()
    result = call(*arguments, "--set", "format=transformers", "--set", "vllm_names=true")
    assert result.exit_code == 0, result.stderr
    merged = tmp_path / "out/merged"
    assert json.loads((merged / "config.json").read_text("utf-8"))["architectures"] == ["VoxtralForConditionalGeneration"]
    assert stock_text(clip, model=merged) == stock_text(clip, tmp_path / "out/release") == adapted_text
    AutoProcessor.from_pretrained(merged)
    [transcript] = Transcriber.of(base=str(merged), **SETTINGS).transcribe([clip])
    assert (transcript.merge, transcript.merged) == ("written", " ".join(adapted_text.split()))
    assert all(".language_model.model.layers." in name for name in load_file(tmp_path / "out/vllm/adapter_model.safetensors"))
    card = (tmp_path / "out/release/README.md").read_text("utf-8")
    assert "- voxtral-realtime\n" not in card and "- voxtral\n" in card
    assert "processor.apply_transcription_request" in card and "words of an utterance with expressive tags" in card


def test_the_code_on_the_card_runs(family, clip, tmp_path, monkeypatch, capsys, base_text):
    soundfile.write(tmp_path / "talk.wav", *soundfile.read(clip))
    monkeypatch.chdir(tmp_path)
    model = VoxtralForConditionalGeneration.from_pretrained(TINY_OFFLINE_BASE, dtype=torch.float32).eval()
    code = family.usage.replace("max_new_tokens=512", f"max_new_tokens={NEW_TOKENS}")
    exec(code, {"model": model, "processor": AutoProcessor.from_pretrained(TINY_OFFLINE_BASE)})
    assert capsys.readouterr().out.strip() == base_text
