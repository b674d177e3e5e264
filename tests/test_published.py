"""The published metrics and reward: golden values of the original code, and slow definitions on random input."""

import json
import re

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import REPO
from evoxtral_train.raft.reward import Answer, score, weights_of
from evoxtral_train.records import Prediction
from evoxtral_train.scoring import published
from evoxtral_train.scoring.metrics import evaluate

CASES = [json.loads(line) for line in (REPO / "tests/golden/published-metrics.jsonl").read_text("utf-8").splitlines()]


def measured(reference: str, prediction: str) -> dict:
    words = {name: getattr(published, name)(reference, prediction) for name in ("emphasis_f1", "wer", "cer")}
    return {
        "card": published.card(reference, prediction),
        "bench": published.bench(reference, prediction) | words,
        "reward": published.reward(reference, prediction),
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_golden_cases_of_the_original_code(case):
    found = measured(case["reference"], case["prediction"])
    for family in ("card", "bench"):
        assert found[family] == pytest.approx(case[family], abs=1e-6), family
    assert found["reward"] == pytest.approx(case["reward"], abs=1e-6)
    answer = Answer(case["reference"], case["prediction"], with_words=True)
    assert score(weights_of("card", "tagged_text"), answer)[0] == pytest.approx(case["reward"], abs=1e-6)


def test_the_report_holds_their_means_over_clips():
    assert len(CASES) == 24
    report = evaluate([Prediction(case["id"], case["reference"], case["prediction"]) for case in CASES], with_words=True)
    for family in ("card", "bench"):
        for name in CASES[0][family]:
            values = [case[family][name] for case in CASES if case[family][name] is not None]
            assert report[family][name]["value"] == pytest.approx(sum(values) / len(values), abs=1e-6), (family, name)
    assert report["clips_without_words"] == 5


def test_a_repeated_tag_is_imprecise_but_no_hallucination():
    scores = published.card("[sighs] again", "[sighs] [sighs] [sighs] again")
    assert (scores["precision"], scores["hallucination"]) == (1 / 3, 0.0)


pieces = st.lists(
    st.sampled_from(["[sighs]", "[Sighs]", "[clears throat]", "[pause", "]", "NO", "no,", "I", "café", "WE're"]), max_size=7
)
texts = pieces.map(" ".join)


@settings(max_examples=300, deadline=None)
@given(texts, texts)
def test_against_slow_definitions(reference, prediction):
    """Written out list by list, without the module's own helpers."""
    found = measured(reference, prediction)
    wanted, got = ([tag.lower() for tag in re.findall(r"\[([^\]]+)\]", text)] for text in (reference, prediction))
    matched = overlap(wanted, got)
    card, bench = found["card"], found["bench"]
    assert card["precision"] == (matched / len(got) if got else 1)
    assert card["recall"] == (matched / len(wanted) if wanted else 1)
    assert card["f1"] == pytest.approx(f1(matched, wanted, got))
    precision = matched / len(got) if got else 1 if not wanted else 0
    recall = matched / len(wanted) if wanted else 1 if not got else 0
    assert (bench["precision"], bench["recall"]) == (precision, recall)
    assert bench["f1"] == pytest.approx(2 * precision * recall / (precision + recall) if precision + recall else 0)
    strange = [tag for tag in got if tag not in wanted]
    assert card["hallucination"] == bench["hallucination"] == (len(strange) / len(got) if got else 0)
    loud, shouted = ([word.lower() for word in re.findall(r"\b[A-Z]{2,}\b", text)] for text in (reference, prediction))
    assert bench["emphasis_f1"] == pytest.approx(f1(overlap(loud, shouted), loud, shouted))
    said, heard = (plain(text) for text in (reference, prediction))
    assert bench["wer"] == (pytest.approx(jiwer.wer(said, heard)) if said else None)
    assert bench["cer"] == (pytest.approx(jiwer.cer(said, heard)) if said else None)
    accuracy = max(0, 1 - bench["wer"]) if said else 1
    assert found["reward"] == pytest.approx(0.4 * accuracy + 0.4 * card["f1"] + 0.2 * (1 - card["hallucination"]))


def overlap(wanted: list[str], got: list[str]) -> int:
    return sum(min(wanted.count(each), got.count(each)) for each in set(wanted))


def f1(matched: int, wanted: list[str], got: list[str]) -> float:
    return 2 * matched / (len(wanted) + len(got)) if wanted or got else 1


def plain(text: str) -> str:
    text = " ".join(re.sub(r"\[[^\]]+\]", " ", text).split())
    return re.sub(r"\b[A-Z]{2,}\b", lambda word: word.group().lower(), text)
