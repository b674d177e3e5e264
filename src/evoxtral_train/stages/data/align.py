"""`evoxtral data align`: adds times of words and tags to a manifest, from the frozen base's own transcript."""

import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ... import shipped
from ...config.data import AlignConfig
from ...data.audio import read_audio
from ...data.manifest import ManifestRow, Rejected, read_manifest
from ...data.timing import events_of, timed_target
from ...decoding.decoder import Decoding, Request, decode
from ...decoding.sampling import Sampling
from ...errors import RowError, UsageError
from ...families.base import Alignment, Family, Layout
from ...families.checkpoint import family_for
from ...files import fingerprint_files
from ...modeling.audio_cache import LiveAudio
from ...modeling.bases import open_base, pick_device
from ...progress import format_seconds, progress
from ...runs import Options, Run, check_output
from ...text.taxonomy import TagRules, Taxonomy, describe_changes
from ...tracking import Tracker
from ...units import SAMPLE_RATE_HZ
from ..plans import plan_decoding, plan_model
from ..report import Report, all_rejected

_ROOM_TOKENS = 64  # after the clip's end: fast speech is written later than it is heard


@dataclass(frozen=True)
class _Clips:
    """Mels of manifest rows, computed on request."""

    rows: list[ManifestRow]
    config: AlignConfig
    family: Family
    layout: Layout

    def samples(self, index: int) -> np.ndarray:
        return read_audio(self.rows[index].audio, self.config.max_seconds)

    def mel_of(self, index: int, tokens: int) -> np.ndarray:
        samples = self.samples(index)
        return self.family.mel(samples, self.layout.mel_frames(self.layout.measure(len(samples), 0), tokens))


def run(config: AlignConfig, options: Options) -> Report:
    """Writes `manifest.jsonl`, with `words` and `events` in every row that has a text, and `rejected.jsonl`.

    With `keep_given_times`, rows that have times keep them. Otherwise their times are replaced, and the report
    shows how far the new ones are off. Rows without text stay as they are.
    """
    family_for(config.model.base, config.model.revision, config.model.family)[0].require_times()
    rules, tally = TagRules.of(config.tags), Counter()
    rows, rejected = read_manifest(config.manifest, rules, tally)
    resolved = config.model_dump(mode="json")
    inputs = {"manifest": fingerprint_files([config.manifest]), "tags": fingerprint_files([shipped.find(config.tags.table)])}
    unlabelled = [row for row in rows if row.text is None]
    timed = [row for row in rows if config.keep_given_times and row.words]
    kept = [*timed, *unlabelled]
    rows = [row for row in rows if row.text is not None and not (config.keep_given_times and row.words)]
    if not rows and kept:
        what = f"nothing to align: {len(timed):,} rows have times" + (f", {len(rejected):,} are rejected" if rejected else "")
        what += f", {len(unlabelled):,} have no text" if unlabelled else ""
        raise UsageError(what, where=str(config.manifest), fix="use the manifest as it is, or set keep_given_times to false")
    if not rows:
        if options.dry_run:
            raise _nothing_aligned(config, rejected)
        run = Run.open(config.output, "data align", resolved, inputs, options, [config.manifest])
        run.write_rows("rejected.jsonl", rejected)
        raise _nothing_aligned(config, rejected, run.path / "rejected.jsonl")
    facts = {"rows": len(rows) + len(kept) + len(rejected), "already timed": len(timed), "output": config.output}
    if unlabelled:
        facts["without text"] = f"{len(unlabelled)}, unchanged"
    facts |= {f"tags {change}": count for change, count in describe_changes(tally).items()}
    if options.dry_run:
        check_output(config.output, "data align", resolved, inputs, options)
        return Report("plan: data align", facts | plan_model(config.model) | plan_decoding(config.model, config.batch_tokens))
    base = open_base(config.model)
    inputs["base"] = base.fingerprint
    run = Run.open(config.output, "data align", resolved, inputs, options, [config.manifest, base.family.folder])
    started = time.monotonic()
    with Tracker(config.tracking, "data align", run.path, config) as tracker:
        alignments, unaligned = _align_all(config, rows, base.family, rules.taxonomy)
        rejected = sorted([*rejected, *unaligned], key=lambda row: row.line)
        aligned = [(row, alignments[row.id]) for row in rows if row.id in alignments]
        written = [_content(row, run.path, alignment.words, alignment.events) for row, alignment in aligned]
        written += [_content(row, run.path, row.words, row.events) for row in kept]
        run.write_rows("rejected.jsonl", rejected)
        if not written:
            raise _nothing_aligned(config, rejected, run.path / "rejected.jsonl")
        run.write_rows("manifest.jsonl", written)
        heard = [flag for _, alignment in aligned for flag in alignment.heard]
        metrics = {"aligned": len(aligned), "already_timed": len(timed), "unlabelled": len(unlabelled)}
        metrics |= {"rejected": len(rejected), "words": len(heard)}
        metrics |= {"words_heard_share": float(np.mean(heard)) if heard else None, "seconds": time.monotonic() - started}
        metrics |= _errors(aligned)
        tracker.summary(metrics)
    run.finish(metrics, fingerprint_files([run.path / "manifest.jsonl"]))
    facts |= {"aligned": len(aligned), "rejected": len(rejected), "time": format_seconds(metrics["seconds"])}
    if heard:
        facts["words written by the base"] = f"{metrics['words_heard_share']:.1%} of {len(heard)}"
    for kind, name in (("word", "words"), ("tag", "tags among words"), ("tag_end", "ends of the tags' events")):
        if f"{kind}_error_median_s" in metrics:
            median, p90 = metrics[f"{kind}_error_median_s"], metrics[f"{kind}_error_p90_s"]
            facts[f"{name}, against the given times"] = f"median {median:.3f} s off, 90% within {p90:.3f} s"
    return Report("data align", facts)


