"""Layouts with literal ids and labels, and the prompt that decoding starts from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoxtral_train.errors import RowError
from evoxtral_train.families.base import ClipSize
from evoxtral_train.families.realtime.clock import Clock
from evoxtral_train.families.realtime.layouts import LAYOUTS, Aligned, Deferred, Packed

P, W, EOS, PAD, X = 32, 33, 2, 11, -100
SMALL = Clock(1, EOS, PAD, P, W, left_pad_tokens=2, delay_tokens=1, right_pad_tokens=3)


def stream(heard, utterance_tokens: int, row_tokens: int):
    layout, clip = Aligned(SMALL, 0), ClipSize(utterance_tokens, row_tokens)
    return layout.lay_out(clip, layout.target_ids(None, "", heard, clip))


def test_packed_literal():
    row = Packed(SMALL, 0).lay_out(ClipSize(utterance_tokens=3, row_tokens=10), [70, 71])
    assert row.ids == [1, P, P, P, 70, 71, EOS, PAD, PAD, PAD]
    assert row.labels == [X, X, X, X, 70, 71, EOS, X, X, X]
    assert (row.prompt_tokens, row.needed_tokens) == (4, 7)


def test_deferred_literal():
    row = Deferred(SMALL, 0).lay_out(ClipSize(utterance_tokens=3, row_tokens=10), [70, 71])
    assert row.ids == [1, P, P, P, P, P, 70, 71, EOS, PAD]
    assert row.labels == [X, X, X, X, X, X, 70, 71, EOS, X]
    assert (row.prompt_tokens, row.needed_tokens) == (6, 9)


def test_no_target_is_eos_alone():
    row = Packed(SMALL, 0).lay_out(ClipSize(utterance_tokens=3, row_tokens=6), [])
    assert row.ids == [1, P, P, P, EOS, PAD]
    assert row.labels == [X, X, X, X, EOS, X]


def test_aligned_literal():
    # "a" heard after 1 token, "b" and "c" both after 2 (they share a [STREAMING_WORD]), clip of 6 tokens
    row = stream([([70], 0.08), ([71, 72], 0.15), ([73], 0.16)], utterance_tokens=6, row_tokens=14)
    #         prompt          at 4: a is due    at 6: b and c are due     heard out at 9
    assert row.ids == [1, P, P, P, W, 70, W, 71, 72, 73, EOS, PAD, PAD, PAD]
    assert row.labels == [X, X, X, X, W, 70, W, 71, 72, 73, EOS, X, X, X]


def test_aligned_waits_for_the_end_of_the_utterance():
    row = stream([([70], 0.08)], utterance_tokens=6, row_tokens=11)
    assert row.ids == [1, P, P, P, W, 70, P, P, P, EOS, PAD]


def test_a_target_too_long_for_its_clip_is_an_error_never_cut():
    layout = Packed(SMALL, 0)
    layout.lay_out(ClipSize(3, 7), [70, 71])
    with pytest.raises(RowError, match="2 tokens and EOS, but only 2 fit after the prompt of 4 in a row of 6"):
        layout.lay_out(ClipSize(3, 6), [70, 71])
    with pytest.raises(RowError, match="transcript takes 7 tokens, the clip has 6"):
        stream([([70], 0.08)], utterance_tokens=1, row_tokens=6)


def test_the_published_clock(clock):
    assert (clock.left_pad_tokens, clock.delay_tokens, clock.right_pad_tokens) == (32, 6, 17)
    assert (clock.bos_id, clock.eos_id, clock.pad_id, clock.streaming_pad_id, clock.streaming_word_id) == (1, 2, 11, 32, 33)
    assert clock.prompt_tokens == 39
    assert clock.stock_tokens(240_480) == 237
    assert clock.stock_tokens(1_000) == 237


def test_deferred_rows_of_15_second_clips_have_room(clock):
    assert Packed(clock, 65).measure(240_480, 240_480) == ClipSize(188, 237)
    assert Deferred(clock, 65).measure(240_480, 240_480) == ClipSize(188, 32 + 188 + 6 + 65)
    assert Deferred(clock, 65).measure(16_000, 240_480) == ClipSize(13, 237)


def test_the_prompt_is_the_stock_processors(processor, clock):
    stock = processor(np.zeros(16_000, np.float32), return_tensors="np", sampling_rate=16_000)
    assert Packed(clock, 65).prompt_ids(ClipSize(13, 237)) == stock["input_ids"][0].tolist()


@given(st.sampled_from(sorted(LAYOUTS)), st.integers(1, 200), st.lists(st.integers(40, 2000), max_size=30))
def test_what_is_decoded_from_is_the_prefix_trained_on(name, utterance_tokens, target_ids):
    clock = Clock(1, EOS, PAD, P, W, left_pad_tokens=32, delay_tokens=6, right_pad_tokens=17)
    layout = LAYOUTS[name](clock, 65)
    clip = layout.measure(utterance_tokens * 1280, 240_480)
    row, prompt = layout.lay_out(clip, target_ids), layout.prompt_ids(clip)
    assert row.ids[: len(prompt)] == prompt
    assert row.labels[: len(prompt)] == [X] * len(prompt)
    assert row.labels[len(prompt)] == (target_ids + [EOS])[0]
    assert len(row.ids) == len(row.labels) == clip.row_tokens
