"""Comparisons: which are made, how often they err, how often their intervals hold the truth, and what is said of them."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoxtral_train.config.evaluation import Bootstrap, System
from evoxtral_train.records import Prediction
from evoxtral_train.scoring.metrics import Sums
from evoxtral_train.scoring.significance import compare_pair, compare_pairs, declared, difference, sentence

EXPERIMENTS, PERMUTATIONS = 2000, 399
QUICK = Bootstrap(permutations=999)


def test_each_system_is_compared_with_its_predecessor_and_a_filter_with_its_own_system():
    systems = [
        System(name="base"), System(name="SFT", adapter="sft"), System(name="SFT top-2", adapter="sft", top_k=2),
        System(name="RAFT", adapter="raft"), System(name="sure", adapter="raft", min_confidence=0.5),
        System(name="theirs", predictions="theirs.jsonl"), System(name="late", adapter="sft", top_k=1),
    ]  # fmt: skip
    assert declared(systems) == [
        ("base", "SFT"), ("SFT", "SFT top-2"), ("SFT", "RAFT"), ("RAFT", "sure"), ("RAFT", "theirs"), ("SFT", "late"),
    ]  # fmt: skip
    alone = [System(name="base"), System(name="sure", adapter="sft", min_confidence=0.5), System(name="RAFT", adapter="raft")]
    assert declared(alone) == [("base", "sure"), ("sure", "RAFT")], "a filter whose own system is not there is a system"
    assert declared(systems[:1]) == []


def corpus(rng: np.random.Generator, clips: int, kind: str) -> dict[str, tuple[Sums, Sums]]:
    """Two systems on clips of which a third are untagged and some are harder than others. Kinds: "equal"; "rare": equal, and next
    to nothing is found; "unequal rates": of one micro F1, but one writes eleven times as much; "better": the second is."""
    ease, wanted = rng.beta(2, 2, clips), rng.choice([0, 1, 2, 3], clips, p=[0.3, 0.35, 0.25, 0.1])
    recalls, false = {
        "equal": ((1.0, 1.0), (0.4, 0.4)),
        "rare": ((0.3, 0.3), (0.05, 0.05)),
        "unequal rates": ((0.4, 1.2), (0.05, 3.185)),
        "better": ((0.6, 1.0), (0.4, 0.2)),
    }[kind]
    sides = []
    for recall, rate in zip(recalls, false, strict=True):
        matched = rng.binomial(wanted, np.clip(ease * recall, 0, 1))
        predicted = (matched + rng.poisson(rate * (1 - ease) + rate / 4)).astype(float)
        untagged = (wanted == 0).astype(float)
        sides.append((Sums(2.0 * matched, predicted + wanted), Sums(predicted * untagged, untagged)))
    return {name: tuple(side[place] for side in sides) for place, name in enumerate(("micro F1", "false tags"))}


def truth_of(kind: str) -> dict[str, float]:
    found = corpus(np.random.default_rng(1), 1_000_000, kind)
    return {name: b.above.sum() / b.below.sum() - a.above.sum() / a.below.sum() for name, (a, b) in found.items()}


LEVELS = {"micro F1": 0.05, "false tags": 0.025}


def experiments(clips: int, kind: str) -> dict[str, tuple[float, float]]:
    """measure -> (how often a difference was shown, how often the interval held the truth)."""
    rng, truth = np.random.default_rng(2), truth_of(kind)
    shown, held = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    units = [str(index) for index in range(clips)]
    for experiment in range(EXPERIMENTS):
        for name, (before, after) in corpus(rng, clips, kind).items():
            found = difference(before, after, units, LEVELS[name], PERMUTATIONS, experiment)
            shown[name] += found["shown"]
            held[name] += found["low"] <= truth[name] <= found["high"]
            assert found["shown"] == (found["p"] < LEVELS[name]), found
    return {name: (shown[name] / EXPERIMENTS, held[name] / EXPERIMENTS) for name in truth}


SLOW = [pytest.param(clips, kind, marks=pytest.mark.slow) for clips in (60, 200) for kind in ("equal", "rare")]


# three standard errors over 2,000 experiments: 1.5 points for a share of 5%, 1.05 for 2.5%
@pytest.mark.parametrize(("clips", "kind"), [(30, "equal"), *SLOW])
def test_equal_systems_are_told_apart_as_often_as_the_level_says(clips, kind):
    for name, (shown, held) in experiments(clips, kind).items():
        most = {0.05: 0.065, 0.025: 0.0355}[LEVELS[name]]
        assert shown <= most, (name, shown)
        assert held >= 1 - most, (name, held)
        if kind == "equal" and clips == 200 and name == "micro F1":
            assert shown >= 0.035, "a test that never errs shows nothing"


@pytest.mark.slow
def test_the_interval_of_a_difference_holds_the_truth():
    for name, (_, held) in experiments(200, "better").items():
        assert 1 - LEVELS[name] - 0.02 <= held <= 1 - LEVELS[name] + 0.02, (name, held)


@pytest.mark.slow
def test_one_that_writes_more_is_not_better_for_it():
    """Swapping whole answers alone would tell these two apart in far more than 5%."""
    assert abs(truth_of("unequal rates")["micro F1"]) < 0.003
    shown, held = experiments(60, "unequal rates")["micro F1"]
    assert shown <= 0.065
    assert held >= 0.93


@pytest.mark.parametrize(("alike", "most"), [(0.0, 0.95), (0.98, 0.95)])
def test_the_smallest_difference_is_shown_in_four_of_five_experiments(alike, most):
    """Two systems that are right on half of 150 clips: independently, or with the same answer to nearly all of them. The
    difference that the second is then given makes them differ in more clips."""
    rng, units, ones = np.random.default_rng(4), [str(index) for index in range(150)], np.ones(150)

    def pair(gap: float) -> tuple[Sums, Sums]:
        first, own = rng.random(150) < 0.5 - gap / 2, rng.random(150) < 0.5 - gap / 2
        second = np.where(rng.random(150) < alike, first, own)
        second |= ~second & (rng.random(150) < gap / (0.5 + gap / 2))
        return Sums(first.astype(float), ones), Sums(second.astype(float), ones)

    gap = float(np.mean([difference(*pair(0.0), units, 0.05, 399, 0)["smallest_difference"] for _ in range(40)]))
    shown = sum(difference(*pair(gap), units, 0.05, 399, experiment)["shown"] for experiment in range(600)) / 600
    assert 0.78 <= shown <= most, (gap, shown)


def test_a_handful_of_clips_claims_no_certainty():
    """Six clips that one gets right and the other does not: shown, but not to be one in all clips that there are."""
    found = difference(Sums(np.zeros(6), np.ones(6)), Sums(np.ones(6), np.ones(6)), list("abcdef"), 0.05, 999, 0)
    assert found["shown"]
    assert found["low"] == pytest.approx(1 - 2 * (1 - 0.025 ** (1 / 6)))
    assert found["high"] == 1
    alone = difference(Sums(np.zeros(1), np.ones(1)), Sums(np.ones(1), np.ones(1)), ["a"], 0.05, 999, 0)
    assert (alone["low"], alone["high"], alone["smallest_difference"], alone["shown"]) == (-1, 1, 1, False)


def test_words_invented_on_clips_without_words_count():
    said = [("one two", "one two")] * 20 + [("[sighs]", "[sighs]")] * 10
    invented = [*said[:20], *[("[sighs]", "[sighs] what was that")] * 10]
    wer = compare_pair(rows(*said), rows(*invented), True, QUICK)["measures"]["wer"]
    assert wer["value"] == pytest.approx(30 / 40)
    assert wer["units"] == 30
    assert wer["shown"]


def test_p_of_a_few_clips_is_that_of_all_swaps():
    """Seven clips of equal weight have 128 ways to be swapped; the sampled p approaches the exact one."""
    first, second = np.array([0.0, 0, 1, 0, 0, 1, 0]), np.array([1.0, 1, 1, 1, 1, 0, 1])
    exact = np.mean([abs(np.sum((second - first) * np.array(signs))) >= 4 for signs in product([-1, 1], repeat=7)])
    found = difference(Sums(first, np.ones(7)), Sums(second, np.ones(7)), list("abcdefg"), 0.05, 20_000, 0)
    assert found["p"] == pytest.approx(exact, abs=0.01)


def rows(*pairs: tuple[str, str]) -> list[Prediction]:
    return [Prediction(str(index), *pair) for index, pair in enumerate(pairs)]


CLIPS = [("[sighs] a", "[sighs]"), ("[laughs] b", ""), ("c", ""), ("[pause] d", "[pause]")] * 10
SILENT = [(reference, "") for reference, _ in CLIPS]


def test_an_interval_never_contradicts_its_p():
    """Three right tags in 92 clips, against a base that writes none: no test can show that; nor may the interval."""
    references = ["[sighs] a"] * 30 + ["b"] * 62
    wrote = ["[sighs]"] * 3 + [""] * 37 + ["[calm]"] * 2 + [""] * 50
    base = rows(*[(reference, "") for reference in references])
    found = compare_pair(base, rows(*zip(references, wrote, strict=True)), False, QUICK)["measures"]["micro_f1"]
    assert found["value"] == pytest.approx(6 / 35)
    assert found["p"] == pytest.approx(0.25, abs=0.05)
    assert found["low"] < 0 < found["high"]


def test_the_outcome_in_one_sentence():
    better = [(reference, reference.split("]")[0] + "]" if "[" in reference else "") for reference, _ in CLIPS]
    [found] = compare_pairs([("SFT", "RAFT")], {"SFT": rows(*CLIPS), "RAFT": rows(*better)}, False, QUICK)
    said = sentence(found)
    assert said.startswith("RAFT against SFT: micro F1 higher (+0.200 [+0.")
    assert "; no significant difference in false tags per untagged clip; micro recall higher (+0.333 [" in said
    nearly = [*CLIPS[:-1], ("[pause] d", "")]
    [found] = compare_pairs([("SFT", "RAFT")], {"SFT": rows(*CLIPS), "RAFT": rows(*nearly)}, False, QUICK)
    said = sentence(found)
    assert said.startswith("RAFT against SFT: no significant difference in micro F1 (-0.024 [-0.137, +0.094]")
    assert "]; smallest detectable: 0." in said
    [found] = compare_pairs([("SFT", "RAFT")], {"SFT": rows(*CLIPS), "RAFT": rows(*CLIPS)}, False, QUICK)
    assert sentence(found) == "RAFT wrote the same as SFT."
    assert list(found["measures"]) == ["micro_f1", "false_tags_per_untagged_clip", "micro_recall"]
    assert [measure["level"] for measure in found["measures"].values()] == [0.05, 0.025, 0.025]
    same = compare_pair(rows(*CLIPS), rows(*CLIPS), False, QUICK)["measures"]["micro_f1"]
    assert (same["value"], same["p"], same["shown"]) == (0.0, 1.0, False)
    assert same["low"] < 0 < same["high"], "equal answers on 30 clips do not prove equality"
    assert same["units"] == 30, "clips without any tag say nothing of F1"


def test_systems_that_write_words_are_also_judged_by_wer():
    said, misheard = [("[sighs] one two", "[sighs] one two")] * 20, [("[sighs] one two", "[sighs] one too")] * 20
    found = compare_pair(rows(*said), rows(*misheard), True, QUICK)
    assert list(found["measures"]) == ["micro_f1", "false_tags_per_untagged_clip", "wer"]
    assert found["measures"]["wer"]["value"] == 0.5
    assert found["measures"]["wer"]["shown"]
    plain = [("one two", "one two")] * 20
    assert compare_pair(rows(*plain), rows(*plain), True, QUICK)["primary"] == "wer", "without tags, words decide"


def test_what_is_not_defined_is_said():
    tagged = [("[sighs] a", "[sighs]"), ("[laughs] b", "")] * 3
    silent = [(reference, "") for reference, _ in tagged]
    [found] = compare_pairs([("a", "b")], {"a": rows(*tagged), "b": rows(*silent)}, False, QUICK)
    assert found["measures"]["false_tags_per_untagged_clip"]["value"] is None
    assert "false tags per untagged clip not defined" in sentence(found)
    with pytest.raises(ValueError, match="the same clips in the same order"):
        compare_pair(rows(*CLIPS), rows(*CLIPS)[::-1], False, QUICK)


def test_a_verdict_depends_on_its_own_pair_alone():
    """The same pair, among other comparisons and alone."""
    systems = {"base": rows(*SILENT), "SFT": rows(*CLIPS), "RAFT": rows(*[(a, a) for a, _ in CLIPS])}
    all_three = compare_pairs([("base", "SFT"), ("SFT", "RAFT"), ("base", "RAFT")], systems, False, QUICK)
    assert compare_pairs([("SFT", "RAFT")], systems, False, QUICK) == [all_three[1]]


def test_pooled_runs_do_not_count_as_more_clips():
    other = [(reference, "[calm]") for reference, _ in CLIPS]
    once, pooled = (
        compare_pair(rows(*CLIPS), rows(*other), False, QUICK),
        compare_pair(rows(*CLIPS) * 3, rows(*other) * 3, False, QUICK),
    )
    for name, measure in once["measures"].items():
        assert pooled["measures"][name] == pytest.approx(measure), name


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=30), st.integers(0, 3))
def test_turned_round_a_comparison_says_the_opposite(clips, seed):
    first, second, size = (np.array(column, float) for column in zip(*clips, strict=True))
    before, after = Sums(np.minimum(first, size), size), Sums(np.minimum(second, size), size)
    units = [str(index) for index in range(len(clips))]
    one, other = difference(before, after, units, 0.05, 199, seed), difference(after, before, units, 0.05, 199, seed)
    if one["value"] is not None:
        assert one["value"] == pytest.approx(-other["value"])
        assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]))
        assert one["low"] - 1e-9 <= one["value"] <= one["high"] + 1e-9
