"""Reward and curation: pure functions with literal values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoxtral_train.records import Candidate, ScoredCandidate
from evoxtral_train.scoring.curation import curate
from evoxtral_train.scoring.reward import score


@pytest.mark.parametrize(
    ("reference", "candidate", "reward"),
    [
        ("[sighs] i told you", "[sighs]", 0.4 * 0 + 0.4 * 1 + 0.2 * 1),
        ("[sighs] i told you", "[sighs] [pause]", 0.4 * 0 + 0.4 * 2 / 3 + 0.2 * 0.5),
        ("[sighs] i told you", "", 0.4 * 0 + 0.4 * 0 + 0.2 * 1),
        ("i told you", "", 0.4 * 0 + 0.4 * 1 + 0.2 * 1),
        ("i told you", "[calm]", 0.0),
        ("[sighs] i told you", "[sighs] i sold you", 0.4 * 2 / 3 + 0.4 + 0.2),
        ("i told you", "many more words than there ever were", 0.4 * 0 + 0.4 + 0.2),
    ],
)
def test_card_reward(reference, candidate, reward):
    assert score("card", reference, candidate)[0] == pytest.approx(reward)


def make(rewards: dict[str, list[float]]):
    keys = [(clip, number) for clip, values in rewards.items() for number in range(len(values))]
    candidates = [Candidate(clip, number, f"{clip}/{number}", [], 0, "eos", -1.0) for clip, number in keys]
    return candidates, [ScoredCandidate(clip, number, rewards[clip][number], {}) for clip, number in keys]


def test_best_of_each_clip_ties_by_candidate_id():
    curated, dropped = curate(*make({"b": [0.1, 0.9, 0.9], "a": [0.5, 0.2, 0.5]}), drop_lowest_share=0)
    assert [(row.utterance_id, row.candidate_id, row.target_text) for row in curated] == [("b", 1, "b/1"), ("a", 0, "a/0")]
    assert {(row.utterance_id, row.candidate_id): row.reason for row in dropped} == {
        ("b", 0): "candidate 1 of this clip has reward 0.9", ("b", 2): "candidate 1 of this clip has reward 0.9",
        ("a", 1): "candidate 0 of this clip has reward 0.5", ("a", 2): "candidate 0 of this clip has reward 0.5",
    }  # fmt: skip


def test_the_lowest_share_of_clips_is_dropped_with_its_reason():
    curated, dropped = curate(*make({f"{i}": [i / 10] for i in range(10)}), drop_lowest_share=0.25)
    assert [row.utterance_id for row in curated] == ["3", "4", "5", "6", "7", "8", "9"]
    assert {row.reason for row in dropped} == {"among the lowest 25% of clips"}


def test_808_clips_leave_727():
    curated, dropped = curate(*make({f"{i:03}": [i % 7, i % 5, 0, 1] for i in range(808)}), drop_lowest_share=0.1)
    assert (len(curated), len(dropped)) == (727, 3232 - 727)


def test_a_missing_or_double_score_is_refused():
    candidates, scores = make({"a": [0.1, 0.2]})
    for wrong in (scores[:1], [*scores, scores[0]], [*scores, ScoredCandidate("b", 0, 1.0, {})]):
        with pytest.raises(ValueError, match="do not hold the same"):
            curate(candidates, wrong, 0.1)


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1),
       st.sampled_from([0, 0.1, 0.5]), st.randoms())  # fmt: skip
def test_rows_are_joined_by_key_not_by_position(rewards, share, generator):
    candidates, scores = make(rewards)
    expected = curate(candidates, scores, share)
    shuffled = scores[:]
    generator.shuffle(shuffled)
    assert curate(candidates, shuffled, share) == expected
    assert len(expected[0]) + len(expected[1]) == len(candidates)
