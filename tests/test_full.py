"""A full fine-tune: what is trained and saved, a full model wherever an adapter is, NEFTune, FSDP."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, VoxtralForConditionalGeneration, VoxtralRealtimeForConditionalGeneration

from conftest import CARD, REPO, TINY_BASE, TINY_OFFLINE_BASE, load_tiny
from evoxtral_train.config.evaluation import EvalConfig, System
from evoxtral_train.config.loader import load_config
from evoxtral_train.config.sections import Model
from evoxtral_train.config.training import SftConfig, Train
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.decoding.decoder import Decoding, decode, requests_of
from evoxtral_train.decoding.sampling import Sampling
from evoxtral_train.errors import UsageError
from evoxtral_train.families.offline.model import chunked
from evoxtral_train.modeling.adapter_thresholds import find_thresholds
from evoxtral_train.modeling.adapters import find_adapter, unfreeze
from evoxtral_train.modeling.audio_cache import LiveAudio
from evoxtral_train.modeling.bases import describe_model, load_network, open_base
from evoxtral_train.runs import Options
from evoxtral_train.stages import greedy, sft
from evoxtral_train.tracking import Tracker
from evoxtral_train.training import trainer
from evoxtral_train.training.checkpoints import fault_of, last_whole_checkpoint
from evoxtral_train.training.dataset import TrainingSet
from evoxtral_train.training.validation import Validation

BASE = Model(base=str(TINY_BASE), dtype="float32", device="cpu")
FULL = (
    "train.method=full", "train.learning_rate=1e-3", "train.batch_size=2", "train.gradient_accumulation=2",
    "train.warmup_steps=1", "train.evaluate_every_steps=2", "train.epochs=2", "tracking.mode=disabled", "model.device=cpu",
)  # fmt: skip


@pytest.fixture
def train(call, packed, tmp_path):
    """train(name, …) -> the result of a full fine-tune into tmp_path / name: 6 steps, a checkpoint after each second one."""

    def train(name: str, *settings, options=(), config="configs/demo/sft.yaml"):
        sets = [f"dataset={packed['deferred']}", f"output={tmp_path / name}", *FULL, *settings]
        return call("sft", config, *(part for each in sets for part in ("--set", each)), *options)

    return train


@pytest.fixture(scope="module")
def full(packed, made_once):
    """A run of a full fine-tune that has learned its 12 clips by heart: it writes their tags."""

    def make(folder):
        settings = [*FULL, "train.epochs=16", "train.batch_size=6", "train.gradient_accumulation=1", "train.learning_rate=3e-3"]
        settings += [f"output={folder / 'sft'}", f"dataset={packed['deferred']}", "train.evaluate_every_steps=16"]
        sft.run(load_config(REPO / "configs/demo/sft.yaml", SftConfig, settings), Options())

    return made_once("full", make) / "sft"


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(run / "model/model.safetensors")


def assert_same(one: dict, two: dict, atol: float = 0) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=atol)


# What is trained.


def test_the_tower_is_frozen_unless_it_is_to_be_trained():
    published = Model(base="mistralai/Voxtral-Mini-4B-Realtime-2602")
    trained = {}
    for tower in (False, True):
        network = unfreeze(describe_model(published)[0], tower)
        trained[tower] = network.sizes()["trainable_parameters"]
        assert all(each.requires_grad for part in network.language_parts for each in part.parameters())
        assert all(each.requires_grad for each in network.audio_parts[1].parameters())
        assert {each.requires_grad for each in network.audio_parts[0].parameters()} == {tower}
    assert trained == {False: 3_459_283_968, True: 4_429_679_360}


def test_the_offline_family_trains_4039302144_parameters_beside_its_tower():
    published = Model(base="mistralai/Voxtral-Mini-3B-2507", family="voxtral")
    sizes = unfreeze(describe_model(published)[0], train_audio_tower=False).sizes()
    assert sizes == {"parameters": 4_676_271_104, "trainable_parameters": 4_039_302_144}


def test_what_is_trained_is_float32_and_the_rest_as_it_was_loaded():
    network = unfreeze(load_tiny("bfloat16"), train_audio_tower=False)
    types = {(each.requires_grad, each.dtype) for each in network.model.parameters()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}


def test_in_bfloat16_a_small_learning_rate_still_moves_the_weights(train, tmp_path):
    """Added to bfloat16 weights, most of these steps would round to nothing."""
    assert train("run", "model.dtype=bfloat16", "train.learning_rate=1e-5", "train.epochs=1").exit_code == 0
    before = dict(load_tiny("bfloat16").model.named_parameters())
    checkpoint, _ = last_whole_checkpoint(tmp_path / "run/checkpoints")
    masters = load_file(checkpoint / "model.safetensors")
    moved = [(masters[name] != before[name].float()).float().mean().item() for name in masters]
    assert {each.dtype for each in masters.values()} == {torch.float32}
    assert len(masters) == 37
    assert "audio_tower" not in " ".join(masters)
    assert sum(moved) / len(moved) > 0.95
    assert {each.dtype for each in weights(tmp_path / "run").values()} == {torch.bfloat16}


def test_the_plan_says_what_it_takes(train):
    said = train("run", "model.dtype=bfloat16", options=["--dry-run"]).stdout
    for line in (
        "2,691,264, 739,968 of them frozen", "1,951,296", "7.8 MB in float32", "15.6 MB (adamw)",
        "32.7 MB in addition to activations", "7.8 MB for a copy of the trained weights, if there is one",
        "23.4 MB on disk, for each kept one", "5.4 MB on disk",
    ):  # fmt: skip
        assert line in said, line
    said = train("run", "train.optimizer=adamw_8bit", options=["--dry-run"]).stdout
    assert "3.9 MB (adamw_8bit)" in said
    assert re.search("cannot run here +train.optimizer: adamw_8bit runs only on CUDA — set it to adamw", said)
    decodes = ("model.dtype=bfloat16", "validation.measure=micro_f1")
    decoded = [train("run", *decodes, f"train.method={method}", options=["--dry-run"]) for method in ("lora", "full")]
    in_bfloat16, in_float32 = (re.search("65,536 tokens, ([0-9.]+) MB", each.stdout)[1] for each in decoded)
    assert float(in_float32) == pytest.approx(2 * float(in_bfloat16), abs=0.1)


REFUSED = {
    "lora.r=8": "train.method full has no adapter: leave lora at its defaults, or set train.method to lora",
    "[audio_cache=on, train.train_audio_tower=true]": "audio_cache: the audio tower is trained, or has an adapter, so its output",
    "train.optimizer=adamw_8bit": "train.optimizer: adamw_8bit runs only on CUDA — set it to adamw",
    "train.optimizer=sgd": "train.optimizer: Input should be 'adamw' or 'adamw_8bit'",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_setting_that_cannot_be_used_is_refused_by_name(train, tmp_path, setting):
    result = train("run", *setting.strip("[]").split(", "))
    assert result.exit_code == 2
    assert REFUSED[setting] in result.stderr
    assert not (tmp_path / "run").exists()
    if "8bit" not in setting:  # which may run elsewhere
        assert train("plan", *setting.strip("[]").split(", "), options=["--dry-run"]).stderr == result.stderr


def test_the_tower_is_not_for_lora(train):
    result = train("run", "train.method=lora", "train.train_audio_tower=true")
    assert result.exit_code == 2
    assert "train_audio_tower is for method full; with method lora, lora.target_modules says what is trained" in result.stderr


def test_an_8_bit_optimizer_needs_its_package_and_no_shards(monkeypatch):
    train = Train(epochs=1, learning_rate=1e-5, optimizer="adamw_8bit")
    monkeypatch.setattr(trainer, "pick_device", lambda device: torch.device("cuda"))
    with pytest.raises(UsageError, match="adamw_8bit needs bitsandbytes, which is not installed — run: pip install bitsandbytes"):
        trainer.check_launch(train, "auto")
    monkeypatch.setattr(trainer, "find_spec", lambda name: object())
    trainer.check_launch(train, "auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="version 1 of FSDP is not supported"):
        trainer.check_launch(train, "auto")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UsageError, match="does not run with FSDP"):
        trainer.check_launch(train, "auto")


# What is saved.


@pytest.fixture
def stop_at_two(monkeypatch):
    real = trainer._Watcher.on_step_end

    def stop(self, args, state, control, **named):
        if state.global_step == 2:
            raise KeyboardInterrupt
        return real(self, args, state, control, **named)

    monkeypatch.setattr(trainer._Watcher, "on_step_end", stop)
    return monkeypatch


def test_resumed_equals_uninterrupted(train, tmp_path, stop_at_two):
    """Bit by bit, noise included, the tower too: its weights are under names of their own in what is saved."""
    settings = ("train.neftune_alpha=5", "train.train_audio_tower=true", "train.epochs=1", "train.evaluate_every_steps=1")
    assert train("cut", *settings).exit_code == 130
    stop_at_two.undo()
    resumed = train("cut", *settings, options=["--resume"])
    assert resumed.exit_code == 0, resumed.stderr
    assert "resumed from step     1" in resumed.stdout
    assert train("whole", *settings).exit_code == 0
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text("utf-8")) for name in ("whole", "cut")]
    for name in ("train_loss", "best_validation_loss", "best_step", "trainable_parameters", "parameters"):
        assert metrics[0][name] == metrics[1][name]
    assert metrics[0]["trainable_parameters"] == metrics[0]["parameters"] == 2_691_264
    tower = load_network(open_base(BASE), "float32", find_adapter(tmp_path / "cut")).audio_parts[0].parameters()
    assert all((one != two).any() for one, two in zip(tower, load_tiny().audio_parts[0].parameters(), strict=True))


def test_the_best_checkpoint_is_the_one_that_is_saved(train, tmp_path):
    """At this learning rate, the last step's is worse."""
    settings = ("train.learning_rate=5e-2", "train.schedule=constant_with_warmup", "train.keep_checkpoints=5")
    assert train("run", *settings).exit_code == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text("utf-8"))
    assert metrics["best_step"] < metrics["steps"] == 6
    best = load_file(tmp_path / f"run/checkpoints/checkpoint-{metrics['best_step']}/model.safetensors")
    network = load_network(open_base(BASE), "float32", find_adapter(tmp_path / "run"))
    saved = dict(network.model.named_parameters())
    assert_same(best, {name: saved[name] for name in best})


