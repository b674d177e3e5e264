"""A classifier on acoustic features, one forest for each tag: what can be told from the sound without any model of speech."""

from collections.abc import Sequence

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from .probe import THRESHOLD, LabelledClips, fittable

_TREES = 200


def heard_in_sound(train: LabelledClips, features: np.ndarray) -> list[dict[str, float]]:
    """For each clip of `features` [clips, features]: tag -> probability, of at least `THRESHOLD`, the most probable first. Tags
    that are too rare to fit are never heard. Deterministic."""
    found: list[dict[str, float]] = [{} for _ in features]
    for tag in fittable(train.tags)[0]:
        has_tag = np.array([tag in of_clip for of_clip in train.tags])
        forest = RandomForestClassifier(_TREES, class_weight="balanced_subsample", min_samples_leaf=2, random_state=0)
        for of_clip, value in zip(found, _positive(forest.fit(train.features, has_tag), features), strict=True):
            if value >= THRESHOLD:
                of_clip[tag] = value
    return [dict(sorted(of_clip.items(), key=lambda pair: -pair[1])) for of_clip in found]


def _positive(forest: RandomForestClassifier, features: np.ndarray) -> Sequence[float]:
    return forest.predict_proba(features)[:, 1].tolist()
