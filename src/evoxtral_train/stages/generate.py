"""`evoxtral raft generate`: N sampled candidates for every clip of a split."""

import time
from collections import Counter
from dataclasses import replace

from .. import processes
from ..config.schema import RaftConfig
from ..data.packed import PackedSplit
from ..decoding.decoder import Completion, Decoding, decode, requests_of
from ..decoding.sampling import Sampling
from ..errors import EvoxtralError
from ..files import disk_errors, fingerprint_files
from ..modeling.adapters import load_adapter
from ..modeling.audio_cache import AudioSource
from ..modeling.realtime import load_model
from ..progress import format_seconds, progress
from ..records import GREEDY, Candidate, JsonlAppender, drop_partial_line, read_rows
from ..runs import Options, Run, check_plan
from ..tracking import Tracker
from . import raft_folders
from .inputs import Base, open_adapter, open_base, open_for_decoding, times_of_tags
from .plans import count_rows, plan_adapter, plan_decoding, plan_model
from .report import Report

_PART = "candidates.part-{}.jsonl"  # one for each process


def run(config: RaftConfig, options: Options) -> Report:
    """Writes `candidates/candidates.jsonl`, in the order of the split and of the candidate ids."""
    if options.dry_run:
        return plan(config, options)
    processes.join(config.model.device)
    split = PackedSplit(config.dataset, config.split)
    facts = _asked(config, len(split)) | {"adapter": config.adapter, "output": raft_folders.candidates(config)}
    asked = raft_folders.asked(config, "generate")
    base = open_base(config.model, split)
    adapter = open_adapter(config.adapter, base, config.model)
    inputs = {"dataset": split.fingerprint, "base": base.fingerprint, "adapter": adapter.fingerprint}
    sources = [config.dataset, base.folder, config.adapter]
    run = processes.first(lambda: Run.open(raft_folders.candidates(config), "raft generate", asked, inputs, options, sources))
    started = time.monotonic()
    with Tracker(config.tracking, "raft generate", run.path, config) as tracker:
        model = load_adapter(load_model(config.model), adapter)
        audio = open_for_decoding(config, model, base, split, config.generate.max_new_tokens)
        _generate(run, config, base, split, model, audio)
        if config.generate.greedy:
            greedy = _greedy(config, base, split, model, audio)
            processes.first(lambda: run.write_rows("greedy.jsonl", greedy))
        metrics = processes.first(lambda: _join(run, split, config.generate.candidates, started, tracker))
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


def _generate(run: Run, config: RaftConfig, base: Base, split: PackedSplit, model, audio: AudioSource) -> None:
    """Decode the clips that an earlier, unfinished run has not, shared out over the processes; what is
    handed over is on disk before more is asked for."""
    wanted = config.generate
    sampling = Sampling(wanted.temperature, wanted.top_p, wanted.top_k, wanted.seed)
    decoding = Decoding(wanted.candidates, sampling, wanted.max_new_tokens, wanted.batch_tokens, wanted.compile)
    done = processes.first(lambda: _finished_clips(run, wanted.candidates))
    requests = [request for request in requests_of(split, base.clock) if request.utterance_id not in done]
    mine = processes.share(sorted(requests, key=lambda request: len(request.prompt)))
    with JsonlAppender(run.path / _PART.format(processes.rank())) as appender, progress("generating", len(split), "clips") as bar:
        bar.skip(len(done))
        for completions in decode(model, base.clock, audio, mine, decoding):
            with disk_errors(appender.path):
                appender.append([_candidate(each, base, split, wanted.seed) for each in completions])
            bar.advance(processes.count() * len(completions) // wanted.candidates)
    processes.wait()


def _greedy(config: RaftConfig, base: Base, split: PackedSplit, model, audio: AudioSource) -> list[Candidate]:
    """What the adapter writes without sampling, one row per clip, in the order of the split: the score that
    curation has to beat."""
    wanted = config.generate
    decoding = Decoding(1, Sampling(), wanted.max_new_tokens, wanted.batch_tokens, wanted.compile)
    mine = processes.share(sorted(requests_of(split, base.clock), key=lambda request: len(request.prompt)))
    rows = []
    with progress("greedy", len(split), "clips") as bar:
        for completions in decode(model, base.clock, audio, mine, decoding):
            rows += [replace(_candidate(each, base, split, wanted.seed), candidate_id=GREEDY) for each in completions]
            bar.advance(processes.count() * len(completions))
    return sorted(processes.gather(rows), key=lambda each: split.index_of[each.utterance_id])


def _finished_clips(run: Run, candidates: int) -> set[str]:
    """The clips that have all their candidates; a killed process may have left a clip with fewer."""
    counts = Counter(each.utterance_id for each in _written(run).values())
    return {clip for clip, count in counts.items() if count == candidates}


def _written(run: Run) -> dict[tuple[str, int], Candidate]:
    parts = sorted(run.path.glob(_PART.format("*")))
    for path in parts:
        drop_partial_line(path)
    return {(row.utterance_id, row.candidate_id): row for path in parts for row in read_rows(path, Candidate)}


def _join(run: Run, split: PackedSplit, candidates_per_clip: int, started: float, tracker: Tracker) -> dict:
    """Join the parts, count them, and write them in order."""
    candidates = sorted(_written(run).values(), key=lambda each: (split.index_of[each.utterance_id], each.candidate_id))
    if len(candidates) != len(split) * candidates_per_clip:
        raise EvoxtralError(
            f"{len(candidates)} candidates were written, not {len(split)} × {candidates_per_clip}",
            where=str(run.path),
            fix="go on with --resume",
        )
    run.write_rows("candidates.jsonl", candidates)
    for path in run.path.glob(_PART.format("*")):
        path.unlink()
    metrics = {
        "clips": len(split),
        "candidates": len(candidates),
        "processes": processes.count(),
        "ended_by_eos_share": sum(each.finish_reason == "eos" for each in candidates) / len(candidates),
        "mean_tokens": sum(len(each.token_ids) for each in candidates) / len(candidates),
        "seconds": time.monotonic() - started,
    }
    tracker.summary(metrics)
    return metrics


def _candidate(completion: Completion, base: Base, split: PackedSplit, seed: int) -> Candidate:
    return Candidate(
        utterance_id=completion.utterance_id,
        candidate_id=completion.candidate_id,
        text=base.tokenizer.decode(completion.token_ids).strip(),
        token_ids=completion.token_ids,
        seed=seed,
        finish_reason=completion.finish_reason,
        mean_logprob=round(completion.mean_logprob, 4),
        written=times_of_tags(completion.token_ids, base, split),
    )
