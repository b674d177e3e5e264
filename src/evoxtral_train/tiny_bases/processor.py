"""Real processor files, made without a download.

The tokenizer is the vocabulary that mistral-common ships, cut to its first ranks (they are
ordered, so a prefix is a valid BPE), with a family's special tokens and audio section.
"""

import json
from pathlib import Path

import mistral_common

# Ids as in the published tokenizers, if known; "v13" requires the rest.
_SPECIAL_TOKENS = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]",
    13: "[IMG_END]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 26: "[ARGS]", 27: "[CALL_ID]", 28: "[THINK]",
    29: "[/THINK]",
}  # fmt: skip
_SPECIAL_COUNT = 40


def write_tokenizer(folder: Path, ranks: int, special_tokens: dict[int, str], audio: dict) -> int:
    """Write `tekken.json`. `ranks`: how many entries of the shipped vocabulary to keep; `special_tokens`: the family's own,
    by rank; `audio`: its audio section. Returns the vocabulary size."""
    shipped = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    source = json.loads(shipped.read_text("utf-8"))
    names = _SPECIAL_TOKENS | special_tokens
    special = [
        {"rank": rank, "token_str": names.get(rank, f"<SPECIAL_{rank}>"), "is_control": True} for rank in range(_SPECIAL_COUNT)
    ]
    config = {
        "pattern": source["config"]["pattern"],
        "num_vocab_tokens": ranks,
        "default_vocab_size": ranks + _SPECIAL_COUNT,
        "default_num_special_tokens": _SPECIAL_COUNT,
        "version": "v13",
    }
    content = {"config": config, "vocab": source["vocab"][:ranks], "special_tokens": special, "audio": audio}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tekken.json").write_text(json.dumps(content, separators=(",", ":")), "utf-8")
    return ranks + _SPECIAL_COUNT
