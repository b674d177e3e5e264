"""`evoxtral data join`: rows in = rows out, and the audio is found from the new place."""

import json

from evoxtral_train.data.manifest import read_manifest


def manifest_of(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_two_manifests_become_one(call, tmp_path, tag_rules):
    labelled = {"id": "a", "audio": "clips/a.flac", "text": "[sighs] Oh.", "split": "train", "speaker": "x"}
    first = manifest_of(tmp_path / "labelled/manifest.jsonl", labelled)
    absolute = str(tmp_path / "c.wav")
    second = manifest_of(tmp_path / "talks/manifest.jsonl", {"id": "b", "audio": "../b.flac"}, {"id": "c", "audio": absolute})
    output = tmp_path / "new/both.jsonl"
    done = call("data", "join", first, second, "--output", output)
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert rows == [
        labelled | {"audio": "../labelled/clips/a.flac"}, {"id": "b", "audio": "../b.flac"}, {"id": "c", "audio": absolute}
    ]  # fmt: skip
    read, rejected = read_manifest(output, tag_rules)
    assert ([row.split for row in read], rejected) == (["train", "raft", "raft"], [])
    assert read[0].audio.resolve() == tmp_path / "labelled/clips/a.flac"
    assert call("data", "join", first, second, "--output", output).exit_code == 2  # never replaces a file


def test_what_cannot_be_joined_is_refused_with_its_place_and_writes_nothing(call, tmp_path):
    row = {"id": "a", "audio": "a.flac"}
    first = manifest_of(tmp_path / "first.jsonl", row)
    for other, message in (
        (manifest_of(tmp_path / "same.jsonl", row), "the id 'a' is used before, in"),
        (manifest_of(tmp_path / "bare.jsonl", {"id": "b"}), "`id` or `audio` is missing"),
        (first, "two or more different manifests"),
        (tmp_path / "none.jsonl", "does not exist"),
    ):
        done = call("data", "join", first, other, "--output", tmp_path / "both.jsonl")
        assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "both.jsonl").exists()
