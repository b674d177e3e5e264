"""Tags and their places: literal pairings, and invariants on random ones."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoxtral_train.config.evaluation import Bootstrap
from evoxtral_train.config.sections import Placement
from evoxtral_train.records import Prediction
from evoxtral_train.scoring.metrics import evaluate
from evoxtral_train.scoring.placement import NOWHERE, Span, distance, pair, placed_counts, word_places
from evoxtral_train.scoring.tag_counts import TagCounts

FEW = Bootstrap(samples=10)


def test_a_tag_counts_within_the_tolerance_of_its_event():
    laugh, sigh = Span("laughs", 1.0, 2.0), Span("sighs", 4.0, 4.5)
    late, early, wrong = Span("laughs", 2.9, 2.9), Span("sighs", 2.9, 2.9), Span("pause", 1.5, 1.5)
    assert distance(laugh, late) == pytest.approx(0.9)
    assert pair([laugh, sigh], [late, early, wrong], tolerance=1.0) == [(0, 0)]
    assert pair([laugh, sigh], [late, early, wrong], tolerance=1.1) == [(0, 0), (1, 1)]
    counts = placed_counts([laugh, sigh], [late, early, wrong], tolerance=1.0)
    assert (counts.reference.total(), counts.predicted.total(), dict(counts.matched)) == (2, 3, {"laughs": 1})


def test_as_many_as_possible_are_paired_not_the_nearest_first():
    first, second = Span("pause", 0, 0), Span("pause", 3, 3)
    near, far = Span("pause", 2, 2), Span("pause", 5, 5)
    assert pair([first, second], [near, far], tolerance=2) == [(0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("reference", "prediction", "gaps"),
    [
        ("i [sighs] told you", "i [sighs] told you", [("sighs", 1, 1)]),
        ("i [sighs] told you", "and i [sighs] sold", [("sighs", 1, 1)]),
        ("i [sighs] told you", "i told you [sighs]", [("sighs", 3, 3)]),
        ("i told you so", "i [pause] so", [("pause", 3, 3)]),  # before its next word
        ("i told you so", "i told [pause]", [("pause", 2, 2)]),  # or after its last
        ("i told you", "[sighs]", [("sighs", NOWHERE, NOWHERE)]),  # no word says where
        ("", "[sighs] [pause]", [("sighs", 0, 0), ("pause", 0, 0)]),  # no words, so nowhere else to be
        ("i told you", "[laughs] i [sig told you [sighs]", [("laughs", 0, 0), ("sighs", 3, 3)]),
    ],
)
def test_predicted_tags_are_carried_over_to_the_references_words(reference, prediction, gaps):
    assert [(span.tag, span.start, span.end) for span in word_places(reference, prediction)[1]] == gaps


def test_the_reference_stands_in_its_own_gaps():
    places, written = word_places("[calm] one, two [pause] three. [laughs]", "[calm] one, two [pause] three. [laughs]")
    assert [(span.tag, span.start) for span in places] == [("calm", 0), ("pause", 2), ("laughs", 3)]
    assert places == written


spans = st.lists(st.builds(lambda tag, at, length: Span(tag, at, at + length), st.sampled_from("ab"), st.integers(0, 9),
                           st.integers(0, 2)), max_size=5)  # fmt: skip


@given(spans, spans, st.integers(0, 4))
def test_the_most_pairs_against_trying_all(places, written, tolerance):
    found = pair(places, written, tolerance)
    chosen = [(places[place], written[index]) for place, index in found]
    assert all(place.tag == span.tag and distance(place, span) <= tolerance for place, span in chosen)
    assert len({index for _, index in found}) == len({place for place, _ in found}) == len(found)
    short, long = sorted((places, written), key=len)
    best = max(
        sum(a.tag == b.tag and distance(a, b) <= tolerance for a, b in zip(short, order, strict=False))
        for order in permutations(long, len(short))
    )
    assert len(found) == best


@given(spans, spans)
def test_with_no_limit_it_is_the_multiset_count(places, written):
    counts = placed_counts(places, written, tolerance=100)
    assert counts == TagCounts.of([span.tag for span in places], [span.tag for span in written])


@given(st.lists(st.sampled_from(["one", "two", "three", "[laughs]", "[pause]"]), max_size=8))
def test_a_text_against_itself_is_perfect(items):
    text = " ".join(items)
    counts = placed_counts(*word_places(text, text), tolerance=0)
    assert counts.matched == counts.reference == counts.predicted


def test_placed_metrics_literally():
    """Two clips: a laugh in its place, a sigh said 3 s late, a tag that nobody made."""
    rows = [
        Prediction("a", "[laughs] [sighs] oh", "[laughs] [sighs]",
                   [{"tag": "laughs", "start_s": 0.0, "end_s": 1.0}, {"tag": "sighs", "start_s": 2.0, "end_s": 3.0}],
                   [{"tag": "laughs", "at_s": 1.1, "written_s": 1.6}, {"tag": "sighs", "at_s": 6.0, "written_s": 6.4}]),
        Prediction("b", "oh", "[calm]", [], [{"tag": "calm", "at_s": 1.0, "written_s": 1.5}]),
    ]  # fmt: skip
    report = evaluate(rows, with_words=False, bootstrap=FEW)
    assert report["micro"]["f1"]["value"] == pytest.approx(2 * 2 / (2 + 3))
    placed = report["placed"]
    assert placed["micro"]["f1"]["value"] == pytest.approx(2 * 1 / (2 + 3))
    assert placed["micro"]["recall"]["value"] == 0.5
    assert placed["latency_s"] == {"tags": 1, "median": pytest.approx(0.6), "p90": pytest.approx(0.6)}
    words = evaluate(
        [Prediction("a", "oh [sighs] no", "oh no [sighs]")],
        with_words=True,
        bootstrap=FEW,
        placement=Placement(tolerance_words=0),
    )
    assert (words["placed"]["unit"], words["placed"]["micro"]["f1"]["value"]) == ("words", 0)
    assert evaluate([Prediction("a", "oh [sighs] no", "oh no [sighs]")], True, FEW)["placed"]["micro"]["f1"]["value"] == 1
    assert "placed" not in evaluate([Prediction("a", "[sighs] no", "[sighs]")], with_words=False, bootstrap=FEW)


@pytest.mark.parametrize("prediction", ["[laughs] [sighs]", "[sighs] [laughs]", "[sighs] x [laughs] [sighs] [laughs]"])
def test_placed_scores_cannot_be_had_without_the_words(prediction):
    """Tags alone have no place; around one word that stands for all, not every tag can be in its place."""
    report = evaluate([Prediction("a", "[sighs] a b c d e f g h [laughs]", prediction)], with_words=True, bootstrap=FEW)
    assert report["placed"]["micro"]["f1"]["value"] == (0 if "x" not in prediction else pytest.approx(2 / 6))


events = st.lists(st.tuples(st.sampled_from(["sighs", "pause"]), st.integers(0, 6)), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(events, events), min_size=1, max_size=5))
def test_placed_families_against_slow_definitions(clips):
    """Micro and macro over the tags that trying every pairing puts in their places."""
    rows = [
        Prediction(
            str(number), " ".join(f"[{tag}]" for tag, _ in wanted), " ".join(f"[{tag}]" for tag, _ in got),
            [{"tag": tag, "start_s": at, "end_s": at} for tag, at in wanted],
            [{"tag": tag, "at_s": at, "written_s": at} for tag, at in got],
        )
        for number, (wanted, got) in enumerate(clips)
    ]  # fmt: skip
    placed = evaluate(rows, with_words=False, bootstrap=Bootstrap(samples=2))["placed"]
    totals = {}
    for wanted, got in clips:
        for tag in ("sighs", "pause"):
            first, second = ([at for name, at in side if name == tag] for side in (wanted, got))
            short, long = sorted((first, second), key=len)
            matched = max(
                sum(abs(a - b) <= 1 for a, b in zip(short, order, strict=False)) for order in permutations(long, len(short))
            )
            old = totals.get(tag, (0, 0, 0))
            totals[tag] = tuple(map(sum, zip(old, (matched, len(second), len(first)), strict=True)))
    matched, predicted, wanted = (sum(each) for each in zip(*totals.values(), strict=True))
    assert placed["micro"]["f1"]["value"] == (pytest.approx(2 * matched / (predicted + wanted)) if predicted + wanted else None)
    recalls = [m / w for m, _, w in totals.values() if w]
    assert placed["macro"]["recall"]["value"] == (pytest.approx(sum(recalls) / len(recalls)) if recalls else None)
