"""Words that an adapter keeps: the base's own transcripts as training rows, and the limit on the WER in SFT and RAFT."""

import doctest
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import CARD, REPO, TINY_BASE, TINY_OFFLINE_BASE, launch
from evoxtral_train.config.data import Layout, PackConfig
from evoxtral_train.config.loader import load_config
from evoxtral_train.config.sections import Tracking
from evoxtral_train.config.training import Gate, RaftConfig, SftConfig
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.decoding.decoder import Decoding, Request, decode
from evoxtral_train.decoding.sampling import Sampling
from evoxtral_train.errors import ConfigError, UsageError
from evoxtral_train.modeling.audio_cache import LiveAudio
from evoxtral_train.records import Prediction, read_rows
from evoxtral_train.runs import Options
from evoxtral_train.stages.data import pack
from evoxtral_train.stages.raft import run as raft_run
from evoxtral_train.text.tags import find_tags
from evoxtral_train.text.written import written_text
from evoxtral_train.training import replay, trainer
from evoxtral_train.training.dataset import Target, TrainingSet
from evoxtral_train.training.replay import ReplayRow, check_replay, replayed_clips
from evoxtral_train.training.validation import ClipDecoder, Validation

DEMO = REPO / "configs/demo/sft.yaml"


@pytest.fixture(scope="module")
def words(spoken, made_once) -> dict[str, Path]:
    """The spoken clips with words: {"aligned", "deferred", "tags" (aligned, without words): dataset}."""

    def make(folder: Path) -> None:
        for name, kind, target in (("aligned", "aligned", "tagged_text"), ("deferred", "deferred", "tagged_text"),
                                   ("tags", "aligned", "tags")):  # fmt: skip
            config = PackConfig(
                manifest=spoken / "manifest.jsonl", output=folder / name, base=str(TINY_BASE), layout=Layout(kind=kind),
                target=target, tracking=Tracking(mode="disabled"),
            )  # fmt: skip
            pack.run(config, Options())

    folder = made_once("words", make)
    return {name: folder / name for name in ("aligned", "deferred", "tags")}


def config_of(dataset, *settings) -> SftConfig:
    return load_config(DEMO, SftConfig, [f"dataset={dataset}", *settings])


def sft(call, dataset, output, *settings, more=()):
    settings = ("train.epochs=2", "train.batch_size=5", "train.warmup_steps=1", "train.evaluate_every_steps=2",
                "tracking.mode=disabled", *settings)  # fmt: skip
    sets = [part for each in (f"dataset={dataset}", f"output={output}", *settings) for part in ("--set", each)]
    return call("sft", DEMO, *sets, *more)


