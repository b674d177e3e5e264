"""`evoxtral raft generate`: N sampled candidates for every clip of a split."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from ... import processes
from ...config.training import Generate
from ...dataset.reader import PackedSplit
from ...decoding.decoder import Completion, Decoding, decode, requests_of
from ...decoding.sampling import Sampling
from ...errors import EvoxtralError, UsageError
from ...families.base import Network, encode_text
from ...files import disk_errors, fingerprint_files, open_atomic
from ...jobs import Work
from ...modeling.audio_cache import AudioSource
from ...modeling.bases import Base, Inputs, load_network, open_for_decoding
from ...progress import format_seconds, progress
from ...records import GREEDY, Candidate, JsonlAppender, drop_partial_line
from ...run_folders import is_complete
from ...runs import Options
from ...text.written import without_language
from ..plans import count_packed_rows, plan_decoding, plan_start
from ..report import Report
from .rounds import RaftRound
from .scoring import Scoring, plan_scoring

_SAMPLED_FILE, _GREEDY_FILE = "candidates", "greedy"  # <name>.jsonl; until it is complete, <name>.part-<process>.jsonl


def run(round_: RaftRound, options: Options) -> Report:
    """Writes `candidates/candidates.jsonl`, in the order of the split and of the candidate ids."""
    if options.dry_run:
        return plan(round_, options)
    # 1. What it reads.
    config, job = round_.config, round_.job("generate", options)
    processes.join(config.model.device)
    inputs = Inputs.open(config, PackedSplit(config.dataset, config.split))
    split, base = inputs.split, inputs.base
    new_tokens = most_new_tokens(config.generate, split)
    processes.first(lambda: Scoring.of(config, split).fingerprints)  # raises if what is generated could not be scored
    facts = _facts(config.generate, len(split), new_tokens) | {"adapter": config.adapter, "output": job.output}
    if unlabelled := int((~split.labelled).sum()):
        facts["without text"] = f"{unlabelled}, to be scored by a verifier"
    with job.shared(inputs.fingerprints, inputs.sources) as work:
        # 2. The model and its audio.
        network = load_network(base, config.model.dtype, inputs.adapter)
        audio = open_for_decoding(config, network, base, split, new_tokens)
        # 3. The candidates.
        decoding = _decoding(config.generate, new_tokens)
        _generate(work.path, _SAMPLED_FILE, decoding, base, split, network, audio, config.generate.seed)
        if config.generate.greedy:  # its reward is the one that curation has to beat
            greedy = replace(decoding, candidates=1, sampling=Sampling())
            _generate(work.path, _GREEDY_FILE, greedy, base, split, network, audio, config.generate.seed)
        metrics = processes.first(lambda: _join_parts(work, config.generate, split))
    # 4. The report.
    facts |= {
        "ended by EOS": f"{metrics['ended_by_eos_share']:.0%}",
        "mean length": f"{metrics['mean_tokens']:.1f} tokens",
        "time": format_seconds(metrics["seconds"]),
    }
    return Report("raft generate", facts)


def plan(round_: RaftRound, options: Options) -> Report:
    config, job = round_.config, round_.job("generate", options)
    job.check()
    clips, new_tokens = count_packed_rows(config.dataset, config.split), config.generate.max_new_tokens
    if is_complete(config.dataset):
        new_tokens = most_new_tokens(config.generate, PackedSplit(config.dataset, config.split))
    facts = _facts(config.generate, clips, new_tokens or "layout.room_tokens − 1") | plan_start(config)
    facts |= plan_decoding(config.model, config.generate.batch_tokens)
    if is_complete(config.dataset):
        facts |= plan_scoring(config, PackedSplit(config.dataset, config.split))[0]
    return Report("plan: raft generate", facts | {"output": job.output})


def most_new_tokens(settings: Generate, split: PackedSplit) -> int:
    """The most tokens of a candidate. Raises UsageError if one could fill its row: without EOS it could not be trained on."""
    layout = split.layout
    room = min(clip.row_tokens - layout.room_start(clip) for clip in map(split.clip, range(len(split))))
    new_tokens = settings.max_new_tokens or max(min(room, layout.room_tokens) - 1, 1)
    if new_tokens >= room:
        what = f"a candidate of {new_tokens} tokens would leave no place for EOS: the dataset's rows have room for {room}"
        fix = f"set it to null, or to at most {room - 1}; or pack the dataset with a larger layout.room_tokens"
        raise UsageError(what, where="generate.max_new_tokens", fix=fix)
    return new_tokens


def _facts(settings: Generate, clips: int | str, new_tokens: int | str) -> dict:
    total = clips * settings.candidates if isinstance(clips, int) else "unknown"
    return {
        "clips": clips,
        "candidates": f"{total} ({settings.candidates} per clip)",
        "sampling": f"temperature {settings.temperature:g}, top-p {settings.top_p:g}, at most {new_tokens} tokens",
    }


def _decoding(settings: Generate, new_tokens: int) -> Decoding:
    sampling = Sampling(settings.temperature, settings.top_p, settings.top_k, settings.seed)
    return Decoding(settings.candidates, sampling, new_tokens, settings.batch_tokens, settings.compile)


def _generate(
    folder: Path, name: str, decoding: Decoding, base: Base, split: PackedSplit, network: Network, audio: AudioSource, seed: int
) -> None:
    """Decode the clips that an earlier, unfinished run has not decoded, shared among the processes. Each batch is on disk
    before the next one is decoded."""
    done = processes.first(lambda: _CandidateIndex.find(folder, name, split, decoding.candidates).clips())
    requests = processes.share(request for request in requests_of(split) if not done[request.index])
    path = folder / f"{name}.part-{processes.rank()}.jsonl"
    with JsonlAppender(path) as appender, progress(f"decoding {name}", len(split), "clips") as bar:
        bar.skip(int(done.sum()))
        for completions in decode(network, audio, requests, decoding):
            with disk_errors(appender.path):
                appender.append([_candidate(completion, base, split, seed, name) for completion in completions])
            bar.advance(processes.count() * len(completions) // decoding.candidates)
    processes.wait()


class _CandidateIndex:
    """The position of each candidate in the files of all processes; no candidate is kept in memory."""

    def __init__(self, paths: list[Path], places: np.ndarray):
        self._paths, self._places = paths, places  # places [clips, candidates]: byte × files + file; -1: not written yet

    @classmethod
    def find(cls, folder: Path, name: str, split: PackedSplit, candidates: int) -> "_CandidateIndex":
        """Reads the parts and the joined file; drops a line that a kill cut short."""
        paths = sorted(folder.glob(f"{name}*.jsonl"))
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
        """bool [clips]: whether a clip has all its candidates; a killed process may have left fewer."""
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


def _join_parts(work: Work, settings: Generate, split: PackedSplit) -> dict:
    """Join the parts in order and count the candidates. The parts are removed last: a kill before that loses nothing."""
    ended, tokens = 0, 0
    for name, candidates in ((_SAMPLED_FILE, settings.candidates), *([(_GREEDY_FILE, 1)] if settings.greedy else [])):
        index = _CandidateIndex.find(work.path, name, split, candidates)
        if index.count() != len(split) * candidates:
            raise EvoxtralError(
                f"{index.count()} candidates were written, not {len(split)} × {candidates}",
                where=str(work.path),
                fix="resume with --resume",
            )
        with open_atomic(work.path / f"{name}.jsonl") as file:
            for line in index.lines():
                file.write(line)
                if name == _SAMPLED_FILE:
                    row = json.loads(line)
                    ended, tokens = ended + (row["finish_reason"] == "eos"), tokens + len(row["token_ids"])
    for path in work.path.glob("*.part-*.jsonl"):
        path.unlink()
    count = len(split) * settings.candidates
    metrics = {
        "clips": len(split),
        "candidates": count,
        "processes": processes.count(),
        "ended_by_eos_share": ended / count,
        "mean_tokens": tokens / count,
        "seconds": work.seconds(),
    }
    work.tracker.summary(metrics)
    work.done(metrics, fingerprint_files([work.path / "candidates.jsonl"]))
    return metrics


def _candidate(completion: Completion, base: Base, split: PackedSplit, seed: int, name: str) -> Candidate:
    """Without the language that an offline model may begin with: it is not to be learned."""
    tokenizer, token_ids = base.family.tokenizer, completion.token_ids
    written = tokenizer.decode(token_ids)
    text = without_language(written).strip()
    if text != written.strip() and not split.layout.has_times:
        token_ids = encode_text(tokenizer, text)
    return Candidate(
        utterance_id=completion.utterance_id,
        candidate_id=completion.candidate_id if name == _SAMPLED_FILE else GREEDY,
        text=text,
        token_ids=token_ids,
        seed=seed,
        finish_reason=completion.finish_reason,
        mean_logprob=round(completion.mean_logprob, 4),
        written=split.layout.tag_times(tokenizer, token_ids),
    )