def _nothing_aligned(config: AlignConfig, rejected: list[Rejected], written: Path | None = None) -> UsageError:
    return all_rejected("no row can be aligned", len(rejected), config.manifest, str(rejected[0]), written)


def _align_all(
    config: AlignConfig, rows: list[ManifestRow], family: Family, taxonomy: Taxonomy
) -> tuple[dict[str, Alignment], list[Rejected]]:
    """id -> alignment, and the rows that could not be aligned."""
    layout = family.own_layout(_ROOM_TOKENS)
    clips, requests, durations, rejected = _Clips(rows, config, family, layout), [], {}, []
    for index, row in enumerate(rows):
        try:
            samples = len(clips.samples(index))
        except RowError as error:
            rejected.append(Rejected.of(config.manifest, row.line, row.id, error))
            continue
        requests.append(Request.of(row.id, layout, layout.measure(samples, 0), index))
        durations[row.id] = samples / SAMPLE_RATE_HZ
    device, by_id, alignments = pick_device(config.model.device), {row.id: row for row in rows}, {}
    network = family.load(config.model.dtype)
    network.place_audio_path(device)
    network.place_language_model(device)
    decoding = Decoding(1, Sampling(), _ROOM_TOKENS, config.batch_tokens)
    with progress("listening", len(requests), "clips") as bar:
        for completions in decode(network, LiveAudio(network, clips), requests, decoding):
            for completion in completions:
                row = by_id[completion.utterance_id]
                words = layout.word_times(family.tokenizer, completion.token_ids)
                alignment = family.align(row.text, words, durations[row.id], taxonomy)
                share = float(np.mean(alignment.heard)) if alignment.heard else 1.0
                if share < config.min_heard_share:
                    written = " ".join(word for word, _ in words)
                    error = RowError(f"the base wrote only {share:.0%} of the words: {written[:80]!r}")
                    rejected.append(Rejected.of(config.manifest, row.line, row.id, error))
                else:
                    alignments[row.id] = alignment
            bar.advance(len(completions))
    return alignments, rejected


def _content(row: ManifestRow, folder: Path, words: list[dict], events: list[dict]) -> dict:
    """A manifest row with its audio path relative to `folder`."""
    content = {"id": row.id, "audio": os.path.relpath(row.audio, folder), "split": row.split}
    content |= {} if row.text is None else {"text": row.text, "words": words, "events": events}
    return content | {name: value for name in ("speaker", "source", "license", "language") if (value := getattr(row, name))}


def _errors(aligned: list[tuple[ManifestRow, Alignment]]) -> dict:
    """The distance of words and tags from the manifest's own times, if it has any. Compares when each is due in a `tagged_text`
    target; for tags also in a `tags` target, where they are due at the end of the event."""
    distances: dict[str, list[float]] = {"word": [], "tag": [], "tag_end": []}
    for row, alignment in aligned:
        new = replace(row, words=alignment.words, events=alignment.events)
        try:
            given = timed_target(row, "tagged_text")
        except RowError:  # no times of its own
            continue
        for (piece, given_s), (_, aligned_s) in zip(given, timed_target(new, "tagged_text"), strict=True):
            distances["tag" if piece.startswith("[") else "word"].append(abs(given_s - aligned_s))
        for given_end_s, aligned_end_s in zip(_ends(row), _ends(new), strict=True):
            distances["tag_end"].append(abs(given_end_s - aligned_end_s))
    measures = {}
    for kind, values in distances.items():
        if values:
            measures[f"{kind}_error_median_s"] = float(np.median(values))
            measures[f"{kind}_error_p90_s"] = float(np.percentile(values, 90))
    return measures


def _ends(row: ManifestRow) -> list[float]:
    """The ends of the events, sorted by tag: both rows have the same tags, but perhaps in another order in time."""
    return [end for _, _, end in sorted(events_of(row))]
