"""What each profile asks of the machine it runs on: one table for TorchX apps and Kubeflow tasks, and how it fits other machines."""

from dataclasses import dataclass

from rglcd.stages.table import Profile

ACCELERATOR = "nvidia.com/gpu"
"""The name under which NVIDIA's device plugin offers GPUs, and the key of the taint that keeps other pods off their nodes."""


@dataclass(frozen=True)
class Resources:
    """One node's share: CPU cores, memory and disk in GiB, and GPUs, each driven by a process of its own.

    ``shared_memory_gib`` is the part of the memory that ``/dev/shm`` may take: the 64 MiB that containers get break NCCL.
    """

    cpus: int
    memory_gib: int
    gpus: int
    shared_memory_gib: int
    disk_gib: int


@dataclass(frozen=True)
class Pool:
    """The nodes of a cluster that have GPUs, and how much of one a job may take.

    ``gpus`` of each node train together, by the name ``gpu_resource`` (``nvidia.com/mig-3g.40gb``: slices of them); 0 on nodes without
    one. CPU cores, memory and disk in GiB are what training takes of a node, and the most that any other stage takes; ``None``
    is a share in proportion to the GPUs, of a node with eight.
    """

    gpus: int = 8
    gpu_resource: str = ACCELERATOR
    cpus: int | None = None
    memory_gib: int | None = None
    disk_gib: int | None = None


def resources_of(profile: Profile, pool: Pool) -> Resources:
    """What a stage of ``profile`` asks for on nodes of ``pool``."""
    usual = RESOURCES[profile]
    if profile in (Profile.CPU, Profile.GPU):
        share, gpus = 1.0, min(usual.gpus, pool.gpus)
    else:
        share, gpus = max(1, pool.gpus) / usual.gpus, pool.gpus

    def amount(whole: int, given: int | None) -> int:
        own = max(1, round(whole * share))
        if given is None:
            return own
        return min(own, given) if profile in (Profile.CPU, Profile.GPU) else given

    memory = amount(usual.memory_gib, pool.memory_gib)
    shared = min(max(1, round(usual.shared_memory_gib * share)), max(1, memory // 4))
    return Resources(amount(usual.cpus, pool.cpus), memory, gpus, shared, amount(usual.disk_gib, pool.disk_gib))


RESOURCES = {
    Profile.CPU: Resources(cpus=4, memory_gib=16, gpus=0, shared_memory_gib=1, disk_gib=50),
    Profile.GPU: Resources(cpus=8, memory_gib=64, gpus=1, shared_memory_gib=8, disk_gib=100),
    Profile.GPU_NODE: Resources(cpus=64, memory_gib=512, gpus=8, shared_memory_gib=64, disk_gib=400),
    Profile.GPU_GANG: Resources(cpus=64, memory_gib=512, gpus=8, shared_memory_gib=64, disk_gib=400),
}
