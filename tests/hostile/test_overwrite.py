"""`--overwrite` through the command line: it deletes no input, and a run that is refused or fails leaves the finished one."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from conftest import REPO, TINY_BASE
from hostile.limits import sets


def bytes_in(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def manifest(tmp_path):
    """A manifest of one clip, its transcript beside it, in tmp_path/out/raw."""
    raw = tmp_path / "out/raw"
    raw.mkdir(parents=True)
    soundfile.write(raw / "a.wav", 0.1 * np.ones(8_000), 16_000)
    (raw / "a.txt").write_text("well.", "utf-8")
    (raw / "manifest.jsonl").write_text('{"id": "a", "audio": "a.wav", "text": "well.", "split": "train"}\n', "utf-8")
    return raw / "manifest.jsonl"


READERS = {
    "import": ("data", "import", "configs/import.yaml", "source.kind=folder", "source.path={raw}"),
    "synth": ("data", "synth", "configs/synth.yaml", "scripts={raw}/manifest.jsonl"),
    "pack": ("data", "pack", "configs/demo/pack.yaml", "manifest={raw}/manifest.jsonl"),
    "stats": ("data", "stats", "configs/stats.yaml", "manifest={raw}/manifest.jsonl"),
    "align": ("data", "align", "configs/align.yaml", "manifest={raw}/manifest.jsonl", f"model.base={TINY_BASE}"),
}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("name", READERS)
def test_no_stage_replaces_what_it_reads(call, manifest, tmp_path, name, finished):
    """`data import` with source.path: out/raw and output: out deleted the recordings."""
    *command, config = READERS[name][:3]
    out = tmp_path / "out"
    if finished:
        done = call("data", "stats", "configs/stats.yaml", *sets(f"manifest={manifest}", f"output={tmp_path / 'stats'}"))
        assert done.exit_code == 0, done.stderr
        shutil.copytree(tmp_path / "stats", out, dirs_exist_ok=True)
    before = bytes_in(out)
    overrides = [each.format(raw=manifest.parent) for each in READERS[name][3:]]
    result = call(*command, REPO / config, *sets(*overrides, f"output={out}"), "--overwrite")
    assert result.exit_code == 2, result.stderr
    assert "the output contains an input of this stage: " in result.stderr
    assert bytes_in(out) == before


SFT = ("train.epochs=1", "train.batch_size=8", "train.gradient_accumulation=1", "model.device=cpu")
REFUSED = {
    "no such modules": "lora.target_modules=.*nothing",
    "no such device": "model.device=cuda:77",
    "cache and augmentation": "augmentation.probability=0.5 audio_cache=on",
    "no such base": "model.base=nowhere",
    "another dataset": "dataset={manifest}",
}


@pytest.fixture(scope="module")
def finished_sft(call, packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "sft"
    result = call("sft", "configs/demo/sft.yaml", *sets(*SFT, f"dataset={packed['deferred']}", f"output={folder}"))
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.mark.parametrize("name", REFUSED)
def test_a_finished_adapter_outlives_a_run_that_is_refused(call, packed, finished_sft, manifest, name):
    before = bytes_in(finished_sft)
    overrides = REFUSED[name].format(manifest=manifest.parent).split()
    settings = sets(*SFT, f"dataset={packed['deferred']}", f"output={finished_sft}", *overrides)
    result = call("sft", "configs/demo/sft.yaml", *settings, "--overwrite")
    assert result.exit_code == 2, result.stderr
    assert bytes_in(finished_sft) == before


def test_a_finished_dataset_outlives_a_bad_manifest(call, packed, tmp_path):
    shutil.copytree(packed["deferred"], tmp_path / "packed", ignore=shutil.ignore_patterns("audio-cache"))
    before = bytes_in(tmp_path / "packed")
    (tmp_path / "manifest.jsonl").write_text('{"id": "a"}\n', "utf-8")
    where = sets(f"manifest={tmp_path / 'manifest.jsonl'}", f"output={tmp_path / 'packed'}")
    result = call("data", "pack", "configs/demo/pack.yaml", *where, "--overwrite")
    assert result.exit_code == 2, result.stderr
    assert bytes_in(tmp_path / "packed") == before


def test_a_finished_evaluation_outlives_a_corrupt_adapter(call, demo, tmp_path):
    shutil.copytree(demo / "runs/eval-raft", tmp_path / "eval", ignore=shutil.ignore_patterns("wandb"))
    shutil.copytree(demo / "runs/sft", tmp_path / "sft", ignore=shutil.ignore_patterns("wandb", "checkpoints"))
    weights = tmp_path / "sft/adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    before = bytes_in(tmp_path / "eval")
    systems = json.dumps([{"name": "SFT", "adapter": str(tmp_path / "sft")}])
    where = sets(f"systems={systems}", f"output={tmp_path / 'eval'}")
    result = call("eval", demo / "configs/eval-raft.yaml", *where, "--overwrite")
    assert result.exit_code == 2, result.stderr
    assert bytes_in(tmp_path / "eval") == before