def metrics_of(run) -> dict:
    return json.loads((run / "metrics.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def replayed(call, words, made_once) -> Path:
    """SFT with replay: on 12 clips, and on the base's transcripts of 3 of the 4 clips without tags."""

    def make(folder: Path) -> None:
        done = sft(call, words["aligned"], folder / "sft", "replay.share=0.25", "replay.weight=0.5")
        assert done.exit_code == 0, done.stderr

    return made_once("replayed", make) / "sft"


# Replay.


def test_the_rows_are_what_the_base_writes_for_clips_without_tags(replayed, words, network, family):
    split = PackedSplit(words["aligned"], "train")
    rows = read_rows(replayed / "replay.jsonl", ReplayRow)
    untagged = [each.id for each in split.examples if not find_tags(each.text)]
    places = [split.index_of[row.utterance_id] for row in rows]
    assert len(rows) == 3 < len(untagged)
    assert {row.utterance_id for row in rows} < set(untagged)
    assert places == sorted(places)
    requests = [Request.of(row.utterance_id, split.layout, split.clip(place), place)
                for row, place in zip(rows, places, strict=True)]  # fmt: skip
    decoding = Decoding(1, Sampling(), 65, 8192)
    batches = decode(network, LiveAudio(network, split), requests, decoding)
    written = {each.utterance_id: each for batch in batches for each in batch}
    for row, place in zip(rows, places, strict=True):
        base, size = written[row.utterance_id].token_ids, len(row.token_ids)
        assert row.token_ids == base[:size]
        assert set(base[size:]) <= {split.layout.filler_id}, "only waiting is left out"
        assert row.text == written_text(family.tokenizer, base)
        clip = split.clip(place)
        assert split.layout.prompt_tokens(clip) + size >= split.layout.room_start(clip), "it ends when the clip has been heard"
    metrics = metrics_of(replayed)
    assert (metrics["train_rows"], metrics["steps"]) == (15, 6)


def test_resumed_equals_uninterrupted_and_decodes_nothing_again(call, words, replayed, tmp_path, monkeypatch):
    real = trainer._Watcher.on_step_end

    def stop_at_three(self, args, state, control, **named):
        if state.global_step == 3:
            raise KeyboardInterrupt
        return real(self, args, state, control, **named)

    settings = ("replay.share=0.25", "replay.weight=0.5")
    monkeypatch.setattr(trainer._Watcher, "on_step_end", stop_at_three)
    assert sft(call, words["aligned"], tmp_path / "sft", *settings).exit_code == 130
    monkeypatch.undo()
    monkeypatch.setattr(replay, "_transcribe", None)
    resumed = sft(call, words["aligned"], tmp_path / "sft", *settings, more=["--resume"])
    assert resumed.exit_code == 0, resumed.stderr
    assert "resumed from step" in resumed.stdout
    first, second = (load_file(run / "adapter/adapter_model.safetensors") for run in (replayed, tmp_path / "sft"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-6)
    assert (tmp_path / "sft/replay.jsonl").read_bytes() == (replayed / "replay.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_are_one(call, words, tmp_path):
    """The same transcripts in the same order, the same WER of the base and of the adapter, the same adapter. Two processes cannot
    share the 15 rows, or the 6 for validation, evenly in batches of 2."""
    settings = ("replay.share=0.25", "replay.weight=0.5", "validation.wer_regression_max=9", "train.batch_size=2",
                "train.gradient_accumulation=2", "model.device=cpu")  # fmt: skip
    for run, count in ((call, "one"), (launch, "two")):
        done = sft(run, words["aligned"], tmp_path / count, *settings)
        assert done.exit_code == 0, done.stderr
    one, two = (metrics_of(tmp_path / count) for count in ("one", "two"))
    assert (tmp_path / "two/replay.jsonl").read_bytes() == (tmp_path / "one/replay.jsonl").read_bytes()
    for name in ("train_rows", "steps", "base_wer", "best_step"):
        assert two[name] == one[name]
    expected = one["validation_at_best_step"]
    assert two["validation_at_best_step"] == expected | {"loss": pytest.approx(expected["loss"], rel=1e-4)}
    first, second = (load_file(tmp_path / count / "adapter/adapter_model.safetensors") for count in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-4)


def test_the_weight_is_that_of_each_learned_token(words):
    split = PackedSplit(words["aligned"], "train")
    filler = split.layout.filler_id
    rows = TrainingSet(split, [Target(0, [70, filler], []), Target(1, [71, filler, filler], [], weight=0.5)])
    assert rows[0]["label_weights"].tolist() == [0] * 39 + [1, 1, 1]
    assert rows[1]["label_weights"].tolist() == [0] * 39 + [0.5, 0.5, 0.5, 0.5]
    assert rows.label_weight == 3 + 2
    lighter = TrainingSet(split, [Target(0, [70, filler], []), Target(1, [71, filler, filler], [], weight=0.5)], pad_weight=0.5)
    assert lighter[1]["label_weights"].tolist() == [0] * 39 + [0.5, 0.25, 0.25, 0.5]
    assert lighter.label_weight == 2.5 + 1.5
    assert "label_weights" not in TrainingSet(split, [Target(0, [70], [])])[0]


def test_no_more_clips_than_there_are_without_tags(words):
    split = PackedSplit(words["aligned"], "train")
    untagged = [index for index, each in enumerate(split.examples) if not find_tags(each.text)]
    chosen = {share: replayed_clips(config_of(words["aligned"], f"replay.share={share}"), split) for share in (0.25, 1)}
    assert chosen[1] == untagged
    assert len(chosen[0.25]) == 3
    assert set(chosen[0.25]) < set(untagged)


def test_a_plan_says_how_many_rows_are_added(call, words, tmp_path):
    settings = ("replay.share=0.25", "validation.wer_regression_max=0.01")
    plan = sft(call, words["aligned"], tmp_path / "sft", *settings, more=["--dry-run"])
    assert plan.exit_code == 0, plan.stderr
    facts = " ".join(plan.stdout.split())
    assert "replay 3 transcripts of the base, beside 12 clips rows 15 steps 6 (" in facts
    assert "the best in loss of those at most 0.01 above the base's WER is kept" in facts


@pytest.mark.parametrize(
    ("dataset", "what"),
    [
        ("tags", "replay.share: the dataset's target 'tags' has no words to keep — set it to 0"),
        ("deferred", "replay.share: the base does not transcribe in the layout 'deferred', so it has no transcripts to replay"),
    ],
)
def test_a_dataset_without_transcripts_of_the_base_is_refused(call, words, tmp_path, dataset, what):
    for more in (["--dry-run"], []):
        done = sft(call, words[dataset], tmp_path / "sft", "replay.share=0.25", more=more)
        assert done.exit_code == 2
        assert what in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_else_replay_cannot_do(words, monkeypatch):
    with pytest.raises(ConfigError, match="replay.share needs audio as it is"):
        config_of("x", "replay.share=0.1", "augmentation.probability=0.5")
    config, split = config_of(words["aligned"], "replay.share=0.1"), PackedSplit(words["aligned"], "train")
    check_replay(config, split)
    monkeypatch.setattr(replay, "_clips_without_tags", lambda split: [])
    with pytest.raises(UsageError, match="each clip of the split 'train' has a tag"):
        check_replay(config, split)
    monkeypatch.undo()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="under FSDP no process holds the whole model"):
        check_replay(config, split)


def test_the_offline_family_without_a_cache(call, packed, tmp_path):
    shutil.copytree(packed["transcription_request"], tmp_path / "packed")
    done = sft(call, tmp_path / "packed", tmp_path / "sft", f"model.base={TINY_OFFLINE_BASE}", "replay.share=0.1",
               "audio_cache=off", "train.epochs=0.1", "train.learning_rate=0.001")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    [row] = read_rows(tmp_path / "sft/replay.jsonl", ReplayRow)
    split = PackedSplit(tmp_path / "packed", "train")
    words = [each.text.lower().strip(".?!") for each in split.examples if each.id == row.utterance_id]
    assert set(row.text.split()) & set(words[0].replace(",", "").split()), "it is a transcript of its clip"


# The study of words and tags.


def test_words_are_counted_by_their_distance_from_a_tag(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    import study_words

    rows = [
        Prediction("a", "[sad] i told you not to go", "[sad] he told not to go"),  # i -> he, and a lost you, behind the tag
        Prediction("b", "come closer. [sighs]", "come near [sighs]"),
    ]
    assert study_words.wrong_words(rows) == {
        "after a tag": {"words": 4, "share": 0.5},  # i told you not: the lost one stands where "not" was written
        "elsewhere": {"words": 4, "share": 0.25},
    }
    assert doctest.testmod(study_words).failed == 0


# The limit in SFT.


def test_a_checkpoint_above_the_limit_is_worse_than_all_within_it():
    def rank(measure: str, limit: float | None, wer: float, **figures) -> tuple:
        return Validation(None, None, measure, limit).rank({"wer": wer, "wer_regression": wer - 0.25} | figures)

    assert rank("loss", None, 1.0, loss=0.5) == (True, -0.5)
    assert rank("micro_f1", 0.25, 0.5, micro_f1=0.75) == (True, 0.75)
    assert rank("micro_f1", 0.25, 0.75, micro_f1=0.9) == (False, -0.75)
    assert rank("wer", 0.25, 0.375) > rank("wer", 0.25, 0.5) > rank("wer", 0.25, 0.75) > rank("wer", 0.25, 1.5)
    assert rank("micro_f1", 0.25, 0.5, micro_f1=0.1) > rank("micro_f1", 0.25, 0.75, micro_f1=0.9)


@pytest.mark.parametrize(
    ("measure", "written", "best", "code"),
    [  # (micro F1, WER) of each checkpoint; the base's WER is 0.25, and 0.125 more are allowed
        ("micro_f1", [(0.9, 0.5), (0.3, 0.25), (0.4, 0.375), (0.8, 0.75)], 3, 0),
        ("wer", [(0.9, 0.5), (0.3, 0.375), (0.4, 0.25), (0.8, 0.25)], 3, 0),
        ("micro_f1", [(0.9, 0.75), (0.3, 0.5), (0.4, 0.5), (0.8, 1.0)], 2, 3),
    ],
)
def test_the_limit_chooses_the_checkpoint(call, words, tmp_path, monkeypatch, measure, written, best, code):
    figures = iter(written)

    def measured(self) -> dict[str, float]:
        f1, wer = next(figures)
        return {"micro_f1": f1, "wer": wer, "wer_regression": wer - self.base_wer}

    monkeypatch.setattr(ClipDecoder, "measure", measured)
    monkeypatch.setattr(ClipDecoder, "measure_base", lambda self, layout, audio: 0.25)
    done = sft(call, words["aligned"], tmp_path / "sft", f"validation.measure={measure}", "train.batch_size=6",
               "validation.wer_regression_max=0.125", "train.evaluate_every_steps=1")  # fmt: skip
    assert done.exit_code == code, done.stderr
    metrics, (f1, wer) = metrics_of(tmp_path / "sft"), written[best - 1]
    assert (metrics["best_step"], metrics["base_wer"], metrics["wer_regression_max"]) == (best, 0.25, 0.125)
    assert metrics["within_wer_regression_max"] is (code == 0)
    assert metrics[f"best_validation_{measure}"] == {"micro_f1": f1, "wer": wer}[measure]
    assert metrics["validation_at_best_step"]["wer_regression"] == wer - 0.25
    assert f"{wer - 0.25:+.4f} (base 0.2500), at most 0.125" in done.stdout
    assert ("no checkpoint is within validation.wer_regression_max" in done.stdout) is (code == 3)
    kept, saved = (load_file(tmp_path / "sft" / name / "adapter_model.safetensors")
                   for name in ("adapter", f"checkpoints/checkpoint-{best}"))  # fmt: skip
    assert all(torch.equal(kept[name], saved[name]) for name in saved)


def test_the_base_is_measured_as_eval_measures_it(call, words, tmp_path):
    """In its own layout, whatever the dataset's."""
    settings = (f"dataset={words['deferred']}", f"output={tmp_path}/eval", "split=validation", "systems=[{name: base}]",
                "decode.max_new_tokens=65", "bootstrap.samples=10", "tracking.mode=disabled")  # fmt: skip
    evaluated = call("eval", "configs/demo/eval-sft.yaml", *(part for each in settings for part in ("--set", each)))
    assert evaluated.exit_code == 0, evaluated.stderr
    expected = metrics_of(tmp_path / "eval")["systems"]["base"]["wer"]["micro"]["value"]
    for name in ("deferred", "aligned"):
        done = sft(call, words[name], tmp_path / name, "validation.wer_regression_max=9", "train.epochs=0.1",
                   "train.learning_rate=1e-9")  # fmt: skip
        assert done.exit_code == 0, done.stderr
        metrics = metrics_of(tmp_path / name)
        assert metrics["base_wer"] == expected
    assert metrics["validation_at_best_step"]["wer_regression"] == 0, "an adapter that has learned nothing is the base"


def test_no_words_no_limit(call, words, tmp_path):
    done = sft(call, words["tags"], tmp_path / "sft", "validation.wer_regression_max=0.01", more=["--dry-run"])
    assert done.exit_code == 2
    what = "validation.wer_regression_max: the dataset's target 'tags' has no words, so there is no WER to limit — set it to null"
    assert what in done.stderr


# The limit in RAFT.


def raft_config(**gate) -> RaftConfig:
    return RaftConfig(output="out", dataset="d", model={"base": "b"}, adapter="a", rounds=[{}, {}, {}, {}], gate=gate,
                      train={"epochs": 1, "learning_rate": 1e-4})  # fmt: skip


def rounds_measured(monkeypatch, measured: list[dict], **gate) -> tuple[list[dict], int, str]:
    """`_rounds` where `_measure` finds these, from the start on."""
    monkeypatch.setattr(raft_run, "_measure", lambda config, number, adapter: measured[number])
    monkeypatch.setattr(raft_run, "_run_steps", lambda *arguments: None)
    monkeypatch.setattr(raft_run, "_summary", lambda round_: {})
    return raft_run._rounds(raft_config(**gate), Options(), type("Tracker", (), {"log": lambda *arguments, **named: None}))


def test_a_round_that_loses_more_words_than_allowed_does_not_help(monkeypatch):
    found = ((0.5, 0.25), (0.6, 0.375), (0.9, 0.5), (0.7, 0.25), (0.6, 0.25))
    measured = [{"gate": gate, "gate_wer": wer} for gate, wer in found]
    rounds, kept, end = rounds_measured(monkeypatch, measured, patience=2, wer_regression_max=0.125)
    assert (kept, end, len(rounds)) == (3, "all done", 5)
    _, kept, end = rounds_measured(monkeypatch, measured, patience=1, wer_regression_max=0.125)
    assert (kept, end) == (1, "ended by the gate: reward +0.3000 against round 1, WER +0.2500 against the start")
    _, kept, _ = rounds_measured(monkeypatch, measured, patience=4)
    assert kept == 2, "without a limit, words are not looked at"


def test_the_table_of_rounds_has_a_column_for_words_if_there_are_any():
    rows = [{"round": 0, "gate": 0.5}, {"round": 1, "gate": 0.6, "steps": 9}]
    assert "WER" not in raft_run._table(rows, "micro_f1")
    header, _, first, second = raft_run._table([row | {"gate_wer": 0.25} for row in rows], "micro_f1").splitlines()
    assert header.endswith("| gate: micro_f1 | gate: WER |")
    assert first.endswith("| — | 0.5000 | 0.2500 |")
    assert second.endswith("| 9 | 0.6000 | 0.2500 |")


def test_a_gate_without_words_or_split_is_refused(words):
    with pytest.raises(ValueError, match="wer_regression_max needs a split to measure on"):
        Gate(split=None, wer_regression_max=0.01)
    config = raft_config(wer_regression_max=0.01)
    with pytest.raises(UsageError, match="the dataset's target 'tags' has no words, so there is no WER to limit"):
        raft_run._check(config.model_copy(update={"dataset": words["tags"]}))
    raft_run._check(config.model_copy(update={"dataset": words["aligned"]}))


@pytest.mark.slow
def test_a_whole_run_on_two_processes_is_that_on_one(call, words, replayed, tmp_path):
    """The rounds, with the gate's reward and WER, and the adapter. The second process has no row in the last of three steps."""
    settings = (
        *CARD, f"dataset={words['aligned']}", f"adapter={replayed}", "rounds=[{}]", "generate.candidates=2",
        "generate.max_new_tokens=65", "gate.min_gain=-9", "gate.wer_regression_max=9", "train.batch_size=2",
        "train.gradient_accumulation=2", "train.warmup_steps=1", "model.device=cpu", "tracking.mode=disabled",
    )  # fmt: skip
    for run, count in ((call, "one"), (launch, "two")):
        sets = [part for each in (*settings, f"output={tmp_path}/{count}") for part in ("--set", each)]
        done = run("raft", "run", "configs/demo/raft.yaml", *sets)
        assert done.exit_code == 0, done.stderr
        assert done.stdout.count("the adapter of round 1") == 1, "the first process speaks for all"
    one, two = (metrics_of(tmp_path / count / "result") for count in ("one", "two"))
    assert (one["rounds"][1]["curated"], one["rounds"][1]["steps"]) == (10, 3)
    assert one["rounds"] == two["rounds"]
    first, second = (load_file(tmp_path / count / "result/adapter/adapter_model.safetensors") for count in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-4)
