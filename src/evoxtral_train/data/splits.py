"""The splits, and how clips are assigned to them.

Splits share no sentence. A hash of its words assigns each sentence to one split for good, so neither the seed
nor the corpus size can leak a held-out sentence into training. `raft`, the clips that SFT leaves to RAFT, is
trained on too; its sentences come from the training share.

`deal` does more: it keeps groups (a speaker, a sentence) together and gives each split its share of every tag.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

SPLITS = ("train", "validation", "test", "raft")
_SPLIT_SHARES = (("train", 0.8), ("validation", 0.1), ("test", 0.1))
UNLABELLED = "raft"
"""The only split that may have clips without text: RAFT can score candidates without a reference."""
UNTAGGED = ""
"""Stands for "no tag at all" where clips are counted by tag."""


def split_of_sentence(sentence: str) -> str:
    """train, validation or test for 80 / 10 / 10 percent of all sentences, by hash."""
    position = _position(sentence)
    for split, share in _SPLIT_SHARES:
        position -= share
        if position < 0:
            return split
    return _SPLIT_SHARES[-1][0]


def deal(tags: Sequence[Sequence[str]], groups: Sequence[Sequence[str]], shares: dict[str, float], seed: int) -> list[str]:
    """The split of each clip, given its tags and the names of its groups.

    Clips that share a group, directly or through other clips, stay together. Groups with the rarest tags are assigned
    first, each to the split that still lacks most of that tag (iterative stratification: Sechidis et al. 2011, here for
    whole groups). The result does not depend on the order of the clips.

    >>> deal([["laughs"], ["laughs"], [], []], [["ann"], ["bob"], ["ann"], ["bob"]], {"train": 0.5, "test": 0.5}, seed=0)
    ['train', 'test', 'train', 'test']
    """
    members: dict[int, list[int]] = defaultdict(list)
    for clip, root in enumerate(_connected(groups)):
        members[root].append(clip)
    counts = {root: Counter(tag for clip in clips for tag in (tags[clip] or [UNTAGGED])) for root, clips in members.items()}
    names = {root: min("\0".join(sorted(groups[clip])) for clip in clips) for root, clips in members.items()}
    total = sum(counts.values(), Counter())
    lacking = {split: {tag: share * total[tag] for tag in total} for split, share in shares.items()}
    room = {split: share * len(tags) for split, share in shares.items()}
    dealt = {}
    # Rare tags first, then large groups, which are hardest to place; ties by a hash, not by row order.
    order = sorted(
        members,
        key=lambda root: (min(total[tag] for tag in counts[root]), -len(members[root]), _position(f"{seed}\0{names[root]}")),
    )
    for root in order:
        rarest = min(counts[root], key=lambda tag: (total[tag], tag))
        split = max(shares, key=lambda name: (lacking[name][rarest], room[name]) if shares[name] else (-1e18, 0.0))
        dealt[root] = split
        room[split] -= len(members[root])
        for tag, count in counts[root].items():
            lacking[split][tag] -= count
    splits = [""] * len(tags)
    for root, clips in members.items():
        for clip in clips:
            splits[clip] = dealt[root]
    return splits


def _connected(groups: Sequence[Sequence[str]]) -> list[int]:
    """The first clip of each clip's connected component: clips are connected when they share a group."""
    roots = list(range(len(groups)))

    def root(clip: int) -> int:
        while roots[clip] != clip:
            roots[clip] = roots[roots[clip]]
            clip = roots[clip]
        return clip

    first: dict[str, int] = {}
    for clip, names in enumerate(groups):
        for name in names:
            a, b = root(first.setdefault(name, clip)), root(clip)
            roots[max(a, b)] = min(a, b)
    return [root(clip) for clip in range(len(groups))]


def _position(text: str) -> float:
    """A number in [0, 1) that depends only on the text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64
