"""A round of RAFT: the folders of its runs, its config, and the earlier results that each step requires.

output/round-1/candidates  scores  curated  train  pairs
output/round-2/…            from the adapter of round 1
output/gate/round-0 …       evaluations on the gate's split: before the first round and after each (`raft run`)
output/result               the adapter of the best round (`raft run`)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.training import RaftConfig
from ...dataset.reader import PackedSplit
from ...errors import EvoxtralError, UsageError
from ...jobs import Job
from ...raft.curation import ScoredClip, by_clip
from ...records import Candidate, ScoredCandidate, iter_rows
from ...runs import Options, require_complete, require_same_config, require_same_input, require_unedited

_FOLDERS = {"generate": "candidates", "score": "scores", "curate": "curated", "train": "train", "pairs": "pairs"}
_SECTIONS = {
    "generate": ("dataset", "split", "model", "adapter", "generate"),
    "score": ("dataset", "split", "score"),
    "curate": ("curate",),
    "train": ("dataset", "split", "model", "adapter", "train"),
    "pairs": ("dataset", "split", "pairs"),
}  # sections of the config that a step's result depends on: changing `train` leaves the candidates valid


@dataclass(frozen=True)
class RaftRound:
    """`number`: counted from 1. `config`: the whole config, with this round's sampling, seeds and starting adapter."""

    number: int
    config: RaftConfig

    @classmethod
    def of(cls, config: RaftConfig, number: int) -> "RaftRound":
        """It starts from the adapter of the previous round. It has its own seeds, so it does not repeat the samples of the
        previous round. Raises UsageError when the config has no such round."""
        if not 1 <= number <= len(config.rounds):
            raise UsageError(f"there is no round {number}: the config has {len(config.rounds)}", where="rounds")
        sampling = config.rounds[number - 1].model_dump(exclude_none=True) | {"seed": config.generate.seed + number - 1}
        changes: dict[str, Any] = {
            "generate": config.generate.model_copy(update=sampling),
            "train": config.train.model_copy(update={"seed": config.train.seed + number - 1}),
        }
        if number > 1:
            changes["adapter"] = cls.of(config, number - 1).folder("train")
        return cls(number, config.model_copy(update=changes))

    @property
    def output(self) -> Path:
        return self.config.output / f"round-{self.number}"

    def folder(self, step: str) -> Path:
        """The folder of a step's run; `step` as in `evoxtral raft <step>`."""
        return self.output / _FOLDERS[step]

    @property
    def candidates(self) -> Path:
        """candidates.jsonl, and greedy.jsonl with `generate.greedy`."""
        return self.folder("generate")

    @property
    def scores(self) -> Path:
        """scores.jsonl"""
        return self.folder("score")

    @property
    def curated(self) -> Path:
        """curated.jsonl and dropped.jsonl"""
        return self.folder("curate")

    def settings(self, step: str) -> dict[str, Any]:
        """The part of the config that the result of a step depends on."""
        content = self.config.model_dump(mode="json")
        return {name: content[name] for name in _SECTIONS[step]}

    def job(self, step: str, options: Options) -> Job:
        return Job(f"raft {step}", self.folder(step), self.settings(step), self.config, options)

    def require_candidates(self) -> dict[str, str]:
        """Their fingerprint, as an input of a later step. Raises UsageError if they are not generated yet."""
        return {"candidates": self._require("generate")}

    def require_scores(self) -> dict[str, str]:
        """The fingerprints of candidates and scores. Raises UsageError unless the scores are of these candidates, under the
        current rule of the config."""
        return self._require_made_from_candidates("score")

    def require_curated(self) -> dict[str, str]:
        """Like `require_scores`, for the curated rows."""
        return self._require_made_from_candidates("curate")

    def require_split(self) -> PackedSplit:
        """The clips of the candidates. Raises UsageError when the dataset has changed."""
        split = PackedSplit(self.config.dataset, self.config.split)
        require_same_input(self.candidates, "dataset", split.fingerprint, str(self.config.dataset))
        return split

    def scored_clips(self) -> Iterator[ScoredClip]:
        """Each clip's candidates with their scores, read as streams. Raises EvoxtralError when they do not fit together."""
        candidates = iter_rows(self.candidates / "candidates.jsonl", Candidate)
        try:
            yield from by_clip(candidates, iter_rows(self.scores / "scores.jsonl", ScoredCandidate))
        except ValueError as error:
            raise EvoxtralError(str(error), where=str(self.scores), fix="score again with --overwrite") from None

    def _require(self, step: str) -> str:
        """The step's fingerprint. Raises UsageError when it is not finished, or when its rows were edited."""
        folder = self.folder(step)
        hint = f"evoxtral raft {step} …" + (f" --round {self.number}" if self.number > 1 else "")
        fingerprint = require_complete(folder, f"raft {step}", hint)
        require_unedited(folder, [folder / f"{folder.name}.jsonl"], fingerprint)
        return fingerprint

    def _require_made_from_candidates(self, step: str) -> dict[str, str]:
        folder = self.folder(step)
        fingerprint, candidates = self._require(step), self._require("generate")
        require_same_input(folder, "candidates", candidates, str(self.candidates))
        require_same_config(folder, self.settings(step), (step,))
        return {"candidates": candidates, folder.name: fingerprint}
