"""`data stats`: the numbers, the advice, and a page that needs nothing else."""

import base64
import json
import re
import shutil
import subprocess

import pytest

from conftest import REPO, rows_of
from evoxtral_train.corpus.statistics import MeasuredClip, duration_histogram, gather, most_speakers
from evoxtral_train.reporting.page import Section, Table, render
from evoxtral_train.text.taxonomy import Taxonomy

TAXONOMY = Taxonomy.load(REPO / "data/tags.yaml")


def test_literally():
    found = gather(
        [
            MeasuredClip("train", 3.0, "[laughs] one two. [laughs]", "ann", "mit"),
            MeasuredClip("train", 5.0, "[laughs] three. [sighs]", "ann"),
            MeasuredClip("train", 2.0, "four five six.", "bob"),
            MeasuredClip("test", 8.0, "[sighs] [pause] seven."),
        ],
        TAXONOMY,
    )
    assert found.clips == {"train": 3, "test": 1}
    assert found.hours == {"train": pytest.approx(10 / 3600), "test": pytest.approx(8 / 3600)}
    assert found.duration_s == {"shortest": 2, "5%": pytest.approx(2.15), "median": 4, "95%": pytest.approx(7.55), "longest": 8}
    assert found.tags_per_clip == {0: 1, 2: 3}
    assert found.untagged_share == 0.25
    assert found.tags["laughs"] == {"train": 2, "test": 0}
    assert found.tags["sighs"] == {"train": 1, "test": 1}
    assert found.tags["crying"] == {"train": 0, "test": 0}
    assert found.occurrences == {"laughs": 3, "sighs": 2, "pause": 1}
    assert sorted(found.together) == [("laughs", "sighs", 1), ("pause", "sighs", 1)]
    assert found.words_per_second == pytest.approx(7 / 18)
    assert found.speakers == {"ann": pytest.approx(8 / 3600), "bob": pytest.approx(2 / 3600)}
    assert found.licenses == {"not given": 3, "mit": 1}


def corpus(untagged: int, **tags: int) -> list[MeasuredClip]:
    clips = [MeasuredClip(split, 4.0, "words.") for split in ("train", "validation", "test") for _ in range(untagged)]
    for split in ("train", "validation", "test"):
        for tag, count in tags.items():
            clips += [MeasuredClip(split, 4.0, f"[{tag.replace('_', ' ')}] words.")] * count
    return clips


EVERY_TAG = {tag.replace(" ", "_"): 20 for tag in TAXONOMY.tags}


def test_a_corpus_as_it_should_be_needs_no_advice():
    assert gather(corpus(130, **EVERY_TAG), TAXONOMY).advice == []


@pytest.mark.parametrize(
    ("clips", "said"),
    [
        (corpus(10, **EVERY_TAG), "3% of the clips are untagged; 25% to 35% is usual"),
        (corpus(900, **EVERY_TAG), "75% of the clips are untagged"),
        (corpus(130, **(EVERY_TAG | {"pause": 15})), "Fewer than 20 training clips with [pause]"),
        (corpus(130, **(EVERY_TAG | {"pause": 9})), "Fewer than 10 test clips with [pause]"),
        (corpus(130, **(EVERY_TAG | {"pause": 0})), "No clip has [pause]"),
        (corpus(330, **(EVERY_TAG | {"pause": 500})), "25 times as many clips as the rarest: train.sampling: square_root"),
        ([each for each in corpus(130, **EVERY_TAG) if each.split != "validation"], "There is no validation split."),
        (
            [*corpus(130, **EVERY_TAG), MeasuredClip("train", 44.0, "long.")],
            "The longest clip lasts 44 s; by default audio.max_seconds",
        ),
        (
            [*corpus(130, **EVERY_TAG), MeasuredClip("train", 4.0, "x.", license="cc-by-nc-4.0")],
            "cc-by-nc-4.0: no commercial use",
        ),
    ],
)
def test_advice(clips, said):
    assert any(said in line for line in gather(clips, TAXONOMY).advice), gather(clips, TAXONOMY).advice


def test_histogram_and_speakers():
    assert duration_histogram([0.4, 0.6, 6.9]) == [
        (0.0, 0),
        (0.25, 1),
        (0.5, 1),
        *((0.25 * i, 0) for i in range(3, 27)),
        (6.75, 1),
    ]
    assert duration_histogram([0.4, 40.0])[0] == (0.0, 1)
    assert len(duration_histogram([0.4, 40.0])) == 21
    many = gather([MeasuredClip("train", 36.0 * (20 - index), "x", f"s{index}") for index in range(20)], TAXONOMY)
    shown = most_speakers(many)
    assert list(shown)[-1] == "5 others"
    assert shown["5 others"] == pytest.approx(0.01 * (5 + 4 + 3 + 2 + 1))


@pytest.fixture(scope="module")
def stats(spoken, tmp_path_factory):
    from typer.testing import CliRunner

    from evoxtral_train.cli.main import app

    folder = tmp_path_factory.mktemp("stats")
    manifest = folder / "manifest.jsonl"
    rows = rows_of(spoken)
    rows[5] |= {"audio": "none.flac"}
    rows[6] |= {"text": "[yodels] <b>bold</b>"}
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    sets = [f"manifest={manifest}", f"output={folder / 'stats'}", "tracking.mode=disabled"]
    result = CliRunner().invoke(
        app, ["data", "stats", "configs/stats.yaml", *(part for each in sets for part in ("--set", each))]
    )
    assert result.exit_code == 0, result.stderr
    return folder / "stats", result.stdout


def test_the_report_holds_its_pictures_and_counts_every_row(stats):
    folder, printed = stats
    page = (folder / "report.html").read_text("utf-8")
    pictures = {path.stem: path.read_bytes() for path in folder.glob("*.png")}
    assert set(pictures) == {"durations", "tags-per-clip", "tags", "together", "speakers"}
    inside = {base64.b64decode(each) for each in re.findall(r"data:image/png;base64,([^\"]+)", page)}
    assert inside == set(pictures.values())
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page), "nothing is loaded from elsewhere"
    content = json.loads((folder / "stats.json").read_text("utf-8"))
    assert (content["rows"], content["rejected"], sum(content["clips"].values())) == (36, 2, 34)
    assert sum(count for _, count in content["duration_histogram"]) == 34
    assert "34, 2 rejected" in printed
    for title in ("Overview", "Advice", "Length", "Tags per clip", "Tags", "Tags together", "Speakers", "Licenses", "Rejected"):
        assert f"<h2>{title}</h2>" in page
    for line in content["advice"]:
        assert f"- {line}" in printed


def test_data_cannot_become_markup():
    page = render("t", "s", [Section("<b>", points=["<script>x</script>"], table=Table(("a",), [["<i>"]]))])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<h2>&lt;b&gt;</h2>" in page
    assert "<td>&lt;i&gt;</td>" in page


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_shows_it_without_errors(stats, tmp_path):
    folder, _ = stats
    picture = tmp_path / "page.png"
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={picture}", "--window-size=1000,3600",
         "--enable-logging=stderr", f"file://{folder / 'report.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert picture.stat().st_size > 50_000
