"""Changed audio: by seed, within what its tags can bear, on the clip's own clock."""

import json
import random
import re
import shutil

import numpy as np
import pytest
import soundfile

from conftest import REPO, TINY_BASE, TINY_OFFLINE_BASE
from evoxtral_train.config.data import Layout, PackConfig
from evoxtral_train.config.loader import load_config
from evoxtral_train.config.sections import Tracking
from evoxtral_train.config.training import Augmentation, SftConfig
from evoxtral_train.dataset.augmentation import Augmenter, Bounds, augment, bounds_of
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.families.base import ClipSize
from evoxtral_train.families.checkpoint import open_family
from evoxtral_train.families.realtime.layouts import Aligned
from evoxtral_train.runs import Options
from evoxtral_train.stages.data import pack
from evoxtral_train.training.dataset import TrainingSet

ALWAYS = Augmentation(probability=1.0)
SHIPPED = load_config(REPO / "configs/sft.yaml", SftConfig).augmentation
ANY = Bounds(6.0, (15.0, 40.0), (0.9, 1.1), pitch_semitones=1.0, room=True, bit_depth=(8, 12))
NONE = Bounds(0.0, None, None, pitch_semitones=0.0, room=False, bit_depth=None)


@pytest.fixture(scope="module")
def samples():
    time = np.arange(32_000) / 16_000
    return (0.2 * np.sin(2 * np.pi * 220 * time) * (np.sin(2 * np.pi * 3 * time) > 0)).astype(np.float32)


def rms_db(signal) -> float:
    return float(20 * np.log10(np.sqrt(np.mean(np.square(signal)))))


def test_the_same_seed_gives_the_same_samples_and_global_generators_are_left_alone(samples):
    random.seed(5), np.random.seed(5)
    expected_next = (random.random(), np.random.rand())
    random.seed(5), np.random.seed(5)
    once = augment(samples, ANY, ALWAYS, seed=1)
    assert (random.random(), np.random.rand()) == expected_next
    again = augment(samples, ANY, ALWAYS, seed=1)
    np.testing.assert_array_equal(once[0], again[0])
    assert once[1] == again[1]
    assert not np.array_equal(once[0][:1000], augment(samples, ANY, ALWAYS, seed=2)[0][:1000])


def test_nothing_allowed_and_nothing_wanted_change_nothing(samples):
    for bounds, config in ((NONE, ALWAYS), (ANY, Augmentation(probability=0.0))):
        changed, factor = augment(samples, bounds, config, seed=3)
        np.testing.assert_array_equal(changed, samples)
        assert factor == 1.0


def only(**bounds):
    return Bounds(**{**vars(NONE), **bounds})


def test_every_change_stays_within_its_bounds(samples):
    for seed in range(8):
        gained, _ = augment(samples, only(gain_db=6.0), ALWAYS, seed)
        assert abs(rms_db(gained) - rms_db(samples)) <= 6.01
        stretched, factor = augment(samples, only(stretch_to=(0.9, 1.05)), ALWAYS, seed)
        assert 0.9 * 32_000 - 1 <= len(stretched) <= 1.05 * 32_000
        assert factor == len(stretched) / 32_000
        noisy, _ = augment(samples, only(noise_snr_db=(15.0, 20.0)), ALWAYS, seed)
        assert 14.5 <= rms_db(samples) - rms_db(noisy - samples) <= 20.5
        pitched, factor = augment(samples, only(pitch_semitones=2.0), ALWAYS, seed)
        assert (len(pitched), factor) == (32_000, 1.0)
        spectrum = np.abs(np.fft.rfft(pitched[:5_300]))
        peak_hz = np.argmax(spectrum) * 16_000 / 5_300
        assert 220 * 2 ** (-2.3 / 12) <= peak_hz <= 220 * 2 ** (2.3 / 12)
        roomy, factor = augment(samples, only(room=True), ALWAYS, seed)
        assert (len(roomy), factor) == (32_000, 1.0)
        assert not np.array_equal(roomy, samples)
        assert rms_db(roomy) == pytest.approx(rms_db(samples), abs=0.01), "as loud as before"
        crushed, factor = augment(samples, only(bit_depth=(6, 8)), ALWAYS, seed)
        assert (len(crushed), factor) == (32_000, 1.0)
        step = np.diff(np.unique(crushed)).min()
        assert any(step == pytest.approx(1 / (2 ** (bits - 1) + 1), rel=1e-4) for bits in (6, 7, 8))
        assert np.abs(crushed - samples).max() <= step / 2 + 1e-6


