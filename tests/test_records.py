"""Rows that are nearly JSONL: one JSON array, a byte-order mark, blank lines; row numbers that a user can follow."""

import json

import pytest

from evoxtral_train.config.data import Source
from evoxtral_train.corpus.sources import read_source
from evoxtral_train.data.manifest import Rejected, count_rows, read_manifest
from evoxtral_train.errors import RowError, UsageError
from evoxtral_train.records import Prediction, iter_jsonl, read_jsonl, read_rows, row_place
from evoxtral_train.synthesis.scripts import read_scripts

ROWS = [{"id": "a", "text": "é"}, {"id": "b", "text": "x"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "rows.json"):
        path = tmp_path / name
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize(
    "content",
    [
        JSONL,
        "\ufeff" + JSONL,
        JSONL.replace("\n", "\r\n"),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\ufeff\n" + json.dumps(ROWS, ensure_ascii=False, indent=1) + "\n\n",
    ],
    ids=["jsonl", "jsonl with mark", "windows line ends", "array", "indented array", "array with mark"],
)
def test_every_form_gives_the_same_rows(write, content):
    assert list(read_jsonl(write(content))) == [(1, ROWS[0]), (2, ROWS[1])]


def test_numbers_are_those_of_the_lines_or_of_the_array(write):
    assert [number for number, _ in read_jsonl(write("\n\n" + JSONL))] == [3, 4]
    assert [number for number, _ in read_jsonl(write("\n\n" + json.dumps(ROWS, indent=2)))] == [1, 2]
    assert row_place(write(JSONL, "a.jsonl"), 2).endswith("a.jsonl:2")
    assert row_place(write("\ufeff \n [\n]", "a.json"), 2).endswith("a.json, row 2")


def test_nothing_in_it(write):
    for content in ("", "\n\n", "\ufeff", "[]", " [ ]\n"):
        assert list(read_jsonl(write(content))) == []


def test_a_bad_row_leaves_the_others(write):
    numbers, rows = zip(*iter_jsonl(write(b'{"id": 1}\n{"id":\n"x"\n{"id": 4}\n{"id": "\xff"}\n')), strict=True)
    assert numbers == (1, 2, 3, 4, 5)
    assert (rows[0], rows[3]) == ({"id": 1}, {"id": 4})
    assert [str(row).partition(":")[0] for row in rows if isinstance(row, RowError)] == [
        "not JSON", "this row is not a JSON object", "not UTF-8 text — save the file as UTF-8",
    ]  # fmt: skip
    numbers, rows = zip(*iter_jsonl(write('[{"id": 1}, 2, {"id": 3}]')), strict=True)
    assert (numbers, rows[0], str(rows[1]), rows[2]) == ((1, 2, 3), {"id": 1}, "this row is not a JSON object", {"id": 3})


def test_errors_say_where(write, tmp_path):
    with pytest.raises(UsageError, match=r"rows.json, row 2: this row is not a JSON object"):
        list(read_jsonl(write('[{"id": 1}, 2]')))
    with pytest.raises(UsageError, match=r"rows.json: not a JSON array: .* line 2 .*write one JSON object per line"):
        list(read_jsonl(write('[{"id": 1},\n{"id": 2')))
    with pytest.raises(UsageError, match=r"rows.json, row 2: not a Prediction row: missing .* 'prediction'"):
        read_rows(write('[{"id": "a", "reference": "", "prediction": ""}, {"id": "b", "reference": ""}]'), Prediction)
    with pytest.raises(UsageError, match="is a folder, not a file"):
        list(read_jsonl(tmp_path))


def test_a_jsonl_is_read_line_by_line(write):
    """What comes later is not touched: not even a line that is no UTF-8."""
    rows = read_jsonl(write(JSONL.encode() + b"\xff\n"))
    assert [next(rows), next(rows)] == [(1, ROWS[0]), (2, ROWS[1])]
    with pytest.raises(UsageError, match=r"rows.json:3: not UTF-8 text"):
        next(rows)


def test_manifests_scripts_and_sources_take_an_array(write, tag_rules, clip_row):
    path = write(json.dumps([clip_row("one"), clip_row("one"), 3, clip_row("two", text="[sighs")]), "manifest.json")
    assert count_rows(path) == 4
    rows, rejected = read_manifest(path, tag_rules)
    assert [(row.id, row.line) for row in rows] == [("one", 1)]
    assert [str(each).partition(" — ")[0] for each in rejected] == [
        f"{path}, row 2: duplicate id, first seen in row 1",
        f"{path}, row 3: this row is not a JSON object",
        f"{path}, row 4: unclosed bracket at character 0",
    ]
    assert str(Rejected(str(write("{}", "m.jsonl")), 7, None, "why")).endswith("m.jsonl:7: why")
    scripts, rejected = read_scripts(write('[{"text": "[sighs] oh."}, {"text": 3}, []]'), tag_rules, {})
    assert [script.id for script in scripts] == ["script-00001"]
    assert [(each.line, each.reason.partition(" — ")[0]) for each in rejected] == [
        (2, "`text` is missing or empty"), (3, "this row is not a JSON object"),
    ]  # fmt: skip
    found = list(read_source(Source(kind="jsonl", path=str(write('[{"audio": "a.wav"}, 1]'))), "audio", ()))
    assert [(row.number, row.columns) for row in found] == [
        (1, {"audio": "a.wav"}), (2, {"(error)": "this row is not a JSON object"}),
    ]  # fmt: skip


def test_eval_predictions_takes_an_array(write, call):
    rows = [{"id": "a", "reference": "[sighs] x", "prediction": "[sighs]"}, {"id": "b", "reference": "", "prediction": ""}]
    printed = [
        call("eval-predictions", write(content, name), "--bootstrap-samples", 10).stdout
        for content, name in ((json.dumps(rows, indent=1), "p.json"), ("\n".join(map(json.dumps, rows)), "p.jsonl"))
    ]
    assert json.loads(printed[0])["micro"]["f1"]["value"] == 1.0
    assert printed[0] == printed[1]
