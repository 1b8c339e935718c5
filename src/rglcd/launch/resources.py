"""What each profile asks of the machine it runs on: one table for TorchX apps and Kubeflow tasks."""

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


RESOURCES = {
    Profile.CPU: Resources(cpus=4, memory_gib=16, gpus=0, shared_memory_gib=1, disk_gib=50),
    Profile.GPU: Resources(cpus=8, memory_gib=64, gpus=1, shared_memory_gib=8, disk_gib=100),
    Profile.GPU_NODE: Resources(cpus=64, memory_gib=512, gpus=8, shared_memory_gib=64, disk_gib=400),
    Profile.GPU_GANG: Resources(cpus=64, memory_gib=512, gpus=8, shared_memory_gib=64, disk_gib=400),
}
