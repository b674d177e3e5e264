"""Validation by generation: what a checkpoint writes is measured during SFT, and chooses the one that is kept."""

import doctest
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from conftest import REPO, TINY_BASE, TINY_OFFLINE_BASE, load_tiny, rows_of
from corpora import write_rows
from evoxtral_train import processes
from evoxtral_train.config.data import Layout, PackConfig
from evoxtral_train.config.loader import load_config
from evoxtral_train.config.sections import Tracking
from evoxtral_train.config.training import RaftConfig, SftConfig, ValidationDecode
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.errors import ConfigError, UsageError
from evoxtral_train.modeling.adapters import find_adapter, load_adapter
from evoxtral_train.records import Prediction
from evoxtral_train.runs import Options
from evoxtral_train.scoring import figures as figures_module
from evoxtral_train.scoring.figures import figures, figures_of
from evoxtral_train.stages.data import pack
from evoxtral_train.training import trainer as trainer_module
from evoxtral_train.training.validation import ClipDecoder, decoded_examples, validation_split

DEMO = REPO / "configs/demo/sft.yaml"


def config_of(dataset, *settings) -> SftConfig:
    return load_config(DEMO, SftConfig, [f"dataset={dataset}", *settings])


def sft(call, dataset, output, *settings, more=()):
    settings = ("train.epochs=12", "train.batch_size=6", "train.warmup_steps=1", "train.evaluate_every_steps=6",
                "lora.dropout=0.1", *settings)  # fmt: skip
    sets = [part for each in (f"dataset={dataset}", f"output={output}", *settings) for part in ("--set", each)]
    return call("sft", DEMO, "--set", "tracking.mode=disabled", *sets, *more)


def metrics_of(run) -> dict:
    return json.loads((run / "metrics.json").read_text("utf-8"))


