"""Times from what the base heard: literal alignments, and real speech against its true times."""

import json

import pytest

from conftest import REPO, TINY_BASE
from evoxtral_train.config.data import Layout, PackConfig
from evoxtral_train.config.sections import Tracking
from evoxtral_train.families.base import encode_piece
from evoxtral_train.families.realtime import self_alignment
from evoxtral_train.families.realtime.emission import written_words
from evoxtral_train.runs import Options
from evoxtral_train.stages.data import pack
from evoxtral_train.text.taxonomy import Taxonomy

TAXONOMY = Taxonomy.load(REPO / "data/tags.yaml")


def align(text, heard, duration_s):
    return self_alignment.align(text, heard, duration_s, TAXONOMY)


def ends(alignment) -> list[tuple[str, float]]:
    return [(word["word"], word["end_s"]) for word in alignment.words]


def test_a_word_takes_the_time_of_the_word_opposite():
    found = align("i [sighs] told you.", [("i", 0.4), ("sold", 1.3), ("you", 1.6)], duration_s=2.0)
    assert ends(found) == [("i", 0.4), ("told", 1.3), ("you.", 1.6)]
    assert found.heard == [True, False, True]
    assert found.events == [{"tag": "sighs", "start_s": 0.4, "end_s": 1.3}]


def test_words_that_were_not_heard_lie_between_their_neighbours():
    found = align("one two three four [laughs]", [("one", 0.4), ("um", 0.6), ("four", 1.6)], duration_s=3.0)
    assert ends(found) == [("one", 0.4), ("two", 0.6), ("three", 1.1), ("four", 1.6)]
    assert found.heard == [True, False, False, True]
    assert found.events == [{"tag": "laughs", "start_s": 1.6, "end_s": 3.0}], "up to the end of the clip"
    silent = align("[calm] one two", [], duration_s=3.0)
    assert ends(silent) == [("one", 1.0), ("two", 2.0)]
    assert silent.heard == [False, False]
    assert align("[laughs]", [("ha", 0.5)], 1.0).events == [{"tag": "laughs", "start_s": 0.0, "end_s": 1.0}]


def test_a_manner_reaches_to_the_end_of_its_sentence_or_to_the_next_manner():
    heard = [("go", 0.5), ("away", 1.0), ("come", 2.0), ("closer", 2.5)]

    def spans(text: str) -> list[tuple[str, float, float]]:
        return [(event["tag"], event["start_s"], event["end_s"]) for event in align(text, heard, 3.0).events]

    assert spans("[angry] Go away. Come closer.") == [("angry", 0.0, 1.0)]
    assert spans("[angry] go away [whispers] come closer") == [("angry", 0.0, 1.0), ("whispers", 1.0, 2.5)]
    assert spans("[angry] go away come closer") == [("angry", 0.0, 2.5)]
    assert spans("[angry] [sighs] go away [pause] come closer!\"") == [
        ("angry", 0.0, 2.5), ("sighs", 0.0, 0.5), ("pause", 1.0, 2.0),
    ]  # fmt: skip
    assert spans("go away come closer [mutters]") == [("mutters", 2.5, 3.0)]


def test_words_are_read_off_the_stream(clock, family):
    tokenizer = family.tokenizer
    p, w = clock.streaming_pad_id, clock.streaming_word_id
    the, station, noon = (encode_piece(tokenizer, word) for word in ("the", "station", "noon"))
    ids = [p, w, *the, *station, p, p, w, *noon]
    second = 39 + 1 + 1 + len(the) + len(station) + 2
    assert written_words(clock, tokenizer, 39, ids) == [
        ("the", pytest.approx((40 - 38) * 0.08)), ("station", pytest.approx((40 - 38) * 0.08)),
        ("noon", pytest.approx((second - 38) * 0.08)),
    ]  # fmt: skip


def test_speech_without_times_is_aligned_packed_and_close_to_the_truth(call, spoken, tmp_path):
    run = (
        "data", "align", "configs/align.yaml", "--set", f"manifest={spoken}/manifest.jsonl", "--set", f"model.base={TINY_BASE}",
        "--set", "model.dtype=float32", "--set", "keep_given_times=false", "--set", "tracking.mode=disabled", "--set",
        f"output={tmp_path}/aligned",
    )  # fmt: skip
    done = call(*run)
    assert done.exit_code == 0, done.stderr
    metrics = json.loads((tmp_path / "aligned/metrics.json").read_text("utf-8"))
    assert (metrics["aligned"], metrics["rejected"]) == (36, 0)
    assert metrics["words_heard_share"] > 0.95
    assert metrics["word_error_median_s"] < 0.1
    assert metrics["tag_error_median_s"] < 0.5
    assert metrics["tag_end_error_median_s"] < 0.5
    config = PackConfig(manifest=tmp_path / "aligned/manifest.jsonl", output=tmp_path / "packed", base=str(TINY_BASE),
                        layout=Layout(kind="aligned"), target="tagged_text", tracking=Tracking(mode="disabled"))  # fmt: skip
    assert pack.run(config, Options()).facts["packed"] == 36
    again = call(*run[:3], "--set", f"manifest={tmp_path}/aligned/manifest.jsonl", *run[5:9], "--set", f"output={tmp_path}/again")
    assert again.exit_code == 2
    assert "nothing to align: 36 rows have times" in again.stderr


def test_a_transcript_of_another_clip_is_rejected(call, spoken, tmp_path):
    rows = [json.loads(line) for line in (spoken / "manifest.jsonl").read_text("utf-8").splitlines()][:4]
    for row in rows:
        row["audio"] = str(spoken / row["audio"])
    rows[1]["text"] = "nothing of all this was ever spoken here by anyone"
    del rows[1]["words"], rows[1]["events"], rows[0]["words"], rows[0]["events"]
    rows[3] = {"id": rows[3]["id"], "audio": rows[3]["audio"]}
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    done = call("data", "align", "configs/align.yaml", "--set", f"manifest={manifest}", "--set", f"model.base={TINY_BASE}",
                "--set", "model.dtype=float32", "--set", "tracking.mode=disabled", "--set", f"output={tmp_path}/out")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    metrics = json.loads((tmp_path / "out/metrics.json").read_text("utf-8"))
    assert [metrics[name] for name in ("aligned", "already_timed", "unlabelled", "rejected")] == [1, 1, 1, 1]
    [rejected] = (tmp_path / "out/rejected.jsonl").read_text("utf-8").splitlines()
    assert "of the words" in json.loads(rejected)["reason"]
    written = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text("utf-8").splitlines()]
    assert {row["id"] for row in written} == {rows[0]["id"], rows[2]["id"], rows[3]["id"]}
    assert [row.keys() for row in written if "text" not in row] == [{"id", "audio", "split"}]
    [kept] = [row for row in written if row["id"] == rows[2]["id"]]
    assert (kept["words"], kept["events"]) == (rows[2]["words"], rows[2]["events"])
