"""Streaming decoding: the audio and the tokens of the offline path, whatever comes at a time and whoever else speaks."""

import json

import numpy as np
import pytest
import soundfile
import torch

from conftest import REPO, load_tiny
from evoxtral_train.config.evaluation import Decode
from evoxtral_train.decoding.decoder import Decoding, Request, decode
from evoxtral_train.decoding.known_tags import KnownTags
from evoxtral_train.decoding.live import LiveDecoder, LiveRowKind
from evoxtral_train.modeling.adapter_record import AdapterRecord
from evoxtral_train.modeling.adapters import find_adapter
from evoxtral_train.modeling.row_adapters import RowAdapters
from evoxtral_train.transcription.segment_audio import SegmentAudio

TAGGER = REPO / "data" / "tiny-tagger"
LONGEST_TOKENS = 560


@pytest.fixture(scope="module")
def clips(spoken) -> list[np.ndarray]:
    """20 spoken clips."""
    rows = [json.loads(line) for line in (spoken / "manifest.jsonl").read_text("utf-8").splitlines()][:20]
    return [soundfile.read(spoken / row["audio"], dtype="float32")[0] for row in rows]


class Setup:
    """A base with the shipped adapter: a row of each for every clip."""

    def __init__(self, family, network=None):
        self.family, self.network = family, network or load_tiny()
        self.adapters = RowAdapters(self.network, [find_adapter(TAGGER)])
        record = AdapterRecord.read(TAGGER)
        self.kinds = [
            LiveRowKind(0, family.own_layout(65), 240_480),
            LiveRowKind(1, record.restore_layout(), record.prepad_samples, True),
        ]
        self.settings = Decoding.greedy(Decode(max_new_tokens=64), KnownTags(family.tokenizer, record.tags))

    def live(self, slots: int) -> LiveDecoder:
        encoder = self.network.streams(self.family, slots, LONGEST_TOKENS)
        return LiveDecoder(
            self.network, encoder, self.settings, self.kinds, slots, 2 * slots, LONGEST_TOKENS, self.adapters
        )  # fmt: skip

    def offline(self, clips: list[np.ndarray]) -> list[list]:
        """[clip][row kind] -> completion"""
        audio, requests = SegmentAudio(self.network, self.family), []
        for index, clip in enumerate(clips):
            of_clip = [
                Request.of(str(index), kind.layout, kind.layout.measure(len(clip), kind.prepad_samples), index, kind.adapter,
                           kind.bound)
                for kind in self.kinds
            ]  # fmt: skip
            audio.add(index, clip, of_clip)
            requests += of_clip
        found = [[None] * len(self.kinds) for _ in clips]
        for completions in decode(self.network, audio, requests, self.settings, self.adapters):
            for completion in completions:
                found[int(completion.utterance_id)][completion.adapter] = completion
        return found

    def streamed(self, clips: list[np.ndarray], chunk_samples: int, slots: int) -> list[list]:
        """The same, `slots` clips at a time, each fed a chunk when it has nothing left to decode."""
        decoder, waiting, seated, found = self.live(slots), list(range(len(clips))), {}, [None] * len(clips)
        while waiting or seated:
            while waiting and decoder.has_room(2):
                seated[waiting.pop(0)] = [decoder.seat(self.kinds), 0]
            for index, (utterance, fed) in seated.items():
                if not utterance.is_ready:
                    utterance.hear(clips[index][fed : fed + chunk_samples])
                    seated[index][1] = fed + chunk_samples
                    if fed + chunk_samples >= len(clips[index]):
                        utterance.end(len(clips[index]))
            decoder.step([utterance for utterance, _ in seated.values() if utterance.is_ready])
            for index in [index for index, (utterance, _) in seated.items() if utterance.is_finished]:
                utterance = seated.pop(index)[0]
                found[index] = [decoder.completion(utterance, row, str(index)) for row in utterance.rows]
                decoder.leave(utterance)
        return found


@pytest.fixture(scope="module")
def setup(family) -> Setup:
    return Setup(family)


def assert_same(streamed: list[list], offline: list[list]) -> None:
    for of_stream, of_file in zip(streamed, offline, strict=True):
        for one, other in zip(of_stream, of_file, strict=True):
            assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
            np.testing.assert_allclose(one.token_logprobs, other.token_logprobs, atol=1e-4)


