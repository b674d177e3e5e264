"""Names from data in pictures and pages: thousands of them, and anything in them."""

import json
import re
import time
import warnings
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from evoxtral_train.reporting import plots
from evoxtral_train.reporting.page import Section, Table, render

REPO = Path(__file__).parents[2]
ODD = [
    r"$\frac{", "$x$ costs $5", "a\nb", "a\x1b[2J\x00", "\ud800 half", "\N{FACE WITH TEARS OF JOY} laughs", "\u7b11\u3044",
    "\u0636\u062d\u0643", "\u202egnip", "x" * 5_000, "", " ", "_", "\\", "^{",
]  # fmt: skip
MANY = [*ODD, *(f"tag {number}" for number in range(2_000 - len(ODD)))]


def drawn(plot, *arguments, **named) -> tuple[int, int]:
    """The picture's width and height; it took no minute, and warned of nothing."""
    begun = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = plot(*arguments, **named)
    assert png.startswith(b"\x89PNG")
    assert time.monotonic() - begun < 30
    size = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    assert max(size) <= 60 * 220
    return size


@pytest.mark.parametrize("names", [ODD, pytest.param(MANY, marks=pytest.mark.slow)], ids=["odd", "2,000"])
def test_every_plot_takes_any_names(names, capsys):
    numbers = list(range(len(names)))
    point = (0.5, 0.4, 0.6)
    drawn(plots.columns, names, numbers, "label", "clips")
    drawn(plots.stacked_rows, names, {"$train$": numbers, "test\ud800": numbers}, "clips")
    drawn(plots.intervals, names, {name: [point] * len(names) for name in names[:8]}, "F1", grey=[names[0]])
    drawn(plots.heatmap, names, names, [[row * column % 7 for column in numbers] for row in numbers], "written", "reference")
    drawn(plots.lines, {name: [(1, 0.5), (2, 0.4)] for name in names[:20]}, "step", "loss", y_scale="log")
    drawn(plots.bands, {name: [(0, 0.5, 0.4, 0.6), (1, 0.5, 0.4, 0.6)] for name in names[:20]}, "s", "recall")
    drawn(plots.distributions, {name: [0.1, 0.5, 0.9] for name in names[:20]}, "reward")
    drawn(plots.histogram, [0, 1], [3, 4], "length of the clip (s)")
    assert "could not be drawn" not in capsys.readouterr().err


def test_what_is_not_shown_is_summed():
    names, [values] = plots._bounded([f"t{number}" for number in range(100)], [[1] * 99 + [50]], range(99, -1, -1))
    assert names == [f"t{number}" for number in range(60, 100)] + ["other (60)"]
    assert sum(values) == 149
    assert values[-2:] == [50, 60]


def test_a_logarithmic_axis_writes_plain_numbers(monkeypatch):
    labels = []
    png = plots._png
    monkeypatch.setattr(plots, "_png", lambda figure: labels.append(png(figure)) or labels_of(figure))

    def labels_of(figure) -> bytes:
        axis = figure.axes[0].yaxis
        labels[:] = [each.get_text() for each in (*axis.get_ticklabels(), *axis.get_ticklabels(minor=True))]
        return b""

    plots.lines({"loss": [(1, 2.0), (2, 9.0)]}, "step", "loss", y_scale="log")
    assert labels
    assert not any("$" in label for label in labels)


def predictions(packed, path: Path, tags: list[str]) -> Path:
    """One row for each clip of the test split; the tags dealt out among them."""
    manifest = packed["deferred"].parent.parent / "spoken/data/manifest.jsonl"
    rows = [json.loads(line) for line in manifest.open(encoding="utf-8")]
    ids = [row["id"] for row in rows if row["split"] == "test"]
    written = (" ".join(f"[{tag}]" for tag in tags[place :: len(ids)]) for place in range(len(ids)))
    content = [{"id": each, "reference": "", "prediction": text} for each, text in zip(ids, written, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
    return path


@pytest.fixture
def evaluate(packed, call, tmp_path):
    def evaluate(tags: list[str]):
        path = predictions(packed, tmp_path / "mine.jsonl", tags)
        sets = [f"dataset={packed['deferred']}", f"output={tmp_path / 'eval'}", "tracking.mode=disabled", "bootstrap.samples=20"]
        sets += ["bootstrap.permutations=199", f"systems=[{{name: mine, predictions: {path}}}]"]
        return call("eval", REPO / "configs/demo/eval-sft.yaml", *(part for each in sets for part in ("--set", each)))

    return evaluate


@pytest.mark.slow
def test_2000_odd_tags_lose_no_evaluation(evaluate, tmp_path):
    tags = [tag for tag in MANY if "\ud800" not in tag]
    result = evaluate(tags)
    assert result.exit_code == 0, result.stderr
    assert "Glyph" not in result.stderr
    assert "\x1b" not in result.stdout
    page = (tmp_path / "eval/report.html").read_text("utf-8")
    section = page[page.index("<h2>Tag by tag</h2>") : page.index("<h2>Confusion</h2>")]
    assert section.count("<tr>") > 1_990, "the table has all of them"
    assert (tmp_path / "eval/complete.json").is_file()
    pictures = list((tmp_path / "eval").glob("*.png"))
    assert pictures
    assert sum(path.stat().st_size for path in pictures) < 5_000_000


def test_a_picture_that_cannot_be_drawn_loses_no_evaluation(evaluate, tmp_path, monkeypatch):
    save, errors = Figure.savefig, [MemoryError("no room for pixels")]

    def failing_once(self, *arguments, **named):
        if errors:
            raise errors.pop()
        return save(self, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", failing_once)
    result = evaluate(["sighs"])
    assert result.exit_code == 0, result.stderr
    assert "a picture could not be drawn: MemoryError: no room for pixels" in result.stderr
    assert (tmp_path / "eval/complete.json").is_file()


@pytest.mark.slow
def test_statistics_of_2000_tags(call, clip_row, tmp_path):
    row, tags = clip_row("a"), [tag for tag in MANY if tag.strip() and "[" not in tag]
    rows = [
        row | {"id": f"c{place}", "text": " ".join(f"[{tag}]" for tag in tags[place::200]), "split": ("train", "test")[place % 2]}
        for place in range(200)
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), "utf-8")
    sets = [f"manifest={tmp_path / 'manifest.jsonl'}", f"output={tmp_path / 'stats'}", "tags.unknown=keep"]
    sets.append("tracking.mode=disabled")
    result = call("data", "stats", REPO / "configs/stats.yaml", *(part for each in sets for part in ("--set", each)))
    assert result.exit_code == 0, result.stderr
    assert re.search(r"Fewer than 20 training clips with .* and [\d,]+ more: add some", result.stdout)
    assert len(result.stdout) < 20_000
    assert "could not be drawn" not in result.stderr


def test_a_page_of_thousands_of_rows_keeps_its_header_in_sight():
    page = render("t", "s", [Section("Tags", table=Table(("tag", "clips"), [[tag, "1"] for tag in MANY if "\ud800" not in tag]))])
    assert "position: sticky" in page
    assert "max-height: 85vh" in page
    assert page.count("<tr>") == 1 + 1_999
