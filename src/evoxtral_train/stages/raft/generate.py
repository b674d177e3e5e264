"""`evoxtral raft generate`: N sampled candidates for every clip of a split."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from ... import processes
from ...config.training import RaftConfig
from ...dataset.reader import PackedSplit
from ...decoding.decoder import Completion, Decoding, decode, requests_of
from ...decoding.sampling import Sampling
from ...errors import EvoxtralError
from ...families.base import Network
from ...files import disk_errors, fingerprint_files, open_atomic
from ...modeling.adapters import load_adapter
from ...modeling.audio_cache import AudioSource
from ...modeling.bases import Base, open_adapter, open_base_of, open_for_decoding
from ...progress import format_seconds, progress
from ...records import GREEDY, Candidate, JsonlAppender, drop_partial_line
from ...runs import Options, Run, check_plan
from ...tracking import Tracker
from ..plans import count_rows, plan_adapter, plan_decoding, plan_model
from ..report import Report
from . import rounds as raft_folders

_SAMPLED, _GREEDY = "candidates", "greedy"  # <name>.jsonl; until it is whole, <name>.part-<process>.jsonl


def run(config: RaftConfig, options: Options) -> Report:
    """Writes `candidates/candidates.jsonl`, in the order of the split and of the candidate ids."""
    if options.dry_run:
        return plan(config, options)
    processes.join(config.model.device)
    split = PackedSplit(config.dataset, config.split)
    facts = _asked(config, len(split)) | {"adapter": config.adapter, "output": raft_folders.candidates(config)}
    asked = raft_folders.asked(config, "generate")
    base = open_base_of(split, config.model)
    adapter = open_adapter(config.adapter, base, config.model)
    inputs = {"dataset": split.fingerprint, "base": base.fingerprint, "adapter": adapter.fingerprint}
    sources = [config.dataset, base.folder, config.adapter]
    run = processes.first(lambda: Run.open(raft_folders.candidates(config), "raft generate", asked, inputs, options, sources))
    started = time.monotonic()
    with Tracker(config.tracking, "raft generate", run.path, config) as tracker:
        network = load_adapter(base.family.load(config.model.dtype), adapter)
        audio = open_for_decoding(config, network, base, split, config.generate.max_new_tokens)
        wanted = config.generate
        sampling = Sampling(wanted.temperature, wanted.top_p, wanted.top_k, wanted.seed)
        decoding = Decoding(wanted.candidates, sampling, wanted.max_new_tokens, wanted.batch_tokens, wanted.compile)
        _generate(run, _SAMPLED, decoding, base, split, network, audio, wanted.seed)
        if wanted.greedy:  # the score that curation has to beat
            decoding = replace(decoding, candidates=1, sampling=Sampling())
            _generate(run, _GREEDY, decoding, base, split, network, audio, wanted.seed)
        metrics = processes.first(lambda: _finish(run, config, split, started, tracker))
    processes.first(lambda: run.finish(metrics, fingerprint_files([run.path / "candidates.jsonl"])))
    facts |= {
        "ended by EOS": f"{metrics['ended_by_eos_share']:.0%}",
        "mean length": f"{metrics['mean_tokens']:.1f} tokens",
        "time": format_seconds(metrics["seconds"]),
    }
    return Report("raft generate", facts)


def plan(config: RaftConfig, options: Options) -> Report:
    check_plan(raft_folders.candidates(config), "raft generate", raft_folders.asked(config, "generate"), options)
    adapter, lora = plan_adapter(config.adapter)
    facts = _asked(config, count_rows(config.dataset, config.split)) | plan_model(config.model, lora) | adapter
    facts |= plan_decoding(config.model, config.generate.batch_tokens)
    return Report("plan: raft generate", facts | {"output": raft_folders.candidates(config)})


def _asked(config: RaftConfig, clips: int | str) -> dict:
    wanted = config.generate
    total = clips * wanted.candidates if isinstance(clips, int) else "unknown"
    return {
        "clips": clips,
        "candidates": f"{total} ({wanted.candidates} per clip)",
        "sampling": f"temperature {wanted.temperature:g}, top-p {wanted.top_p:g}, at most {wanted.max_new_tokens} tokens",
    }


def _generate(
    run: Run, name: str, decoding: Decoding, base: Base, split: PackedSplit, network: Network, audio: AudioSource, seed: int
) -> None:
    """Decode the clips that an earlier, unfinished run has not, shared out over the processes; what is
    handed over is on disk before more is asked for."""
    done = processes.first(lambda: _Written.find(run, name, split, decoding.candidates).clips())
    requests = processes.share(request for request in requests_of(split) if not done[request.index])
    path = run.path / f"{name}.part-{processes.rank()}.jsonl"
    with JsonlAppender(path) as appender, progress(f"decoding {name}", len(split), "clips") as bar:
        bar.skip(int(done.sum()))
        for completions in decode(network, audio, requests, decoding):
            with disk_errors(appender.path):
                appender.append([_candidate(each, base, split, seed, name) for each in completions])
            bar.advance(processes.count() * len(completions) // decoding.candidates)
    processes.wait()


class _Written:
    """The candidates in the files of all processes, found by their places: none is held in memory."""

    def __init__(self, paths: list[Path], places: np.ndarray):
        self._paths, self._places = paths, places  # places [clips, candidates]: byte × files + file; -1: not written yet

    @classmethod
    def find(cls, run: Run, name: str, split: PackedSplit, candidates: int) -> "_Written":
        """In what is joined already, and in the parts; a line that a kill cut short is dropped."""
        paths = sorted(run.path.glob(f"{name}*.jsonl"))
        places = np.full((len(split), candidates), -1, np.int64)
        for number, path in enumerate(paths):
            drop_partial_line(path)
            byte = 0
            with path.open("rb") as lines:
                for line in lines:
                    row = json.loads(line)
                    places[split.index_of[row["utterance_id"]], max(row["candidate_id"], 0)] = byte * len(paths) + number
                    byte += len(line)
        return cls(paths, places)

    def clips(self) -> np.ndarray:
        """bool [clips]: which have all their candidates; a killed process may have left a clip with fewer."""
        return (self._places >= 0).all(axis=1)

    def count(self) -> int:
        return int((self._places >= 0).sum())

    def lines(self) -> Iterator[bytes]:
        """The rows in the order of the split and of the candidate ids."""
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in self._paths]
            for place in self._places[self._places >= 0].tolist():
                byte, number = divmod(place, len(files))
                files[number].seek(byte)
                yield files[number].readline()


def _finish(run: Run, config: RaftConfig, split: PackedSplit, started: float, tracker: Tracker) -> dict:
    """Join the parts, in order, and count. They are removed last: a kill before that loses nothing."""
    wanted, ended, tokens = config.generate, 0, 0
    for name, candidates in ((_SAMPLED, wanted.candidates), *([(_GREEDY, 1)] if wanted.greedy else [])):
        written = _Written.find(run, name, split, candidates)
        if written.count() != len(split) * candidates:
            raise EvoxtralError(
                f"{written.count()} candidates were written, not {len(split)} × {candidates}",
                where=str(run.path),
                fix="resume with --resume",
            )
        with open_atomic(run.path / f"{name}.jsonl") as file:
            for line in written.lines():
                file.write(line)
                if name == _SAMPLED:
                    row = json.loads(line)
                    ended, tokens = ended + (row["finish_reason"] == "eos"), tokens + len(row["token_ids"])
    for path in run.path.glob("*.part-*.jsonl"):
        path.unlink()
    count = len(split) * wanted.candidates
    metrics = {
        "clips": len(split),
        "candidates": count,
        "processes": processes.count(),
        "ended_by_eos_share": ended / count,
        "mean_tokens": tokens / count,
        "seconds": time.monotonic() - started,
    }
    tracker.summary(metrics)
    return metrics


def _candidate(completion: Completion, base: Base, split: PackedSplit, seed: int, name: str) -> Candidate:
    return Candidate(
        utterance_id=completion.utterance_id,
        candidate_id=completion.candidate_id if name == _SAMPLED else GREEDY,
        text=base.tokenizer.decode(completion.token_ids).strip(),
        token_ids=completion.token_ids,
        seed=seed,
        finish_reason=completion.finish_reason,
        mean_logprob=round(completion.mean_logprob, 4),
        written=split.layout.tag_times(base.tokenizer, completion.token_ids),
    )
