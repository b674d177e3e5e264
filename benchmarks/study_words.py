"""Words and tags in one stream: where words are lost, and what keeps them. Layout `aligned`, three seeds, equal steps.

    tags alone            the target without words; the base writes these beside it
    words and tags        both in one stream, each tag before the words that it describes
    … lower rate          a third of the learning rate
    … replay              and the base's own transcripts of clips without tags, a quarter as many as clips
    tags last             words and tags, but each clip's tags at its end, after all words

LoRA on attention and MLP of the language model, r 16. Micro F1 counts the tags of a clip wherever they stand, so the systems can
be compared. WER is of the words, against the same references as the base's.

Writes the results; `--document` also updates the document's tables.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jiwer
import soundfile
from measuring import machine
from studies import (
    BOOTSTRAP_SEED,
    SAMPLES,
    Command,
    differences,
    each_seed,
    finish,
    measure_yardsticks,
    options_of,
    run_phases,
    score_over_seeds,
    signed,
    slug,
    systems_of,
    yardsticks_of,
)

from evoxtral_train.config.evaluation import Bootstrap
from evoxtral_train.data.timing import words_of
from evoxtral_train.files import write_atomic
from evoxtral_train.records import Prediction, dump_row, read_jsonl
from evoxtral_train.reporting.tables import interval, markdown_table
from evoxtral_train.scoring.metrics import evaluate, sums
from evoxtral_train.scoring.significance import PRIMARY_LEVEL, difference
from evoxtral_train.text.normalize import normalize_words
from evoxtral_train.text.tags import TAG, find_tags, parse, strip_tags

DEMO = Path("configs/demo")
LORA = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
BATCH = 16
RATE, LOWER_RATE = 3e-3, 1e-3
AFTER_A_TAG = 3
"""So many words after a tag are looked at apart from the others."""
PLAIN, BASE = "words and tags", "base"


@dataclass(frozen=True)
class Variant:
    target: str = "tagged_text"
    manifest: str = "manifest"
    replay_share: float = 0.0
    settings: dict = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        return f"{self.target}-{self.manifest}"

    def epochs(self, clips: int, steps: int) -> float:
        """So many that all variants have the same number of steps."""
        return steps / math.ceil((clips + round(self.replay_share * clips)) / BATCH)


LOWER = {"train__learning_rate": LOWER_RATE}
VARIANTS = {
    "tags alone": Variant("tags"),
    PLAIN: Variant(),
    "words and tags, lower rate": Variant(settings=LOWER),
    "words and tags, replay": Variant(replay_share=0.25),
    "words and tags, replay, lower rate": Variant(replay_share=0.25, settings=LOWER),
    "tags last": Variant(manifest="tags-last"),
    "tags last, replay": Variant(manifest="tags-last", replay_share=0.25),
}


def main() -> None:
    options = _options()
    commands, logs = phases(options), options.output / "logs"
    run_phases(commands[:1], options.jobs, logs)
    manifest = options.output / "data/manifest.jsonl"
    rows = [tags_last(row, soundfile.info(manifest.parent / row["audio"]).duration) for _, row in read_jsonl(manifest)]
    write_atomic(manifest.with_stem("tags-last"), "".join(map(dump_row, rows)))
    run_phases(commands, options.jobs, logs)
    content = {name: getattr(options, name) for name in ("seeds", "steps", "clips")} | {"device": machine()}
    content["test"] = yardsticks_of(options.output / "eval/yardsticks") | scores(
        {name: systems_of(options.output / "eval" / slug(name)) for name in options.only}
    )
    finish(options, content, sections(content))


def tags_last(row: dict, duration_s: float) -> dict:
    """A manifest row whose tags follow its last word, in the order in which they end, and are due when the clip ends. (Due with
    the last word they were hardly written: while it is heard, nothing shows that it is the last.)

    >>> tags_last({"text": "[sad] fine, and you?", "events": [{"tag": "sad", "start_s": 0.2, "end_s": 1.0}]}, 3.0)
    {'text': 'fine, and you? [sad]', 'events': [{'tag': 'sad', 'start_s': 3.0, 'end_s': 3.0}]}
    """
    words = [word for piece in parse(row["text"]) if piece.kind != "tag" for word in words_of(piece.value)]
    tags = [event["tag"] for event in sorted(row["events"], key=lambda event: event["end_s"])]
    events = [{"tag": tag, "start_s": duration_s, "end_s": duration_s} for tag in tags]
    return row | {"text": " ".join([*words, *(f"[{tag}]" for tag in tags)]), "events": events}


def phases(options: argparse.Namespace) -> list[list[Command]]:
    root, variants = options.output, {name: VARIANTS[name] for name in options.only}
    clips = {f"clips__{split}": count for split, count in ({"raft": 0} | options.clips).items()}
    spoken = Command.of("data synth", DEMO / "synth.yaml", root / "data", seed=options.corpus_seed, **clips)
    packs = {
        variant.dataset: Command.of(
            "data pack", DEMO / "pack.yaml", root / "packed" / variant.dataset, target=variant.target, layout__kind="aligned",
            manifest=root / "data" / f"{variant.manifest}.jsonl",
        )
        for variant in variants.values()
    }  # fmt: skip
    trains, evaluations = [], []
    for name, variant in variants.items():
        dataset = root / "packed" / variant.dataset
        folders = {seed: root / "sft" / slug(name) / f"seed-{seed}" for seed in options.seeds}
        for seed, folder in folders.items():
            settings = {
                "train__learning_rate": RATE, "train__epochs": variant.epochs(options.clips["train"], options.steps),
                "train__seed": seed, "train__batch_size": BATCH, "train__evaluate_every_steps": options.steps,
                "lora__target_modules": LORA, "replay__share": variant.replay_share,
            }  # fmt: skip
            trains.append(Command.of("sft", DEMO / "sft.yaml", folder, dataset=dataset, **settings | variant.settings))
        adapters = ", ".join(f"{{name: seed {seed}, adapter: {folder}}}" for seed, folder in folders.items())
        base = f"{{name: {BASE}}}, " if variant.target != "tags" else ""
        evaluations.append(
            Command.of("eval", DEMO / "eval-sft.yaml", root / "eval" / slug(name), dataset=dataset, systems=f"[{base}{adapters}]")
        )
    yardsticks = measure_yardsticks(root / "packed" / VARIANTS[PLAIN].dataset, root / "eval/yardsticks")
    return [[spoken], [*packs.values()], [yardsticks], trains, evaluations]


def scores(systems: dict[str, dict[str, list[Prediction]]]) -> dict[str, dict]:
    """variant -> its figures. `systems`: variant -> system -> predictions, with the base where there are words."""
    plain = {name: rows for name, rows in systems[PLAIN].items() if name != BASE}
    found = {BASE: _words([systems[PLAIN][BASE]]) | {"micro_f1_of_seeds": []}}
    for name, of_seeds in systems.items():
        seeds = {seed: rows for seed, rows in of_seeds.items() if seed != BASE}
        report = score_over_seeds(seeds)
        if name != PLAIN:
            report["micro_f1_against_plain"] = differences(_pooled(plain), _pooled(seeds))["micro_f1"]
        if BASE in of_seeds:
            report |= _words([*seeds.values()])
            before, after = [of_seeds[BASE]] * len(seeds), [*seeds.values()]
            report["wer_above_base"] = _wer_difference(before, after)
            if name != PLAIN:
                report["wer_against_plain"] = _wer_difference([*plain.values()], after)
        found[name] = report
    return found


def _pooled(seeds: dict[str, list[Prediction]]) -> list[Prediction]:
    return [row for rows in seeds.values() for row in rows]


def _words(seeds: Sequence[list[Prediction]]) -> dict:
    """The WER: of all clips, of those without tags, of those with tags; and the share of words that are wrong, by place."""
    rows = [row for each in seeds for row in each]
    untagged = [row for row in rows if not find_tags(row.reference)]
    tagged = [row for row in rows if find_tags(row.reference)]
    found = {name: _wer(part) for name, part in {"wer": rows, "wer_untagged": untagged, "wer_tagged": tagged}.items()}
    return found | {"wrong": wrong_words(rows)}


def _wer(rows: Sequence[Prediction]) -> dict:
    return evaluate(rows, True, Bootstrap(samples=SAMPLES, seed=BOOTSTRAP_SEED))["wer"]["micro"]


def _wer_difference(before: Sequence[list[Prediction]], after: Sequence[list[Prediction]]) -> dict:
    """`after` minus `before`, over clips, keeping all seeds' answers to a clip together."""
    first, second = ([row for rows in each for row in rows] for each in (before, after))
    totals = [sums(rows, with_words=True)["wer"] for rows in (first, second)]
    return difference(*totals, [row.id for row in first], PRIMARY_LEVEL, 10_000, BOOTSTRAP_SEED)


