"""Cached = uncached: the frozen audio path computed once changes nothing that can be seen."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from conftest import CARD_SETS, TINY_BASE, load_tiny
from evoxtral_train.config.sections import Model
from evoxtral_train.config.training import Lora
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.errors import EvoxtralError
from evoxtral_train.modeling.adapters import add_lora, trains_audio_path
from evoxtral_train.modeling.audio_cache import LiveAudio, open_cache
from evoxtral_train.records import Candidate, read_rows

CPU = torch.device("cpu")
CONFIG = Model(base=str(TINY_BASE), dtype="float32", device="cpu")


@pytest.fixture(params=["packed", "deferred"])
def split(request, packed, tmp_path):
    """A copy of a packed dataset: its cache lies beside it."""
    shutil.copytree(packed[request.param], tmp_path / "dataset", ignore=shutil.ignore_patterns("audio-cache"))
    return PackedSplit(tmp_path / "dataset", "train")


def adapted(lora: Lora | None = None):
    torch.manual_seed(0)
    network = add_lora(load_tiny(), lora or Lora(), CONFIG)
    for name, parameter in network.model.eval().named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_resumed_equals_uninterrupted(split, monkeypatch, network):
    from evoxtral_train.modeling import audio_cache

    monkeypatch.setattr(audio_cache, "_BATCH_TOKENS", 400)
    whole = open_cache(network, CPU, "whole", split)
    real, calls = LiveAudio.embeddings, []

    def stop_at_the_third(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(LiveAudio, "embeddings", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        open_cache(network, CPU, "cut", split)
    [path] = split.folder.glob("audio-cache/cut-*/train.bin")
    [done] = split.folder.glob("audio-cache/cut-*/train.*.done")
    with done.open("a") as file:
        file.write("11 10")  # a line that a kill cut short says nothing
    monkeypatch.setattr(LiveAudio, "embeddings", real)
    again = open_cache(network, CPU, "cut", split)
    np.testing.assert_array_equal(whole._rows, again._rows)


def test_a_cache_is_read_back_not_made_again(split, monkeypatch, network):
    open_cache(network, CPU, "base", split)
    monkeypatch.setattr(LiveAudio, "embeddings", lambda *_: pytest.fail("the tower ran again"))
    open_cache(network, CPU, "base", split)


def test_a_second_process_waits_until_the_first_has_filled_the_cache(split, monkeypatch, capsys, network):
    """Two trainings started side by side on a fresh dataset."""
    from evoxtral_train.modeling import audio_cache

    real, begun, go_on = audio_cache._fill, threading.Event(), threading.Event()

    def slow_fill(*arguments):
        begun.set()
        assert go_on.wait(30)
        real(*arguments)

    monkeypatch.setattr(audio_cache, "_fill", slow_fill)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(open_cache, network, torch.device("cpu"), "base", split)
        assert begun.wait(30)
        monkeypatch.setattr(audio_cache, "_fill", None)  # the second finds nothing left to do
        second = pool.submit(open_cache, network, torch.device("cpu"), "base", split)
        while "is being filled by another process" not in capsys.readouterr().err:
            assert not second.done()
            time.sleep(0.01)
        go_on.set()
        one, two = first.result(30), second.result(30)
    assert torch.equal(one.row(3, 40), two.row(3, 40))


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_record_that_outlived_its_rows_is_not_believed(split, damage, network):
    """Nothing is read as zeros: what is missing is computed again."""
    expected = np.array(open_cache(network, CPU, "base", split)._rows)
    [path] = split.folder.glob("audio-cache/base-*/train.bin")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1000])
    np.testing.assert_array_equal(open_cache(network, CPU, "base", split)._rows, expected)


def test_a_stale_cache_is_refused(split, network):
    open_cache(network, CPU, "base", split)
    [record] = split.folder.glob("audio-cache/base-*/train.json")
    content = json.loads(record.read_text("utf-8"))
    record.write_text(json.dumps(content | {"dataset": "another"}), "utf-8")
    with pytest.raises(EvoxtralError, match="was made from another dataset — delete the folder"):
        open_cache(network, CPU, "base", split)


def test_bfloat16_is_kept_bit_by_bit(split):
    network = load_tiny("bfloat16")
    cache = open_cache(network, CPU, "base", split)
    row = cache.row(2, 60)
    assert row.dtype == torch.bfloat16
    with torch.inference_mode():
        live = LiveAudio(network, split).embeddings([2], [60])[0]
    torch.testing.assert_close(row.float(), live.float(), rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_an_adapter_in_the_audio_tower_is_not_cached(call, packed, tmp_path):
    both = r".*self_attn\.(q|k|v|o)_proj"
    assert trains_audio_path(adapted(Lora(target_modules=both)).model)
    assert not trains_audio_path(adapted().model)
    assert not trains_audio_path(load_tiny().model)
    shutil.copytree(packed["deferred"], tmp_path / "dataset", ignore=shutil.ignore_patterns("audio-cache"))
    run = (
        "sft", "configs/demo/sft.yaml", "--set", f"dataset={tmp_path}/dataset", "--set", f"output={tmp_path}/sft", "--set",
        f"lora.target_modules={both}", "--set", "train.epochs=1", "--set", "tracking.mode=disabled",
    )  # fmt: skip
    refused = call(*run, "--set", "audio_cache=on")
    assert refused.exit_code == 2
    assert "the audio tower is trained, or has an adapter, so its output cannot be cached" in refused.stderr
    trained = call(*run, "--overwrite")
    assert trained.exit_code == 0, trained.stderr
    assert not (tmp_path / "dataset/audio-cache").exists()


def test_stages_with_and_without_the_cache_agree(call, packed, tmp_path):
    shutil.copytree(packed["deferred"], tmp_path / "dataset", ignore=shutil.ignore_patterns("audio-cache"))
    losses, candidates = {}, {}
    for setting in ("on", "off"):
        common = ("--set", f"dataset={tmp_path}/dataset", "--set", f"audio_cache={setting}", "--set", "tracking.mode=disabled")
        sft = call("sft", "configs/demo/sft.yaml", *common, "--set", f"output={tmp_path}/sft-{setting}", "--set",
                   "train.epochs=2", "--set", "train.batch_size=4", "--set", "train.warmup_steps=1")  # fmt: skip
        assert sft.exit_code == 0, sft.stderr
        losses[setting] = json.loads((tmp_path / f"sft-{setting}/metrics.json").read_text("utf-8"))
        raft = call("raft", "generate", "configs/demo/raft.yaml", *CARD_SETS, *common,
                    "--set", f"output={tmp_path}/raft-{setting}",
                    "--set", f"adapter={tmp_path}/sft-on", "--set", "generate.max_new_tokens=20")  # fmt: skip
        assert raft.exit_code == 0, raft.stderr
        rows = read_rows(tmp_path / f"raft-{setting}/round-1/candidates/candidates.jsonl", Candidate)
        candidates[setting] = [each.token_ids for each in rows]
    assert (tmp_path / "dataset/audio-cache").is_dir()
    assert losses["on"]["train_loss"] == pytest.approx(losses["off"]["train_loss"], rel=1e-4)
    assert losses["on"]["best_validation_loss"] == pytest.approx(losses["off"]["best_validation_loss"], rel=1e-3)
    assert losses["on"]["parameters"] == losses["off"]["parameters"]
    assert candidates["on"] == candidates["off"]


def test_decoding_further_than_the_cache_reaches_runs_the_tower(call, packed, tmp_path):
    shutil.copytree(packed["packed"], tmp_path / "dataset", ignore=shutil.ignore_patterns("audio-cache"))
    run = (
        "eval", "configs/demo/eval-sft.yaml", "--set", f"dataset={tmp_path}/dataset", "--set", "systems=[{name: base}]", "--set",
        f"output={tmp_path}/eval", "--set", "decode.max_new_tokens=66", "--set", "tracking.mode=disabled",
    )  # fmt: skip
    refused = call(*run, "--set", "audio_cache=on")
    assert refused.exit_code == 2
    assert "the cache reaches 65 tokens past the prompt, but decoding may write 66" in refused.stderr
    assert call(*run, "--set", "audio_cache=on", "--dry-run", "--overwrite").stderr == refused.stderr
    assert "none: the cache reaches 65 tokens past the prompt" in call(*run, "--dry-run", "--overwrite").stdout
    assert call(*run, "--resume").exit_code == 0
    assert not (tmp_path / "dataset/audio-cache").exists()


@pytest.mark.parametrize("split", [pytest.param("packed", marks=pytest.mark.slow), "deferred"], indirect=True)
def test_out_of_memory_while_encoding_halves_the_batch(split, monkeypatch, capsys, network):
    whole = np.array(open_cache(network, CPU, "whole", split)._rows)
    real = LiveAudio.embeddings

    def limited(self, indices, tokens):
        if len(indices) > 2:
            raise torch.OutOfMemoryError
        return real(self, indices, tokens)

    monkeypatch.setattr(LiveAudio, "embeddings", limited)
    small = open_cache(network, CPU, "small", split)._rows
    assert "tokens at once; continuing with" in capsys.readouterr().err
    np.testing.assert_allclose(small, whole, rtol=0, atol=2e-5)
    monkeypatch.setattr(LiveAudio, "embeddings", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(EvoxtralError, match="no smaller batch is possible"):
        open_cache(network, CPU, "none", split)