def test_a_checkpoint_is_whole_or_not(full, tmp_path):
    whole, _ = last_whole_checkpoint(full / "checkpoints")
    copy = tmp_path / "checkpoint-2"
    shutil.copytree(whole, copy)
    assert fault_of(copy) is None
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    assert fault_of(copy) == "model.safetensors is cut short or damaged"
    path.unlink()
    assert fault_of(copy) == "adapter_model.safetensors or model.safetensors is missing"
    shards = copy / "pytorch_model_fsdp_0"
    shards.mkdir()
    (shards / ".metadata").touch()
    assert fault_of(copy) == ".metadata is cut short or damaged"
    (shards / ".metadata").write_bytes(b"1")
    assert fault_of(copy) is None


def test_the_stock_class_loads_it_and_writes_the_same_tokens(full, packed):
    folder = full / "model"
    stock, info = VoxtralRealtimeForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert json.loads((folder / "config.json").read_text("utf-8"))["architectures"] == ["VoxtralRealtimeForConditionalGeneration"]
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    network, split = load_network(open_base(BASE), "float32", find_adapter(full)), PackedSplit(packed["deferred"], "train")
    requests = list(requests_of(split))[:4]
    settings = Decoding(candidates=1, sampling=Sampling(), max_new_tokens=24, batch_tokens=2000)
    found = [each for batch in decode(network, LiveAudio(network, split), requests, settings) for each in batch]
    texts = []
    for completion, request in zip(sorted(found, key=lambda each: each.utterance_id), requests, strict=True):
        length = min(len(request.prompt) + 24, request.end)
        mel = torch.from_numpy(split.mel_of(request.index, length))[None]
        written = stock.eval().generate(
            input_ids=torch.tensor([request.prompt]), input_features=mel, num_delay_tokens=6, do_sample=False, max_length=length
        )[0, len(request.prompt) :].tolist()
        expected = written[: written.index(split.layout.eos_id)] if split.layout.eos_id in written else written
        assert completion.token_ids == expected
        texts.append(tokenizer.decode(expected).strip())
    assert sum("[" in text for text in texts) > 1, texts


