"""Time of scoring, part by part: metrics with intervals, comparison and page of two systems.

    python benchmarks/evaluation.py [--clips 1000] [--json FILE]

`evoxtral eval` prints the share of its time spent on decoding.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from measuring import machine, seconds_of

from evoxtral_train.config.evaluation import Bootstrap
from evoxtral_train.config.sections import Placement
from evoxtral_train.records import Prediction
from evoxtral_train.reporting.evaluation import page
from evoxtral_train.reporting.results import Evaluation, Training
from evoxtral_train.scoring.significance import compare_pairs
from evoxtral_train.scoring.summary import summarize
from evoxtral_train.text.taxonomy import Taxonomy

TAXONOMY = Taxonomy.load(Path(__file__).parent.parent / "data/tags.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    rows = {name: predictions(arguments.clips, right) for name, right in (("one", 0.7), ("other", 0.75))}
    scored: dict = {}

    def score() -> None:
        scored["reports"] = {
            name: summarize(system_rows, True, TAXONOMY, Bootstrap(), Placement()) for name, system_rows in rows.items()
        }

    def compare() -> None:
        scored["comparisons"] = compare_pairs([("one", "other")], rows, True, Bootstrap())

    def draw() -> None:
        reports, comparisons = scored["reports"], scored["comparisons"]
        page(Evaluation("", "", [], reports, rows, comparisons, [], True, Training(), lambda identity: None, 8))

    parts = {"metrics of two systems": score, "their comparison": compare, "the page": draw}
    results = {"machine": machine(), "clips": arguments.clips}
    results |= {name: round(seconds_of(work), 2) for name, work in parts.items()}
    results["seconds in all"] = round(sum(results[name] for name in parts), 2)
    print(json.dumps(results, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


def predictions(clips: int, right: float) -> list[Prediction]:
    """Clips of two tags and eight words; a tag is right with probability `right`."""
    random, rows = np.random.default_rng(0), []
    for number in range(clips):
        tags = random.choice(TAXONOMY.tags, size=2).tolist()
        written = [tag if random.random() < right else str(random.choice(TAXONOMY.tags)) for tag in tags]
        text = "[{}] one two three four. [{}] five six seven eight."
        confidences = random.random(2).round(3).tolist()
        rows.append(Prediction(str(number), text.format(*tags), text.format(*written), None, None, confidences))
    return rows


if __name__ == "__main__":
    main()
