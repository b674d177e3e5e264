"""What a family lays out: prompts, targets, records."""

import pytest

from evoxtral_train.errors import RowError
from evoxtral_train.families.base import IGNORED
from evoxtral_train.families.checkpoint import FAMILIES, family_named

from .conftest import SUBJECTS


def test_every_family_is_in_the_battery():
    assert SUBJECTS.keys() == FAMILIES.keys()
    for name in FAMILIES:
        assert family_named(name).model_type == name


def test_the_prompt_decoded_from_is_the_prefix_trained_on(split):
    layout = split.layout
    for index, example in enumerate(split.examples):
        clip = split.clip(index)
        row, prompt = layout.lay_out(clip, example.target_ids), layout.prompt_ids(clip)
        assert row.ids[: row.prompt_tokens] == prompt
        assert row.labels[: len(prompt)] == [IGNORED] * len(prompt)
        assert row.ids[len(prompt) : row.needed_tokens] == [*example.target_ids, layout.eos_id]
        assert row.labels[len(prompt) : row.needed_tokens] == [*example.target_ids, layout.eos_id]
        assert len(row.ids) == len(row.labels) == clip.row_tokens
        assert set(row.ids[row.needed_tokens :]) <= {layout.pad_id}


def test_a_target_that_does_not_fit_is_refused(split):
    clip = split.clip(0)
    room = clip.row_tokens - split.layout.prompt_tokens(clip)
    split.layout.lay_out(clip, [70] * (room - 1))
    with pytest.raises(RowError, match=f"the target has {room} tokens and EOS, but only {room} fit"):
        split.layout.lay_out(clip, [70] * room)


def test_a_dataset_restores_its_layout(split, family):
    assert split.layout == family.layout(split.layout.name, split.layout.room_tokens)
    for name in family.layouts:
        layout = family.layout(name, 65)
        assert family.restore_layout(layout.record()) == layout


def test_features_are_stored_without_loss(split, family):
    """Read back in part, they are the beginning of the whole."""
    whole = split.mel_of(3, split.clip(3).row_tokens)
    kept, start = family.trim_silence(whole)
    assert (family.restore_silence(kept, start, whole.shape[1]) == whole).all()
    part = split.mel_of(3, 40)
    assert (part == whole[:, : part.shape[1]]).all()
