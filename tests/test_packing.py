"""Packing in chunks: any number of processes, in one go or resumed, gives the same bytes; reading loads no row unasked."""

import json
import os
import shutil

import numpy as np
import pytest

from conftest import TINY_BASE, rows_of
from evoxtral_train.config.data import Layout, PackConfig
from evoxtral_train.config.sections import Tracking
from evoxtral_train.dataset import reader as reading
from evoxtral_train.dataset import writer as packing
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.errors import EvoxtralError, UsageError
from evoxtral_train.run_folders import partial
from evoxtral_train.runs import Options
from evoxtral_train.stages.data import pack


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """36 rows are five chunks."""
    monkeypatch.setattr(packing, "CHUNK_ROWS", 8)
    monkeypatch.setattr(pack, "CHUNK_ROWS", 8)
    monkeypatch.setattr(pack, "chunks", lambda entries: packing.chunks(entries, 8))


@pytest.fixture
def config(spoken, tmp_path):
    def config(name: str, processes: int = 1, **named) -> PackConfig:
        manifest = tmp_path / "manifest.jsonl"
        rows = rows_of(spoken)
        rows[3] |= {"audio": "none.flac"}
        rows[20] |= {"text": "[yodels] oh."}
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return PackConfig(
            manifest=manifest, output=tmp_path / name, base=str(TINY_BASE), processes=processes,
            tracking=Tracking(mode="disabled"), **named,
        )  # fmt: skip

    return config


def contents(folder) -> dict[str, bytes]:
    files = [*folder.glob("shards/*"), *folder.glob("*.arrow"), folder / "dataset.json", folder / "rejected.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_two_processes_write_what_one_does(config):
    one = pack.run(config("one"), Options())
    two = pack.run(config("two", processes=2), Options())
    assert contents(config("one").output) == contents(config("two").output)
    for report in (one, two):
        assert (report.facts["rows"], report.facts["packed"], report.facts["rejected"]) == (36, 34, 2)
    assert (one.facts["processes"], two.facts["processes"]) == (1, 2)
    rejected = [json.loads(line) for line in (config("two").output / "rejected.jsonl").read_text("utf-8").splitlines()]
    assert [row["line"] for row in rejected] == [4, 21]


def test_resumed_equals_uninterrupted(config, monkeypatch):
    pack.run(config("whole"), Options())
    packed, calls = packing.pack_row, []

    def killed(row, *arguments):
        calls.append(row.id)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return packed(row, *arguments)

    monkeypatch.setattr(packing, "pack_row", killed)
    with pytest.raises(KeyboardInterrupt):
        pack.run(config("cut"), Options())
    done = len(list((partial(config("cut").output) / "shards").glob("*.json")))
    assert done == 2, "chunks of which every row is on disk"
    with pytest.raises(UsageError, match="use --resume"):
        pack.run(config("cut"), Options())
    calls.clear()
    monkeypatch.setattr(packing, "pack_row", lambda *arguments: calls.append(1) or packed(*arguments))
    report = pack.run(config("cut", processes=1), Options(resume=True))
    assert len(calls) == 36 - 2 * 8 - 1, "all but the chunks that were whole, and the row that the manifest rejects"
    assert report.facts["packed"] == 34
    assert contents(config("cut").output) == contents(config("whole").output)


def _die(*_) -> None:
    """As when the system's memory killer takes a worker."""
    os._exit(9)


def test_a_killed_process_is_said_and_loses_nothing(config, monkeypatch):
    monkeypatch.setattr(packing, "_start", _die)
    with pytest.raises(EvoxtralError, match="a worker process was killed, perhaps for lack of memory — run again with a smaller"):
        pack.run(config("cut", processes=2), Options())
    monkeypatch.undo()
    assert pack.run(config("cut", processes=2), Options(resume=True)).facts["packed"] == 34


def test_no_row_is_read_before_it_is_asked_for(config, monkeypatch):
    pack.run(config("packed"), Options())
    opened = []
    read = reading._read_stream
    monkeypatch.setattr(reading, "_read_stream", lambda path: opened.append(path.name) or read(path))
    split = PackedSplit(config("packed").output, "train")
    assert opened == ["train-index.arrow"]
    assert len(split) == len(split.utterance_tokens)
    split.examples[0]
    assert opened == ["train-index.arrow", "00000-train.arrow"]


def test_rows_are_the_same_in_one_shard_and_in_many(config, spoken, packed):
    """`packed` has one shard per split; here are five chunks. Order, lengths, mel and lookup agree."""
    pack.run(config("many"), Options())
    many, one = PackedSplit(config("many").output, "train"), PackedSplit(packed["deferred"], "train")
    lost = set(one.index_of) - set(many.index_of)
    assert len(lost) == len(one) - len(many)
    assert [each.id for each in many.examples] == [each.id for each in one.examples if each.id not in lost]
    for index, example in enumerate(many.examples):
        other = one.index_of[example.id]
        assert example == many.examples[index] == one.examples[other]
        assert many.index_of[example.id] == index
        assert (example.utterance_tokens, example.row_tokens) == (many.utterance_tokens[index], many.row_tokens[index])
        assert len(example.target_ids) == many.target_tokens[index]
        assert many.audio_of(index) == (spoken / "audio" / f"{example.id}.flac").resolve()
        np.testing.assert_array_equal(many.mel_of(index, 60), one.mel_of(other, 60))
    with pytest.raises(IndexError):
        many.examples[len(many)]


def test_only_so_many_shards_stay_open(config, monkeypatch):
    pack.run(config("packed"), Options())
    monkeypatch.setattr(reading, "_OPEN_SHARDS", 1)
    split = PackedSplit(config("packed").output, "train")
    forth = [example.id for example in split.examples]
    back = [split.examples[index].id for index in reversed(range(len(split)))]
    assert back == forth[::-1]
    assert len(split._shards._open) == 1


def test_pieces_of_an_aligned_row_keep_their_times(config):
    pack.run(config("aligned", layout=Layout(kind="aligned"), target="tagged_text"), Options())
    split = PackedSplit(config("aligned").output, "train")
    for index, example in enumerate(split.examples):
        written = [token for ids, _ in split.heard_of(index) for token in ids]
        assert [token for token in example.target_ids if token not in (32, 33)] == written
        times = [heard_s for _, heard_s in split.heard_of(index)]
        assert times == sorted(times)


def test_a_lost_shard_is_said(config):
    pack.run(config("packed"), Options())
    shutil.rmtree(config("packed").output / "shards")
    split = PackedSplit(config("packed").output, "train")
    with pytest.raises(EvoxtralError, match="is gone or cut short"):
        split.examples[0]
