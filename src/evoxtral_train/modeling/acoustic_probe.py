"""A classifier on acoustic features, boosted trees for each tag: what can be told from the sound without any model of speech."""

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from .probe import THRESHOLD, LabelledClips, fittable

_LEAVES = 6  # small trees: a tag may have a few dozen clips


def heard_in_sound(train: LabelledClips, features: np.ndarray) -> list[dict[str, float]]:
    """For each clip of `features` [clips, features]: tag -> probability, of at least `THRESHOLD`, the most probable first. Tags
    that are too rare to fit are never heard. Deterministic."""
    found: list[dict[str, float]] = [{} for _ in features]
    for tag in fittable(train.tags)[0]:
        has_tag = np.array([tag in of_clip for of_clip in train.tags])
        trees = HistGradientBoostingClassifier(max_leaf_nodes=_LEAVES, random_state=0).fit(train.features, has_tag)
        for of_clip, value in zip(found, trees.predict_proba(features)[:, 1].tolist(), strict=True):
            if value >= THRESHOLD:
                of_clip[tag] = value
    return [dict(sorted(of_clip.items(), key=lambda pair: -pair[1])) for of_clip in found]