def wrong_words(rows: Sequence[Prediction]) -> dict[str, dict]:
    """For the reference's words soon after a written tag, and for all others: how many there are, and which share is wrong. A
    word stands where it was written, or where it would have been."""
    counts = {"after a tag": [0, 0], "elsewhere": [0, 0]}
    for row in rows:
        reference, written = (normalize_words(strip_tags(text)) for text in (row.reference, row.prediction))
        places = _words_since_a_tag(row.prediction)
        if not reference or len(places) != len(written.split()):
            continue
        for chunk in jiwer.process_words(reference, written).alignments[0]:
            for offset in range(chunk.ref_end_idx - chunk.ref_start_idx):
                place = chunk.hyp_start_idx + (0 if chunk.type == "delete" else offset)
                since = places[min(place, len(places) - 1)] if places else None
                count = counts["elsewhere" if since is None or since > AFTER_A_TAG else "after a tag"]
                count[0] += 1
                count[1] += chunk.type != "equal"
    return {name: {"words": words, "share": wrong / words if words else None} for name, (words, wrong) in counts.items()}


def _words_since_a_tag(text: str) -> list[int | None]:
    """
    >>> _words_since_a_tag("oh [sighs] i told [sad] you")
    [None, 1, 2, 1]
    """
    since, places = None, []
    for number, part in enumerate(TAG.split(text)):
        if number % 2:  # a tag's name
            since = 0
            continue
        for _ in normalize_words(part).split():
            since = None if since is None else since + 1
            places.append(since)
    return places


