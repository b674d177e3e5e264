"""Voxtral's prompt and features are those of the stock processor, and its long clips decode as stock `generate` does."""

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, VoxtralForConditionalGeneration

from conftest import TINY_OFFLINE_BASE
from evoxtral_train.decoding.decoder import Decoding, Request, decode
from evoxtral_train.decoding.sampling import Sampling
from evoxtral_train.errors import RowError, UsageError
from evoxtral_train.families.base import ClipSize
from evoxtral_train.families.checkpoint import open_family
from evoxtral_train.families.offline.transcription import PromptIds, Transcription
from evoxtral_train.modeling.audio_cache import LiveAudio

IDS = PromptIds(
    bos=1, eos=2, pad=11, begin_instruction=3, end_instruction=4, begin_audio=25, audio=24, transcribe=34,
    languages={"en": [70, 71], "de": [70, 72, 73]},
)  # fmt: skip


@pytest.fixture(scope="module")
def offline():
    return open_family(TINY_OFFLINE_BASE)


@pytest.fixture(scope="module")
def stock_processor():
    return AutoProcessor.from_pretrained(TINY_OFFLINE_BASE)


@pytest.fixture(scope="module")
def stock_model():
    return VoxtralForConditionalGeneration.from_pretrained(TINY_OFFLINE_BASE, dtype=torch.float32).eval()


def sound_of(seconds: float) -> np.ndarray:
    """Noise; where it is long, one loud second, which changes the log-mel's floor everywhere."""
    samples = np.random.default_rng(0).standard_normal(round(seconds * 16_000)).astype(np.float32) * 0.05
    samples[33 * 16_000 : 34 * 16_000] *= 9
    return samples


def stock_inputs(processor, samples: np.ndarray, language: str | None) -> dict:
    return processor.apply_transcription_request(
        audio=[samples], model_id="any", language=language, sampling_rate=16_000, format=["wav"]
    )


def test_a_row_by_hand():
    layout = Transcription(IDS, room_tokens=4)
    clip = layout.measure(16_000, 0, "en")
    assert clip == ClipSize(utterance_tokens=13, row_tokens=3 + 375 + 4 + 4, language="en")
    row = layout.lay_out(clip, [90, 91])
    assert row.ids == [1, 3, 25] + [24] * 375 + [4, 70, 71, 34, 90, 91, 2, 11]
    assert row.labels == [-100] * 382 + [90, 91, 2, -100]
    assert (row.prompt_tokens, row.needed_tokens) == (382, 385)
    assert layout.prompt_ids(layout.measure(16_000, 0))[-2:] == [4, 34]
    assert layout.sound(clip) == (3, 16)


@pytest.mark.parametrize(("seconds", "chunks"), [(0.01, 1), (30, 1), (30.01, 2), (60, 2), (60.1, 3)])
def test_the_chunks_of_a_clip_are_one_run_of_audio(seconds, chunks):
    layout = Transcription(IDS, room_tokens=4)
    clip = layout.measure(round(seconds * 16_000), 240_480, "de")
    assert layout.prompt_ids(clip) == [1, 3, 25] + [24] * 375 * chunks + [4, 70, 72, 73, 34]
    assert layout.prompt_tokens(clip) == 3 + 375 * chunks + 5
    assert layout.mel_frames(clip, 1) == 3000 * chunks
    assert layout.longest_samples(clip, 3) == 480_000 * chunks


def test_a_language_that_does_not_exist_is_refused(offline):
    with pytest.raises(RowError, match="unknown language 'eng'"):
        offline.layout("transcription_request", 65).measure(16_000, 0, "eng")


@pytest.mark.parametrize("seconds", [0.01, 3.0, 29.99, 30.0, 30.01, 65.0])
def test_prompt_and_features_are_the_stock_processors_bit_by_bit(offline, stock_processor, seconds):
    samples, layout = sound_of(seconds), offline.layout("transcription_request", 65)
    for language in ("en", "de", None):
        stock = stock_inputs(stock_processor, samples, language)
        clip = layout.measure(len(samples), 0, language)
        assert layout.prompt_ids(clip) == stock["input_ids"][0].tolist()
    mel = offline.mel(samples, layout.mel_frames(clip, clip.row_tokens))
    chunks = mel.reshape(128, -1, 3000).transpose(1, 0, 2)
    np.testing.assert_array_equal(chunks, stock["input_features"].numpy())
    kept, start = offline.trim_silence(mel)
    assert kept.shape[1] <= len(samples) // 160 + 5
    np.testing.assert_array_equal(offline.restore_silence(kept, start, mel.shape[1]), mel)


class _Mels:
    def __init__(self, offline, layout, clips, sounds):
        self._offline, self._layout, self._clips, self._sounds = offline, layout, clips, sounds

    def mel_of(self, index: int, tokens: int) -> np.ndarray:
        return self._offline.mel(self._sounds[index], self._layout.mel_frames(self._clips[index], tokens))


def test_clips_of_one_to_three_chunks_in_one_batch_write_what_stock_generate_writes_one_by_one(
    offline, stock_processor, stock_model
):
    sounds, languages = [sound_of(seconds) for seconds in (3, 31, 65)], ["en", None, "de"]
    layout, network = offline.layout("transcription_request", 65), offline.load("float32")
    clips = [layout.measure(len(sound), 0, language) for sound, language in zip(sounds, languages, strict=True)]
    requests = [Request.of(str(index), layout, clip, index) for index, clip in enumerate(clips)]
    settings = Decoding(1, Sampling(), max_new_tokens=12, batch_tokens=10_000)
    batches = decode(network, LiveAudio(network, _Mels(offline, layout, clips, sounds)), requests, settings)
    found = {each.utterance_id: each.token_ids for batch in batches for each in batch}
    for index, (sound, language) in enumerate(zip(sounds, languages, strict=True)):
        stock = stock_inputs(stock_processor, sound, language)
        whole = stock_model.generate(**stock, do_sample=False, max_new_tokens=12)[0, stock["input_ids"].shape[1] :].tolist()
        expected = whole[: whole.index(2)] if 2 in whole else whole
        assert found[str(index)] == expected
    assert any(found.values()), "something must be written for this to mean anything"


def test_an_audio_token_that_the_model_writes_has_no_audio(offline, stock_model):
    """As in the stock forward, which puts audio into the prompt alone."""
    network, layout = offline.load("float32"), offline.layout("transcription_request", 65)
    ids = layout.prompt_ids(layout.measure(16_000, 0)) + [24, 90]
    mel = torch.from_numpy(offline.mel(sound_of(1), 3000))
    with torch.inference_mode():
        audio = network.audio_embeddings([mel], len(ids))
        found = network.hidden(torch.tensor([ids]), audio)
        embeds = stock_model.get_input_embeddings()(torch.tensor([ids]))
        embeds[0, 3:378] = audio[0, 3:378]
        expected = stock_model.model.language_model(inputs_embeds=embeds).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_what_is_realtimes_alone_says_so(offline):
    with pytest.raises(UsageError, match="Voxtral does not write while it listens, so it cannot time words"):
        offline.require_times()
    with pytest.raises(UsageError, match="so it has no live streams"):
        offline.load("float32").streams(offline, 1, 500)
    with pytest.raises(UsageError, match="Voxtral is not written in Mistral's own format"):
        offline.save_mistral(None, TINY_OFFLINE_BASE)