def test_the_quietest_clip_is_not_crushed_to_silence(samples):
    """At 4 bits, everything below -25 dBFS would be."""
    for level_db in (-20, -40, -60, -80):
        quiet = samples * 10 ** (level_db / 20)
        crushed, _ = augment(quiet, only(bit_depth=(4, 4)), ALWAYS, seed=1)
        assert rms_db(quiet) - rms_db(crushed - quiet) > 8 if level_db > -80 else np.array_equal(crushed, quiet)
    silence, _ = augment(samples * 0, only(bit_depth=(4, 4)), ALWAYS, seed=1)
    assert not silence.any()


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.5, 2.0])
def test_a_stretch_keeps_the_speech_to_its_end_and_moves_it_with_the_clock(factor):
    """Two beeps, one of them at the very end."""
    beep = 0.5 * np.sin(2 * np.pi * 440 * np.arange(1_600) / 16_000) * np.hanning(1_600)
    silent = np.zeros(32_000)
    silent[12_000:13_600] = silent[-1_600:] = beep
    changed, measured = augment(silent.astype(np.float32), only(stretch_to=(factor, factor)), ALWAYS, seed=0)
    assert (len(changed), measured) == (32_000 * factor, factor)
    for start in (12_000, 30_400):
        middle = (start + 800) * factor
        around = slice(int(middle - 1_600 * factor), int(middle + 1_600 * factor))
        energy = np.square(changed[around])
        assert np.average(np.arange(len(changed))[around], weights=energy) == pytest.approx(middle, abs=160), "within 10 ms"
        assert energy.sum() / np.square(beep).sum() == pytest.approx(factor, rel=0.25)


def test_it_is_never_louder_than_full_scale(samples):
    changed, _ = augment(
        samples * 4.9, Bounds(**{**vars(NONE), "gain_db": 12.0}), Augmentation(probability=1, gain_db=12), seed=3
    )
    assert np.abs(changed).max() <= 1.0


def test_the_tightest_limit_of_the_tags_counts():
    plain = bounds_of(SHIPPED, [], longest=2.0)
    assert plain == Bounds(6.0, (15.0, 40.0), (1 / 1.1, 1.1), 1.0, True, None)
    whisper = bounds_of(SHIPPED, ["whispers"], longest=2.0)
    assert (whisper.gain_db, whisper.noise_snr_db, whisper.pitch_semitones) == (3.0, (30.0, 40.0), 0.0)
    both = bounds_of(SHIPPED, ["whispers", "calm", "pause"], longest=1.02)
    assert (both.gain_db, both.noise_snr_db, both.pitch_semitones) == (3.0, (30.0, 40.0), 0.0)
    assert both.stretch_to == (1 / 1.05, 1.02), "and the clip's clock counts"
    assert bounds_of(Augmentation(limits={"Crying": {"room": False}}), ["crying"], 2.0).room is False
    wide = Augmentation(stretch=1.0, bit_depth=(8, 12), limits={"whispers": {"bit_depth": 14}})
    assert bounds_of(wide, [], longest=3.0).stretch_to == (0.5, 2.0)
    assert [bounds_of(wide, tags, 3.0).bit_depth for tags in ([], ["whispers"])] == [(8, 12), (14, 14)]


@pytest.fixture(scope="module", params=["packed", "deferred", "aligned"])
def split(request, spoken, tmp_path_factory) -> PackedSplit:
    """With room for little more than the target, so that the clock is what limits a stretch."""
    folder = tmp_path_factory.mktemp("augmented") / request.param
    config = PackConfig(
        manifest=spoken / "manifest.jsonl", output=folder, base=str(TINY_BASE), tracking=Tracking(mode="disabled"),
        layout=Layout(kind=request.param, room_tokens=22), audio={"prepad_samples": 0},
    )  # fmt: skip
    pack.run(config, Options())
    return PackedSplit(folder, "train")


def test_a_row_stays_on_its_clock_and_its_events_move_along(split, clock, family):
    config = Augmentation(probability=1.0, stretch=0.4, room=False)
    augmenter = Augmenter(config, split, family)
    lengths = []
    for index, example in enumerate(split.examples):
        for epoch in range(4):
            row, mel = augmenter.row(index, epoch)
            assert row.needed_tokens <= example.row_tokens == len(row.ids)
            assert mel.shape == (128, 8 * row.needed_tokens)
            learned = [token for token in row.labels if token not in (-100, clock.streaming_pad_id, clock.streaming_word_id)]
            target = [token for token in example.target_ids if token not in (clock.streaming_pad_id, clock.streaming_word_id)]
            assert learned == [*target, clock.eos_id]
            lengths.append(row.needed_tokens / TrainingSet(split).needed_tokens[index])
    if split.layout.name == "packed":
        assert set(lengths) == {1.0}, "tags right after the prompt stay there"
    else:
        assert min(lengths) < 0.9
        assert max(lengths) > 1.0