def sections(content: dict) -> dict[str, str]:
    """The document's tables, by marker name."""
    return {"words": words_table(content), "places": places_table(content)}


def words_table(content: dict) -> str:
    header = ["system", "micro F1", "each seed", "against words and tags", "false tags / untagged clip", "WER",
              "WER above the base's"]  # fmt: skip
    rows = []
    for name, report in content["test"].items():
        tags = [interval(report["micro"]["f1"]), each_seed(report), _signed(report, "micro_f1_against_plain"),
                interval(report["false_tags_per_untagged_clip"])] if "micro" in report else ["—"] * 4  # fmt: skip
        rows.append([name, *tags, interval(report["wer"]) if "wer" in report else "—", _signed(report, "wer_above_base")])
    return markdown_table(header, rows)


def places_table(content: dict) -> str:
    header = ["system", "WER, clips without tags", "WER, clips with tags", f"wrong of the {AFTER_A_TAG} words after a tag",
              "wrong of the other words", "WER against words and tags"]  # fmt: skip
    rows = []
    for name, report in content["test"].items():
        if "wer" in report:
            wrong = [f"{each['share']:.3f} of {each['words']}" if each["words"] else "—" for each in report["wrong"].values()]
            rows.append([name, interval(report["wer_untagged"]), interval(report["wer_tagged"]), *wrong,
                         _signed(report, "wer_against_plain")])  # fmt: skip
    return markdown_table(header, rows)


def _signed(report: dict, name: str) -> str:
    return signed(report[name]) if name in report else "—"


def _options() -> argparse.Namespace:
    parser = options_of(__doc__, "words")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=VARIANTS, help=f"variants; {PLAIN!r} must be one")
    parser.add_argument("--corpus-seed", type=int, default=11)
    parser.add_argument("--clips", type=json.loads, default={"train": 640, "validation": 60, "test": 300})
    parser.add_argument("--steps", type=int, default=280, help="optimizer steps of each training")
    return parser.parse_args()


if __name__ == "__main__":
    main()
