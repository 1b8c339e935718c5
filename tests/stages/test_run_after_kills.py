"""A stage that is killed at any moment, and what the same command makes of what it left."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from rglcd import progress
from rglcd.stages.run import assist_stage, run_part
from rglcd.store.manifest import MANIFEST, read_manifest
from rglcd.store.places import Places
from tests.stages.artifact_folders import SHARDING, hidden, results, shard, staging_of
from tests.tiny_line import run, tiny_config


def run_until_killed(root: Path, stage: str, *, events: int) -> int:
    """Run ``stage`` in a process of its own, SIGKILL it at its so many-th report, and return its exit code."""
    reports, at_child = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        def say(event: progress.Event) -> None:
            at_child.send(event.done)
            # Held here until the kill comes: where it comes is then no matter of luck.
            if len(seen := [*said, event.done]) == events:
                signal.pause()
            said[:] = seen

        said: list[int] = []
        with progress.reporting_to(say):
            run(root, tiny_config(), stage)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    at_child.close()
    for _ in range(events):
        reports.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode or 0


@pytest.mark.parametrize(("stage", "output", "moments"), [("shard", "shards", (1, 3, 5)), ("cache", "latents", (2, 4, 5))])
def test_a_stage_killed_again_and_again_ends_byte_identical(
    line: Path, own: Path, stage: str, output: str, moments: tuple[int, ...]
) -> None:
    shutil.rmtree(own / output)
    for events in moments:
        assert run_until_killed(own, stage, events=events) == -signal.SIGKILL
        assert not (own / output).exists()
        assert len(list(own.glob(f".work/{output}-*/"))) == 1
    outcome = run(own, tiny_config(), stage)
    assert not outcome.was_done
    assert outcome.manifest.digest == read_manifest(line / output, made_by=stage).digest
    assert results(own / output) == results(line / output)
    assert hidden(own) == []


@pytest.mark.parametrize("before", ["an older one stood", "nothing stood"])
def test_a_finished_staging_folder_is_published_without_running_again(line: Path, own: Path, before: str) -> None:
    """Whole and with its manifest, but still in its staging folder."""
    staging = staging_of(own)
    (own / "shards").rename(staging)
    if before == "an older one stood":
        shard(own, SHARDING.model_copy(update={"samples_per_shard": 12}))
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(line / "shards", staging)
    made = (staging / "00000.tar").stat().st_mtime_ns
    outcome = shard(own)
    assert outcome.was_done
    assert outcome.manifest.digest == read_manifest(line / "shards", made_by="shard").digest
    assert (own / "shards" / "00000.tar").stat().st_mtime_ns == made
    assert results(own / "shards") == results(line / "shards")
    assert hidden(own) == []


def test_a_kill_between_the_two_renames_is_recovered(line: Path, own: Path) -> None:
    (own / "shards").rename(staging_of(own))
    shutil.copytree(line / "shards", own / ".kept" / "shards-0123456789ab")
    assert shard(own).was_done
    assert results(own / "shards") == results(line / "shards")
    assert hidden(own) == []


def test_a_half_written_manifest_is_no_part_of_the_artifact(line: Path, own: Path) -> None:
    staging = staging_of(own)
    (own / "shards").rename(staging)
    (staging / MANIFEST).rename(staging / ".manifest.json.4711.staging")
    assert not shard(own).was_done
    assert results(own / "shards") == results(line / "shards")


def test_checkpoints_of_a_finished_arm_are_not_published(own: Path) -> None:
    """The arm stands, the checkpoints that it no longer needs stand too: the student must not differ for it."""
    run(own, tiny_config(), "pretrain")
    whole = run(own, tiny_config(), "distill")
    expected = results(own / "student")
    staging = Places(own / "student").work(whole.manifest.key)
    staging.parent.mkdir(exist_ok=True)
    (own / "student").rename(staging)
    (staging / MANIFEST).unlink()
    left = staging / f".lcm-{whole.manifest.facts['arms']['lcm']['key'][:12]}.checkpoints" / "step-00000004"
    left.mkdir(parents=True)
    (left / "COMMIT").write_text("{}")
    again = run(own, tiny_config(), "distill")
    assert not again.was_done
    assert results(own / "student") == expected
    assert again.manifest.digest == whole.manifest.digest


def test_an_arm_with_cut_weights_is_trained_again(own: Path) -> None:
    run(own, tiny_config(), "pretrain")
    run(own, tiny_config(), "distill")
    expected = results(own / "student")
    weights = own / "student" / "lcm" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert not run(own, tiny_config(), "distill").was_done
    assert results(own / "student") == expected


def test_unfinished_work_of_other_keys_stays(own: Path) -> None:
    """A live run's, it may be: f6cd0d2 removed it, ranks and workers too, and with it the run's checkpoints."""
    others = [own / ".work" / f"{name}-0123456789ab" for name in ("shards", "latents")]
    for folder in others:
        folder.mkdir(parents=True)
        (folder / "00000.tar").write_bytes(b"half")
    another = SHARDING.model_copy(update={"samples_per_shard": 4})
    assist_stage("shard", {"sharding": another}, {"source": own / "data", "shards": own / "shards"})
    run_part("shard", {"sharding": another}, {"source": own / "data", "shards": own / "shards"}, index=0)
    shard(own, another)
    assert [(folder / "00000.tar").read_bytes() for folder in others] == [b"half"] * 2
