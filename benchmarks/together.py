"""Base text and adapter tags: rows of both in one batch, against two passes over one model and against two models.

The same clips, 16 at a time, from samples to tokens. The script checks that each way writes the same tokens. Without a CUDA GPU,
the full-size model is counted on the meta device: operations, weights, keys and values.

    python benchmarks/together.py [--recordings runs/demo/data/audio] [--adapter runs/demo/sft] [--clips 32] [--rounds 5]
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from measuring import in_turn, machine, peak_gb_of, ratio
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from evoxtral_train.config.evaluation import Decode
from evoxtral_train.config.sections import Model
from evoxtral_train.config.training import Lora
from evoxtral_train.data.audio import read_audio
from evoxtral_train.decoding.decoder import Decoding, Request, decode
from evoxtral_train.families.base import Layout, Network
from evoxtral_train.families.checkpoint import family_named
from evoxtral_train.modeling.adapter_record import AdapterRecord
from evoxtral_train.modeling.adapters import adapter_bytes, add_lora, find_adapter, load_adapter
from evoxtral_train.modeling.bases import open_base, pick_device
from evoxtral_train.modeling.row_adapters import RowAdapters
from evoxtral_train.transcription.segment_audio import SegmentAudio
from evoxtral_train.units import PREPAD_SAMPLES, TOKEN_S

ROWS, ROOM_TOKENS, NEW_TOKENS = 16, 65, 64


class Bench:
    """`base`: one model with the adapter on its rows. `bare` and `adapted`: two models."""

    def __init__(self, recordings: Path, adapter: Path, base: str, dtype: str, clips: int):
        self.family, found = open_base(Model(base=base)).family, find_adapter(adapter)
        record, device = AdapterRecord.read(found.folder), pick_device("auto")
        self.layouts = [self.family.own_layout(ROOM_TOKENS), record.restore_layout()]
        self.samples = [read_audio(path, 30.0) for path in sorted(recordings.glob("test-*.flac"))[:clips]]
        self.one, self.bare, self.adapted = (self.family.load(dtype) for _ in range(3))
        self.adapters = RowAdapters(self.one, [found])
        self.adapted = load_adapter(self.adapted, found)
        for network in (self.one, self.bare, self.adapted):
            network.place_audio_path(device)
            network.place_language_model(device)

    def base_alone(self) -> dict:
        return self._decode(self.bare, [0])

    def together(self) -> dict:
        return self._decode(self.one, [0, 1], self.adapters)

    def two_passes(self) -> dict:
        return self._decode(self.one, [0], self.adapters) | self._decode(self.one, [1], self.adapters)

    def two_models(self) -> dict:
        tags = self._decode(self.adapted, [1], number=0)
        return self._decode(self.bare, [0]) | {(clip, 1): tokens for (clip, _), tokens in tags.items()}

    def _decode(
        self, network: Network, kinds: Sequence[int], adapters: RowAdapters | None = None, number: int | None = None
    ) -> dict:
        """(clip, kind of row) -> tokens"""
        audio, requests = SegmentAudio(network, self.family), []
        for index, samples in enumerate(self.samples):
            rows = [self._request(index, len(samples), kind, kind if number is None else number) for kind in kinds]
            audio.add(index, samples, rows)
            requests += rows
        width = max(request.end for request in requests)
        settings = Decoding.greedy(Decode(max_new_tokens=NEW_TOKENS, batch_tokens=ROWS * len(kinds) * width))
        return {done.key: done.token_ids for batch in decode(network, audio, requests, settings, adapters) for done in batch}

    def _request(self, index: int, samples: int, kind: int, number: int) -> Request:
        layout = self.layouts[kind]
        return Request.of(str(index), layout, layout.measure(samples, PREPAD_SAMPLES), index, number, bound=False)


def count_full_size(layouts: Sequence[Layout], clip_s: float) -> None:
    """Prints what one clip of `clip_s` costs with the published model's shape: nothing is computed."""
    network = family_named(layouts[0].record()["family"]).describe(None)
    adapted = add_lora(family_named(layouts[0].record()["family"]).describe(None), Lora(), Model(base="published"))
    samples, text = int(clip_s / TOKEN_S) * 1280, network.text_config
    tokens = int(clip_s / TOKEN_S) + 49
    encoder = _flops(lambda: network.audio_embeddings(torch.empty(1, 128, 8 * tokens, device="meta"), tokens))
    costs = {}
    for name, layout, system in (("base", layouts[0], network), ("adapter", layouts[1], adapted)):
        clip = layout.measure(samples, 0)
        start = layout.prompt_tokens(clip)
        steps = clip.row_tokens - ROOM_TOKENS - start if layout.has_times else 10  # a tag is about 4 tokens
        costs[name] = (_forward_flops(system, start), steps, _forward_flops(system, 1))
    weights, lora = network.sizes()["parameters"] * 2, adapter_bytes(adapted.model)
    keys = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 2
    print(f"\nThe published shape, counted, not run: a clip of {clip_s:g} s")
    print(f"  encoder {encoder / 1e12:.2f} TFLOP, once for both rows")
    for name, (prompt, steps, step) in costs.items():
        print(f"  {name:<8} prompt {prompt / 1e12:.2f} TFLOP in one pass, then {steps} steps of {step / 1e9:.1f} GFLOP")
    base, adapter = (prompt + steps * step for prompt, steps, step in costs.values())
    print(f"  together {(encoder + base + adapter) / (encoder + base):.2f} × the operations of the base alone;"
          f" two passes or two models {(2 * encoder + base + adapter) / (encoder + base):.2f} ×")  # fmt: skip
    print(f"  weights  one model {weights / 1e9:.2f} GB, adapter {lora / 1e9:.3f} GB; two models {2 * weights / 1e9:.2f} GB")
    print(f"  a row    {keys / 1e3:.0f} KB of keys and values per token")


def _forward_flops(network: Network, tokens: int) -> int:
    hidden = network.text_config.hidden_size
    ids = torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    audio = torch.empty(1, tokens, hidden, device="meta", dtype=network.dtype)
    return _flops(lambda: network.logits(network.hidden(ids, audio, DynamicCache())[:, -1]))


def _flops(work) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        work()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=Path, default=Path("runs/demo/data/audio"))
    parser.add_argument("--adapter", type=Path, default=Path("runs/demo/sft"))
    parser.add_argument("--base", default="data/tiny-base")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    bench = Bench(arguments.recordings, arguments.adapter, arguments.base, arguments.dtype, arguments.clips)
    ways = {
        "base alone": bench.base_alone, "together": bench.together, "two passes": bench.two_passes,
        "two models": bench.two_models,
    }  # fmt: skip
    expected = bench.two_models()
    written = {name: ways[name]() for name in ("together", "two passes")}
    differing = {name: sum(tokens != expected[key] for key, tokens in of_way.items()) for name, of_way in written.items()}
    seconds = in_turn(ways, arguments.rounds)
    print(f"{len(bench.samples)} clips, {ROWS} at a time, adapter in {bench.layouts[1].name}, {arguments.dtype}: {machine()}")
    for name, times in seconds.items():
        peak = peak_gb_of(ways[name])[1]
        against = f", {ratio(times, seconds['base alone'])} × the base alone" if name != "base alone" else ""
        differ = f", {differing[name]} rows differ" if differing.get(name) else ""
        print(f"  {name:<11} {statistics.median(times):.2f} s, peak {peak:.2f} GB{against}{differ}")
    if not torch.cuda.is_available():
        count_full_size(bench.layouts, 10.0)


if __name__ == "__main__":
    main()
