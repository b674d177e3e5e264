"""The export in Mistral's format, read by an engine that is not ours: does it write the same tokens?

The engine is `python_simple_implementation.py` of github.com/antirez/voxtral.c: pass the path of a checkout. Its constants are
set at run time to the base's shape. It decodes the exported base, and the exported base with an adapter merged in; the stock
class decodes the same clips from the base, and from the base with the adapter on it. Float32, greedy, from the layout's prompt.

    python benchmarks/other_engine.py CHECKOUT [--adapter runs/demo/sft] [--dataset runs/demo/packed] [--clips 5]
"""

import argparse
import contextlib
import importlib.util
import io
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile
import torch
from peft import PeftModel
from transformers import VoxtralRealtimeForConditionalGeneration

from evoxtral_train.config.sections import Model
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.modeling.adapters import find_adapter
from evoxtral_train.modeling.bases import Base, open_base
from evoxtral_train.modeling.release import write_merged
from evoxtral_train.units import PREPAD_SAMPLES, SAMPLE_RATE_HZ


def other_engine(checkout: Path, folder: Path) -> ModuleType:
    """The reference as a module, with the constants of the model in `folder`, a checkpoint in Mistral's format."""
    spec = importlib.util.spec_from_file_location("other_engine", checkout / "python_simple_implementation.py")
    engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine)
    params = json.loads((folder / "params.json").read_text("utf-8"))
    encoder = params["multimodal"]["whisper_model_args"]["encoder_args"]
    names = {
        "DIM": "dim", "LAYERS": "n_layers", "HEADS": "n_heads", "HEAD_DIM": "head_dim", "HIDDEN": "hidden_dim",
        "KV_HEADS": "n_kv_heads", "WINDOW": "sliding_window", "NORM_EPS": "norm_eps", "ROPE_THETA": "rope_theta",
    }  # fmt: skip
    constants = {f"{part}_{name}": args[own] for part, args in (("ENC", encoder), ("DEC", params)) for name, own in names.items()}
    constants["VOCAB_SIZE"] = params["vocab_size"]
    for name, value in constants.items():
        assert hasattr(engine, name), f"this checkout has no constant {name}"
        setattr(engine, name, value)
    return engine


def their_tokens(engine: ModuleType, folder: Path, audio: Path, prompt: list[int]) -> list[int]:
    """The engine's prompt is as long as its left padding needs; a longer one starts later in the same audio."""
    written, left, pad = [], engine.N_LEFT_PAD_TOKENS, engine.pad_audio_streaming

    def pad_as_always(samples):
        engine.N_LEFT_PAD_TOKENS = left
        return pad(samples)

    engine.N_LEFT_PAD_TOKENS = len(prompt) - 1 - engine.N_DELAY_TOKENS
    engine.pad_audio_streaming = pad_as_always
    engine.load_tokenizer = lambda _: lambda ids: written.extend(ids) or ""  # it would return the text
    with contextlib.redirect_stderr(io.StringIO()):  # it logs every layer
        engine.transcribe(str(folder), str(audio))
    engine.pad_audio_streaming = pad
    return written


@torch.inference_mode()
def our_tokens(model, base: Base, samples: np.ndarray, prompt: list[int], row_tokens: int) -> list[int]:
    inputs = base.family.processor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
    inputs["input_ids"] = torch.tensor([prompt])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    written = model.generate(**inputs, do_sample=False, max_length=row_tokens)[0, len(prompt) :].tolist()
    return written[: written.index(base.family.clock.eos_id)] if base.family.clock.eos_id in written else written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--base", default="data/tiny-base")
    parser.add_argument("--adapter", type=Path, default=Path("runs/demo/sft"))
    parser.add_argument("--dataset", type=Path, default=Path("runs/demo/packed"))
    parser.add_argument("--clips", type=int, default=5, help="the first of the test split")
    args = parser.parse_args()
    base, adapter, split = open_base(Model(base=args.base)), find_adapter(args.adapter), PackedSplit(args.dataset, "test")
    base_layout = base.family.own_layout(split.layout.room_tokens)
    stock = VoxtralRealtimeForConditionalGeneration.from_pretrained(base.family.folder, dtype=torch.float32).eval()
    equal = 0
    with tempfile.TemporaryDirectory() as place:
        folders = {"base": Path(place, "base"), "adapter": Path(place, "adapter")}
        base.family.save_mistral(stock, folders["base"])
        write_merged(base, "float32", adapter, "mistral", folders["adapter"])
        for name, folder in folders.items():
            engine = other_engine(args.checkout, folder)
            model, layout = stock, base_layout
            if name == "adapter":
                model, layout = PeftModel.from_pretrained(stock, adapter.folder).eval(), split.layout
            for index in range(args.clips):
                samples, rate_hz = soundfile.read(split.audio_of(index), dtype="float32")
                assert rate_hz == SAMPLE_RATE_HZ
                prompt = layout.prompt_ids(layout.measure(len(samples), PREPAD_SAMPLES))
                samples = np.pad(samples, (0, max(PREPAD_SAMPLES - len(samples), 0)))
                audio = Path(place, "clip.wav")
                soundfile.write(audio, samples, rate_hz, subtype="FLOAT")
                row_tokens = base.family.clock.stock_tokens(len(samples))
                ours = our_tokens(model, base, samples, prompt, row_tokens)
                theirs = their_tokens(engine, folder, audio, prompt)[: row_tokens - len(prompt)]  # without EOS it writes one more
                equal += ours == theirs
                verdict = "equal" if ours == theirs else f"DIFFERENT: {ours} {theirs}"
                text = base.family.tokenizer.decode([token for token in theirs if token > base.family.clock.streaming_word_id])
                print(f"{name}, clip {index}: {len(theirs)} tokens, {verdict}: {text.strip()}")
    print(f"{equal} of {2 * args.clips} equal")
    sys.exit(equal < 2 * args.clips)


if __name__ == "__main__":
    main()
