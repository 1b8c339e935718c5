import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from transformers import AutoModel, CLIPModel, ResNetModel

from rglcd.cli import main
from rglcd.core.prediction import PredictionType
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from rglcd.rewards.clip import ClipReward
from rglcd.toy.build import BuildSettings, build
from rglcd.toy.codec import CodecSettings
from rglcd.toy.features import FeatureSettings
from rglcd.toy.flow_networks import FlowTeacherSettings, read_captions
from rglcd.toy.gates import BOUNDS
from rglcd.toy.judge import JudgeShape, ToyJudge
from rglcd.toy.measuring import expert_scores, held_out, real_pictures
from rglcd.toy.model_folder import read_ledger
from rglcd.toy.scene import caption
from rglcd.toy.scorers import ExpertSettings, JudgeSettings
from rglcd.toy.teacher import TeacherSettings, build_tokenizer
from rglcd.toy.tokenizer import MAX_TOKENS
from rglcd.toy.training_pictures import DrawingSettings
from rglcd.toy.web import NEAT, world_digest

DRAWINGS = DrawingSettings(seed=0, few_steps=(1,), few_guidances=(1.0,), many_steps=(), num_real=1)
TINY = BuildSettings(
    codec=CodecSettings(num_pictures=16, num_joint_steps=1, num_decoder_steps=1, batch=2, channels=(4, 4, 8)),
    teacher=TeacherSettings(num_pictures=16, num_steps=1, batch=2, channels=(8, 8), text_width=8, text_layers=1),
    features=FeatureSettings(num_pictures=16, num_steps=1, batch=2),
    expert_drawings=DRAWINGS,
    judge_drawings=replace(DRAWINGS, seed=1),
    expert=ExpertSettings(num_pictures=600, num_steps=1, batch=2, num_pairs=2, num_preference_steps=1, width=8, projection=8),
    judge=JudgeSettings(num_pictures=600, num_steps=1, batch=2, num_pairs=2, shape=JudgeShape(width=8, text_width=8)),
    num_gate_pictures=2,
    num_gate_captions=2,
    num_gate_steps=1,
)

FLOW = FlowTeacherSettings(num_pictures=16, num_steps=1, batch=2, width=16, num_layers=2, num_heads=2, text_width=8)


def weights(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    build(folder, settings=TINY)
    return folder


def test_every_built_model_opens_with_its_librarys_class(built: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(built / "teacher")
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert isinstance(AutoModel.from_pretrained(built / "features"), ResNetModel)
    assert isinstance(CLIPModel.from_pretrained(built / "expert"), CLIPModel)
    assert isinstance(ToyJudge.from_pretrained(built / "judge"), ToyJudge)


def test_expert_scores_in_training_as_it_scores_as_a_reward(built: Path) -> None:
    captions = [caption(scene) for scene in held_out(3)]
    pixels = real_pictures(3, NEAT)
    reward = ClipReward.load(built / "expert", dtype=torch.float32, device=torch.device("cpu"))
    ours = expert_scores(CLIPModel.from_pretrained(built / "expert").eval(), build_tokenizer(), pixels, captions)
    torch.testing.assert_close(reward.score(pixels, reward.encode_text(captions)), ours)


def test_build_json_records_how_each_model_was_trained(built: Path) -> None:
    ledger = read_ledger(built)
    assert list(ledger) == ["codec", "teacher", "expert", "judge", "features", "gates"]
    gates = ledger.pop("gates")["gates"]
    assert all(set(record) == {"figure", "low", "high", "met"} for record in gates.values())
    assert set(gates) < set(BOUNDS)
    for record in ledger.values():
        assert set(record) == {"settings", "cpu_seconds", "figures", "made_with", "curve"}
        assert record["figures"]
    assert ledger["codec"]["settings"]["world"] == world_digest()
    assert ledger["judge"]["settings"]["teacher"] == ledger["teacher"]["settings"]


def test_second_build_trains_only_what_changed(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    shutil.copytree(built, folder)
    before = weights(folder)
    build(folder, settings=replace(TINY, features=replace(TINY.features, seed=1)))
    after = weights(folder)
    assert {name for name in before if before[name] != after[name]} == {"features/model.safetensors"}


@pytest.fixture(scope="module")
def with_flow(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow") / "toy"
    shutil.copytree(built, folder)
    build(folder, settings=replace(TINY, flow=FLOW))
    return folder


def test_a_flow_teacher_is_trained_beside_the_other_models_which_stay(built: Path, with_flow: Path, tmp_path: Path) -> None:
    before, after = weights(built), weights(with_flow)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"flow-teacher"}
    build_tokenizer().save_pretrained(tmp_path)
    for place in ("tokenizer", "tokenizer_2"):
        assert (with_flow / "flow-teacher" / place / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    old, new = read_ledger(built), read_ledger(with_flow)
    assert new.pop("flow teacher")["settings"]["codec"] == old["codec"]["settings"]
    assert new == old


def test_a_flow_teacher_is_read_as_a_teacher_and_draws_as_diffusers_does(with_flow: Path) -> None:
    folder = with_flow / "flow-teacher"
    stock = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    stock.set_progress_bar_config(disable=True)
    teacher = Teacher.load(folder, dtype=torch.float32, device=torch.device("cpu"), resolution=32)
    assert teacher.kind is PredictionType.FLOW
    text = TextEncoder.load(folder, dtype=torch.float32, device=torch.device("cpu"))
    words = ["a small cat at the left on a blue background"]
    cond = text.encode(text.tokenise(words))
    z_t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    # The first of two steps of the stock pipeline, without guidance: z at sigma 1 along the velocity to the second noise level.
    ends = []
    options = {"latents": z_t, "sigmas": [1.0, 0.5], "guidance_scale": 1.0, "output_type": "latent"}
    stock(words, callback_on_step_end=lambda _pipe, _step, _t, values: ends.append(values["latents"]) or values, **options)
    t = torch.tensor([teacher.schedule.num_timesteps - 1])
    velocity = teacher.output(z_t, t, cond)
    torch.testing.assert_close(z_t - 0.5 * velocity, ends[0], rtol=1e-4, atol=1e-5)
    read = read_captions((stock.text_encoder, stock.text_encoder_2), text.tokenise(words)[:, :MAX_TOKENS])
    torch.testing.assert_close(read, (cond.embeddings, cond.pooled))


def test_toy_build_trains_the_flow_teacher_that_the_command_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("rglcd.toy.build.build", lambda folder, *, settings: asked.append(settings))
    main(["toy", "build", str(tmp_path)])
    main(["toy", "build", str(tmp_path), "--teacher", "flow"])
    assert asked == [BuildSettings(), BuildSettings(flow=FlowTeacherSettings())]


def test_seeds_determine_the_weights_and_no_config_says_where_it_was_made(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "toy", ignore=shutil.ignore_patterns("features", "vae"))
    ledger = json.loads((built / "build.json").read_text())
    kept = {name: record for name, record in ledger.items() if name in {"expert", "judge"}}
    (tmp_path / "toy" / "build.json").write_text(json.dumps(kept))
    build(tmp_path / "toy", settings=TINY)
    assert weights(tmp_path / "toy") == weights(built)
    configs = [path.relative_to(built) for path in built.rglob("*.json") if path.name != "build.json"]
    assert all((tmp_path / "toy" / name).read_bytes() == (built / name).read_bytes() for name in configs)
