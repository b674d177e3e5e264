"""A linear probe: one logistic regression per tag shows which tags can be heard in one vector per clip.

Arrays in, probabilities out; `pooling` computes the vectors. (Alain and Bengio 2016,
arXiv 1610.01644.)
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import numpy as safetensors
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from ..files import write_atomic

FEWEST_CLIPS = 5
THRESHOLD = 0.5
COSTS = (0.01, 0.03, 0.1, 0.3, 1.0)  # scikit-learn's C: the larger, the weaker the regularisation
_COST = 0.3


@dataclass(frozen=True)
class LabelledClips:
    """`features` [clips, features], and the tags of each clip."""

    features: np.ndarray
    tags: Sequence[Collection[str]]


def fittable(tags: Sequence[Collection[str]]) -> tuple[list[str], list[str]]:
    """(tags that a probe can be fitted for, tags that too few clips have or lack: fewer than `FEWEST_CLIPS`), sorted."""
    counts = Counter(tag for of_clip in tags for tag in set(of_clip))
    enough = {tag for tag, count in counts.items() if min(count, len(tags) - count) >= FEWEST_CLIPS}
    return sorted(enough), sorted(counts.keys() - enough)


@dataclass(frozen=True)
class Probe:
    """`weights` [features, tags] and `biases` [tags] of the log-odds; `too_rare`: tags of the training clips that are not
    fitted, see `fittable`. `cost`: the C used to fit it."""

    tags: tuple[str, ...]
    too_rare: tuple[str, ...]
    weights: np.ndarray
    biases: np.ndarray
    cost: float

    @classmethod
    def fit(cls, clips: LabelledClips, cost: float = _COST) -> "Probe":
        """Features are standardised first. Deterministic."""
        mean, scale = clips.features.mean(0, dtype=np.float64), clips.features.std(0, dtype=np.float64)
        scale[scale == 0] = 1.0
        standard = (clips.features - mean) / scale
        tags, too_rare = fittable(clips.tags)
        weights, biases = [], []
        for tag in tags:
            has_tag = np.array([tag in of_clip for of_clip in clips.tags])
            fitted = LogisticRegression(C=cost, max_iter=1000).fit(standard, has_tag)
            weights.append(fitted.coef_[0] / scale)
            biases.append(fitted.intercept_[0] - weights[-1] @ mean)
        shape = (len(tags), clips.features.shape[1])
        return cls(tuple(tags), tuple(too_rare), np.reshape(weights, shape).T, np.array(biases), cost)

    @classmethod
    def fit_best(cls, train: LabelledClips, validation: LabelledClips) -> "Probe":
        """With the cost in `COSTS` that has the best micro F1 on `validation`; ties: the smallest."""
        return max((cls.fit(train, cost) for cost in COSTS), key=lambda probe: probe.micro_f1(validation))

    def save(self, path: Path) -> None:
        """Two tensors, `weights` and `biases`; the rest is in the metadata."""
        about = {"tags": self.tags, "too_rare": self.too_rare, "cost": self.cost}
        tensors = {"weights": np.ascontiguousarray(self.weights), "biases": self.biases}
        write_atomic(path, safetensors.save(tensors, {name: json.dumps(value) for name, value in about.items()}))

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """[clips, features] -> the probability of each tag: [clips, tags]."""
        return expit(features @ self.weights + self.biases)

    def heard(self, features: np.ndarray) -> list[dict[str, float]]:
        """For each clip, the tags with a probability of at least `THRESHOLD`, the most probable first."""
        ranked = (sorted(zip(row.tolist(), self.tags, strict=True), reverse=True) for row in self.probabilities(features))
        return [{tag: value for value, tag in row if value >= THRESHOLD} for row in ranked]

    def micro_f1(self, clips: LabelledClips) -> float:
        """Each tag counts once per clip."""
        pairs = [(set(heard), set(tags)) for heard, tags in zip(self.heard(clips.features), clips.tags, strict=True)]
        size = sum(len(heard) + len(tags) for heard, tags in pairs)
        return 2 * sum(len(heard & tags) for heard, tags in pairs) / size if size else 1.0