def evaluations_of(run) -> list[dict]:
    """The Trainer's log of every evaluation, from the last checkpoint."""
    last = max(run.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    log = json.loads((last / "trainer_state.json").read_text("utf-8"))["log_history"]
    return [entry for entry in log if "eval_loss" in entry]


@pytest.fixture(scope="module")
def known(spoken, made_once) -> dict[str, Path]:
    """12 clips to train on, and 12 to validate on, of which 8 are the same: so what is learned shows. {target: dataset}."""

    def make(folder: Path) -> None:
        rows = rows_of(spoken)
        train, held_out = ([row for row in rows if row["split"] == split] for split in ("train", "validation"))
        again = [row | {"id": f"{row['id']}-again", "split": "validation"} for row in train[:8]]
        manifest = write_rows(folder / "manifest.jsonl", train + again + held_out[:4])
        for target in ("tags", "text", "tagged_text"):
            config = PackConfig(
                manifest=manifest, output=folder / target, base=str(TINY_BASE), layout=Layout(kind="deferred"), target=target,
                tracking=Tracking(mode="disabled"),
            )  # fmt: skip
            pack.run(config, Options())

    folder = made_once("known", make)
    return {target: folder / target for target in ("tags", "text", "tagged_text")}


@pytest.fixture(scope="module")
def runs(call, known, made_once) -> Path:
    """The same training twice: "decoded" keeps the best checkpoint by micro F1, "plain" by the loss, without decoding."""

    def make(folder: Path) -> None:
        for name, settings in {"decoded": ["validation.measure=micro_f1"], "plain": []}.items():
            done = sft(call, known["tags"], folder / name, *settings)
            assert done.exit_code == 0, done.stderr
            (folder / f"{name}.txt").write_text(done.stdout, "utf-8")

    return made_once("validated", make)


# Figures.


def test_the_figures_by_hand():
    rows = [
        Prediction("a", "[sighs] i told you.", "[sighs] i told me."),  # 1 of 3 words, 3 of 10 characters
        Prediction("b", "come closer.", "[gasps] come closer."),  # a false tag in an untagged clip
        Prediction("c", "[whispers] no.", "no."),
    ]
    found = figures(rows, "tagged_text")
    assert found == {
        "wer": pytest.approx(1 / 6), "cer": found["cer"], "micro_f1": pytest.approx(0.5), "false_tags_per_untagged_clip": 1.0,
    }  # fmt: skip
    assert figures(rows, "tags") == {"micro_f1": 0.5, "false_tags_per_untagged_clip": 1.0}
    assert list(figures(rows, "text")) == ["wer", "cer"]
    assert figures([Prediction("c", "[whispers] no.", "no.")], "tags") == {"micro_f1": 0.0}, "no untagged clip, so no rate"
    assert [figures_of(target) for target in ("tags", "text")] == [("micro_f1", "false_tags_per_untagged_clip"), ("wer", "cer")]
    assert doctest.testmod(figures_module) == (0, 1)


# The config.


def test_a_measure_that_needs_decoding_turns_it_on():
    assert config_of("x").validation.decode is None
    assert config_of("x", "validation.measure=micro_f1").validation.decode == ValidationDecode()
    logged = config_of("x", "validation.decode.clips=3").validation
    assert (logged.measure, logged.decode.clips) == ("loss", 3)


def test_raft_has_no_such_section():
    with pytest.raises(ConfigError, match="unknown key 'validation'"):
        load_config(REPO / "configs/demo/raft.yaml", RaftConfig, ["validation.measure=loss"])


@pytest.mark.parametrize(
    ("target", "setting", "what"),
    [
        ("tags", "validation.measure=wer",
         "validation.measure: the dataset's target 'tags' has no words, so there is no wer — set it to loss or micro_f1"),
        ("text", "validation.measure=micro_f1",
         "validation.measure: the dataset's target 'text' has no tags, so there is no micro_f1 — set it to loss or wer or cer"),
        ("tags", "validation.decode.max_new_tokens=66",
         "validation.decode.max_new_tokens: the dataset leaves room for 65 tokens, where its cached audio ends, but decoding may "
         "write 66 — set it to null, or pack the dataset with a larger layout.room_tokens"),
    ],
)  # fmt: skip
def test_what_the_dataset_cannot_give_is_refused_before_anything_runs(call, known, tmp_path, target, setting, what):
    for more in (["--dry-run"], []):
        done = sft(call, known[target], tmp_path / "sft", setting, more=more)
        assert done.exit_code == 2
        assert what in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_clip_to_measure_on_is_refused(known, tmp_path, spoken):
    first = next(index for index, each in enumerate(PackedSplit(known["tags"], "validation").examples) if "[" in each.text)
    assert first == 2, "at even distances, one clip is the first of all, which has no tag"
    with pytest.raises(UsageError, match="none of the 1 clips to decode has a tag, so there is no micro_f1"):
        validation_split(config_of(known["tags"], "validation.measure=micro_f1", "validation.decode.clips=1"))
    write_rows(tmp_path / "manifest.jsonl", [row for row in rows_of(spoken) if row["split"] == "train"][:2])
    settings = PackConfig(
        manifest=tmp_path / "manifest.jsonl", output=tmp_path / "packed", base=str(TINY_BASE), tracking=Tracking(mode="disabled")
    )
    pack.run(settings, Options())
    assert validation_split(config_of(tmp_path / "packed")) is None
    with pytest.raises(UsageError, match="^validation: the dataset has no clips in the split 'validation' to decode"):
        validation_split(config_of(tmp_path / "packed", "validation.decode={}"))


def test_fsdp_is_refused(known, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert len(validation_split(config_of(known["tags"]))) == 12
    with pytest.raises(UsageError, match="under FSDP no process holds the whole model, so none can decode"):
        validation_split(config_of(known["tags"], "validation.measure=micro_f1"))


def test_a_part_of_the_clips_is_spread_over_the_split(known):
    split = PackedSplit(known["tags"], "validation")
    assert list(decoded_examples(ValidationDecode(clips=5), split)) == [0, 2, 4, 7, 9]
    assert list(decoded_examples(ValidationDecode(clips=99), split)) == list(decoded_examples(ValidationDecode(), split))
    assert [each.id for each in decoded_examples(ValidationDecode(clips=5), split).values()] == [
        split.examples[index].id for index in (0, 2, 4, 7, 9)
    ]


def test_a_plan_says_what_is_decoded_and_kept(call, known, tmp_path):
    plan = sft(call, known["tags"], tmp_path / "sft", "validation.decode.clips=5", more=["--dry-run"])
    assert "12 clips, 5 of them decoded, every 6 steps; the best in loss is kept" in plan.stdout, plan.stderr
    assert re.search(r"decoded together +65,536 tokens, ", plan.stdout)


# Training.


def test_the_best_checkpoint_by_micro_f1_is_kept(runs):
    log, metrics = evaluations_of(runs / "decoded"), metrics_of(runs / "decoded")
    assert [entry["step"] for entry in log] == list(range(6, 25, 6))
    scores = [entry["eval_micro_f1"] for entry in log]
    best = log[scores.index(max(scores))]
    assert metrics["best_step"] == best["step"]
    assert metrics["best_validation_micro_f1"] == max(scores) > 0
    assert metrics["validation_measure"] == "micro_f1"
    assert "best_validation_loss" not in metrics
    names = ("loss", "micro_f1", "false_tags_per_untagged_clip")
    assert metrics["validation_at_best_step"] == {name: best[f"eval_{name}"] for name in names}
    assert (metrics["validation_rows"], metrics["validation_clips"]) == (12, 12)
    kept, saved = (load_file(runs / "decoded" / name / "adapter_model.safetensors")
                   for name in ("adapter", f"checkpoints/checkpoint-{best['step']}"))  # fmt: skip
    assert all(torch.equal(kept[name], saved[name]) for name in saved)
    printed = (runs / "decoded.txt").read_text("utf-8")
    assert f"best validation tag F1   {max(scores):.4f} at step {best['step']}" in printed
    assert f"loss {best['eval_loss']:.3f}, tag F1 {max(scores):.3f}, false tags" in printed


@pytest.mark.parametrize(("measure", "best"), [("micro_f1", 2), ("wer", 3)])
def test_of_equal_checkpoints_the_first_is_kept(call, known, tmp_path, monkeypatch, measure, best):
    written = iter([(0.2, 0.5), (0.6, 0.5), (0.6, 0.1), (0.4, 0.1)])
    monkeypatch.setattr(ClipDecoder, "measure", lambda self: dict(zip(("micro_f1", "wer"), next(written), strict=True)))
    done = sft(call, known["tagged_text"], tmp_path / "sft", f"validation.measure={measure}", "train.epochs=2",
               "train.evaluate_every_steps=1")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    metrics = metrics_of(tmp_path / "sft")
    assert (metrics["best_step"], metrics[f"best_validation_{measure}"]) == (best, {"micro_f1": 0.6, "wer": 0.1}[measure])


def test_decoding_changes_nothing_in_training(runs):
    """With dropout, so that a random number drawn in between would show."""
    plain, decoded = evaluations_of(runs / "plain"), evaluations_of(runs / "decoded")
    assert [entry["eval_loss"] for entry in plain] == [entry["eval_loss"] for entry in decoded]
    assert not any("eval_micro_f1" in entry for entry in plain)
    last = [load_file(runs / name / "checkpoints/checkpoint-24/adapter_model.safetensors") for name in ("plain", "decoded")]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    metrics = metrics_of(runs / "plain")
    assert metrics["best_validation_loss"] == min(entry["eval_loss"] for entry in plain)
    assert "validation_at_best_step" not in metrics
    assert "best validation loss" in (runs / "plain.txt").read_text("utf-8")


def test_the_figures_are_tracked_and_in_the_progress_note():
    logged = []
    watcher = trainer_module._Watcher(SimpleNamespace(log=lambda metrics, step: logged.append((step, metrics))), 9, "")
    state = SimpleNamespace(global_step=4, log_history=[])
    watcher.on_log(None, state, None, {"eval_loss": 0.1234, "eval_wer": 0.045, "eval_micro_f1": 0.71, "eval_runtime": 2.0})
    watcher.close()
    assert watcher._note == "validation loss 0.123, WER 0.045, tag F1 0.710"
    assert [step for step, _ in logged] == [4]
    assert logged[0][1].items() >= {"train/eval_loss": 0.1234, "train/eval_wer": 0.045, "train/eval_micro_f1": 0.71}.items()


def evaluated(call, dataset, adapter, output, *more) -> dict:
    """What `evoxtral eval` finds on the validation split."""
    settings = (f"dataset={dataset}", f"output={output}", "split=validation", "decode.max_new_tokens=65", "bootstrap.samples=10",
                "bootstrap.permutations=199", f"systems=[{{name: it, adapter: {adapter}}}]", *more)  # fmt: skip
    sets = [part for each in settings for part in ("--set", each)]
    done = call("eval", "configs/demo/eval-sft.yaml", *sets, "--set", "tracking.mode=disabled")
    assert done.exit_code == 0, done.stderr
    return json.loads((output / "metrics.json").read_text("utf-8"))["systems"]["it"]


def test_eval_finds_the_same_figures(call, runs, known, tmp_path):
    report = evaluated(call, known["tags"], runs / "decoded", tmp_path / "eval")
    figures = metrics_of(runs / "decoded")["validation_at_best_step"]
    assert figures["micro_f1"] == report["micro"]["f1"]["value"]
    assert figures["false_tags_per_untagged_clip"] == report["false_tags_per_untagged_clip"]["value"]


def test_words_without_a_cache_and_with_gradient_checkpointing(call, known, tmp_path):
    done = sft(call, known["tagged_text"], tmp_path / "sft", "validation.measure=wer", "audio_cache=off", "train.epochs=3",
               "train.gradient_checkpointing=true")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    metrics = metrics_of(tmp_path / "sft")
    log = evaluations_of(tmp_path / "sft")
    assert metrics["best_validation_wer"] == min(entry["eval_wer"] for entry in log)
    report = evaluated(call, known["tagged_text"], tmp_path / "sft", tmp_path / "eval")
    figures = metrics["validation_at_best_step"]
    assert figures["wer"] == metrics["best_validation_wer"] == report["wer"]["micro"]["value"]
    assert figures["cer"] == report["cer"]["micro"]["value"]
    assert figures["micro_f1"] == report["micro"]["f1"]["value"]


@pytest.mark.slow
def test_the_offline_family(call, packed, tmp_path):
    base, most = f"model.base={TINY_OFFLINE_BASE}", 12
    done = sft(call, packed["transcription_request"], tmp_path / "sft", base, "train.epochs=1", "train.evaluate_every_steps=1",
               "validation.measure=cer", f"validation.decode.max_new_tokens={most}", "train.learning_rate=0.02")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    figures = metrics_of(tmp_path / "sft")["validation_at_best_step"]
    assert set(figures) == {"loss", "wer", "cer", "micro_f1", "false_tags_per_untagged_clip"}
    limit = f"decode.max_new_tokens={most}"
    report = evaluated(call, packed["transcription_request"], tmp_path / "sft", tmp_path / "eval", base, limit)
    assert (figures["wer"], figures["cer"]) == (report["wer"]["micro"]["value"], report["cer"]["micro"]["value"])


def test_resumed_equals_uninterrupted(call, runs, known, tmp_path, monkeypatch):
    real = trainer_module._Watcher.on_step_end

    def stop_at_15(self, args, state, control, **named):
        if state.global_step == 15:
            raise KeyboardInterrupt
        return real(self, args, state, control, **named)

    monkeypatch.setattr(trainer_module._Watcher, "on_step_end", stop_at_15)
    assert sft(call, known["tags"], tmp_path / "cut", "validation.measure=micro_f1").exit_code == 130
    monkeypatch.undo()
    resumed = sft(call, known["tags"], tmp_path / "cut", "validation.measure=micro_f1", more=["--resume"])
    assert resumed.exit_code == 0, resumed.stderr
    timeless = [
        [{name: value for name, value in entry.items() if "second" not in name and "runtime" not in name} for entry in log]
        for log in (evaluations_of(runs / "decoded"), evaluations_of(tmp_path / "cut"))
    ]
    assert timeless[0] == timeless[1]
    whole, again = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (runs / "decoded", tmp_path / "cut"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_figures_are_the_same_for_any_number_of_processes(runs, known, monkeypatch):
    split = PackedSplit(known["tags"], "validation")
    network = load_adapter(load_tiny(), find_adapter(runs / "decoded"))
    from evoxtral_train.families.checkpoint import open_family

    clips = ClipDecoder(ValidationDecode(), network, open_family(TINY_BASE).tokenizer, split, None)
    random_state = torch.get_rng_state()
    expected, parts = clips.measure(), []
    assert torch.equal(torch.get_rng_state(), random_state)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(processes, "gather", lambda items: parts.append(items) or sum(parts, []))
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        try:
            found = clips.measure()
        except KeyError:
            assert rank < 2, "only the last has what the others have written"
    assert [len(part) for part in parts] == [4, 4, 4]
    assert found == expected
