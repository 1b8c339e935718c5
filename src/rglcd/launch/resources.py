"""What each profile asks of the machine it runs on: one table for TorchX apps and Kubeflow tasks."""

from dataclasses import dataclass

from rglcd.stages.table import Profile


@dataclass(frozen=True)
class Resources:
    """One node's share: CPU cores, memory in GiB, and GPUs, each driven by a process of its own."""

    cpus: int
    memory_gib: int
    gpus: int


RESOURCES = {
    Profile.CPU: Resources(cpus=4, memory_gib=16, gpus=0),
    Profile.GPU: Resources(cpus=8, memory_gib=64, gpus=1),
    Profile.A100_NODE: Resources(cpus=64, memory_gib=512, gpus=8),
    Profile.A100_GANG: Resources(cpus=64, memory_gib=512, gpus=8),
}