def test_the_audio_of_streams_is_that_of_the_clips(family, network):
    """Three streams at their own positions, one of them longer than the encoder's window of 15 s."""
    noise = np.random.default_rng(0)
    clips = [(0.1 * noise.standard_normal(samples)).astype(np.float32) for samples in (51_217, 320_000, 900)]
    encoder, slots = network.streams(family, 4, LONGEST_TOKENS), [0, 2, 3]
    padded = [np.pad(clip, (encoder.lead_samples, 25 * 1280)) for clip in clips]
    lengths = [len(clip) // 1280 + 15 for clip in clips]
    heard = [[] for _ in clips]
    for slot in slots:
        encoder.seat(slot)
    while any(len(tokens) < length for tokens, length in zip(heard, lengths, strict=True)):
        turn = [i for i in range(3) if len(heard[i]) < lengths[i] and noise.random() < 0.7]
        if turn:
            windows = np.stack([padded[i][1280 * len(heard[i]) :][: encoder.window_samples] for i in turn])
            for i, audio in zip(turn, encoder.encode([slots[i] for i in turn], windows), strict=True):
                heard[i].append(audio)
    assert encoder.start_tokens == 31
    for clip, length, tokens in zip(clips, lengths, heard, strict=True):
        mel = torch.from_numpy(family.mel(clip, 8 * (31 + length)))
        expected = network.audio_embeddings([mel], 31 + length)[0]
        torch.testing.assert_close(torch.cat([encoder.start_audio, torch.stack(tokens)]), expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def offline(setup, clips) -> list[list]:
    return setup.offline(clips)


SLOW = [(10, 1), (10, 9), (80, 1), (80, 9), (200, 1), (1000, 1), (1000, 9)]


@pytest.mark.parametrize(
    ("chunk_ms", "slots"), [(200, 9), *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)]
)
def test_streamed_tokens_are_the_offline_tokens(setup, clips, offline, chunk_ms, slots):
    """Of 20 clips, in the base's rows and in the adapter's, alone (one slot) and beside eight others."""
    assert_same(setup.streamed(clips, chunk_ms * 16, slots), offline)
    assert sum(bool(row.token_ids) for clip in offline for row in clip) == 40


def test_windows_that_have_wrapped(family, clips):
    """Small windows, so that both rings are overwritten several times."""
    network = load_tiny()
    network.text_config.sliding_window = 64
    network.stock.model.audio_tower.config.sliding_window = 42
    setup = Setup(family, network)
    long = np.concatenate([clips[0], clips[1], clips[2]])
    assert len(long) > 100 * 1280  # tokens; the windows hold 64 of them, and 42 frames of four a token
    assert_same(setup.streamed([long, clips[3]], 1600, 2), setup.offline([long, clips[3]]))


def test_an_end_that_is_known_late_gives_the_same_tokens(setup, clips, offline):
    """As after a silence: the utterance was fed 1.6 s beyond its end, and rows had written EOS before it was known."""
    decoder = setup.live(1)
    for clip, expected in zip(clips[:4], offline[:4], strict=True):
        utterance = decoder.seat(setup.kinds)
        utterance.hear(np.concatenate([clip, np.zeros(25_600, np.float32)]))
        utterance.sounded(len(clip))
        while utterance.is_ready:
            decoder.step([utterance])
        utterance.end(len(clip))
        while not utterance.is_finished:
            decoder.step([utterance])
        assert_same([[decoder.completion(utterance, row, "") for row in utterance.rows]], [expected])
        decoder.leave(utterance)


@pytest.mark.parametrize(("sound_until_s", "written"), [(2.0, None), (1.0, 17)])
def test_eos_ends_a_row_only_where_the_sound_ends(setup, clips, monkeypatch, sound_until_s, written):
    """EOS as the 18th token, when 24 tokens of the clip (1.92 s) have been heard. It is withheld until more is known."""
    decoder = setup.live(1)
    utterance = decoder.seat(setup.kinds[:1])
    choose, row = decoder._choose, utterance.rows[0]

    def with_eos(logits, rows):
        tokens, *rest = choose(logits, rows)
        return [[2] if len(row.token_ids) == 17 else tokens, *rest]

    monkeypatch.setattr(decoder, "_choose", with_eos)
    utterance.hear(clips[0])
    while utterance.is_ready:
        decoder.step([utterance])
    assert len(clips[0]) == 42_808
    assert (row.eos_samples, row.written, len(row.token_ids)) == (24 * 1280, 17, 27)
    utterance.sounded(round(sound_until_s * 16_000))
    utterance.end(len(clips[0]))
    while not utterance.is_finished:
        decoder.step([utterance])
    assert row.finish_reason == "eos"
    assert len(row.token_ids) == written if written else row.token_ids[17] == 32 and len(row.token_ids) > 27


def test_output_that_is_not_finite_fails_one_stream_alone(setup, clips, offline):
    decoder = setup.live(2)
    good, bad = decoder.seat(setup.kinds), decoder.seat(setup.kinds)
    bad.hear(np.full(16_000, np.nan, np.float32))
    good.hear(clips[0])
    good.end(len(clips[0]))
    while not good.is_finished:
        decoder.step([utterance for utterance in (good, bad) if utterance.is_ready and not utterance.has_failed])
    assert bad.has_failed and not good.has_failed
    assert_same([[decoder.completion(good, row, "") for row in good.rows]], offline[:1])
    decoder.leave(bad)
    decoder.leave(good)
    again = [decoder.seat(setup.kinds) for _ in range(2)]  # on the slots of both
    for utterance in again:
        utterance.hear(clips[0])
        utterance.end(len(clips[0]))
    while not all(utterance.is_finished for utterance in again):
        decoder.step([utterance for utterance in again if utterance.is_ready])
    for utterance in again:
        assert_same([[decoder.completion(utterance, row, "") for row in utterance.rows]], offline[:1])
