"""RAFT generation on a tiny base of either family: our decoder against stock `generate`, one clip at a time.

Same clips, adapter and sampling; both run alternately in one process. Also: do the candidates depend on batch or
order, and how does the time grow with clips, N and clip length?

    python benchmarks/generation.py [--dataset runs/demo/packed] [--adapter runs/demo/sft] [--clips 64] [--rounds 5]
    python benchmarks/generation.py --base data/tiny-offline-base --dataset runs/demo-offline/packed \
        --adapter runs/demo-offline/sft
"""

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch
import transformers
from measuring import in_turn, machine, ratio, seconds_of
from peft import PeftModel

from evoxtral_train.config.sections import Model
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.decoding.decoder import Decoding, Request, decode, requests_of
from evoxtral_train.decoding.sampling import Sampling
from evoxtral_train.families.offline.model import chunked
from evoxtral_train.modeling.adapters import find_adapter, load_adapter
from evoxtral_train.modeling.audio_cache import open_cache
from evoxtral_train.modeling.bases import open_base

SAMPLING = Sampling(temperature=0.7, top_p=0.9, top_k=0, seed=0)
NEW_TOKENS = 64


class Bench:
    """Both ways of decoding the clips of one packed split."""

    def __init__(self, dataset: Path, adapter: Path, base: str, dtype: str):
        self.split = PackedSplit(dataset, "train")
        self.base = open_base(Model(base=base))
        self.requests = list(requests_of(self.split))
        self.ours = load_adapter(self.base.family.load(dtype), find_adapter(adapter))
        self.audio = open_cache(self.ours, torch.device("cpu"), self.base.fingerprint, self.split)
        plain = getattr(transformers, self.base.family.stock_class).from_pretrained(base, dtype=getattr(torch, dtype))
        self.plain = PeftModel.from_pretrained(plain, find_adapter(adapter).folder).eval()

    def decode(self, requests: list[Request], candidates: int = 4, batch_tokens: int = 16_384) -> dict:
        decoding = Decoding(candidates, SAMPLING, NEW_TOKENS, batch_tokens)
        batches = decode(self.ours, self.audio, requests, decoding)
        return {(row.utterance_id, row.candidate_id): row.token_ids for batch in batches for row in batch}

    @torch.inference_mode()
    def generate(self, requests: list[Request], candidates: int = 4) -> None:
        """What a user would write without this toolkit, using the stock class's own caches."""
        for request in requests:
            self.plain.generate(
                input_ids=torch.tensor([request.prompt]), **self._stock_audio(request),
                do_sample=True, temperature=SAMPLING.temperature, top_p=SAMPLING.top_p, top_k=0,
                num_return_sequences=candidates, max_length=_end(request),
            )  # fmt: skip

    def _stock_audio(self, request: Request) -> dict:
        mel = torch.from_numpy(self.split.mel_of(request.index, request.end)).to(self.plain.dtype)
        if self.base.family.writes_while_listening:
            return {"input_features": mel[None], "num_delay_tokens": self.base.family.clock.delay_tokens}
        return {"input_features": chunked([mel])}

    def longest(self, requests: list[Request]) -> int:
        return max(map(_end, requests))


def _end(request: Request) -> int:
    """The longest that a row may be; `aligned`, which writes from the start, counts new tokens from the clip's end."""
    return min(request.end, request.room_start + NEW_TOKENS)


def same_candidates(bench: Bench, requests: list[Request]) -> None:
    width, expected = bench.longest(requests), bench.decode(requests)
    print(f"\nThe same {len(expected)} candidates, token for token?")
    settings = {f"{clips} clips at a time": (requests, clips * 4 * width) for clips in (1, 7, 32)}
    settings["in reverse order"] = (requests[::-1], 16_384)
    for name, (ordered, budget) in settings.items():
        decoded = bench.decode(ordered, batch_tokens=budget)
        different = sum(decoded[key] != tokens for key, tokens in expected.items())
        print(f"  {name:<20} {'identical' if not different else f'{different} differ'}")


def work_of(bench: Bench, requests: list[Request], seconds: float) -> str:
    """The cost of a layout: known positions, processed in one pass, and written positions."""
    prompt = statistics.mean(len(request.prompt) for request in requests)
    written = statistics.mean(1 + len(tokens) for tokens in bench.decode(requests).values())
    candidate_ms = 1000 * seconds / (4 * len(requests))
    return f"in one pass {prompt:.0f} tokens per clip, written {written:.1f} per candidate, {candidate_ms:.2f} ms per candidate"


def scaling(bench: Bench) -> None:
    """Prints milliseconds per candidate; a constant column means linear growth."""
    print("\n| varied | clips | N | mean prompt, tokens | mean written, tokens | seconds | ms per candidate |")
    print("|---|---|---|---|---|---|---|")
    by_length = sorted(bench.requests, key=lambda request: len(request.prompt))
    rows = [("clips", bench.requests[:clips], 4) for clips in (16, 64, 256, 1024)]
    rows += [("N", bench.requests[:64], candidates) for candidates in (1, 2, 4, 8, 16)]
    rows += [("length", by_length[start : start + 256], 4) for start in (0, len(by_length) // 3, len(by_length) - 256)]
    for what, requests, candidates in rows:
        seconds = min(seconds_of(partial(bench.decode, requests, candidates)) for _ in range(3))
        prompt = statistics.mean(len(request.prompt) for request in requests)
        written = statistics.mean(1 + len(tokens) for tokens in bench.decode(requests, candidates).values())
        candidate_ms = 1000 * seconds / (len(requests) * candidates)
        print(f"| {what} | {len(requests)} | {candidates} | {prompt:.0f} | {written:.1f} | {seconds:.2f} | {candidate_ms:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default=Path("runs/demo/packed"))
    parser.add_argument("--adapter", type=Path, default=Path("runs/demo/sft"))
    parser.add_argument("--base", default="data/tiny-base")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only-ratio", action="store_true", help="skip the checks of candidates and of growth")
    arguments = parser.parse_args()
    bench = Bench(arguments.dataset, arguments.adapter, arguments.base, arguments.dtype)
    requests = bench.requests[: arguments.clips]
    ways = {"generate": lambda: bench.generate(requests), "decoder": lambda: bench.decode(requests)}
    seconds = in_turn(ways, arguments.rounds)
    what = f"{len(requests)} clips × 4, {bench.split.layout.name}, {arguments.dtype}"
    print(f"RAFT generation, {arguments.base}, {what}: {machine()}")
    for name, times in seconds.items():
        print(f"  {name:<9} {statistics.median(times):.2f} s")
    print(f"  ratio     {ratio(*seconds.values())}")
    print(f"  {work_of(bench, requests, statistics.median(seconds['decoder']))}")
    if not arguments.only_ratio:
        same_candidates(bench, requests)
        scaling(bench)


if __name__ == "__main__":
    main()