@pytest.mark.slow
def test_the_offline_family_resumes_and_is_read_by_the_stock_class(train, packed, tmp_path, stop_at_two):
    """The projector is trained, from the cache of what enters it."""
    settings = [f"dataset={packed['transcription_request']}", f"model.base={TINY_OFFLINE_BASE}", "train.epochs=1"]
    settings += ["lora={}", "train.evaluate_every_steps=1"]
    offline = {"config": "configs/offline/demo/sft.yaml"}
    assert train("cut", *settings, **offline).exit_code == 130
    stop_at_two.undo()
    resumed = train("cut", *settings, options=["--resume"], **offline)
    assert (resumed.exit_code, "resumed from step     1" in resumed.stdout) == (0, True), resumed.stderr
    assert train("whole", *settings, **offline).exit_code == 0
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert list((packed["transcription_request"] / "audio-cache").glob("*-states/train.json"))
    stock, info = VoxtralForConditionalGeneration.from_pretrained(tmp_path / "cut/model", output_loading_info=True)
    assert not any(info.values())
    assert any((one != two).any() for one, two in zip(stock.parameters(), stock_base().parameters(), strict=True))
    split = PackedSplit(packed["transcription_request"], "train")
    network = load_network(open_base(BASE.model_copy(update={"base": str(TINY_OFFLINE_BASE)})), "float32",
                           find_adapter(tmp_path / "cut"))  # fmt: skip
    requests = list(requests_of(split))[:2]
    settings = Decoding(candidates=1, sampling=Sampling(), max_new_tokens=12, batch_tokens=2000)
    found = {each.utterance_id: each.token_ids
             for batch in decode(network, LiveAudio(network, split), requests, settings) for each in batch}  # fmt: skip
    for request in requests:
        mel = chunked([torch.from_numpy(split.mel_of(request.index, request.end))])
        ids = torch.tensor([request.prompt])
        written = stock.eval().generate(input_ids=ids, input_features=mel, do_sample=False, max_new_tokens=12)
        written = written[0, len(request.prompt) :].tolist()
        assert found[request.utterance_id] == (written[: written.index(2)] if 2 in written else written) != []


