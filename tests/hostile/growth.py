"""Prints the peak memory in kB of one step of RAFT on synthetic rows: python growth.py score|curate|pairs|decode FOLDER ROWS"""

import resource
import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow

from evoxtral_train.config.training import RaftConfig
from evoxtral_train.dataset import writer as packing
from evoxtral_train.families.checkpoint import processor_fingerprint
from evoxtral_train.families.realtime.clock import Clock
from evoxtral_train.families.realtime.layouts import Deferred
from evoxtral_train.files import fingerprint_files
from evoxtral_train.records import Candidate
from evoxtral_train.runs import Options, Run
from evoxtral_train.stages.raft.rounds import RaftRound

TINY_BASE = Path(__file__).parents[2] / "data" / "tiny-base"
CANDIDATES = 4
TEXTS = ("[sighs] i told you.", "[laughs] come closer.", "the window is open.", "[whispers] [sighs] nobody came.")


def config_of(folder: Path) -> RaftConfig:
    return RaftConfig(
        output=folder / "raft", dataset=folder / "packed", split="raft", model={"base": str(TINY_BASE)}, adapter=folder / "none",
        rounds=[{}], train={"epochs": 1, "learning_rate": 1e-4}, curate={"drop_lowest_share": 0.1, "reference_replay": 0.1},
        tracking={"mode": "disabled"},
    )  # fmt: skip


def make(folder: Path, rows: int) -> None:
    """A packed dataset of rows / 4 clips without mel, and four candidates for each."""
    config, clips = config_of(folder), rows // CANDIDATES
    run = Run.open(config.dataset, "data pack", {}, {}, Options())
    (run.path / "shards").mkdir()
    names = []
    for number, start in enumerate(range(0, clips, packing.CHUNK_ROWS)):
        batch = [_row(clip) for clip in range(start, min(start + packing.CHUNK_ROWS, clips))]
        names.append((f"{number:05d}-raft.arrow", len(batch)))
        path = str(run.path / "shards" / names[-1][0])
        with pyarrow.OSFile(path, "wb") as file, pyarrow.ipc.new_stream(file, packing.SCHEMA) as writer:
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=packing.SCHEMA))
    packing._write_index(run.path, "raft", [run.path / "shards" / name for name, _ in names])
    run.write_json(
        "dataset.json",
        {"format": packing.FORMAT, "rows": {"raft": clips}, "shards": {"raft": names}, "target": "tags",
         "family": "voxtral_realtime", **Deferred(Clock(1, 2, 11, 32, 33, 32, 6, 17), 65).record(),
         "prepad_samples": 240_480, "tags": ["sighs"], "processor_fingerprint": processor_fingerprint(TINY_BASE)},
    )  # fmt: skip
    run.finish({}, "dataset")
    inputs = {"dataset": "dataset", "base": "base", "adapter": "adapter"}
    round_ = RaftRound.of(config, 1)
    run = Run.open(round_.candidates, "raft generate", round_.settings("generate"), inputs, Options())
    run.write_rows("candidates.jsonl", (_candidate(clip, each) for clip in range(clips) for each in range(CANDIDATES)))
    run.finish({}, fingerprint_files([run.path / "candidates.jsonl"]))


def _row(clip: int) -> dict:
    text = TEXTS[clip % 4]
    return {
        "id": f"clip-{clip:08d}", "text": text, "speaker": None, "target_text": "[sighs]", "target_ids": [1, 2, 3],
        "duration_s": 3.0, "utterance_tokens": 38, "row_tokens": 237, "events": [], "heard": [], "audio": "none", "mel": b"",
        "mel_start": 0,
    }  # fmt: skip


def _candidate(clip: int, number: int) -> dict:
    text = TEXTS[(clip * 7 + number) % 4]
    return asdict(Candidate(f"clip-{clip:08d}", number, text, list(range(40, 60)), 0, "eos", -0.5))


def decode(requests: int) -> None:
    """The decoder's queue with a model that writes EOS at once: 200 rows at a time."""
    import torch
    from transformers import VoxtralRealtimeConfig

    from evoxtral_train.decoding import decoder
    from evoxtral_train.decoding.decoder import Decoding, Request
    from evoxtral_train.decoding.sampling import Sampling
    from evoxtral_train.families.base import ClipSize
    from evoxtral_train.families.checkpoint import open_family

    layout = open_family(TINY_BASE).layout("deferred", 65)
    sizes = VoxtralRealtimeConfig.from_pretrained(TINY_BASE).text_config
    sizes.num_hidden_layers = 1

    class Stub:
        dtype, device, text_config = torch.float32, torch.device("cpu"), sizes
        eos_id, pad_id = layout.eos_id, layout.pad_id

        def logits(self, hidden):
            logits = torch.zeros(len(hidden), 64)
            logits[:, self.eos_id] = 1.0
            return logits

        def hidden(self, ids, audio, cache=None, **_):
            if ids.shape[1] > 1:
                states = torch.zeros(len(ids), sizes.num_key_value_heads, ids.shape[1], sizes.head_dim)
                cache.update(states, states, 0)
            return torch.zeros(*ids.shape, sizes.hidden_size)

    class Audio:
        def embeddings(self, indices, tokens):
            return torch.zeros(len(indices), max(tokens), sizes.hidden_size)

    stream = (Request.of(f"clip-{at:08d}", layout, ClipSize(20 + at % 60, 237), at) for at in range(requests))
    decoded = 0
    for completions in decoder.decode(Stub(), Audio(), stream, Decoding(1, Sampling(), 8, 200 * 150)):
        decoded += len(completions)
    assert decoded == requests


if __name__ == "__main__":
    what, folder, rows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if what == "make":
        make(folder, rows)
    elif what == "decode":
        decode(rows)
    else:
        import importlib

        report = importlib.import_module(f"evoxtral_train.stages.raft.{what}").run(RaftRound.of(config_of(folder), 1), Options())
        print(report.facts, file=sys.stderr)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
