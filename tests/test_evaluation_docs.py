"""The worked example of docs/evaluation.md, run: every figure that the page claims."""

import re
from fractions import Fraction

import pytest

from conftest import REPO
from evoxtral_train.config.evaluation import Bootstrap
from evoxtral_train.records import Prediction
from evoxtral_train.scoring import published
from evoxtral_train.scoring.confusion import confusion
from evoxtral_train.scoring.metrics import evaluate

PAGE = (REPO / "docs/evaluation.md").read_text("utf-8")


def table(header: str) -> list[list[str]]:
    lines = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


ROWS = [Prediction(*cells) for cells in table("| id | reference | prediction |")]
REPORT = evaluate(ROWS, with_words=True, bootstrap=Bootstrap(samples=50))


def claimed(cell: str) -> float:
    """The last number of a cell: "2/4 = 0.5" -> 0.5, "2/3" -> 0.667."""
    return float(Fraction(re.findall(r"[\d./]+", cell)[-1].strip(".")))


def test_the_example_is_read():
    assert [row.id for row in ROWS] == list("abcde")
    assert (REPORT["reference_tags"], REPORT["predicted_tags"]) == (4, 4)


def test_micro():
    for name, _, _, example in table("| measure | formula | empty case | example |"):
        assert REPORT["micro"][name]["value"] == pytest.approx(claimed(example)), name


def test_card_by_clip_and_its_mean():
    *clips, mean = table("| clip | precision | recall | f1 | hallucination |")
    for row, (identity, *cells) in zip(ROWS, clips, strict=True):
        assert row.id == identity
        scores = list(published.card(row.reference, row.prediction).values())
        assert scores == pytest.approx([claimed(cell) for cell in cells]), identity
    found = [REPORT["card"][name]["value"] for name in ("precision", "recall", "f1", "hallucination")]
    assert found == pytest.approx([claimed(cell) for cell in mean[1:]], abs=5e-5)


def test_bench():
    line = PAGE[PAGE.index("so the means are precision") :].split(".\n")[0].replace("\n", " ")
    names = {"WER": "wer", "CER": "cer", "emphasis F1": "emphasis_f1"} | {
        name: name for name in ("precision", "recall", "f1", "hallucination")
    }
    claims = {names[name]: float(value) for name, value in re.findall(rf"({'|'.join(names)}) ([\d.]+\d|1)", line)}
    assert len(claims) == 7
    assert {name: measure["value"] for name, measure in REPORT["bench"].items()} == pytest.approx(claims, abs=5e-5)


def test_macro_false_tags_placed_and_confusion():
    macro = {name: measure["value"] for name, measure in REPORT["macro"].items()}
    assert macro == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5, "hallucination": 0.0})
    assert "precision, recall and F1 are 0.5. Hallucination (0 for each" in PAGE
    assert REPORT["false_tags_per_untagged_clip"]["value"] == 0.5
    assert REPORT["tags_per_clip"]["value"] == 0.8
    assert REPORT["placed"]["micro"]["f1"]["value"] == 0.5
    assert confusion(ROWS) == {
        "laughs": {"laughs": 1}, "sighs": {"sighs": 1}, "pause": {"nothing": 1}, "whispers": {"nothing": 1},
        "nothing": {"calm": 1, "gasps": 1},
    }  # fmt: skip


def test_words():
    rows = {cells[0]: cells[-1] for cells in table("| measure | formula | empty case | example |\n|---|---|---|---|\n| WER")}
    assert REPORT["wer"]["micro"]["value"] == pytest.approx(claimed(rows["WER, micro"]), abs=5e-5)
    assert REPORT["emphasis"]["micro"]["f1"]["value"] == claimed(rows["emphasis F1, micro"])
    assert REPORT["emphasis"]["reference_words"] == 1


def test_every_measure_of_the_report_is_defined_on_the_page():
    for name in (
        "micro",
        "macro",
        "card",
        "bench",
        "placed",
        "confusion",
        "WER",
        "CER",
        "emphasis",
        "tags per clip",
        "false tags per untagged",
    ):
        assert name.lower() in PAGE.lower(), name
