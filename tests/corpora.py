"""The same clips in every shape that a corpus has: each function writes one and returns (source.path, overrides)."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import yaml


def embedded(clip: dict) -> dict:
    return {"bytes": clip["audio"].read_bytes(), "path": clip["audio"].name}


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def jsonl(clips, folder):
    rows = [{"id": clip["id"], "audio": str(clip["audio"]), "text": clip["text"], "words": clip["words"]} for clip in clips]
    return write_rows(folder / "clips.jsonl", rows), ["columns.id=id", "columns.words=words"]


def csv_table(clips, folder):
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(clips[0]["audio"].parent, folder / "sounds")
    with (folder / "clips.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file", "transcript", "who", "when"], delimiter="\t")
        writer.writeheader()
        for clip in clips:
            times = json.dumps(clip["events"])
            writer.writerow(
                {"file": f"sounds/{clip['audio'].name}", "transcript": clip["text"], "who": clip["speaker"], "when": times}
            )
    return folder / "clips.tsv", ["columns.audio=file", "columns.text=transcript", "columns.speaker=who", "columns.events=when"]


def folder_of_files(clips, folder):
    for index, clip in enumerate(clips):
        place = folder / ("a" if index % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip["audio"], place / f"{index}.flac")
        if index % 3:
            (place / f"{index}.txt").write_text(clip["text"] + "\n", "utf-8")
        else:
            (place / f"{index}.json").write_text(json.dumps({"text": clip["text"], "mood": "any"}), "utf-8")
    return folder, []


def parquet(clips, folder):
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist([{"audio": embedded(clip), "text": clip["text"]} for clip in clips])
    pyarrow.parquet.write_table(table.slice(0, 5), folder / "part-0.parquet")
    pyarrow.parquet.write_table(table.slice(5), folder / "part-1.parquet")
    return folder, []


def saved_dataset(clips, folder):
    from datasets import Audio, Dataset, DatasetDict

    def part(some):
        rows = [{"audio": embedded(clip), "text": clip["text"]} for clip in some]
        return Dataset.from_list(rows).cast_column("audio", Audio())

    DatasetDict({"train": part(clips[:6]), "dev": part(clips[6:])}).save_to_disk(folder)
    return folder, ["source.splits={train: train, dev: validation}"]


def hub(clips, folder):
    rows = [{"audio": embedded(clip), "text": clip["text"]} for clip in clips]
    return like_the_hub(folder, {"train": rows[:6], "test": rows[6:]}), ["source.splits={train: train, test: test}"]


def like_the_hub(folder: Path, splits: dict[str, list[dict]], name: str = "default") -> Path:
    """A folder of the form of a dataset on the hub; `load_dataset` reads it by the same code."""
    files = []
    for split, rows in splits.items():
        path = folder / "data" / f"{split.replace('.', '-')}-00000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        files.append({"split": split, "path": f"data/{path.name}"})
    feature = {"name": "audio", "dtype": "audio"}
    types = {str: "string", int: "int64", float: "float64"}
    others = [{"name": key, "dtype": types[type(value)]} for key, value in rows[0].items() if key != "audio"]
    about = {
        "configs": [{"config_name": name, "data_files": files}],
        "dataset_info": [{"config_name": name, "features": [feature, *others]}],
    }
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(about)}---\n", "utf-8")
    return folder


def disfluency_speech(clips, folder):
    texts = ["so, <laughter> i left the key at home.", "i <sigh> i, uh, told you.", "plain words here.", "well <lipsmack> yes."]
    rows = [
        {
            "audio": embedded(clip),
            "transcript_a": texts[index % 4] + " and so on." * (index > 3),
            "transcript_b": "b",
            "transcript_c": "c",
        }
        for index, clip in enumerate(clips)
    ]
    return like_the_hub(folder, {"train": rows[:6], "validation": rows[6:7], "test": rows[7:]}), []


def nonverbal_tts(clips, folder):
    texts = [
        ("well 😂 that is fine.", "neutral"),
        ("🌬️ leave me alone.", "angry"),
        ("oh 😮‍💨 again.", "sad"),
        ("plain words.", "happy"),
    ]
    rows = [
        {
            "audio": embedded(clip),
            "Result": texts[index % 4][0] + " and so on." * (index > 3),
            "Emotion": texts[index % 4][1],
            "speaker_id": f"s{index % 3}",
        }
        for index, clip in enumerate(clips)
    ]
    return like_the_hub(folder, {"train": rows[:6], "dev": rows[6:7], "test": rows[7:]}), ["accept_license=cc-by-nc-4.0"]


def expresso(clips, folder):
    styles = ["whisper", "laughing", "default", "confused"]
    rows = [
        {
            "audio": embedded(clip),
            "text": f"sentence number {index}.",
            "style": styles[index % 4],
            "speaker_id": "ex01",
            "id": f"ex01_{index}",
        }
        for index, clip in enumerate(clips)
    ]
    return like_the_hub(folder, {"train": rows}, name="read"), ["accept_license=cc-by-nc-4.0"]


def librispeech(clips, folder):
    rows = [
        {
            "audio": embedded(clip),
            "text": f"CHAPTER {index} OF THE BOOK",
            "file": f"19-1-{index}.flac",
            "speaker_id": 19,
            "chapter_id": 1,
            "id": f"19-1-{index}",
        }
        for index, clip in enumerate(clips)
    ]
    return like_the_hub(folder, {"train.100": rows[:6], "validation": rows[6:7], "test": rows[7:]}, name="clean"), []


def multimed(clips, folder, name="English", validation="eval"):
    rows = [
        {"audio": embedded(clip), "text": f"the patient has {index} complaints", "duration": 2.0}
        for index, clip in enumerate(clips)
    ]
    return like_the_hub(folder, {"train": rows[:6], validation: rows[6:7], "test": rows[7:]}, name), []


def scripts(clips, folder):
    from evoxtral_train.text.tags import find_tags, strip_tags

    rows = [
        {"id": clip["id"], "audio": str(clip["audio"]), "tagged_text": clip["text"], "plain_text": strip_tags(clip["text"]),
         "tags_used": [f"[{tag}]" for tag in find_tags(clip["text"])]}
        for clip in clips
    ]  # fmt: skip
    return write_rows(folder / "scripts.jsonl", rows), []
