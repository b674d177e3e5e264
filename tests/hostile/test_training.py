"""NaN is never success, and a damaged checkpoint costs the steps since the one before it, no more."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.training.checkpoints import last_whole_checkpoint
from evoxtral_train.training.trainer import _Watcher

SETTINGS = (
    "--set", "train.epochs=2", "--set", "train.batch_size=4", "--set", "train.gradient_accumulation=1", "--set",
    "train.evaluate_every_steps=2", "--set", "train.keep_checkpoints=3", "--set", "train.warmup_steps=1",
    "--set", "tracking.mode=disabled", "--set", "model.device=cpu",
)  # fmt: skip


@pytest.fixture
def sft(call, packed, tmp_path):
    """sft(name, …) -> the result of `evoxtral sft` into tmp_path / name: 6 steps, a checkpoint after each second one."""

    def sft(name: str, *more, dataset=packed["deferred"]):
        output = ("--set", f"output={tmp_path / name}", "--set", f"dataset={dataset}")
        return call("sft", "configs/demo/sft.yaml", *SETTINGS, *output, *more)

    return sft


def poisoned(source, folder, value: float):
    """A copy of a packed dataset whose second training clip has a mel with one value that is not finite."""
    import pyarrow

    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("audio-cache"))
    [path] = folder.glob("shards/*-train.arrow")
    with pyarrow.ipc.open_stream(path) as stream:
        table = stream.read_all()
    rows = table.to_pylist()
    mel = np.frombuffer(rows[1]["mel"], np.float32).copy()
    mel[1000] = value
    rows[1]["mel"] = mel.tobytes()
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(pyarrow.Table.from_pylist(rows, schema=table.schema))
    return rows[1]["id"]


def assert_nothing_finished(tmp_path, name):
    assert not (tmp_path / name).exists()
    assert not (tmp_path / f"{name}.partial/complete.json").exists()
    assert not (tmp_path / f"{name}.partial/metrics.json").exists()


@pytest.mark.parametrize("rate", ["1e+10", "1e+20"])
def test_a_learning_rate_that_blows_up_stops_at_its_step(sft, tmp_path, rate):
    result = sft("out", "--set", f"train.learning_rate={rate}", "--set", "train.epochs=8")
    assert result.exit_code == 1
    assert "error: at step" in result.stderr
    assert "the last finite loss was" in result.stderr
    assert f"lower train.learning_rate (now {rate}), and start again with --overwrite" in result.stderr
    assert_nothing_finished(tmp_path, "out")
    assert sft("out", "--overwrite").exit_code == 0


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize("what", ["loss", "grad_norm", "eval_loss"])
def test_any_number_of_a_step_that_is_not_finite_ends_training(sft, tmp_path, monkeypatch, what, number):
    real = _Watcher.on_log

    def on_log(self, args, state, control, logs=None, **named):
        changed = {what: float(number)} if what in logs and state.global_step == 4 else {}
        return real(self, args, state, control, logs | changed, **named)

    monkeypatch.setattr(_Watcher, "on_log", on_log)
    result = sft("out")
    name = {"loss": "the loss", "grad_norm": "the gradient", "eval_loss": "the validation loss"}[what]
    assert result.exit_code == 1
    assert f"at step 4 {name} is {number}; the last finite loss was" in result.stderr
    assert_nothing_finished(tmp_path, "out")
    assert [path.name for path in (tmp_path / "out.partial/checkpoints").iterdir()] == ["checkpoint-2"]


def test_weights_that_are_not_finite_are_not_saved(sft, tmp_path, monkeypatch):
    real = _Watcher.on_step_end

    def poison(self, args, state, control, model=None, **named):
        if state.global_step == 4:
            with torch.no_grad():
                next(each for each in model.parameters() if each.requires_grad)[0, 0] = float("inf")
        return real(self, args, state, control, **named)

    monkeypatch.setattr(_Watcher, "on_step_end", poison)
    monkeypatch.setattr(_Watcher, "_require_finite", lambda *_: None)
    result = sft("out")
    assert result.exit_code == 1
    assert "after step 4 the weights are not finite (1 of " in result.stderr
    assert_nothing_finished(tmp_path, "out")
    assert [path.name for path in (tmp_path / "out.partial/checkpoints").iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("cache", ["on", "off"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_mel_that_is_not_finite_is_refused_with_its_clip(sft, call, packed, tmp_path, cache, value):
    clip = poisoned(packed["deferred"], tmp_path / "dataset", value)
    result = sft("out", "--set", f"audio_cache={cache}", dataset=tmp_path / "dataset")
    assert result.exit_code == 1
    assert f"the audio of clip {clip!r} gives features that are not finite" in result.stderr
    assert_nothing_finished(tmp_path, "out")
    evaluated = call(
        "eval", "configs/demo/eval-sft.yaml", "--set", f"dataset={tmp_path}/dataset", "--set", f"output={tmp_path}/eval", "--set",
        f"audio_cache={cache}", "--set", "systems=[{name: base}]", "--set", "split=train", "--set", "tracking.mode=disabled",
        "--set", "model.device=cpu",
    )  # fmt: skip
    assert evaluated.exit_code == 1
    assert f"the audio of clip {clip!r} gives features that are not finite" in evaluated.stderr


def test_an_audio_cache_that_holds_nan_is_refused_with_its_clip(sft, packed, tmp_path):
    """Filled by an earlier version."""
    shutil.copytree(packed["deferred"], tmp_path / "dataset", ignore=shutil.ignore_patterns("audio-cache"))
    assert sft("first", dataset=tmp_path / "dataset").exit_code == 0
    [rows] = (tmp_path / "dataset").glob("audio-cache/*/train.bin")
    content = np.fromfile(rows, np.uint8)
    content[:4] = 255  # the first number of the first clip
    content.tofile(rows)
    result = sft("out", dataset=tmp_path / "dataset")
    clip = PackedSplit(tmp_path / "dataset", "train").examples[0].id
    assert result.exit_code == 1
    assert f"the audio of clip {clip!r} gives features that are not finite" in result.stderr


def test_an_adapter_of_nan_or_cut_short_is_refused_before_anything_is_touched(sft, call, packed, tmp_path):
    assert sft("sft").exit_code == 0
    path = tmp_path / "sft/adapter/adapter_model.safetensors"
    whole, weights = path.read_bytes(), load_file(path)
    name = sorted(weights)[3]
    weights[name][0, 0] = float("nan")
    save_file(weights, path)
    run = (
        "eval", "configs/demo/eval-sft.yaml", "--set", f"dataset={packed['deferred']}", "--set", f"output={tmp_path}/eval",
        "--set", f"systems=[{{name: SFT, adapter: {tmp_path}/sft}}]", "--set", "tracking.mode=disabled",
    )  # fmt: skip
    refused = call(*run)
    assert refused.exit_code == 2
    assert f"an adapter whose weights are not finite: 1 of 61,440 weights, the first in {name}" in refused.stderr
    path.write_bytes(whole[:-1000])
    refused = call(*run)
    assert refused.exit_code == 2
    assert "these weights cannot be read" in refused.stderr
    assert not list(tmp_path.glob("eval*"))


def without_a_tensor(weights: dict) -> dict:
    return dict(sorted(weights.items())[1:])


MISMATCHES = {
    "renamed": (lambda found: {f"a.{name}": each for name, each in found.items()}, "weights are missing and"),
    "one missing": (without_a_tensor, "1 of its weights are missing and 0 unknown: it lacks base_model."),
    "one more": (lambda found: found | {"x.lora_A.weight": torch.zeros(2, 2)}, "0 of its weights are missing and 1 unknown"),
    "none": (lambda found: {}, "weights are missing and 0 unknown"),
    "integers": (lambda found: {name: each.to(torch.int8) for name, each in found.items()}, "holds torch.int8, which is no"),
}
SETTINGS_OF_PEFT = {
    "r": ("x", "does not fit the base"), "target_modules": ("(", "does not fit the base"),
    "lora_alpha": ("x", "does not fit the base"), "use_dora": (True, "lora_magnitude_vector"),
    "modules_to_save": (["lm_head"], "does not fit the base"),
}  # fmt: skip


def test_an_adapter_that_is_not_all_loaded_is_refused(sft, call, packed, tmp_path):
    """PEFT leaves what it does not find as it was made: the base alone was measured under the adapter's name."""
    assert sft("sft").exit_code == 0

    def refused() -> str:
        result = call(
            "eval", "configs/demo/eval-sft.yaml", "--set", f"dataset={packed['deferred']}", "--set", f"output={tmp_path}/eval",
            "--set", f"systems=[{{name: SFT, adapter: {tmp_path}/bad}}]", "--set", "tracking.mode=disabled", "--overwrite",
        )  # fmt: skip
        assert result.exit_code == 2, result.stderr
        return result.stderr

    def copy():
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "sft", tmp_path / "bad")
        return tmp_path / "bad/adapter"

    for change, reason in MISMATCHES.values():
        path = copy() / "adapter_model.safetensors"
        save_file(change(load_file(path)), path)
        assert reason in refused()
    for key, (value, reason) in SETTINGS_OF_PEFT.items():
        path = copy() / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {key: value}), "utf-8")
        assert reason in refused(), key


