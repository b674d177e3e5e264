"""Reward and curation: pure functions with literal values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evoxtral_train.config.sections import Placement
from evoxtral_train.config.training import Curate, Pairs, RewardWeights, Score
from evoxtral_train.raft.curation import by_clip, clips_kept, curate, replay
from evoxtral_train.raft.preferences import Preferences, pairs_kept
from evoxtral_train.raft.reward import PROFILES, Answer, formula, score, weights_of
from evoxtral_train.records import REFERENCE, Candidate, CuratedRow, ScoredCandidate


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
    assert score(weights_of("card", "tags"), Answer(reference, candidate, with_words=False))[0] == pytest.approx(reward)


@pytest.mark.parametrize(
    ("reference", "candidate", "extra", "missing", "reward"),
    [
        ("[sighs] i told you", "[sighs]", 0, 0, 1.0),
        ("[sighs] i told you", "[sighs] [pause]", 1, 0, 2 / 3 - 0.2),
        ("[sighs] i told you", "", 0, 1, -0.1),
        ("i told you", "", 0, 0, 1.0),
        ("i told you", "[calm] [pause] [clears throat]", 3, 0, -0.6),
        ("[sighs] [sighs] oh", "[sighs] [laughs]", 1, 1, 0.5 - 0.2 - 0.1),
    ],
)
def test_counts_reward_for_tags_alone(reference, candidate, extra, missing, reward):
    found, components = score(weights_of("counts", "tags"), Answer(reference, candidate, with_words=False))
    assert found == pytest.approx(reward)
    assert (components["extra_tags"], components["missing_tags"], components["misplaced_tags"]) == (extra, missing, 0)
    assert "word_accuracy" not in components


def test_each_false_tag_has_its_price_where_the_published_reward_asks_less_and_less():
    reference, counts, card = "[sighs] [pause] [laughs] [gasps]", weights_of("counts", "tags"), weights_of("card", "tags")
    texts = [reference + " [calm]" * extra for extra in range(5)]
    ours, published = (
        [score(weights, Answer(reference, text, with_words=False))[0] for text in texts] for weights in (counts, card)
    )
    assert all(before - after >= 0.2 for before, after in zip(ours, ours[1:], strict=False))
    costs = [before - after for before, after in zip(published, published[1:], strict=False)]
    assert costs == pytest.approx([0.0844, 0.0622, 0.0481, 0.0385], abs=1e-4)


def test_a_tag_in_the_wrong_place_is_misplaced():
    weights = weights_of("counts", "tagged_text")
    assert weights["word_accuracy"] == 0.4
    right = score(weights, Answer("oh [sighs] no one two", "oh [sighs] no one two", with_words=True))
    wrong = score(weights, Answer("oh [sighs] no one two", "oh no one two [sighs]", with_words=True))
    assert (right[0], right[1]["misplaced_tags"]) == (pytest.approx(1.4), 0)
    assert (wrong[0], wrong[1]["misplaced_tags"]) == (pytest.approx(1.3), 1)
    events = [{"tag": "sighs", "start_s": 1.0, "end_s": 2.0}]
    for at_s, misplaced in ((2.9, 0), (3.1, 1)):
        answer = Answer("[sighs] oh", "[sighs]", False, events, [{"tag": "sighs", "at_s": at_s}], Placement(tolerance_s=1.0))
        assert score(weights_of("counts", "tags"), answer)[1]["misplaced_tags"] == misplaced


def test_weights_come_from_the_config_and_card_is_fixed():
    assert weights_of("counts", "tags", {"extra_tags": -0.5, "missing_tags": 0.0}) == {
        "tag_f1": 1.0, "extra_tags": -0.5, "misplaced_tags": -0.1,
    }  # fmt: skip
    assert formula(weights_of("counts", "tags")) == "1 × tag_f1 − 0.2 × extra_tags − 0.1 × missing_tags − 0.1 × misplaced_tags"
    assert formula(weights_of("card", "text")) == (
        "0.4 × published_word_accuracy + 0.4 × published_tag_f1 + 0.2 × published_faithfulness"
    )
    with pytest.raises(ValueError, match="weights of profile card are the published ones"):
        Score(weights={"tag_f1": 0.5})
    assert set(RewardWeights.model_fields) == set(PROFILES["counts"])


PUBLISHED = Curate(drop_lowest_share=0.1, drop_by="threshold")


def make(rewards: dict[str, list[float]], **profiles: str):
    keys = [(clip, number) for clip, values in rewards.items() for number in range(len(values))]
    candidates = [Candidate(clip, number, f"{clip}/{number}", [70 + number], 0, "eos", -1.0) for clip, number in keys]
    rows = ((clip, number, rewards[clip][number], {}, profiles.get(clip, "card")) for clip, number in keys)
    return candidates, [ScoredCandidate(*row) for row in rows]


def test_best_of_each_clip_ties_by_candidate_id():
    curated, dropped = curate(*make({"b": [0.1, 0.9, 0.9], "a": [0.5, 0.2, 0.5]}), Curate(drop_lowest_share=0))
    assert curated == [CuratedRow("b", 1, "b/1", [71], 0.9), CuratedRow("a", 0, "a/0", [70], 0.5)]
    assert {(row.utterance_id, row.candidate_id): row.reason for row in dropped} == {
        ("b", 0): "candidate 1 of this clip has reward 0.9", ("b", 2): "candidate 1 of this clip has reward 0.9",
        ("a", 1): "candidate 0 of this clip has reward 0.5", ("a", 2): "candidate 0 of this clip has reward 0.5",
    }  # fmt: skip


def test_the_lowest_share_of_clips_is_dropped_with_its_reason():
    curated, dropped = curate(*make({f"{i}": [i / 10] for i in range(10)}), Curate(drop_lowest_share=0.25))
    assert [row.utterance_id for row in curated] == ["3", "4", "5", "6", "7", "8", "9"]
    assert {row.reason for row in dropped} == {"among the lowest 25% of clips"}


def test_808_clips_leave_727():
    curated, dropped = curate(*make({f"{i:03}": [i % 7, i % 5, 0, 1] for i in range(808)}), Curate(drop_lowest_share=0.1))
    assert (len(curated), len(dropped)) == (727, 3232 - 727)


def test_by_threshold_as_in_the_original_code():
    """sorted(rewards)[n // 10], kept are the clips above it; those that share it all go."""
    rewards = [index / 808 for index in range(808)]
    curated, _ = curate(*make({f"{i:03}": [reward] for i, reward in enumerate(rewards)}), PUBLISHED)
    assert len(curated) == len([reward for reward in rewards if reward > sorted(rewards)[808 // 10]]) == 727
    curated, dropped = curate(*make({"a": [0.2], "b": [0.5], "c": [0.5], "d": [0.9], "e": [1.0]}), PUBLISHED)
    assert [row.utterance_id for row in curated] == ["b", "c", "d", "e"]
    tied, dropped = curate(*make({f"{i}": [0.6 if i < 5 else 1.0] for i in range(20)}), PUBLISHED)
    assert len(tied) == 15
    assert {row.reason for row in dropped} == {"not above the threshold of 0.6"}
    assert curate(*make({"a": [0.6], "b": [0.6]}), PUBLISHED)[0] == []


@pytest.mark.parametrize("drop_by", ["share", "threshold"])
def test_the_lowest_are_dropped_within_each_profile(drop_by):
    """Rewards of one profile lie all below those of the other."""
    rewards = {f"card{i}": [1 + i / 10] for i in range(10)} | {f"heard{i}": [i / 10] for i in range(4)}
    rows = make(rewards, **{f"heard{i}": "verifier" for i in range(4)})
    curated, dropped = curate(*rows, Curate(drop_lowest_share=0.3, drop_by=drop_by))
    lowest = {"share": ["card0", "card1", "card2", "heard0", "heard1"],
              "threshold": ["card0", "card1", "card2", "card3", "heard0", "heard1"]}  # fmt: skip
    assert [row.utterance_id for row in dropped] == lowest[drop_by]
    assert len(curated) + len(dropped) == 14
    reasons = {
        "share": {f"among the lowest 30% of clips (profile {profile})" for profile in ("card", "verifier")},
        "threshold": {"not above the threshold of 1.3 (profile card)", "not above the threshold of 0.1 (profile verifier)"},
    }
    assert {row.reason for row in dropped} == reasons[drop_by]


@pytest.mark.parametrize("rule", [Curate(drop_lowest_share=0.1), Curate(drop_lowest_share=0.1, drop_by="threshold")])
@pytest.mark.parametrize("clips", [1, 9, 10, 100, 808])
def test_the_plan_counts_what_stays(rule, clips):
    curated, _ = curate(*make({f"{i:03}": [float(i)] for i in range(clips)}), rule)
    assert len(curated) == clips_kept(clips, rule)


def test_a_missing_or_double_score_is_refused():
    candidates, scores = make({"a": [0.1, 0.2]})
    for wrong in (scores[:1], [*scores, scores[0]], [*scores, ScoredCandidate("b", 0, 1.0, {}, "card")]):
        with pytest.raises(ValueError, match="do not have the same"):
            curate(candidates, wrong, Curate(drop_lowest_share=0.1))


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1),
       st.sampled_from([0, 0.1, 0.5]), st.randoms())  # fmt: skip
def test_rows_are_joined_by_key_not_by_position(rewards, share, generator):
    candidates, scores = make(rewards)
    expected = curate(candidates, scores, Curate(drop_lowest_share=share))
    shuffled = scores[:]
    generator.shuffle(shuffled)
    assert curate(candidates, shuffled, Curate(drop_lowest_share=share)) == expected
    assert len(expected[0]) + len(expected[1]) == len(candidates)


def test_clips_without_spread_are_skipped_when_asked():
    rows = make({"flat": [0.9, 0.9], "low": [0.1, 0.2], "high": [0.3, 0.8]})
    curated, dropped = curate(*rows, Curate(drop_lowest_share=0.5, skip_without_spread=True))
    assert [row.utterance_id for row in curated] == ["high"]
    assert {(row.utterance_id, row.reason) for row in dropped if row.utterance_id != "high"} == {
        ("flat", "all candidates of this clip have this reward"),
        ("low", "candidate 1 of this clip has reward 0.2"),
        ("low", "among the lowest 50% of clips"),
    }
    assert [row.utterance_id for row in curate(*rows, Curate(drop_lowest_share=0.5))[0]] == ["flat"]


def test_replayed_references_are_first_those_that_were_not_curated():
    kept, references = {"a", "b", "c"}, {clip: (f"[{clip}]", [ord(clip)]) for clip in "abcde"}
    rows = list(replay(kept, references, share=0.7, seed=0))
    assert sorted(rows, key=lambda row: row.utterance_id) == [
        CuratedRow("d", REFERENCE, "[d]", [100], 0.0), CuratedRow("e", REFERENCE, "[e]", [101], 0.0),
    ]  # fmt: skip
    assert list(replay(kept, references, 0.7, 0)) == rows
    assert list(replay(kept, references, 0.0, 0)) == []
    assert len(list(replay(kept, references, 1.0, 0))) == 3


def test_pairs_are_dropped_within_each_profile():
    """The unit of a reward is its profile's own: the verifier's differences here are a hundredth of the card's."""
    scored = {f"c{number}": [number, 0, number / 2] for number in range(1, 6)}
    heard = {f"v{number}": [number / 100, 0] for number in range(1, 5)}
    clips = list(by_clip(*make(scored | {"flat": [0.5, 0.5]} | heard, **dict.fromkeys(heard, "verifier"))))
    every, some = (Preferences.of(clips, Pairs(drop_lowest_share=share)) for share in (0, 0.4))
    assert (len(every.clips), every.flat, every.dropped) == (9, 1, 0)
    assert some == Preferences(
        clips=frozenset(["c3", "c4", "c5", "v2", "v3", "v4"]), gaps={"card": [5, 4, 3], "verifier": [0.04, 0.03, 0.02]},
        flat=1, dropped=3,
    )  # fmt: skip
    assert [pairs_kept(pairs, Pairs(drop_lowest_share=0.1)) for pairs in (1, 10, 15)] == [1, 9, 14]
