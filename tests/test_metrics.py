"""Metrics: hand-computed cases, the published convention, and slow definitions on random input."""

import json
import random
from dataclasses import replace

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoxtral_train.config.evaluation import Bootstrap
from evoxtral_train.errors import UsageError
from evoxtral_train.records import Prediction
from evoxtral_train.scoring.metrics import evaluate, sums
from evoxtral_train.scoring.word_errors import count_character_errors, count_word_errors
from evoxtral_train.stages import eval_predictions as predictions
from evoxtral_train.text.normalize import normalize_words
from evoxtral_train.text.tags import BASE_TAGS, find_tags

SMALL = Bootstrap(samples=50)


def rows(*pairs):
    return [Prediction(str(index), *pair) for index, pair in enumerate(pairs)]


def values(report, family):
    return {name: measure["value"] for name, measure in report[family].items()}


def test_a_model_that_writes_no_tag_in_the_published_convention():
    silent = rows(*[("[sighs] [pause] hello", "")] * 39, *[("hello", "")] * 11)
    report = evaluate(silent, with_words=False, bootstrap=SMALL)
    assert {name: round(value, 2) for name, value in values(report, "card").items()} == {
        "precision": 1.00, "recall": 0.22, "f1": 0.22, "hallucination": 0.00,
    }  # fmt: skip
    assert values(report, "micro") == {"precision": None, "recall": 0.0, "f1": 0.0, "hallucination": None}
    assert report["false_tags_per_untagged_clip"]["value"] == 0.0
    assert (report["clips"], report["clips_without_reference_tags"]) == (50, 11)


def test_golden_case_by_hand():
    report = evaluate(
        rows(
            ("[sighs] a [sighs] b", "[sighs] [pause]"),  # 1 of 2 predicted, 1 of 2 wanted
            ("[laughs] a", "[laughs]"),  # all right
            ("a", "[calm] [calm]"),  # two false tags on an untagged clip
            ("b", ""),
        ),
        with_words=False,
        bootstrap=SMALL,
    )
    assert values(report, "card") == pytest.approx(
        {"precision": (0.5 + 1 + 0 + 1) / 4, "recall": (0.5 + 1 + 1 + 1) / 4, "f1": (0.5 + 1 + 0 + 1) / 4,
         "hallucination": (0.5 + 0 + 1 + 0) / 4}
    )  # fmt: skip
    assert values(report, "micro") == pytest.approx({"precision": 2 / 5, "recall": 2 / 3, "f1": 4 / 8, "hallucination": 3 / 5})
    # sighs: precision 1, recall 1/2, F1 2/3; laughs: all 1; calm and pause do not occur in the references
    assert values(report, "macro") == pytest.approx({"precision": 1.0, "recall": 0.75, "f1": 5 / 6, "hallucination": 0.0})
    assert report["false_tags_per_untagged_clip"]["value"] == 1.0
    assert report["tags_per_clip"]["value"] == 5 / 4
    assert report["per_tag"]["sighs"] == {
        "support": 2, "predicted": 1, "matched": 1, "precision": 1.0, "recall": 0.5, "f1": 2 / 3,
        "f1_low": pytest.approx(0.025 * 2 / 3), "f1_high": pytest.approx(0.025 * 2 / 3 + 0.975),  # one clip says little of others
    }  # fmt: skip
    assert report["per_tag"]["calm"]["support"] == 0


texts = st.lists(st.sampled_from(BASE_TAGS), max_size=4).map(lambda found: " word ".join(f"[{tag}]" for tag in found))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=12))
def test_against_slow_definitions(pairs):
    report = evaluate(rows(*pairs), with_words=False, bootstrap=Bootstrap(samples=5))
    matched = predicted = wanted = 0
    clip_f1 = []
    for reference, prediction in pairs:
        left, hits = find_tags(reference), 0
        for tag in find_tags(prediction):
            if tag in left:
                left.remove(tag)
                hits += 1
        counts = len(find_tags(prediction)), len(find_tags(reference))
        clip_f1.append(2 * hits / sum(counts) if sum(counts) else 1.0)
        matched, predicted, wanted = matched + hits, predicted + counts[0], wanted + counts[1]
    assert report["micro"]["f1"]["value"] == (pytest.approx(2 * matched / (predicted + wanted)) if predicted + wanted else None)
    assert report["micro"]["precision"]["value"] == (pytest.approx(matched / predicted) if predicted else None)
    assert report["card"]["f1"]["value"] == pytest.approx(sum(clip_f1) / len(clip_f1))


