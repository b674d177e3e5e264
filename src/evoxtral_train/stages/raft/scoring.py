"""Which rule scores which clips of a split: `score.profile` those with text, the verifier those without. Needs no torch."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ...config.training import RaftConfig, Score
from ...dataset.reader import Example, PackedSplit
from ...errors import UsageError
from ...files import fingerprint_files
from ...raft import reward, verifier
from ...raft.detections import Detections
from ...records import Candidate, ScoredCandidate
from ...runs import require_same_input
from ...text.tags import format_tags
from ..finished_runs import PROBE_HINT, require_probe

_FITTED_ON = "train"


@dataclass(frozen=True)
class Scoring:
    """`clips`: profile -> how many clips it scores. `weights`: profile -> component -> weight. `detections`: the verifier's, if
    it scores any."""

    config: Score
    split: PackedSplit
    clips: dict[str, int]
    weights: dict[str, dict[str, float]]
    detections: Detections | None
    fingerprints: dict[str, str]

    @classmethod
    def of(cls, config: RaftConfig, split: PackedSplit) -> "Scoring":
        """Raises UsageError if clips without text have no verifier, or if the verifier does not know the clips that it has to
        score."""
        rule = config.score
        clips = clips_by_profile(rule, split)
        weights = {profile: _weights(rule, profile, split.target) for profile in clips}
        if verifier.PROFILE not in clips:
            return cls(rule, split, clips, weights, None, {})
        if rule.verifier is None:
            what = f"{clips[verifier.PROFILE]:,} clips of split {split.split} have no text, and profile {rule.profile} needs one"
            raise UsageError(what, where="score.verifier", fix=f"name a run of `evoxtral probe`; first: {PROBE_HINT}")
        path, fingerprint = _open(rule.verifier, split)
        labelled = zip(split.index_of, split.labelled, strict=True)
        verified = [clip for clip, has_text in labelled if _profile(rule, has_text) == verifier.PROFILE]
        detections = Detections.read(path, verified, split.tags)
        return cls(rule, split, clips, weights, detections, {"verifier": fingerprint})

    def facts(self) -> dict:
        """What a plan says: each profile's formula, and which clips it scores."""
        facts = {}
        for profile, count in self.clips.items():
            rule = f"{profile}: {reward.formula(self.weights[profile])}"
            if len(self.clips) == 1:
                facts["profile"] = rule
            else:
                facts[f"{count:,} clips {'without' if profile == verifier.PROFILE else 'with'} text"] = rule
        if self.detections and (unknown := sorted(set(self.split.tags) - set(self.detections.tags))):
            facts["not judged"] = f"{format_tags(unknown)}: unknown to the verifier"
        return facts

    def score(self, candidate: Candidate, example: Example, others: list[str]) -> ScoredCandidate:
        """`others`: the texts of the clip's other candidates. The verifier reads nothing of `example` but its id."""
        profile, with_words = _profile(self.config, example.labelled), self.split.target != "tags"
        if profile == verifier.PROFILE:
            answer = verifier.Unreferenced(candidate.text, self.detections.of(example.id), others)
            scored = verifier.score(self.weights[profile], answer)
        else:
            placement = self.config.placement
            answer = reward.Answer(example.text, candidate.text, with_words, example.timed_events, candidate.written, placement)
            scored = reward.score(self.weights[profile], answer)
        return ScoredCandidate(candidate.utterance_id, candidate.candidate_id, *scored, profile)


def clips_by_profile(rule: Score, split: PackedSplit) -> dict[str, int]:
    """profile -> how many clips of the split it scores."""
    counts = Counter(_profile(rule, has_text) for has_text in split.labelled)
    return {profile: counts[profile] for profile in (rule.profile, verifier.PROFILE) if counts[profile]}


def _profile(rule: Score, has_text: bool) -> str:
    return rule.profile if has_text else verifier.PROFILE


def _weights(rule: Score, profile: str, target: str) -> dict[str, float]:
    if profile == verifier.PROFILE:
        return verifier.weights_of(target)
    return reward.weights_of(profile, target, rule.weights.model_dump(exclude_none=True))


def _open(path: Path, split: PackedSplit) -> tuple[Path, str]:
    """(the file of probabilities, its fingerprint). Of a run, it must have been made for this dataset and split."""
    if not path.is_dir():
        if path.is_file():
            return path, fingerprint_files([path])
        raise UsageError("no such file or run", where=str(path), fix=f"first run: {PROBE_HINT}")
    fingerprint = require_probe(path)
    require_same_input(path, "dataset", split.fingerprint, str(split.folder))
    if split.split == _FITTED_ON:
        what = f"the probe {path} was fitted on {_FITTED_ON}, so it cannot score it"
        raise UsageError(what, where="split", fix="set `split` to another, such as raft")
    file = path / "probabilities" / f"{split.split}.jsonl"
    if not file.is_file():
        fix = f"add {split.split} to `probabilities` in its config, and repeat it with --overwrite"
        raise UsageError(f"has no probabilities for split {split.split}", where=str(path), fix=fix)
    return file, fingerprint


def plan_scoring(config: RaftConfig, split: PackedSplit) -> tuple[dict, dict[str, str]]:
    """`Scoring.facts` and its fingerprints, also while the verifier does not exist yet."""
    path = config.score.verifier
    if path is None or path.exists():
        scoring = Scoring.of(config, split)
        return scoring.facts(), scoring.fingerprints
    names = ", ".join(f"{profile} ({count:,} clips)" for profile, count in clips_by_profile(config.score, split).items())
    what = f"{path} does not exist yet: first run: {PROBE_HINT}"
    if split.split == _FITTED_ON:
        what += f". A probe is fitted on {_FITTED_ON} and cannot score it: set `split` to another, such as raft"
    return {"profile": names, "verifier": what}, {}
