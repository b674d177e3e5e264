"""Tagged scripts for synthesis: drawn from a grammar, or read from the user's own JSONL."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import shipped
from ..config.loader import read_document
from ..data.manifest import Rejected, check_fields
from ..data.splits import split_of_sentence
from ..errors import RowError, UsageError
from ..records import iter_jsonl
from ..text import tags as tag_text
from ..text.normalize import normalize_words
from ..text.taxonomy import TagRules

_SLOT = re.compile(r"\{(\w+)\}")
_TAGS_PER_TAGGED_CLIP = ((1, 0.40), (2, 0.38), (3, 0.22))


@dataclass(frozen=True)
class Script:
    """`line`: its row in the script file, or its number among the drawn scripts."""

    id: str
    text: str
    split: str
    line: int


@dataclass(frozen=True)
class Grammar:
    """Sentence templates and the phrases of their slots, from a YAML file."""

    slots: dict[str, list[str]]
    sentences: list[str]

    @classmethod
    def load(cls, path: Path) -> "Grammar":
        try:
            content = read_document(shipped.find(path))
            grammar = cls(slots=content["slots"], sentences=content["sentences"])
            if not all(isinstance(phrases, list) and phrases for phrases in (*grammar.slots.values(), grammar.sentences)):
                raise TypeError("a slot or `sentences` is not a list, or is empty")
        except FileNotFoundError:
            raise UsageError("no such grammar", where=str(path), fix="set `grammar` to an existing YAML file") from None
        except (AttributeError, KeyError, TypeError) as error:
            raise UsageError(f"not a grammar: {error}", where=str(path), fix="it needs `slots` and `sentences`") from None
        for sentence in grammar.sentences:
            for slot in _SLOT.findall(str(sentence)):
                if slot not in grammar.slots:
                    raise UsageError(f"sentence {sentence!r} uses the unknown slot {slot!r}", where=str(path))
        return grammar

    def sentence(self, rng: np.random.Generator) -> str:
        template = self.sentences[rng.integers(len(self.sentences))]
        return _SLOT.sub(lambda slot: self._phrase(slot.group(1), rng), str(template))

    def _phrase(self, slot: str, rng: np.random.Generator) -> str:
        phrases = self.slots[slot]
        return str(phrases[rng.integers(len(phrases))])

    def sentence_of_split(self, split: str, rng: np.random.Generator) -> str:
        share = "train" if split == "raft" else split
        for _ in range(10_000):
            sentence = self.sentence(rng)
            if split_of_sentence(sentence) == share:
                return sentence
        raise UsageError(f"the grammar makes no sentence for the split {split!r}", fix="give it more sentences or phrases")


def draw_scripts(grammar: Grammar, clips: dict[str, int], untagged_share: float, seed: int) -> list[Script]:
    """`clips` scripts per split; exactly round(untagged_share × clips) of each split have no tag."""
    scripts = []
    for split, count in clips.items():
        rng = np.random.default_rng([seed, _seed_of(split)])
        untagged = set(rng.permutation(count)[: round(untagged_share * count)].tolist())
        for index in range(count):
            sentences = [grammar.sentence_of_split(split, rng) for _ in range(1 + int(rng.random() < 0.45))]
            text = " ".join(sentences) if index in untagged else add_tags(sentences, rng)
            scripts.append(Script(f"{split}-{index:05d}", text, split, len(scripts) + 1))
    return scripts


def add_tags(sentences: list[str], rng: np.random.Generator) -> str:
    """Put one to three tags where a speaker could act them.

    An emotion or a delivery goes before a sentence, at most one per sentence; a sound before or
    after a sentence or at its comma; a pause at a comma or between sentences.
    """
    counts, shares = zip(*_TAGS_PER_TAGGED_CLIP, strict=True)
    tags = [str(tag) for tag in rng.permutation(tag_text.BASE_TAGS)[: rng.choice(counts, p=shares)]]
    slots = [{"before": [], "comma": [], "after": [], "emotion": None, "delivery": None} for _ in sentences]
    for tag in tags:
        index = int(rng.integers(len(slots)))
        if tag in tag_text.EMOTION_TAGS or tag in tag_text.DELIVERY_TAGS:
            kind = "emotion" if tag in tag_text.EMOTION_TAGS else "delivery"
            free = [slot for slot in slots if slot["emotion"] is None and slot["delivery"] is None]
            if free:
                free[rng.integers(len(free))][kind] = tag
        elif tag == tag_text.PAUSE_TAG:
            _place_pause(slots, sentences, rng)
        else:
            places = ["before", "after", "comma"] if "," in sentences[index] else ["before", "after"]
            slots[index][places[rng.integers(len(places))]].append(tag)
    text = " ".join(_write(slot, sentence) for slot, sentence in zip(slots, sentences, strict=True))
    return text if tag_text.find_tags(text) else f"[{tags[0]}] {text}"


def _place_pause(slots: list[dict], sentences: list[str], rng: np.random.Generator) -> None:
    places = [(index, "comma") for index, sentence in enumerate(sentences) if "," in sentence]
    places += [(index, "before") for index in range(1, len(sentences))]
    if places:
        index, place = places[rng.integers(len(places))]
        slots[index][place].insert(0, tag_text.PAUSE_TAG)
    else:
        slots[-1]["after"].insert(0, tag_text.PAUSE_TAG)
        slots[-1]["after"].append("sighs")  # a pause at the very end could not be heard


def _write(slot: dict, sentence: str) -> str:
    leading = slot["before"] + [tag for tag in (slot["emotion"], slot["delivery"]) if tag]
    if slot["comma"]:
        head, tail = sentence.split(",", 1)
        sentence = f"{head}, {tag_text.format_tags(slot['comma'])}{tail}"
    return " ".join(part for part in (tag_text.format_tags(leading), sentence, tag_text.format_tags(slot["after"])) if part)


def read_scripts(path: Path, rules: TagRules, tally: Counter) -> tuple[list[Script], list[Rejected]]:
    """The user's own scripts: JSONL rows with `text` and optionally `id` and `split`, or rows with `tagged_text`,
    `plain_text` and `tags_used`, of which the last two must agree with the first.

    Returns (scripts, rejected rows); `tally` counts what `rules` changed. Rows without a
    split get one by the hash of their words, so that repeated sentences stay in one split.
    """
    if not path.exists():
        raise UsageError("no such script file", where=str(path), fix="set `scripts` to a JSONL file with {text} rows")
    scripts, rejected, seen = [], [], set()
    for number, row in iter_jsonl(path):
        identity = None
        try:
            if isinstance(row, RowError):
                raise row
            identity = row.get("id")
            script = _script(row, number, rules, tally)
            if script.id in seen:
                raise RowError(f"duplicate id {script.id!r}", fix="give each script its own id")
            seen.add(script.id)
            scripts.append(script)
        except RowError as error:
            rejected.append(Rejected.of(path, number, identity, error))
    return scripts, rejected


def _script(row: dict, number: int, rules: TagRules, tally: Counter) -> Script:
    """Raises RowError for an invalid row; unknown columns are ignored."""
    if "tagged_text" in row and "text" not in row:
        row["text"] = row["tagged_text"]
    if not isinstance(row.get("text"), str) or not row["text"].strip():
        raise RowError("`text` is missing or empty", fix="write the tagged transcript there")
    check_fields({name: row.get(name) for name in ("id", "text", "split")})
    if "tagged_text" in row:
        check_script(row["text"], row.get("plain_text"), row.get("tags_used"))
    text = rules.apply(row["text"], tally)
    split = row.get("split") or split_of_sentence(tag_text.strip_tags(text))
    return Script(row.get("id") or f"script-{number:05d}", text, split, number)


def check_script(tagged_text: str, plain_text: Any, tags_used: Any) -> None:
    """Raises RowError if `plain_text` or `tags_used` does not match the tagged text."""
    if not isinstance(plain_text, str | None) or not isinstance(tags_used, list | None):
        raise RowError("`plain_text` is not text, or `tags_used` is not a list", fix="correct them, or leave them out")
    if plain_text is not None and normalize_words(plain_text) != normalize_words(tag_text.strip_tags(tagged_text)):
        raise RowError(f"`plain_text` and `tagged_text` have different words: {plain_text[:60]!r}", fix="correct one of the two")
    if tags_used is not None:
        claimed = {tag_text.canonical(str(tag).strip("[] ")) for tag in tags_used}
        actual = set(tag_text.find_tags(tagged_text))
        if claimed != actual:
            differing = ", ".join(sorted(claimed ^ actual))
            raise RowError(f"`tags_used` and the tags in `tagged_text` differ: {differing}", fix="correct one of the two")


def _seed_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
