"""`evoxtral raft generate`: N sampled candidates for every clip of a split."""

import time

from ..config.schema import RaftConfig
from ..data.packing import PackedSplit
from ..decoding.decoder import Completion, decode, requests_of
from ..decoding.sampling import Sampling
from ..modeling.adapters import load_adapter
from ..modeling.audio_cache import LiveAudio
from ..modeling.realtime import load_model
from ..progress import format_seconds, progress
from ..records import Candidate, JsonlAppender, read_rows
from ..runs import Options, Run, check_plan, disk_errors, fingerprint_files
from ..tracking import Tracker
from . import raft_folders
from .inputs import Base, open_adapter, open_audio, open_base
from .plans import count_rows, plan_adapter, plan_model
from .report import Report

_PART = "candidates.part.jsonl"


def run(config: RaftConfig, options: Options) -> Report:
    """Writes `candidates/candidates.jsonl`, in the order of the split and of the candidate ids."""
    if options.dry_run:
        return plan(config, options)
    split = PackedSplit(config.dataset, config.split)
    facts = _asked(config, len(split)) | {"adapter": config.adapter, "output": raft_folders.candidates(config)}
    asked = raft_folders.asked(config, "generate")
    base = open_base(config.model, split)
    adapter = open_adapter(config.adapter, base, config.model)
    inputs = {"dataset": split.fingerprint, "base": base.fingerprint, "adapter": adapter.fingerprint}
    run = Run.open(raft_folders.candidates(config), "raft generate", asked, inputs, options)
    started = time.monotonic()
    with Tracker(config.tracking, "raft generate", run.path, config) as tracker:
        model = load_adapter(load_model(config.model), adapter)
        _generate(run, config, base, split, model)
        candidates = _in_order(read_rows(run.path / _PART, Candidate), split)
        run.write_rows("candidates.jsonl", candidates)
        (run.path / _PART).unlink()
        metrics = {
            "clips": len(split),
            "candidates": len(candidates),
            "ended_by_eos_share": sum(each.finish_reason == "eos" for each in candidates) / len(candidates),
            "mean_tokens": sum(len(each.token_ids) for each in candidates) / len(candidates),
            "seconds": time.monotonic() - started,
        }
        tracker.summary(metrics)
        run.finish(metrics, fingerprint_files([run.path / "candidates.jsonl"]))
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
    return Report("plan: raft generate", facts | {"output": raft_folders.candidates(config)})


def _asked(config: RaftConfig, clips: int | str) -> dict:
    wanted = config.generate
    total = clips * wanted.candidates if isinstance(clips, int) else "unknown"
    return {
        "clips": clips,
        "candidates": f"{total} ({wanted.candidates} per clip)",
        "sampling": f"temperature {wanted.temperature:g}, top-p {wanted.top_p:g}, at most {wanted.max_new_tokens} tokens",
    }


def _generate(run: Run, config: RaftConfig, base: Base, split: PackedSplit, model) -> None:
    """Decode the clips that an earlier, unfinished run has not; each batch is on disk before the next."""
    wanted = config.generate
    sampling = Sampling(wanted.temperature, wanted.top_p, wanted.top_k, wanted.seed)
    audio = open_audio(config.audio_cache, model, base, split, config.generate.max_new_tokens) or LiveAudio(model, split)
    with JsonlAppender(run.path / _PART) as appender, progress("generating", len(split), "clips") as bar:
        done = {each.utterance_id for each in read_rows(run.path / _PART, Candidate)}
        bar.skip(len(done))
        requests = [request for request in requests_of(split, base.clock) if request.utterance_id not in done]
        batches = decode(
            model, base.clock, audio, requests, candidates=wanted.candidates, sampling=sampling,
            max_new_tokens=wanted.max_new_tokens, batch_clips=wanted.batch_clips,
        )  # fmt: skip
        for completions in batches:
            with disk_errors(appender.path):
                appender.append([_candidate(each, base.tokenizer, wanted.seed) for each in completions])
            bar.advance(len(completions) // wanted.candidates)


def _candidate(completion: Completion, tokenizer, seed: int) -> Candidate:
    return Candidate(
        utterance_id=completion.utterance_id,
        candidate_id=completion.candidate_id,
        text=tokenizer.decode(completion.token_ids).strip(),
        token_ids=completion.token_ids,
        seed=seed,
        finish_reason=completion.finish_reason,
        mean_logprob=round(completion.mean_logprob, 6),
    )


def _in_order(candidates: list[Candidate], split: PackedSplit) -> list[Candidate]:
    return sorted(candidates, key=lambda each: (split.index_of[each.utterance_id], each.candidate_id))
