"""evoxtral, with FSDP on the CPU. accelerate shards on GPUs alone, so here it takes two CPU processes for two GPUs.

    accelerate launch --config_file fsdp.yaml tests/fsdp_on_cpu.py sft configs/sft.yaml …
"""

import os

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

torch.distributed.init_process_group("gloo")
PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)

if __name__ == "__main__":
    from evoxtral_train.cli.main import app

    app()
