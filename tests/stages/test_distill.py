"""Stage distill: arms, what is taken over, what is refused, and the folder that diffusers opens."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline

from rglcd.config import AnyReward, NoReward, load_preset
from rglcd.core.consistency import BoundaryScalings, consistency_output
from rglcd.core.sampling import lcm_timesteps, multistep_sample
from rglcd.errors import InputError
from rglcd.latents.cache import LatentCache
from rglcd.models.codec import Codec
from rglcd.models.student import Student
from rglcd.models.text import TextEncoder
from rglcd.rewards.protocol import Reward
from rglcd.stages.assembly import Materials, make_distiller
from rglcd.stages.distill import _arms
from rglcd.stages.pretrained import Pretrained
from rglcd.stages.step_cost import StepCosts
from rglcd.store.manifest import read_manifest, results_digest, scan, write_manifest
from rglcd.toy.corpus import write_corpus
from rglcd.training.distributed import World
from rglcd.training.operations import flops_of_step
from tests.tiny_line import run, tiny_config, up_to_latents
from tests.tiny_models import write_tiny_teacher

CPU = {"dtype": torch.float32, "device": torch.device("cpu")}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    up_to_latents(root, tiny_config())
    run(root, tiny_config(), "pretrain")
    run(root, tiny_config(), "distill")
    return root


@pytest.fixture
def own(line: Path, tmp_path: Path) -> Path:
    """A copy of the line to write in."""
    return Path(shutil.copytree(line, tmp_path / "line"))


def test_the_same_command_again_has_nothing_to_do(own: Path) -> None:
    assert run(own, tiny_config(), "distill").was_done


def test_distill_makes_the_same_bytes_from_the_same_inputs(own: Path) -> None:
    first = run(own, tiny_config(), "distill").manifest
    shutil.rmtree(own / "student")
    second = run(own, tiny_config(), "distill").manifest
    # Timings are rounded: two runs may have the same.
    assert {name for name in first.files if first.files[name] != second.files[name]} <= {"timings.json"}
    assert second.files.keys() == first.files.keys()
    assert second.digest == first.digest


def test_arms_of_other_names_are_the_students_that_their_own_sections_make(own: Path) -> None:
    one = run(own, tiny_config("reward.weight=3.0"), "distill").manifest.facts["arms"]
    named = "{lcm: {reward: {kind: none}}, rg: {}, strong: {reward.weight: 3.0}, short: {distillation.num_steps: 2}}"
    many = run(own, tiny_config(f"distillation.arms={named}"), "distill").manifest.facts["arms"]
    assert many["strong"] == one["rg"], "the computation is the same, whatever it is called"
    assert many["lcm"] == one["lcm"]
    assert (many["short"]["num_steps"], many["rg"]["num_steps"]) == (2, 4)
    record = json.loads((own / "student" / "strong" / "rglcd.json").read_text())
    assert record["config"]["reward"]["weight"] == 3.0
    assert sorted(path.parent.name for path in (own / "student").glob("*/model_index.json")) == sorted(many)


def test_a_new_reward_weight_retrains_the_rg_arm_and_reuses_the_lcm_arm(own: Path) -> None:
    plain = own / "student" / "lcm" / "unet" / "diffusion_pytorch_model.safetensors"
    before, written = run(own, tiny_config(), "distill").manifest, plain.read_bytes()
    after = run(own, tiny_config("reward.weight=3.0"), "distill").manifest
    arms = {name: manifest.facts["arms"] for name, manifest in (("before", before), ("after", after))}
    assert arms["after"]["lcm"] == arms["before"]["lcm"]
    assert arms["after"]["rg"]["key"] != arms["before"]["rg"]["key"]
    assert plain.read_bytes() == written
    changed = {name for name in before.files if before.files[name] != after.files[name]} - {"timings.json"}
    assert changed
    assert all(name.startswith("rg/") for name in changed)


def test_a_students_scheduler_has_the_boundary_scalings_that_it_was_trained_with(own: Path) -> None:
    # diffusers' scheduler knows one sigma_data.
    trained = BoundaryScalings(sigma_data=2.0, timestep_scaling=0.01)
    run(own, tiny_config("model.sigma_data=2.0", "model.timestep_scaling=0.01"), "distill")
    scheduler = LCMScheduler.from_pretrained(own / "student" / "rg" / "scheduler")
    for t in (19, 499, 999):
        ours = trained.at(torch.tensor([t]), torch.zeros(1, 4, 8, 8, dtype=torch.float64))
        assert [float(each) for each in ours] == pytest.approx(scheduler.get_scalings_for_boundary_condition_discrete(t), rel=1e-12)


def test_match_compute_gives_the_lcm_arm_the_steps_that_the_reward_costs(own: Path) -> None:
    arms = run(own, tiny_config(), "distill").manifest.facts["arms"]
    assert arms["rg"]["num_steps"] == 4
    assert arms["lcm"]["num_steps"] > 4
    unmatched = run(own, tiny_config("distillation.match_compute=false"), "distill").manifest.facts["arms"]
    assert unmatched["lcm"]["num_steps"] == 4


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", [LatentConsistencyModelPipeline, StableDiffusionPipeline])
def test_diffusers_opens_the_folder_and_draws_what_our_sampler_draws(line: Path, num_steps: int, kind: type) -> None:
    folder, omega, prompts = line / "student" / "rg", 7.0, ["picture 3", "picture 5"]
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline) is LatentConsistencyModelPipeline
    pipeline = kind(**pipeline.components, requires_safety_checker=False) if kind is not type(pipeline) else pipeline
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    theirs = pipeline(
        prompts,
        num_inference_steps=num_steps,
        guidance_scale=omega + 1,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
        height=16,
        width=16,
    ).images

    student, codec, text = Student.load(folder, **CPU), Codec.load(folder, **CPU), TextEncoder.load(folder, **CPU)
    cond, scalings = text.encode(text.tokenise(prompts)), BoundaryScalings()
    noises = [torch.randn(2, *codec.latent_shape(16), generator=generator) for _ in range(num_steps)]

    def f(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return consistency_output(student(z_t, t, torch.full((2,), omega), cond), z_t, t, scalings=scalings)

    with torch.no_grad():
        ours = codec.decode(multistep_sample(f, noises, lcm_timesteps(num_steps), schedule=student.schedule))
    # The last of diffusers' steps skips the boundary scaling's remainder (2.5e-9 and less at t > 0).
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def publish_again(folder: Path) -> None:
    """Give an altered artifact a manifest that is true again."""
    manifest, files = read_manifest(folder, made_by="prepare"), scan(folder)
    write_manifest(folder, replace(manifest, files=files, digest=results_digest(files)))


def test_a_cache_of_another_teacher_is_refused_with_both_fingerprints(own: Path) -> None:
    shutil.rmtree(own / "pretrained" / "teacher")
    write_tiny_teacher(own / "pretrained" / "teacher", seed=1)
    publish_again(own / "pretrained")
    with pytest.raises(InputError, match=r"(?s)fingerprint of the cache \w+, of what is asked for \w+.*! vae") as refusal:
        run(own, tiny_config(), "distill")
    assert "rglcd run cache" in str(refusal.value)


def test_a_missing_input_names_the_stage_that_makes_it(own: Path) -> None:
    shutil.rmtree(own / "latents")
    with pytest.raises(InputError, match="rglcd run cache"):
        run(own, tiny_config(), "distill")


def test_a_batch_that_holds_no_sample_is_refused_by_the_configuration() -> None:
    with pytest.raises(InputError, match="batch_size"):
        tiny_config("distillation.batch_size=0")


def test_a_grid_finer_than_the_teachers_schedule_is_refused(own: Path) -> None:
    scheduler = own / "pretrained" / "teacher" / "scheduler" / "scheduler_config.json"
    declared = json.loads(scheduler.read_text(encoding="utf-8"))
    scheduler.write_text(json.dumps(declared | {"num_train_timesteps": 200}), encoding="utf-8")
    publish_again(own / "pretrained")
    with pytest.raises(InputError, match=r"model\.num_ddim_steps is 250, and the schedule of \./nowhere has 200 timesteps"):
        run(own, tiny_config("model.num_ddim_steps=250"), "distill")
    with pytest.raises(InputError, match=r"distillation\.grid\.end is 200, and the schedule"):
        run(own, tiny_config("distillation.grid={kind: doubling, end: 200}"), "distill")


def test_weights_that_leave_out_where_every_picture_begins_are_refused(own: Path) -> None:
    scheduler = own / "pretrained" / "teacher" / "scheduler" / "scheduler_config.json"
    declared = json.loads(scheduler.read_text(encoding="utf-8"))
    scheduler.write_text(json.dumps(declared | {"rescale_betas_zero_snr": True}), encoding="utf-8")
    publish_again(own / "pretrained")
    with pytest.raises(InputError, match=r"distillation\.weighting inverse_gap gives no weight to the last timestep"):
        run(own, tiny_config("distillation.weighting=inverse_gap"), "distill")


def test_timesteps_that_are_never_drawn_are_refused(own: Path) -> None:
    with pytest.raises(InputError, match="p_mean 100 and p_std 2 draw none of the teacher's noise levels"):
        run(own, tiny_config("distillation.timesteps={kind: lognormal, p_mean: 100}"), "distill")


# --- match_compute -------------------------------------------------------------------------------


PROXIED = "reward={kind: latent, chunk_size: 32, tuning: {kind: online, label_every: 2}}"


def toy_materials(root: Path, *overrides: str) -> tuple[Materials, AnyReward]:
    """The toy preset's own networks and settings, on a cache of sixteen pictures and an untrained proxy."""
    few = ("pretraining.num_validation=0", "pretraining.batch_size=4", "pretraining.num_steps=1", "caching.batch_size=8")
    config = load_preset("toy", overrides=(*few, *overrides))
    if not root.exists():
        write_corpus(root / "data", num_images=16, num_reference=1)
        for name in ("shard", "prepare", "cache", "pretrain"):
            run(root, config, name)
    world, latents = World(0, 1, CPU["device"]), root / "latents"
    models, cache = Pretrained.open(root / "pretrained"), LatentCache.open(latents)
    return Materials(config.model, config.distillation, latents, models, root / "reward_model", cache, world), config.reward


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "line"
    toy_materials(root, PROXIED, "caching.scores=[expert]")
    return root


