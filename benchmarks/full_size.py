"""Speed and memory at full size: the 4.4 B-parameter model with random weights on a CUDA GPU. Downloads nothing.

Generation: 808 clips × 4 candidates of 64 tokens (an upper bound: random weights write no EOS), including
audio encoding, against stock `generate`, one clip at a time.
Training: 46 optimizer steps of 16 rows from cached audio, against the plain Trainer on the stock class.
Each with its peak memory. If the baseline would take too long, a few clips or steps are timed and scaled up;
the table shows it.

    python benchmarks/full_size.py [--layout packed] [--only generation|training] [--json FILE]
    python benchmarks/full_size.py --device cpu --model data/tiny-base --clips 6 --plain-clips 2 --steps 2 --plain-steps 1

The second line tries out the script without a GPU; peak memory is then the process's resident set.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from measuring import machine, peak_gb_of
from transformers import AutoConfig, Trainer, TrainingArguments, VoxtralRealtimeConfig, VoxtralRealtimeForConditionalGeneration

from evoxtral_train.config.sections import Model, Tracking
from evoxtral_train.config.training import Lora, Train
from evoxtral_train.dataset.reader import Example
from evoxtral_train.decoding.decoder import Decoding, Request, decode, requests_of
from evoxtral_train.decoding.sampling import Sampling
from evoxtral_train.families.base import ClipSize, Layout, Network
from evoxtral_train.families.realtime.clock import Clock
from evoxtral_train.families.realtime.layouts import LAYOUTS
from evoxtral_train.families.realtime.model import CachedAudioVoxtralRealtimeForConditionalGeneration, network_of
from evoxtral_train.modeling.adapters import add_lora
from evoxtral_train.modeling.audio_cache import open_cache
from evoxtral_train.tracking import Tracker
from evoxtral_train.training.dataset import TrainingSet
from evoxtral_train.training.trainer import train_network
from evoxtral_train.units import FRAMES_PER_TOKEN, MEL_BINS, PREPAD_SAMPLES, SAMPLE_RATE_HZ

# The ids and lengths of the published processor at 480 ms of delay.
CLOCK = Clock(
    bos_id=1, eos_id=2, pad_id=11, streaming_pad_id=32, streaming_word_id=33, left_pad_tokens=32, delay_tokens=6,
    right_pad_tokens=17,
)  # fmt: skip
LORA, ROOM_TOKENS, NEW_TOKENS, CANDIDATES, TARGET_TOKENS = Lora(), 65, 64, 4, 10
SHARPNESS = 4.0
"""Random weights give a nearly flat distribution. Scaling the last norm by this makes it about as peaked as a
trained model's."""


@dataclass
class RandomSplit:
    """A packed split of meaningless clips of 5 to 15 s: random mel, random targets of 10 tokens."""

    layout: Layout
    clips: int
    folder: Path
    split: str = "train"
    fingerprint: str = "random"
    examples: list[Example] = field(default_factory=list)

    def __post_init__(self):
        random = np.random.default_rng(0)
        for index in range(self.clips):
            samples = int(random.uniform(5, 15) * SAMPLE_RATE_HZ)
            clip = self.layout.measure(samples, PREPAD_SAMPLES)
            target = random.integers(1000, 2000, TARGET_TOKENS).tolist()
            self.examples.append(Example(f"clip-{index}", "", None, None, "", target, clip.utterance_tokens, clip.row_tokens, []))
        self.utterance_tokens = [example.utterance_tokens for example in self.examples]
        self.row_tokens = [example.row_tokens for example in self.examples]
        self.target_tokens = [TARGET_TOKENS] * self.clips
        self.index_of = {example.id: index for index, example in enumerate(self.examples)}
        self._mel = random.standard_normal((MEL_BINS, 4000), dtype=np.float32)

    def __len__(self) -> int:
        return self.clips

    def clip(self, index: int) -> ClipSize:
        return ClipSize(self.utterance_tokens[index], self.row_tokens[index])

    def mel_of(self, index: int, tokens: int) -> np.ndarray:
        return np.roll(self._mel, index, axis=1)[:, : tokens * FRAMES_PER_TOKEN]


