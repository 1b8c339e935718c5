"""The plan of a run: what fits, what would, what is refused and how it is printed."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rglcd.cli import main
from rglcd.config import Hardware, dump, load_preset, preset_hardware, preset_names
from rglcd.errors import InputError
from rglcd.planning import check
from rglcd.planning.check import Nodes, refuse_what_cannot_fit
from rglcd.planning.costs import Line
from rglcd.planning.gpus import GPUS, gpu_named, gpu_of_device, gpu_of_label
from rglcd.planning.memory import TO_SPARE, Moment, Part, StageMemory, largest
from rglcd.planning.networks import Networks
from rglcd.planning.plan import Plan, StagePlan, plan, require_fit
from rglcd.planning.training import training_cost
from tests.tiny_flows import write_tiny_lumina2

SIZED = sorted(set(preset_names()) - {"micro", "toy"})


# SDXL, and transformers beside T5-XXL, take a quarter of a minute and more to count.
LARGE = {"sdxl", "sdxl-lora", "sd35-medium", "sd35-medium-lora", "sd3-medium", "pixart-sigma", "sana-1600m", "flux-dev-lora"}
PLANNED = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in SIZED]


@pytest.fixture(scope="module", params=PLANNED)
def planned(request: pytest.FixtureRequest) -> Plan:
    hardware = preset_hardware(request.param)
    assert hardware is not None
    return plan(load_preset(request.param), gpu_named(hardware.gpu), hardware.count)


def test_every_preset_fits_what_it_names_with_enough_to_spare(planned: Plan) -> None:
    tight = {stage.memory.stage for stage in planned.stages if stage.spare < TO_SPARE}
    assert not tight


def test_largest_number_of_samples_fits_and_one_more_does_not(planned: Plan) -> None:
    for stage in planned.stages:
        room = (1 - TO_SPARE) * planned.gpu.usable_gib * 2**30
        assert stage.memory.bytes_at(stage.largest) <= room
        if stage.memory.stage == "training":
            assert stage.memory.whole % stage.largest == 0
        else:
            assert stage.memory.bytes_at(stage.largest + 1) > room


def test_a_plan_says_hours_and_parts(planned: Plan) -> None:
    assert 0 < planned.hours.training < 100
    assert 0 < planned.hours.evaluation < 100
    training = planned.stages[0].memory
    assert {"teacher, bfloat16", "student's activations"} <= {part.name for part in training.parts(training.samples)}
    stored = "read from the cache; there they take at most" if planned.preset in ("pixart-sigma", "sana-1600m") else "encoded in each step"
    assert any(note.startswith(f"captions are {stored}") for note in training.notes)


# --- without counting ----------------------------------------------------------------------------


def memory(*, samples: int = 8, each: float = 2.0**30) -> StageMemory:
    moments = (Moment("little", (Part("a", Line(2.0**30)),)), Moment("much", (Part("b", Line(0.0, each)),)))
    gradients = Part("gradients", Line(2.0**31))
    return StageMemory(
        "training", samples, "n", (Part("weights", Line(2.0**30)),), moments, 8, (gradients,), (Moment("update", (gradients,)),)
    )


def test_fullest_moment_depends_on_the_number_of_samples() -> None:
    small = memory(each=2.0**27)
    assert [small.fullest(samples).name for samples in (1, 7, 8)] == ["little", "little", "update"]
    assert memory().fullest(4).name == "much"


def test_gradients_last_from_one_micro_batch_to_the_next() -> None:
    assert memory().bytes_at(8) == (1 + 8) * 2**30
    assert memory().bytes_at(7) == (1 + 2 + 7) * 2**30


def test_all_samples_at_once_may_fit_where_fewer_do_not() -> None:
    gradients = Part("gradients added up", Line(16 * 2.0**30))
    whole = (Part("weights", Line(2.0**32)),), (Moment("backward", (Part("activations", Line(0.0, 2.0**29)),)),)
    stage = StagePlan.of(StageMemory("training", 8, "n", *whole, 8, (gradients,)), gpu_named("l4"))
    assert (stage.fits, stage.gib, stage.largest) == (True, 8, 8)
    assert stage.smallest_gpu_for_one == gpu_named("rtx-3090")


def test_largest_is_zero_where_nothing_fits() -> None:
    assert largest(lambda samples: samples <= 5, most=9) == 5
    assert largest(lambda _: True, most=9) == 9
    assert largest(lambda _: False, most=9) == 0


def test_gpus_are_ordered_by_memory_and_have_sources() -> None:
    assert [gpu.usable_gib for gpu in GPUS] == sorted(gpu.usable_gib for gpu in GPUS)
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
    assert all(gpu.source.startswith("https://") for gpu in GPUS)


def test_a_node_label_names_a_known_gpu_or_none() -> None:
    assert gpu_of_label("nvidia.com/gpu.product=NVIDIA-H200") == gpu_named("h200")
    assert gpu_of_label("nvidia.com/gpu.family=ampere") is None
    assert gpu_of_device("NVIDIA H200") == gpu_named("h200")
    assert gpu_of_device("NVIDIA A100-SXM4-80GB") == gpu_named("a100-80gb")
    assert gpu_of_device("NVIDIA T4") is None


def test_unknown_gpu_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"unknown GPU 'a101'; known are: l4, "):
        gpu_named("a101")


@pytest.mark.parametrize("name", SIZED)
def test_hardware_is_no_part_of_the_configuration(name: str) -> None:
    assert preset_hardware(name) == Hardware(gpu="a100-80gb", count=8)
    assert "runs_on" not in load_preset(name).model_dump()


@pytest.mark.parametrize("name", ["toy", "micro", "no such preset"])
def test_presets_for_a_cpu_name_no_gpu(name: str) -> None:
    assert preset_hardware(name) is None


# --- before a queue, and from the command line ---------------------------------------------------

SMALL = ["distillation.batch_size=32", "distillation.micro_batch=null", "reward={kind: none}", "distillation.arms=[lcm]"]


def test_what_cannot_fit_is_refused_before_submission() -> None:
    config = load_preset("sd15", overrides=SMALL)
    label = "nvidia.com/gpu.product=NVIDIA-L4"
    with pytest.raises(
        InputError, match=r"training takes .* GiB and l4 has 22 GiB: not even one .* fits with 8% to spare; so would a100-40gb as it is"
    ):
        refuse_what_cannot_fit(config, Nodes(label, 8), stage="distill")
    refuse_what_cannot_fit(config, Nodes(label, 8), stage="shard")


def test_micro_batches_that_the_gpus_cannot_share_are_refused_before_submission() -> None:
    config = load_preset("sd15", overrides=["reward={kind: none}", "distillation.arms=[lcm]", "distillation.micro_batch=8"])
    label = "nvidia.com/gpu.product=NVIDIA-H200"
    with pytest.raises(InputError, match=r"micro_batch 8 does not divide the 12 samples of each of 8 GPUs: choose a divisor of 12"):
        refuse_what_cannot_fit(config, Nodes(label, 8), stage="distill")


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (
            "{kind: pixel, prediction: {kind: shared, every: 8}}",
            r"reward\.prediction\.every 8 does not divide the 12 samples of each of 8 GPUs",
        ),
        (
            "{kind: latent, tuning: {kind: online, label_every: 32}}",
            r"reward\.tuning\.label_every 32 does not divide the 12 samples of each",
        ),
    ],
)
def test_rewarded_or_labelled_samples_that_the_gpus_cannot_share_are_refused_before_submission(reward: str, said: str) -> None:
    config = load_preset("sd15", overrides=[f"reward={reward}", "distillation.arms=[rg]", "distillation.micro_batch=null"])
    with pytest.raises(InputError, match=said):
        refuse_what_cannot_fit(config, Nodes("nvidia.com/gpu.product=NVIDIA-H200", 8), stage="distill")


def test_memory_is_said_not_to_be_checked_where_torch_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    refuse_what_cannot_fit(load_preset("sdxl-lora"), Nodes("a=b"))
    assert "memory is not checked here, for torch is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("uri", ["s3://models/my-own-teacher", "/store/models/my-own-teacher"])
def test_a_teacher_of_ones_own_is_not_refused_because_its_shapes_are_unknown(capsys: pytest.CaptureFixture[str], uri: str) -> None:
    """The second lies on the claim, where docs/operations.md puts it: pods see it, this machine does not."""
    config = load_preset("sd15", overrides=[f"model.teacher={{uri: {uri}}}"])
    refuse_what_cannot_fit(config, Nodes("nvidia.com/gpu.family=ampere"))
    said = capsys.readouterr().err
    assert said.startswith(f"rglcd: memory is not checked: the shapes of {uri} are not known here")


def test_cpu_presets_are_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    refuse_what_cannot_fit(load_preset("micro"), Nodes("nvidia.com/gpu.product=NVIDIA-L4"))
    assert main(["plan", "--preset", "micro"]) == 0
    assert capsys.readouterr().out == "micro runs on a CPU: name a card to plan for, as in --gpu l4\n"


@pytest.mark.parametrize(("words", "ends_with"), [([], 2), (["--no-plan"], 0)])
def test_launch_refuses_what_cannot_fit_unless_told_not_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], ends_with: int
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise InputError("does not fit")

    monkeypatch.setattr(check, "refuse_what_cannot_fit", refuse)
    monkeypatch.setattr("rglcd.launch.cluster_job.launch", lambda *args, **kwargs: None)
    params = tmp_path / "params.yaml"
    params.write_text(dump(load_preset("sd21-paper")))
    command = ["launch", "distill", "--params", str(params), "--image", "rg-lcd@sha256:" + 64 * "1", *words]
    if ends_with == 0:
        assert main(command) == 0
        return
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == ends_with


def test_plan_verb_prints_json_and_exits_with_2_when_it_cannot_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for value in SMALL for word in ("--set", value)]
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--preset", "sd15", "--gpu", "rtx-3090", "--count", "8", "--json", *words])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    stages = json.loads(printed.out)["stages"]
    assert (stages["training"]["fits"], stages["training"]["smallest_gpu"]) == (False, "a100-40gb")
    assert len(printed.err.splitlines()) == 1


def test_a_teacher_of_unknown_shapes_is_read_from_what_prepare_made(tmp_path: Path) -> None:
    config = load_preset("sd15", overrides=["model.teacher.uri=some/teacher"])
    with pytest.raises(InputError, match="the shapes of some/teacher are not known here: run `rglcd run prepare`"):
        plan(config, gpu_named("h200"), 8)
    (tmp_path / "teacher").symlink_to(Path("toy/teacher").resolve())
    toy = load_preset("sd15", overrides=["model.teacher.uri=some/teacher", "model.resolution=64", "sharding.resolution=64"])
    require_fit(plan(toy, gpu_named("h200"), 8, pretrained=tmp_path))


def test_a_network_that_reads_its_mask_is_counted_with_captions_of_full_length(tmp_path: Path) -> None:
    write_tiny_lumina2(tmp_path / "teacher")
    overrides = [f"model.teacher={{uri: {tmp_path / 'teacher'}}}", "distillation.student={kind: same_inputs}"]
    training = plan(load_preset("micro", overrides=overrides), gpu_named("l4"), 1).stages[0].memory
    weights = sum(tensor.numel() for tensor in load_file(tmp_path / "teacher/transformer/diffusion_pytorch_model.safetensors").values())
    lasting = {part.name: part.line.fixed for part in training.lasting}
    assert (lasting["student, float32"], lasting["teacher, float32"]) == (4 * weights, 4 * weights)
    # 256 tokens of 8 values in float16.
    assert training.notes[-1].endswith("stored they take at most 0.0039 MiB a sample, for padding is left out")


@pytest.mark.slow
def test_lumina_image_is_planned_at_its_published_size() -> None:
    training = plan(load_preset("sd3-medium", overrides=["model.teacher.uri=Alpha-VLLM/Lumina-Image-2.0"]), gpu_named("h200"), 8).stages[0]
    lasting = {part.name: part.line.fixed for part in training.memory.lasting}
    # 2.61 billion parameters.
    assert lasting["student, float32"] == 4 * 2_609_769_152
    assert training.fits


@pytest.mark.slow
def test_what_rates_a_look_is_counted_where_a_look_takes_the_most() -> None:
    """Expert and judge in float32, both towers of each, beside what trains; and nothing of a batch, whose gradients are not there."""
    small = ["distillation.micro_batch=1", "reward.chunk_size=1", "distillation.activations=recomputed", "reward.activations=recomputed"]
    watched = Networks(load_preset("sd15", overrides=small))
    memory = training_cost(watched, count=1).memory
    parts = {part.name: part.line.fixed for part in memory.parts(1)}
    both_towers = 4 * 986_109_441
    for scorer in ("expert", "judge"):
        assert parts[f"scorer {scorer}, float32"] == pytest.approx(both_towers, rel=1e-4)
    assert memory.fullest(1).name == "a look, scorers"
    assert not any(name.startswith("gradients") for name in parts)
    unwatched = training_cost(Networks(load_preset("sd15", overrides=[*small, "monitoring={kind: none}"])), count=1).memory
    assert unwatched.bytes_at(1) + 2**30 < memory.bytes_at(1)
    assert unwatched.bytes_at(48) == memory.bytes_at(48), "of a larger batch the step takes more"