def steps_of_arms(materials: Materials, reward: AnyReward) -> dict[str, int]:
    return {arm.name: arm.num_steps for arm in _arms(StepCosts(materials), reward)}


@pytest.mark.parametrize(("overrides", "control"), [((), 641), ((PROXIED,), 714)], ids=["the preset's", "through the proxy"])
def test_the_toys_control_has_the_steps_that_a_step_of_the_whole_batch_counts(toy: Path, overrides: tuple[str, ...], control: int) -> None:
    """Counted on one sample without values, the ratio is that of a real step of all sixteen, and to the last bit."""
    materials, reward = toy_materials(toy, *overrides)
    assert steps_of_arms(materials, reward) == {"lcm": control, "rg": 500}
    whole = [flops_of_step(make_distiller(materials, chosen, num_steps=500, world=materials.world)) for chosen in (reward, NoReward())]
    assert StepCosts(materials).relative(reward) == whole[0] / whole[1]


@pytest.mark.parametrize(
    "override",
    ["micro_batch=2", "activations=recomputed", "execution=compiled", "batch_size=4096"],
)
def test_how_a_step_is_computed_does_not_change_how_long_the_control_trains(toy: Path, override: str) -> None:
    """A global batch of 4,096 would take minutes and 20 GiB to run; of it one sample is counted, and none is computed."""
    assert steps_of_arms(*toy_materials(toy, PROXIED, f"distillation.{override}"))["lcm"] == 714


def test_an_expert_that_reads_pixels_is_counted_on_a_few_real_samples(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that runs elsewhere has no form without values."""
    materials, reward = toy_materials(toy, PROXIED)
    scorer, devices = Pretrained.scorer, []

    def elsewhere(self: Pretrained, name: str, *, dtype: torch.dtype, device: torch.device) -> Reward:
        expert = scorer(self, name, dtype=dtype, device=device)
        score = expert.score

        def read(pixels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            devices.append((pixels.device.type, len(pixels)))
            pixels.flatten()[0].item()
            return score(pixels, text)

        expert.score = read
        return expert

    monkeypatch.setattr(Pretrained, "scorer", elsewhere)
    assert steps_of_arms(materials, reward)["lcm"] == 714
    # Of two samples one is labelled: the student's prediction and its target; the real image's score is cached.
    assert devices == [("meta", 2), ("cpu", 2)]