class Bench:
    """Measurements of one model shape, layout and device."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.device, self.layout = torch.device(arguments.device), LAYOUTS[arguments.layout](CLOCK, ROOM_TOKENS)
        self.config = AutoConfig.from_pretrained(arguments.model) if arguments.model else VoxtralRealtimeConfig()
        self.results: dict[str, dict] = {}

    def network(self, kind: type) -> Network:
        """With a fresh adapter."""
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        with self.device:
            model = kind(self.config)
        torch.set_default_dtype(torch.float32)
        model.model.language_model.norm.weight.data *= SHARPNESS
        return add_lora(network_of(model.requires_grad_(False).eval(), CLOCK), LORA, Model(base="random"))

    def measure(self, name: str, work: Callable[[], object], scaled_by: float = 1.0) -> None:
        """Seconds and peak memory of `work`; `scaled_by`: the full workload divided by `work`."""
        seconds, peak = peak_gb_of(work)
        self.results[name] = {"seconds": seconds * scaled_by, "measured_s": seconds, "scaled_by": scaled_by, "peak_gb": peak}
        scaled = f" ({seconds:.1f} s measured × {scaled_by:.3g})" if scaled_by != 1 else ""
        print(f"| {name} | {seconds * scaled_by:.1f} s{scaled} | {peak:.2f} GB |", flush=True)

    def generation(self, folder: Path) -> None:
        split = RandomSplit(self.layout, self.arguments.clips, folder / "generation")
        requests = list(requests_of(split))
        self._our_generation(split, requests)
        by_length = sorted(requests, key=lambda request: request.end)
        few = by_length[:: max(1, len(requests) // self.arguments.plain_clips)][: self.arguments.plain_clips]
        self._plain_generation(split, few)

    def _our_generation(self, split: RandomSplit, requests: list[Request]) -> None:
        network = self.network(CachedAudioVoxtralRealtimeForConditionalGeneration)
        network.model.eval()
        decoding = Decoding(CANDIDATES, Sampling(0.7, 0.9, 0, 0), NEW_TOKENS, self.arguments.batch_tokens, self.arguments.compile)
        cache = []

        def encode():
            cache.append(open_cache(network, self.device, "random", split))

        def generate():
            completions = [row for batch in decode(network, cache[0], requests, decoding) for row in batch]
            assert len(completions) == len(split) * CANDIDATES

        network.place_language_model(torch.device("cpu"))
        self.measure(f"encode the audio of {len(split)} clips once", encode)
        network.place_language_model(self.device)
        self.measure(f"generate {len(split)} × {CANDIDATES} candidates", generate)

    def _plain_generation(self, split: RandomSplit, requests: list[Request]) -> None:
        plain = self.network(VoxtralRealtimeForConditionalGeneration).model.eval()

        @torch.inference_mode()
        def loop():
            for request in requests:
                mel = torch.from_numpy(split.mel_of(request.index, request.end))[None].to(self.device, torch.bfloat16)
                plain.generate(
                    input_ids=torch.tensor([request.prompt], device=self.device), input_features=mel,
                    num_delay_tokens=CLOCK.delay_tokens, do_sample=True, temperature=0.7, top_p=0.9, top_k=0,
                    num_return_sequences=CANDIDATES, max_new_tokens=NEW_TOKENS,
                )  # fmt: skip

        self.measure("the same by a plain `generate` loop", loop, scaled_by=len(split) / len(requests))

    def training(self, folder: Path) -> None:
        for batch, accumulation in self.arguments.batches:
            split = RandomSplit(self.layout, 16 * self.arguments.steps, folder / f"training-{batch}")
            network = self.network(CachedAudioVoxtralRealtimeForConditionalGeneration)
            network.checkpoint_language_model()
            cache = open_cache(network, self.device, "random", split)
            network.drop_audio_path()
            rows = TrainingSet(split, cache=cache)
            settings = Train(
                epochs=1, batch_size=batch, gradient_accumulation=accumulation, learning_rate=5e-5, evaluate_every_steps=1000
            )
            tracker = Tracker(Tracking(mode="disabled"), "benchmark", folder, Tracking())

            def train(network=network, rows=rows, settings=settings, batch=batch, tracker=tracker):
                train_network(network, rows, None, settings, "bfloat16", folder / f"checkpoints-{batch}", False, tracker)

            self.measure(f"train {self.arguments.steps} steps of {batch} × {accumulation}, cached audio, checkpointing", train)
            del network, train
        split = RandomSplit(self.layout, 16 * self.arguments.plain_steps, folder / "plain")
        plain = self.network(VoxtralRealtimeForConditionalGeneration)
        arguments = TrainingArguments(
            output_dir=str(folder / "plain"), per_device_train_batch_size=2, gradient_accumulation_steps=8, num_train_epochs=1,
            learning_rate=5e-5, bf16=True, remove_unused_columns=False, save_strategy="no", report_to=[], disable_tqdm=True,
            use_cpu=self.device.type == "cpu",
        )  # fmt: skip
        trainer = Trainer(
            model=plain.model.train(), args=arguments, train_dataset=TrainingSet(split), data_collator=plain.collate
        )
        self.measure(
            "the same by the plain Trainer on the stock class, 2 × 8",
            trainer.train,
            self.arguments.steps / self.arguments.plain_steps,
        )


def _batch(text: str) -> tuple[int, int]:
    """ "2x8" -> (2, 8)."""
    rows, accumulation = text.split("x")
    return int(rows), int(accumulation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layout", choices=["packed", "deferred"], default="packed", help="packed: the published recipe")
    parser.add_argument("--only", choices=["generation", "training"])
    parser.add_argument("--clips", type=int, default=808)
    parser.add_argument("--plain-clips", type=int, default=8)
    parser.add_argument("--steps", type=int, default=46)
    parser.add_argument("--batches", type=_batch, nargs="+", default=[(2, 8), (16, 1)], help="batch size × gradient accumulation")
    parser.add_argument("--plain-steps", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=65_536)
    parser.add_argument("--compile", action="store_true", help="torch.compile the decoding step")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", help="folder with a config.json of another size, to try out the script")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks/full_size.py needs a CUDA GPU; nothing was measured")
    warnings.filterwarnings("ignore", module="peft")  # it warns that the base has no config
    bench = Bench(arguments)
    with torch.device("meta"):
        parameters = VoxtralRealtimeForConditionalGeneration(bench.config).num_parameters()
    print(f"{parameters:,} parameters, random weights, bfloat16, layout {arguments.layout}: {machine()}\n")
    print("| what | time | peak memory |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("generation", "training"):
            if arguments.only in (None, name):
                getattr(bench, name)(Path(folder))
    if arguments.json:
        content = {"machine": machine(), "parameters": parameters, "layout": arguments.layout, "results": bench.results}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
