"""Before the expensive part: is the machine what the job was promised? Run by every rank, in seconds."""

import json
import shutil
import time
import uuid
from pathlib import Path

from rglcd.errors import UNAVAILABLE
from rglcd.launch.failure import JobError
from rglcd.store.artifacts import ArtifactLocation
from rglcd.store.object_store import write_object

EXIT_CODE = UNAVAILABLE
"""This machine, not the input, is at fault; another attempt may land elsewhere."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (the pod's own)
_MEGABYTES = 16
_SLOWEST_GIB_PER_SECOND = 0.005
"""Below this, an all-reduce of a gigabyte takes minutes: some link is not what it should be."""


def preflight(expected: str, *, output: ArtifactLocation) -> dict[str, float]:
    """Check what ``expected`` (JSON: ``gpus``, ``shared_memory_gib``) promises; return what was measured.

    GPUs are counted, this rank's is computed on, ``/dev/shm`` is measured, the folder and the object store that ``output`` goes to are
    written to and read back, and where there are peers, they reduce some megabytes together. Raises :class:`JobError` with exit code 69
    that says what is missing or fails; for an object store :class:`InputError` when it refuses, :class:`TryAgain` when it does not answer.
    """
    promised = json.loads(expected)
    found = {"gpus": _check_devices(promised["gpus"]), "shared_memory_gib": _check_shared_memory(promised["shared_memory_gib"])}
    _check_folder(output.folder.parent)
    if output.uri is not None:  # every rank writes the same bytes to the same object, so they cannot disturb one another
        write_object(f"{output.uri}/.preflight", b"written to see whether it can be")
    return found | _check_peers()


def _refuse(message: str) -> JobError:
    return JobError(f"preflight: {message}", exit_code=EXIT_CODE)


def _check_devices(gpus: int) -> int:
    import torch

    from rglcd.training.distributed import local_rank

    found = torch.cuda.device_count()
    if found < gpus:
        raise _refuse(f"{gpus} GPUs were promised, {found} are here")
    if gpus:
        # This rank's own and no other: a context takes a third of a GiB of a card for as long as its process lives.
        index = local_rank()
        try:
            computes = bool(torch.ones(64, 64, device=f"cuda:{index}").sum() == 64 * 64)
        except RuntimeError as error:  # CUDA's: a driver that is too old, no kernel for this card, a card that broke or is another's
            raise _refuse(f"GPU {index} computes nothing: {_first_line(error)}") from None
        if not computes:
            raise _refuse(f"GPU {index} computes wrongly")
    return found


def _check_shared_memory(gib: int) -> float:
    found = shutil.disk_usage(SHARED_MEMORY).total / 2**30
    if found < 0.95 * gib:
        raise _refuse(f"{SHARED_MEMORY} holds {found:.2f} GiB, {gib} were promised: mount an emptyDir of medium Memory there")
    return found


def _check_folder(folder: Path) -> None:
    probe = folder / f".preflight-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(probe.name.encode())
        is_same = probe.read_bytes() == probe.name.encode()
        probe.unlink()
    except OSError as error:
        raise _refuse(f"{folder} cannot be written to: {error}") from None
    if not is_same:
        raise _refuse(f"{folder} does not give back what is written to it")


def _check_peers() -> dict[str, float]:
    """An all-reduce among the ranks that torchrun started; nothing in a process alone."""
    import torch.distributed as dist

    if not dist.is_torchelastic_launched():
        return {}
    try:
        total, size, speed = _reduced()
    except RuntimeError as error:  # gloo's, NCCL's, or that of the store where ranks meet
        raise _refuse(f"the ranks cannot reduce together: {_first_line(error)}") from None
    if total != size:
        raise _refuse(f"the ranks' sum is {total}, not {size}")
    if size > 1 and speed < _SLOWEST_GIB_PER_SECOND:
        raise _refuse(f"an all-reduce moves {speed:.4f} GiB/s, less than {_SLOWEST_GIB_PER_SECOND}")
    return {"all_reduce_gib_per_second": speed}


def _reduced() -> tuple[float, int, float]:
    """The sum of ones, the number of ranks, and GiB a second; on a store prefix of its own, for the stage makes its group afterwards."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from rglcd.training.distributed import collective_timeout, local_rank

    on_gpu = torch.cuda.is_available()
    store, rank, size = next(rendezvous("env://"))
    device = torch.device("cuda", local_rank()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    settings = {"store": PrefixStore("preflight", store), "rank": rank, "world_size": size, "timeout": collective_timeout()}
    dist.init_process_group("nccl" if on_gpu else "gloo", **settings)
    try:
        payload = torch.ones(_MEGABYTES * 2**18, device=device)
        dist.all_reduce(payload[:1].clone())  # the first opens the connections
        started = time.perf_counter()
        dist.all_reduce(payload)
        total = float(payload[-1])  # reading it waits for the device
        speed = _MEGABYTES / 2**10 / (time.perf_counter() - started)
    finally:
        dist.destroy_process_group()
    return total, size, speed


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
