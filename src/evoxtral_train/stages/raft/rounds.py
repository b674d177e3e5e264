"""Where RAFT keeps its runs, how what it scored is read back, and which part of the config each step answers for.

output/round-1/candidates  scores  curated  train  pairs
output/round-2/…            from the adapter of round 1
output/gate/round-0 …       evaluations on the gate's split: before the first round, after each
output/result               the adapter of the best round (`raft run`)
"""

from collections.abc import Iterator
from pathlib import Path

from ...config.training import RaftConfig
from ...errors import UsageError
from ...raft.curation import Clip, by_clip
from ...records import Candidate, ScoredCandidate, iter_rows
from ...runs import require_complete, require_unedited

_SECTIONS = {
    "generate": ("dataset", "split", "model", "adapter", "generate"),
    "score": ("dataset", "split", "score"),
    "curate": ("curate",),
    "train": ("dataset", "split", "model", "adapter", "train"),
    "pairs": ("dataset", "split", "pairs"),
}


def of_round(config: RaftConfig, number: int) -> RaftConfig:
    """The config of one round, counted from 1: a folder of its own, the adapter of the round before, its own
    way of sampling, and its own seeds, so that it does not draw what the round before drew."""
    if not 1 <= number <= len(config.rounds):
        raise UsageError(f"there is no round {number}: the config has {len(config.rounds)}", where="rounds")
    sampling = config.rounds[number - 1].model_dump(exclude_none=True) | {"seed": config.generate.seed + number - 1}
    changes = {
        "output": config.output / f"round-{number}",
        "generate": config.generate.model_copy(update=sampling),
        "train": config.train.model_copy(update={"seed": config.train.seed + number - 1}),
    }
    if number > 1:
        changes["adapter"] = trained(of_round(config, number - 1))
    return config.model_copy(update=changes)


def candidates(config: RaftConfig) -> Path:
    return config.output / "candidates"


def scores(config: RaftConfig) -> Path:
    return config.output / "scores"


def curated(config: RaftConfig) -> Path:
    return config.output / "curated"


def pairs(config: RaftConfig) -> Path:
    return config.output / "pairs"


def trained(config: RaftConfig) -> Path:
    return config.output / "train"


def gate(config: RaftConfig, rounds_done: int) -> Path:
    """Takes the whole config, as `result` does; the others take that of a round."""
    return config.output / "gate" / f"round-{rounds_done}"


def result(config: RaftConfig) -> Path:
    return config.output / "result"


def require_step(config: RaftConfig, step: str) -> str:
    """The fingerprint of a finished step of a round: "generate", "score" or "curate". Raises UsageError when it is not finished,
    or when its rows were edited."""
    folder, name = {"generate": (candidates, "candidates"), "score": (scores, "scores"), "curate": (curated, "curated")}[step]
    fingerprint = require_complete(folder(config), f"raft {step}", f"evoxtral raft {step} configs/raft.yaml")
    require_unedited(folder(config), [folder(config) / f"{name}.jsonl"], fingerprint)
    return fingerprint


def scored_clips(config: RaftConfig) -> Iterator[Clip]:
    """Each clip's candidates with their scores, read as streams. Raises ValueError as `by_clip` does."""
    rows = iter_rows(candidates(config) / "candidates.jsonl", Candidate)
    return by_clip(rows, iter_rows(scores(config) / "scores.jsonl", ScoredCandidate))


def asked(config: RaftConfig, step: str) -> dict:
    """The part of the config that `step` depends on: changing `train` leaves the candidates valid."""
    content = config.model_dump(mode="json")
    return {name: content[name] for name in _SECTIONS[step]}
