"""`export`: a card of what was measured and of nothing else, an adapter that the stock class loads, merged weights, a push."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, VoxtralRealtimeForConditionalGeneration

from conftest import REPO, TINY_BASE
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.errors import UsageError
from evoxtral_train.modeling.adapters import Adapter
from evoxtral_train.modeling.release import write_vllm_names


@pytest.fixture
def export(demo, call, tmp_path):
    def export(*overrides, options=()):
        runs = demo / "runs"
        sets = [f"output={tmp_path / 'out'}", f"adapter={runs}/raft/result", f"evaluation={runs}/eval-raft", "system=RAFT"]
        sets += [f"model.base={TINY_BASE}", "model.dtype=float32", "tracking.mode=disabled", *overrides]
        return call("export", REPO / "configs/export.yaml", *(part for each in sets for part in ("--set", each)), *options)

    return export


def test_the_card_is_valid_and_says_what_the_runs_recorded(export, demo, tmp_path):
    result = export("card.name=my-adapter", "card.limits=[One of mine.]", "push_to=null")
    assert result.exit_code == 0, result.stderr
    card = ModelCard.load(tmp_path / "out/release/README.md")
    report = json.loads((demo / "runs/eval-raft/metrics.json").read_text("utf-8"))["systems"]["RAFT"]
    measured = {each.metric_name: each.metric_value for each in card.data.eval_results}
    assert measured["tag F1, micro"] == round(report["micro"]["f1"]["value"], 4)
    assert measured["tag F1, as on the Evoxtral-Realtime cards"] == round(report["card"]["f1"]["value"], 4)
    assert "WER" not in measured, "its target has no words, so none was measured"
    assert measured.get("tag precision, micro") == report["micro"]["precision"]["value"], "none if it wrote no tag"
    assert {each.dataset_split for each in card.data.eval_results} == {"test"}
    assert (card.data.license, card.data.library_name, card.data.model_name) == ("apache-2.0", "peft", "my-adapter")
    for said in (
        "`sft`: 2 epochs at batch 8 × 1, learning rate 0.003", "LoRA r 16, alpha 64", "`raft run`: 1 epochs at batch 8 × 1",
        "2 candidates per clip at temperature 1.3, top-p 0.9, reward `card`", "sources: `espeak-ng`", "6 speakers",
        "- One of mine.", "Trained on synthetic speech by espeak-ng", "Layout `deferred`",
    ):  # fmt: skip
        assert said in card.text, said


def test_every_figure_of_the_results_is_in_the_records(export, demo, tmp_path):
    assert export().exit_code == 0
    text = (tmp_path / "out/release/README.md").read_text("utf-8")
    results = text[text.index("## Results") : text.index("## How to load it")]
    numbers = set(re.findall(r"\d+\.\d+", results))
    metrics = json.loads((demo / "runs/eval-raft/metrics.json").read_text("utf-8"))
    recorded = set()

    def collect(value):
        if isinstance(value, dict | list):
            for each in value.values() if isinstance(value, dict) else value:
                collect(each)
        elif isinstance(value, int | float):
            recorded.update((f"{abs(value):.3f}", f"{abs(value):.2f}", f"{value:.2g}"))

    collect(metrics)
    assert numbers
    assert numbers <= recorded | {"0.05"}, numbers - recorded


def test_without_an_evaluation_there_is_no_figure(export, tmp_path):
    result = export("evaluation=null", "system=null")
    assert result.exit_code == 0, result.stderr
    card = ModelCard.load(tmp_path / "out/release/README.md")
    assert card.data.eval_results is None
    assert "None: this adapter was exported without an evaluation." in card.text
    assert "Not evaluated." in card.text
    assert not re.search(r"0\.\d\d\d \[", card.text)


def test_an_evaluation_of_another_adapter_is_refused(export, demo, tmp_path):
    result = export(f"adapter={demo}/runs/sft")
    assert result.exit_code == 2
    assert "system 'RAFT' of this evaluation is another adapter than" in result.stderr
    result = export("system=best")
    assert result.exit_code == 2
    assert "has no system 'best' — it has RAFT\n" in result.stderr
    assert export("system=null").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_start_that_was_replaced_is_not_described(export, demo, tmp_path, monkeypatch):
    copy = tmp_path / "raft"
    shutil.copytree(demo / "runs/raft/result", copy, ignore=shutil.ignore_patterns("wandb"))
    config = yaml.safe_load((copy / "config.yaml").read_text("utf-8"))
    config |= {"adapter": str(demo / "runs/raft/round-1/train"), "dataset": str(tmp_path / "gone")}
    (copy / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    assert export(f"adapter={copy}", "evaluation=null", "system=null").exit_code == 0
    text = (tmp_path / "out/release/README.md").read_text("utf-8")
    assert "`sft`" not in text
    assert "the adapter that it started from is no longer available" in text
    assert "which is no longer available" in text
    assert "The records of its training data were not available" in text


def greedy(model, split: PackedSplit, index: int) -> list[int]:
    length = 32 + int(split.utterance_tokens[index]) + 6
    prompt = torch.tensor([[1] + [32] * (length - 1)])
    mel = torch.from_numpy(split.mel_of(index, length + 12))[None].to(model.dtype)
    with torch.inference_mode():
        out = model.generate(input_ids=prompt, input_features=mel, num_delay_tokens=6, do_sample=False, max_length=length + 12)
    return out[0, length:].tolist()


def test_the_exported_adapter_and_the_merged_model_write_the_same_in_the_stock_class(export, demo, tmp_path):
    result = export("format=transformers", "vllm_names=true")
    assert result.exit_code == 0, result.stderr
    split = PackedSplit(demo / "runs/packed", "test")
    systems = []
    for folder in (demo / "runs/raft/result/adapter", tmp_path / "out/release"):
        base = VoxtralRealtimeForConditionalGeneration.from_pretrained(TINY_BASE, dtype=torch.float32)
        systems.append(PeftModel.from_pretrained(base, folder).eval())
    systems.append(VoxtralRealtimeForConditionalGeneration.from_pretrained(tmp_path / "out/merged", dtype=torch.float32).eval())
    AutoProcessor.from_pretrained(tmp_path / "out/merged")
    for index in range(4):
        original, exported, merged = (greedy(system, split, index) for system in systems)
        assert original == exported == merged
    mel = torch.from_numpy(split.mel_of(0, 60))[None]
    ids = torch.full((1, 60), 32)
    with torch.inference_mode():
        unmerged, merged = (each(input_ids=ids, input_features=mel, num_delay_tokens=6).logits for each in systems[1:])
    torch.testing.assert_close(merged, unmerged, rtol=0, atol=1e-3)
    assert "never loaded in vLLM" in result.stdout


def test_vllm_names_hold_the_same_tensors(export, demo, tmp_path):
    assert export("vllm_names=true").exit_code == 0
    ours, theirs = (load_file(tmp_path / "out" / name / "adapter_model.safetensors") for name in ("release", "vllm"))
    assert len(ours) == len(theirs) == 24
    for name, tensor in ours.items():
        renamed = name.replace("base_model.model.model.language_model.", "base_model.model.language_model.model.")
        assert torch.equal(theirs[renamed], tensor)
    config = json.loads((tmp_path / "out/vllm/adapter_config.json").read_text("utf-8"))
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_an_adapter_of_the_audio_tower_has_no_vllm_names(tmp_path):
    tensors = {"base_model.model.model.audio_tower.layers.0.q_proj.lora_A.weight": torch.zeros(1)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="vLLM's LoRA reaches only the language model"):
        write_vllm_names(Adapter(tmp_path, "", None), tmp_path / "adapter_config.json", tmp_path / "out")


class Hub:
    """A stand-in of the hub's API, as far as a push goes; what is committed is kept."""

    def __init__(self):
        self.created, self.files, self.calls = [], {}, []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802
                owner.calls.append(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                owner.answer(self, *owner.reply(self.path, body, self.headers))

            def do_GET(self):  # noqa: N802
                owner.calls.append(self.path)
                owner.answer(self, 404, {"error": "not found"})

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def reply(self, path: str, body: bytes, headers) -> tuple[int, dict]:
        if headers.get("Authorization") != "Bearer hf_secret":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            content = json.loads(body)
            self.created.append(content)
            return 200, {"url": f"{self.url}/{content['organization']}/{content['name']}", "name": content["name"]}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return 200, {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]}
        if "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return 200, {"commitUrl": f"{self.url}/you/it/commit/abc", "commitOid": "abc", "hookOutput": "", "success": True}
        return 200, {"errors": [], "warnings": []}  # validate-yaml

    def answer(self, handler, status: int, content: dict) -> None:
        encoded = json.dumps(content).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(encoded)))
        handler.end_headers()
        handler.wfile.write(encoded)