WRONG = {
    "lora.target_modules=([": "lora.target_modules: Value error, not a regular expression",
    "train.seed=99999999999999999999": "train.seed: Value error, the number is too large",
    "train.pad_weight=1e300": "train.pad_weight: Value error, the number is too large",
    "augmentation.noise_folder=nowhere": "augmentation.noise_folder: nowhere: no folder with audio files",
    "augmentation.noise_snr_db=[40, 15]": "the first number must not be greater than the second",
    "augmentation.gain_db=1000000": "augmentation.gain_db: Input should be less than or equal to 60",
    "augmentation.pitch_semitones=1000000": "augmentation.pitch_semitones: Input should be less than or equal to 24",
    "model.device=meta": "device 'meta' cannot be used",
    "model.family=zork": "model.family: there is no family 'zork'",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_setting_that_training_would_fail_with_is_refused_by_name(sft, override):
    result = sft("out", "--set", "augmentation.probability=1", "--set", override)
    assert result.exit_code == 2
    assert WRONG[override] in result.stderr


DATASETS = {
    "no keys": (lambda record: {}, "`format` is missing"),
    "no shards": (lambda record: {name: each for name, each in record.items() if name != "shards"}, "shards: Field required"),
    "layout": (lambda record: record | {"layout": "zork"}, "layout: 'zork'"),
    "target": (lambda record: record | {"target": "zork"}, "target: Input should be 'tags'"),
    "room": (lambda record: record | {"room_tokens": -5}, "room_tokens: Input should be greater than 0"),
    "rows": (lambda record: record | {"rows": {"train": 999}}, "split train has 999 rows, 12 in its index, 12 in shards"),
}


@pytest.mark.parametrize("name", [*DATASETS, "index of another split"])
def test_a_dataset_whose_records_disagree_is_not_trained_on(sft, packed, tmp_path, name):
    folder = tmp_path / "dataset"
    shutil.copytree(packed["deferred"], folder, ignore=shutil.ignore_patterns("audio-cache"))
    if name in DATASETS:
        change, reason = DATASETS[name]
        record = json.loads((folder / "dataset.json").read_text("utf-8"))
        (folder / "dataset.json").write_text(json.dumps(change(record)), "utf-8")
    else:
        reason = "split train has 12 rows, 6 in its index, 12 in shards"
        shutil.copy(folder / "validation-index.arrow", folder / "train-index.arrow")
    result = sft("out", dataset=folder)
    assert result.exit_code in (1, 2)
    assert f"{folder}/dataset.json: " in result.stderr
    assert reason in result.stderr
    assert not list(tmp_path.glob("out*"))


def damage(checkpoint, name: str, how: str) -> None:
    path = checkpoint / name
    if how == "gone":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(path.read_bytes()[:-20])


@pytest.fixture(scope="module")
def stopped_at_5(call, packed, tmp_path_factory):
    """A run that Ctrl-C ended at step 5, with whole checkpoints of steps 2 and 4, and the same run uninterrupted."""
    folder = tmp_path_factory.mktemp("stopped")
    output = lambda name: ("--set", f"output={folder / name}", "--set", f"dataset={packed['deferred']}")  # noqa: E731
    assert call("sft", "configs/demo/sft.yaml", *SETTINGS, *output("whole")).exit_code == 0
    real = _Watcher.on_step_end

    def stop(self, args, state, control, **named):
        if state.global_step == 5:
            raise KeyboardInterrupt
        return real(self, args, state, control, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Watcher, "on_step_end", stop)
        assert call("sft", "configs/demo/sft.yaml", *SETTINGS, *output("cut")).exit_code == 130
    return folder


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("trainer_state.json", "cut", "trainer_state.json is cut short or damaged"),
        ("trainer_state.json", "empty", "trainer_state.json is cut short or damaged"),
        ("optimizer.pt", "cut", "optimizer.pt is cut short or damaged"),
        ("adapter_model.safetensors", "cut", "adapter_model.safetensors is cut short or damaged"),
        ("rng_state.pth", "gone", "rng_state*.pth is missing"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_and_the_one_before_it_resumed(call, packed, stopped_at_5, tmp_path, name, how, said):
    """In a copy at its own place: a run resumes only where it was begun."""
    partial = stopped_at_5 / "cut.partial"
    shutil.copytree(partial, tmp_path / "kept")
    damage(partial / "checkpoints/checkpoint-4", name, how)
    config = ("sft", "configs/demo/sft.yaml", *SETTINGS, "--set", f"output={stopped_at_5 / 'cut'}", "--set")
    result = call(*config, f"dataset={packed['deferred']}", "--resume")
    try:
        assert result.exit_code == 0, result.stderr
        assert f"checkpoint-4: {said}; resuming from checkpoint-2" in result.stderr
        assert json.loads((stopped_at_5 / "cut/metrics.json").read_text("utf-8"))["resumed_from_step"] == 2
        one, two = (load_file(stopped_at_5 / each / "adapter/adapter_model.safetensors") for each in ("whole", "cut"))
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=0, atol=0)
    finally:
        for path in (stopped_at_5 / "cut", partial):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(tmp_path / "kept", partial)


def test_without_a_whole_checkpoint_training_starts_again(tmp_path, capsys):
    from evoxtral_train.training.trainer import _checkpoint_to_resume

    (tmp_path / "checkpoint-2").mkdir()
    assert _checkpoint_to_resume(tmp_path) is None
    said = "checkpoint-2: adapter_model.safetensors or model.safetensors is missing; training starts again"
    assert said in capsys.readouterr().err
    assert last_whole_checkpoint(tmp_path / "none") == (None, {})