def test_interval_holds_the_value_and_narrows_with_more_clips():
    generator = random.Random(0)
    clips = [("[sighs]", "[sighs]" if generator.random() < 0.7 else "[pause]") for _ in range(400)]
    wide = evaluate(rows(*clips[:40]), with_words=False, bootstrap=Bootstrap(seed=1))["micro"]["f1"]
    narrow = evaluate(rows(*clips), with_words=False, bootstrap=Bootstrap(seed=1))["micro"]["f1"]
    assert wide["low"] < wide["value"] < wide["high"]
    # the standard error of a share p over n clips is sqrt(p (1 - p) / n)
    expected = 2 * 1.96 * (narrow["value"] * (1 - narrow["value"]) / 400) ** 0.5
    assert narrow["high"] - narrow["low"] == pytest.approx(expected, rel=0.15)
    assert narrow["high"] - narrow["low"] < wide["high"] - wide["low"]
    assert narrow == evaluate(rows(*clips), with_words=False, bootstrap=Bootstrap(seed=1))["micro"]["f1"]


def test_word_errors_equal_jiwer_where_it_has_an_answer():
    pairs = [("I told you.", "i sold you"), ("come closer", "come"), ("a b c", "x a b c y"), ("one", "")]
    report = evaluate(rows(*pairs), with_words=True, bootstrap=Bootstrap(samples=5))
    normal = [[text.lower().strip(".") for text in column] for column in zip(*pairs, strict=True)]
    assert report["wer"]["micro"]["value"] == pytest.approx(jiwer.wer(*normal))
    assert report["cer"]["micro"]["value"] == pytest.approx(jiwer.cer(*normal))


def test_clips_with_empty_texts_are_counted():
    assert count_word_errors("", "three more words").errors == 3
    assert count_character_errors("", "ab").errors == 2
    assert count_word_errors("[sighs]", "").rate == 0.0
    assert count_word_errors("", "word").rate == 1.0
    report = evaluate(rows(("one two", "one two"), ("", "oops oops")), with_words=True, bootstrap=Bootstrap(samples=5))
    assert report["wer"]["micro"]["value"] == 1.0  # two insertions over two reference words
    assert report["bench"]["wer"]["value"] == 0.0, "as published, a clip whose reference has no words is left out"
    assert report["clips_without_words"] == 1


def test_eval_predictions_needs_no_model(call, tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(
        '{"id": "a", "reference": "[sighs] i told you", "prediction": "[sighs] i sold you", "note": 1}\n'
        '{"id": "b", "reference": "hello", "prediction": "[pause] hello"}\n',
        "utf-8",
    )
    result = call("eval-predictions", path, "--bootstrap-samples", 20)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["micro"]["precision"]["value"] == 0.5
    assert report["wer"]["micro"]["value"] == 0.25


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"id": "a", "reference": "x"}\n', r":1: `prediction` is missing"),
        ('{"id": "a", "reference": "x", "prediction": "y"}\n' * 2, r":2: duplicate id 'a', first seen in row 1"),
        ("{\n", r":1: not JSON"),
        ("3\n", r":1: this row is not a JSON object"),
        ("[]\n", "no predictions"),
        ("", "no predictions"),
    ],
)
def test_bad_prediction_files_say_where(tmp_path, content, reason):
    path = tmp_path / "predictions.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(UsageError, match=reason):
        predictions.run(path, SMALL)


def test_runs_of_one_corpus_pooled_do_not_count_as_more_clips():
    """Three seeds that wrote the same are as certain as one of them."""
    clips = [("[sighs] a", "[sighs]"), ("[laughs] b", "[sighs]"), ("c", "[calm]"), ("d", ""), ("[pause] e", "[pause]")] * 6
    once = evaluate(rows(*clips), with_words=False, bootstrap=Bootstrap(samples=300))
    pooled = evaluate([row for _ in range(3) for row in rows(*clips)], with_words=False, bootstrap=Bootstrap(samples=300))
    for family in ("card", "micro", "macro"):
        for name, measure in once[family].items():
            assert pooled[family][name] == pytest.approx(measure), (family, name)
    assert pooled["false_tags_per_untagged_clip"] == pytest.approx(once["false_tags_per_untagged_clip"])


def test_what_two_systems_are_compared_by():
    """Sums over clips: the same figures as in the report."""
    clips = rows(("[sighs] a", "[sighs] a"), ("b c", "[calm] b"), ("c", "c"), ("[laughs] d", "[pause] d"))
    report, found = evaluate(clips, with_words=True, bootstrap=SMALL), sums(clips, with_words=True)
    values = {name: above.sum() / below.sum() for name, (above, below) in found.items()}
    assert values == pytest.approx(
        {
            "micro_f1": report["micro"]["f1"]["value"], "micro_recall": 1 / 2, "hallucination": 2 / 3,
            "false_tags_per_untagged_clip": 1 / 2, "tags_per_clip": 3 / 4, "wer": 1 / 5,
            "cer": report["cer"]["micro"]["value"],
        }
    )  # fmt: skip