def stock_base() -> VoxtralForConditionalGeneration:
    return VoxtralForConditionalGeneration.from_pretrained(TINY_OFFLINE_BASE)


# Wherever an adapter is.


def test_it_is_evaluated_beside_the_base_and_an_adapter(full, tagging, packed):
    """Each as alone, whatever came before it; a run and its `model/` are the same."""
    split, base = PackedSplit(packed["deferred"], "test"), open_base(BASE)
    paths = [full, None, tagging, full / "model"]
    adapters = {path: find_adapter(path) for path in paths if path}
    config = EvalConfig(output="none", dataset=split.folder, split="test", model=BASE, systems=[System(name="base")])

    def decoded(paths):
        return greedy.decode_greedily(config, base.family.load("float32"), base, split, paths, adapters)

    together = decoded(paths)
    assert together[full] == together[full / "model"]
    assert together[None] == decoded([None])[None]
    assert together[tagging] == decoded([tagging])[tagging]
    assert together[full] != together[tagging] != together[None]


def test_the_commands_that_take_an_adapter_take_it(full, call, packed, tmp_path):
    common = ("--set", "tracking.mode=disabled", "--set", "model.device=cpu", "--set", f"dataset={packed['deferred']}")
    copy = tmp_path / "full"
    shutil.copytree(full, copy)
    calibrated = call("calibrate", "configs/calibrate.yaml", *common, "--set", f"adapter={copy}", "--set", f"output={tmp_path}/c",
                      "--set", f"model.base={TINY_BASE}", "--set", "model.dtype=float32")  # fmt: skip
    assert calibrated.exit_code == 0, calibrated.stderr
    assert (copy / "model/thresholds.json").is_file()
    system = f"systems=[{{name: SFT, adapter: {copy}, thresholds: true}}]"
    evaluated = call("eval", "configs/demo/eval-sft.yaml", *common, "--set", f"output={tmp_path}/eval", "--set", system,
                     "--set", "bootstrap.samples=100")  # fmt: skip
    assert evaluated.exit_code == 0, evaluated.stderr
    exported = call(
        "export", "configs/export.yaml", "--set", f"adapter={copy}", "--set", f"output={tmp_path}/out", "--set", "system=SFT",
        "--set", f"evaluation={tmp_path}/eval", "--set", f"model.base={TINY_BASE}", "--set", "model.dtype=float32",
        "--set", "tracking.mode=disabled", "--set", "push_to=null", "--set", "format=transformers",
    )  # fmt: skip
    assert exported.exit_code == 0, exported.stderr
    card = (tmp_path / "out/release/README.md").read_text("utf-8")
    assert "A full fine-tune of the base `tiny-base` that writes expressive tags" in card
    assert "all weights but the audio tower's" in card
    assert "library_name: transformers" in card
    assert "peft" not in card[: card.index("## Provenance")]
    assert find_thresholds(find_adapter(tmp_path / "out/release")) == find_thresholds(find_adapter(tmp_path / "out/merged"))
    assert (tmp_path / "out/merged/evoxtral.json").read_bytes() == (copy / "model/evoxtral.json").read_bytes()
    assert_same(weights(copy), load_file(tmp_path / "out/release/model.safetensors"))
    transcribed = call("transcribe", REPO / "README.md", "--adapter", copy, "--base", TINY_BASE)
    assert transcribed.exit_code == 2
    assert "is a full model, not an adapter — set model.base to this folder, and leave it out of `adapters`" in transcribed.stderr