def test_without_any_change_the_row_is_the_packed_one(split, family):
    augmenter = Augmenter(Augmentation(probability=0.0), split, family)
    rows = TrainingSet(split)
    for index in range(len(split)):
        row, mel = augmenter.row(index, 0)
        assert row == rows.row(index)
        np.testing.assert_allclose(mel, split.mel_of(index, row.needed_tokens), rtol=0, atol=1e-6)


def test_an_aligned_tag_is_due_when_it_is_heard_after_the_stretch(clock):
    pieces = [([70], 1.0), ([71, 72], 2.0)]
    layout = Aligned(clock, room_tokens=0)
    before = layout.target_ids(None, "", pieces, ClipSize(utterance_tokens=30, row_tokens=200))
    after = layout.retimed(before, pieces, 1.2, ClipSize(utterance_tokens=36, row_tokens=200))
    assert (before.index(70), after.index(70)) == (13, 15)
    assert (before.index(71), after.index(71)) == (25, 30)


def test_epochs_differ_and_repeat(split, family, network):
    rows = TrainingSet(split, augmenter=Augmenter(ALWAYS, split, family))
    rows.set_epoch(0)
    first = network.collate([rows[0], rows[1]])
    rows.set_epoch(1)
    second = network.collate([rows[0], rows[1]])
    rows.set_epoch(0)
    again = network.collate([rows[0], rows[1]])
    assert np.array_equal(first["input_features"], again["input_features"])
    assert not np.array_equal(first["input_features"], second["input_features"])


@pytest.mark.slow
def test_training_with_it_resumes_to_the_same_adapter(call, packed, tmp_path):
    from safetensors.torch import load_file

    def sft(*more):
        sets = {
            "dataset": packed["deferred"], "output": tmp_path / "run", "tracking.mode": "disabled",
            "augmentation.probability": 0.5,
            "train.epochs": 3, "train.batch_size": 4, "train.evaluate_every_steps": 2, "train.warmup_steps": 1,
            "train.keep_checkpoints": 10,
            "train.sampling": "square_root", "train.untagged_share": 0.3,
        }  # fmt: skip
        overrides = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        return call("sft", REPO / "configs/demo/sft.yaml", *overrides, *more)

    adapter = tmp_path / "run/adapter/adapter_model.safetensors"
    assert sft().exit_code == 0
    whole = load_file(adapter)
    for path in (tmp_path / "run/complete.json", adapter):
        path.unlink()
    (tmp_path / "run").rename(tmp_path / "run.partial")
    for path in (tmp_path / "run.partial/checkpoints").iterdir():
        if int(path.name.rpartition("-")[2]) > 6:
            shutil.rmtree(path)
    resumed = sft("--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert re.search(r"resumed from step +6\n", resumed.stdout)
    again = load_file(adapter)
    assert all(np.array_equal(whole[key], again[key]) for key in whole)
    refused = sft("--overwrite", "--set", "audio_cache=on")
    assert refused.exit_code == 2
    assert "augmentation changes the audio in every epoch" in refused.stderr


def test_a_stretched_clip_of_the_offline_family_needs_no_further_chunk(tmp_path):
    """Clips of 4 s and 28 s are one chunk, of 31 s two: as long, or shorter and in fewer chunks."""
    rng = np.random.default_rng(0)
    rows = []
    for seconds in (4, 28, 31):
        soundfile.write(tmp_path / f"{seconds}.wav", 0.1 * rng.standard_normal(16_000 * seconds), 16_000)
        rows.append({"id": str(seconds), "audio": f"{seconds}.wav", "text": "[sighs] no.", "split": "train", "language": "de"})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    config = PackConfig(
        manifest=tmp_path / "manifest.jsonl", output=tmp_path / "packed", base=str(TINY_OFFLINE_BASE), audio={"max_seconds": 60},
        tracking=Tracking(mode="disabled"),
    )  # fmt: skip
    pack.run(config, Options())
    split, config = PackedSplit(tmp_path / "packed", "train"), Augmentation(probability=1.0, stretch=1.0, room=False)
    augmenter = Augmenter(config, split, open_family(TINY_OFFLINE_BASE))
    for index, most in enumerate((1, 1, 2)):
        prompt, chunks = split.layout.prompt_ids(split.clip(index)), set()
        for epoch in range(4):
            row, mel = augmenter.row(index, epoch)
            count = mel.shape[1] // 3_000
            assert mel.shape == (128, 3_000 * count)
            assert row.ids[: row.prompt_tokens] == prompt[:3] + [24] * 375 * count + prompt[3 + 375 * most :]
            learned = [*split.examples[index].target_ids, split.layout.eos_id]
            assert row.labels[row.prompt_tokens : row.needed_tokens] == learned
            chunks.add(count)
        assert chunks <= set(range(1, most + 1))