def test_intervals_over_speakers_need_speakers(tmp_path):
    clips = rows(("[sighs] a", "[sighs]"), ("b", "[calm]"), ("[pause] c", ""), ("d", "")) * 5
    clips = [replace(row, id=str(index), speaker="anna" if index % 4 < 2 else "ben") for index, row in enumerate(clips)]
    by_clip, by_speaker = (evaluate(clips, with_words=False, bootstrap=Bootstrap(unit=unit)) for unit in ("clip", "speaker"))
    assert (by_clip["intervals"]["units"], by_speaker["intervals"]["units"]) == (20, 2)
    f1, over_speakers = by_clip["micro"]["f1"], by_speaker["micro"]["f1"]
    assert f1["value"] == over_speakers["value"]
    assert over_speakers["high"] - over_speakers["low"] > f1["high"] - f1["low"], "two speakers say less than twenty clips"
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": "a", "reference": "x", "prediction": "x"}\n', "utf-8")
    with pytest.raises(UsageError, match="1 of 1 clips have no speaker, the first is 'a'.*add `speaker`"):
        predictions.run(path, Bootstrap(unit="speaker"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("caf\u00e9 r\u00e9sum\u00e9", "cafe\u0301 re\u0301sume\u0301"),  # composed and decomposed accents
        ("I'm — well — FINE!", "i’m well fine"),
        ("soft\u00adware", "software"),
        ("love you \u2764\ufe0f", "love you"),
    ],
)
def test_texts_that_read_the_same_have_no_errors(first, second):
    assert (count_word_errors(first, second).errors, count_character_errors(first, second).errors) == (0, 0)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("हिन्दी, में!", "हिन्दी में"),  # vowel signs and viramas are marks, not letters
        ("สวัสดี ครับ", "สวัสดี ครับ"),
        ("مَرحَبًا؟ بِك", "مَرحَبًا بِك"),
        ("Ελλάδα·", "ελλάδα"),
        ("你好，世界。", "你好 世界"),
        ("snake_case", "snake case"),
    ],
)
def test_letters_and_marks_of_every_script_stay(text, normal):
    assert normalize_words(text) == normal


words = st.lists(st.sampled_from(["one", "two", "THREE", "[sighs]", "[pause]"]), max_size=6).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=8))
def test_every_other_measure_against_slow_definitions(pairs):
    """Macro, false tags, per tag, WER and emphasis, written out clip by clip."""
    report = evaluate(rows(*pairs), with_words=True, bootstrap=Bootstrap(samples=2))
    tags = ("sighs", "pause")
    totals = {tag: [0, 0, 0] for tag in tags}  # matched, predicted, wanted
    errors = length = false = untagged = 0
    loud = [0, 0]
    for reference, prediction in pairs:
        wanted, got = find_tags(reference), find_tags(prediction)
        for tag in tags:
            matched = min(wanted.count(tag), got.count(tag))
            totals[tag] = [old + new for old, new in zip(totals[tag], (matched, got.count(tag), wanted.count(tag)), strict=True)]
        if not wanted:
            untagged, false = untagged + 1, false + len(got)
        said, heard = ([word for word in text.split() if not word.startswith("[")] for text in (reference, prediction))
        errors, length = errors + edits([w.lower() for w in said], [w.lower() for w in heard]), length + len(said)
        loud[0] += 2 * min(said.count("THREE"), heard.count("THREE"))
        loud[1] += said.count("THREE") + heard.count("THREE")
    scores = [2 * m / (p + w) for m, p, w in totals.values() if w]
    assert report["macro"]["f1"]["value"] == (pytest.approx(sum(scores) / len(scores)) if scores else None)
    recalls = [m / w for m, _, w in totals.values() if w]
    assert report["macro"]["recall"]["value"] == (pytest.approx(sum(recalls) / len(recalls)) if recalls else None)
    for tag, (matched, predicted, wanted) in totals.items():
        if predicted or wanted:
            row = report["per_tag"][tag]
            assert (row["matched"], row["predicted"], row["support"]) == (matched, predicted, wanted)
    assert report["false_tags_per_untagged_clip"]["value"] == (pytest.approx(false / untagged) if untagged else None)
    assert report["wer"]["micro"]["value"] == (pytest.approx(errors / length) if length else None)
    assert report["emphasis"]["micro"]["f1"]["value"] == (pytest.approx(loud[0] / loud[1]) if loud[1] else None)


def edits(first: list[str], second: list[str]) -> int:
    """The edit distance by its definition."""
    if not first or not second:
        return len(first) + len(second)
    same = edits(first[1:], second[1:]) + (first[0] != second[0])
    return min(same, edits(first[1:], second) + 1, edits(first, second[1:]) + 1)