RAFT = ("generate.candidates=2", "generate.max_new_tokens=12", "gate.split=null", "train.batch_size=4", "split=validation")


def test_raft_goes_on_with_full_training(full, call, packed, tmp_path):
    def raft(step, *settings):
        sets = [f"dataset={packed['deferred']}", f"output={tmp_path}/raft", f"adapter={full}", *CARD, *RAFT, "model.device=cpu",
                "tracking.mode=disabled", *settings]  # fmt: skip
        step, *options = step.split()
        return call("raft", step, "configs/demo/raft.yaml", *options, *(part for each in sets for part in ("--set", each)))

    for step in ("run", "generate", "train"):
        refused = raft(step, "curate.drop_lowest_share=0")
        assert refused.exit_code == 2
        assert "train.method: is lora, but RAFT would start from a full model" in refused.stderr or step == "train"
    planned = raft("run --dry-run", "train.method=full").stdout
    assert "audio cache, validation  none: a full model has an audio path of its own" in planned
    refused = raft("run", "train.method=full", "train.optimizer=adamw_8bit")
    assert (refused.exit_code, (tmp_path / "raft").exists()) == (2, False), "before anything is generated"
    done = raft("run", "train.method=full")
    assert done.exit_code == 0, done.stderr
    result = find_adapter(tmp_path / "raft/result")
    assert (result.method, result.folder.name) == ("full", "model")
    before, after = weights(full), weights(tmp_path / "raft/result")
    assert any((before[name] != after[name]).any() for name in before if "language_model" in name)
    assert all(torch.equal(before[name], after[name]) for name in before if "audio_tower" in name)


