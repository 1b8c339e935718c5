"""What ``rglcd plan`` says of the benchmark's step, to stand beside what a GPU measured."""

from benchmarks.step_bench import Bench
from rglcd.config import load_preset
from rglcd.planning.networks import Networks, num_bytes
from rglcd.planning.training import training_cost


def planned_mib(bench: Bench, mode: str) -> float | None:
    """What ``rglcd plan`` says that an eager step takes at its peak, and what the benchmark has on the card beside it.

    None for what no preset has: the toy's networks, and a run in float32.
    """
    setting = bench.setting
    if setting.model != "sd21" or setting.precision != "bfloat16" or setting.execution != "eager":
        return None
    rewards = {"plain": ["reward={kind: none}"], "pixel": ["reward={kind: pixel, precision: bfloat16}"], "latent": []}
    chunk = [] if mode == "plain" else [f"reward.chunk_size={setting.chunk_size}"]
    sizes = [f"{section}.resolution={setting.resolution}" for section in ("model", "sharding")]
    batch = [f"distillation.batch_size={setting.batch_size}", "distillation.micro_batch=null"]
    arm = [f"distillation.arms=[{'lcm' if mode == 'plain' else 'rg'}]", "monitoring={kind: none}"]
    networks = Networks(load_preset("sd21-paper-lrm", overrides=[*rewards[mode], *chunk, *sizes, *batch, *arm]))
    # What the mode does not use; and a plain run has its VAE in float32.
    idle = 0 if mode == "latent" else num_bytes(bench.lrm)
    idle += num_bytes(bench.expert.model) - num_bytes(bench.codec.vae) if mode == "plain" else 0
    return round((training_cost(networks, count=1).memory.bytes_at(setting.batch_size) + idle) / 2**20, 1)
