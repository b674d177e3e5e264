"""The tiny bases: real files that the stock classes load, made by the command that their README names."""

import json
import re

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, VoxtralForConditionalGeneration, VoxtralProcessor, VoxtralRealtimeForConditionalGeneration

from conftest import REPO, TINY_BASE, TINY_OFFLINE_BASE
from evoxtral_train.config.loader import load_config
from evoxtral_train.config.training import TinyBaseConfig
from evoxtral_train.files import fingerprint_files
from evoxtral_train.text.tags import strip_tags
from evoxtral_train.tiny_bases import offline

RECIPES = {TINY_BASE: REPO / "configs/tiny-base.yaml", TINY_OFFLINE_BASE: REPO / "configs/offline/tiny-base.yaml"}
both_bases = pytest.mark.parametrize("folder", RECIPES, ids=lambda folder: folder.name)


@both_bases
def test_a_shipped_base_is_what_its_recipe_says(folder):
    config = load_config(RECIPES[folder], TinyBaseConfig).model_dump(mode="json", exclude={"tracking"})
    readme = (folder / "README.md").read_text("utf-8")
    recipe = json.loads(re.search(r"```json\n(.*?)```", readme, re.DOTALL)[1])
    assert recipe == {name: config[name] for name in recipe}
    run, metrics = (json.loads((folder / name).read_text("utf-8")) for name in ("run.json", "metrics.json"))
    assert run["inputs"]["grammar"] == fingerprint_files([REPO / "data/scripts/grammar.yaml"])
    assert f"{metrics['parameters']:,} parameters" in readme
    assert metrics["plain_wer"] <= 0.03


@both_bases
def test_a_shipped_base_is_small(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000


def test_the_offline_base_loads_with_the_stock_classes():
    processor = AutoProcessor.from_pretrained(TINY_OFFLINE_BASE)
    assert isinstance(processor, VoxtralProcessor)
    model = VoxtralForConditionalGeneration.from_pretrained(TINY_OFFLINE_BASE)
    assert model.dtype == torch.bfloat16
    positions = model.model.audio_tower.embed_positions.weight
    assert positions.dtype == torch.float32
    torch.testing.assert_close(positions, offline._sinusoids(1500, 128), atol=4e-3, rtol=0)  # Whisper's, saved in bfloat16
    silence = np.zeros(16_000, np.float32)
    for language, ids in (("en", [4, *processor.tokenizer.encode("lang:en", add_special_tokens=False), 34]), (None, [4, 34])):
        inputs = processor.apply_transcription_request(
            [silence], "tiny", language=language, sampling_rate=16_000, format=["wav"]
        )  # fmt: skip
        assert inputs.input_ids[0].tolist() == [1, 3, 25] + [24] * 375 + ids
        assert inputs.input_features.shape == (1, 128, 3000)


def a_lesson(tmp_path, **settings):
    settings = dict(vocabulary_ranks=600, audio_width=32, audio_layers=1, text_width=96, text_layers=3) | settings
    config = TinyBaseConfig.model_validate(
        dict(
            output=tmp_path, family="voxtral", seed=1, clips=4, held_out_clips=2, text_only_share=0.2, epochs=1, batch_size=2,
            learning_rate=1e-3, warmup_steps=1, phoneme_weight=0.5, acoustics_weight=0.5, word_weight=0.5, listening_weight=0.3,
        ) | settings
    )  # fmt: skip
    torch.manual_seed(0)
    family, network = offline.make(tmp_path, config)
    return offline.Lessons(config, network, family), family, network


def test_what_the_offline_base_hears_in_a_whole_chunk_is_what_the_stock_tower_hears(tmp_path):
    lessons, _, network = a_lesson(tmp_path)
    mel = torch.randn(2, 128, 3000, generator=torch.Generator().manual_seed(1))
    states, audio = lessons._hear(mel)
    stock = network.model.get_audio_features(mel)
    torch.testing.assert_close(states, stock.last_hidden_state)
    torch.testing.assert_close(audio.flatten(0, 1), stock.pooler_output)


def test_each_token_of_a_spoken_row_listens_to_its_word(tmp_path):
    """Text-only rows hear nothing; a token of word k listens where word k is spoken."""
    lessons, family, _ = a_lesson(tmp_path)
    *spoken, silent = lessons.rows
    assert any(not row.learned.all() for row in spoken)  # tags drawn at random
    assert (silent.tokens, silent.spans, silent.mel.shape[1]) == (0, [], 1)
    assert "[" in family.tokenizer.decode(silent.target)
    for row in spoken:
        learned = [token for token, is_learned in zip(row.target, row.learned, strict=True) if is_learned]
        text = family.tokenizer.decode(learned[:-1])
        assert text == strip_tags(text)
        assert len(row.spans) == len(row.target) - 1 == len(row.manner) - 1 == len(row.learned) - 1
        of_words = [span for span, is_learned in zip(row.spans, row.learned, strict=False) if is_learned]
        assert len(dict.fromkeys(of_words)) == len(text.split())
        assert row.spans == sorted(row.spans)
        assert max(end for _, end in row.spans) <= row.tokens
        for begin, end in of_words:
            assert len(set(row.words[begin:end, 0].tolist()) - {0}) >= 1


def test_the_losses_of_the_offline_base(tmp_path):
    """At first the language model rests; at the end rows are whole chunks."""
    lessons, _, _ = a_lesson(tmp_path)
    first = lessons.losses(lessons.rows, 0.0)
    assert (first["text"].item(), first["listening"].item(), first["manner"].item()) == (0.0, 0.0, 0.0)
    assert first["phonemes"].item() > 0
    for progress in (0.5, 1.0):
        losses = lessons.losses(lessons.rows, progress)
        assert all(loss.item() > 0 for loss in losses.values())
        assert set(losses) == {"text", *lessons.weights}


def test_the_text_attends_to_the_audio(tmp_path):
    """The positions jump over the silence that is left out; transformers must not take that for another row."""
    lessons, _, network = a_lesson(tmp_path)
    audio = torch.randn(len(lessons.rows), 60, 96, requires_grad=True, generator=torch.Generator().manual_seed(1))
    lessons._writing(lessons.rows, audio)["text"].backward()
    assert (audio.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("family", ["voxtral_realtime", "voxtral"])
def test_tiny_base_writes_a_checkpoint(call, tmp_path, family):
    recipe = RECIPES[TINY_OFFLINE_BASE if family == "voxtral" else TINY_BASE]
    settings = [f"output={tmp_path / 'base'}", "clips=8", "held_out_clips=2", "epochs=1", "audio_width=32", "audio_layers=1",
                "text_width=96", "text_layers=2", "vocabulary_ranks=600", "tracking.mode=disabled"]  # fmt: skip
    result = call("tiny-base", recipe, *(part for each in settings for part in ("--set", each)))
    assert result.exit_code == 0, result.stderr
    readme = (tmp_path / "base/README.md").read_text("utf-8")
    assert f"evoxtral tiny-base {recipe.relative_to(REPO)}" in readme
    model = VoxtralRealtimeForConditionalGeneration if family == "voxtral_realtime" else VoxtralForConditionalGeneration
    assert f"{sum(each.numel() for each in model.from_pretrained(tmp_path / 'base').parameters()):,} parameters" in readme