PUSH_TWICE = """
import json, os, sys
from typer.testing import CliRunner
from evoxtral_train.cli.main import app

for token, more in (("hf_wrong", []), ("hf_secret", ["--resume"])):
    os.environ["HF_TOKEN"] = token
    done = CliRunner().invoke(app, [*sys.argv[1:], *more])
    print(json.dumps([done.exit_code, done.stdout, done.stderr]))
"""


@pytest.mark.slow
def test_a_push_through_huggingface_hub(demo, tmp_path):
    """With a token that is refused, then as the error advises. In a process of its own: the hub's address and offline mode are
    read when the package is imported."""
    hub, runs = Hub(), demo / "runs"
    sets = {
        "output": tmp_path / "out", "adapter": f"{runs}/raft/result", "evaluation": f"{runs}/eval-raft", "model.base": TINY_BASE,
        "model.dtype": "float32", "push_to": "you/it", "tracking.mode": "disabled",
    }  # fmt: skip
    overrides = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", PUSH_TWICE, "export", "configs/export.yaml", *overrides]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=True)
    hub.server.shutdown()
    (refused, _, error), (pushed, printed, other_error) = map(json.loads, done.stdout.splitlines())
    assert refused == 1
    assert "you/it: could not be pushed" in error
    assert "set HF_TOKEN, then resume with --resume" in error
    assert pushed == 0, other_error
    [created] = hub.created
    assert (created["name"], created["organization"]) == ("it", "you")
    assert created.get("private") or created.get("visibility") == "private"
    assert set(hub.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "evoxtral.json"}
    for name, content in hub.files.items():
        assert content == (tmp_path / "out/release" / name).read_bytes()
    assert "pushed to" in printed