BROKEN = {
    "cut short": "these weights cannot be read",
    "nan": "a model whose weights are not finite: 1 of ",
    "tokenizer": "this full model is of another family or has another tokenizer than",
    "code": "this base contains Python code",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_model_is_refused(full, tmp_path, what):
    folder = tmp_path / "model"
    shutil.copytree(full / "model", folder)
    path = folder / "model.safetensors"
    if what == "cut short":
        path.write_bytes(path.read_bytes()[:-1000])
    elif what == "nan":
        found = load_file(path)
        next(iter(found.values())).view(-1)[0] = float("nan")
        save_file(found, path, {"format": "pt"})
    elif what == "tokenizer":
        (folder / "tekken.json").write_text((folder / "tekken.json").read_text("utf-8") + "\n", "utf-8")
    else:
        config = json.loads((folder / "config.json").read_text("utf-8")) | {"auto_map": {"AutoModel": "x.Y"}}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(UsageError, match=BROKEN[what]):
        load_network(open_base(BASE), "float32", find_adapter(folder))


# NEFTune.


@pytest.mark.parametrize("method", ["lora", "full"])
def test_neftune_is_noise_in_training_and_none_in_evaluation(packed, tmp_path, monkeypatch, method):
    from evoxtral_train.config.sections import Tracking
    from evoxtral_train.config.training import Lora
    from evoxtral_train.modeling.adapters import add_lora

    def losses(alpha):
        network = load_tiny()
        network = unfreeze(network, False) if method == "full" else add_lora(network, Lora(), BASE)
        rows = TrainingSet(PackedSplit(packed["deferred"], "validation"))
        config = Train(epochs=1, learning_rate=1e-12, method=method, neftune_alpha=alpha, warmup_steps=0)
        tracker = Tracker(Tracking(mode="disabled"), "sft", tmp_path, Tracking())
        folder = tmp_path / f"{alpha}"
        trainer.train_network(network, rows, Validation(rows, None, "loss"), config, "float32", folder, False, tracker)
        assert not network.stock.get_input_embeddings()._forward_hooks
        state = json.loads((folder / "checkpoint-1/trainer_state.json").read_text("utf-8"))
        return [entry[name] for entry in state["log_history"] for name in ("loss", "eval_loss") if name in entry]

    (plain, plain_eval), (noisy, noisy_eval) = losses(None), losses(20.0)
    assert abs(noisy - plain) > 1e-3
    assert noisy_eval == pytest.approx(plain_eval, abs=1e-6)


# FSDP.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_two_processes_that_share_the_weights_train_the_same_model(train, packed, tmp_path, kind):
    assert train("one").exit_code == 0
    [block] = re.findall(r"```yaml\n(.*?)```", (REPO / "docs/scaling.md").read_text("utf-8"), re.DOTALL)
    launch = yaml.safe_load(block) | {"num_processes": 2, "mixed_precision": "no", "main_process_port": 0}
    launch["fsdp_config"]["fsdp_state_dict_type"] = kind
    (tmp_path / "fsdp.yaml").write_text(yaml.safe_dump(launch), "utf-8")
    sets = [f"dataset={packed['deferred']}", f"output={tmp_path / 'two'}", *FULL]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", tmp_path / "fsdp.yaml", "tests/fsdp_on_cpu.py",
        "sft", "configs/demo/sft.yaml", *(part for each in sets for part in ("--set", each)),
    ]  # fmt: skip
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*map(str, command)], cwd=REPO, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    checkpoint, faults = last_whole_checkpoint(tmp_path / "two/checkpoints")
    assert not faults
    assert (checkpoint / {"FULL_STATE_DICT": "optimizer.bin", "SHARDED_STATE_DICT": "optimizer_0"}[kind]).exists()
    metrics = json.loads((tmp_path / "two/metrics.json").read_text("utf-8"))
    assert (metrics["processes"], metrics["trainable_parameters"]) == (2, 1_951_296)
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "two"), atol=1e-3)
    assert load_network(open_base(BASE), "float32", find_adapter(tmp_path / "two"))
