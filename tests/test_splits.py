"""Dealing clips out to splits: groups stay together, each split gets its share of every tag, whatever the order."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evoxtral_train.data.splits import deal

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def test_literally():
    tags = [["laughs"], ["laughs"], [], []]
    assert deal(tags, [["ann"], ["bob"], ["ann"], ["bob"]], {"train": 0.5, "test": 0.5}, seed=0) == [
        "train",
        "test",
        "train",
        "test",
    ]


def test_every_tag_gets_its_share():
    rng = np.random.default_rng(0)
    names = ["laughs", "sighs", "gasps", "pause"]
    chances = [0.4, 0.2, 0.05, 0.02]
    tags = [[name for name, chance in zip(names, chances, strict=True) if rng.random() < chance] for _ in range(2000)]
    splits = deal(tags, [[f"sentence {index}"] for index in range(2000)], SHARES, seed=1)
    sizes = Counter(splits)
    assert all(abs(sizes[split] - share * 2000) <= 10 for split, share in SHARES.items()), sizes
    for name in names:
        found = Counter(split for split, each in zip(splits, tags, strict=True) if name in each)
        for split, share in SHARES.items():
            assert abs(found[split] - share * found.total()) <= 2, (name, found)


def test_groups_stay_together_also_through_others():
    groups = [["ann", "s1"], ["bob", "s1"], ["bob", "s2"], ["cem", "s3"], ["dot", "s4"], ["cem", "s5"]]
    splits = deal([[]] * 6, groups, {"train": 0.5, "test": 0.5}, seed=0)
    assert splits[0] == splits[1] == splits[2]
    assert splits[3] == splits[5]
    assert set(splits) == {"train", "test"}


tagged = st.lists(st.sampled_from(["laughs", "sighs", "pause"]), max_size=3)
clips = st.lists(st.tuples(tagged, st.sampled_from("abcdefgh")), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(clips, st.randoms(use_true_random=False), st.integers(0, 3))
def test_the_order_of_the_clips_changes_nothing(clips, random, seed):
    clips = [(tags, [f"group {group}"]) for tags, group in clips]
    expected = dict(zip([group for _, [group] in clips], deal(*zip(*clips, strict=True), SHARES, seed), strict=True))
    shuffled = random.sample(clips, len(clips))
    found = deal(*zip(*shuffled, strict=True), SHARES, seed)
    assert found == [expected[group] for _, [group] in shuffled]


def test_another_seed_deals_otherwise_and_a_share_of_nothing_gets_nothing():
    tags, groups = [["laughs"]] * 40, [[f"s{index}"] for index in range(40)]
    assert deal(tags, groups, SHARES, seed=0) != deal(tags, groups, SHARES, seed=1)
    assert "raft" not in deal(tags, groups, SHARES | {"raft": 0.0}, seed=0)
    assert deal([], [], SHARES, seed=0) == []
