from dataclasses import replace
from pathlib import Path

import pytest
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import AutoModel, CLIPModel, ResNetModel

from rglcd.toy.build import BuildSettings, build
from rglcd.toy.codec import CodecSettings
from rglcd.toy.expert import ExpertSettings
from rglcd.toy.features import FeatureSettings
from rglcd.toy.judge import ToyJudge
from rglcd.toy.judge_training import JudgeSettings
from rglcd.toy.model_folder import read_ledger
from rglcd.toy.scene import world_digest
from rglcd.toy.teacher import TeacherSettings

TINY = BuildSettings(
    codec=CodecSettings(num_pictures=16, num_joint_steps=1, num_decoder_steps=1, batch=2),
    teacher=TeacherSettings(num_pictures=16, num_steps=1, batch=2),
    expert=ExpertSettings(num_pictures=432, num_steps=1, batch=2, drawing_steps=(1,), drawing_guidances=(1.0,), num_preference_steps=1),
    judge=JudgeSettings(num_pictures=432, num_steps=1, batch=2),
    features=FeatureSettings(num_pictures=16, num_steps=1, batch=2),
    num_gate_pictures=2,
)


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


def test_build_json_records_how_each_model_was_trained(built: Path) -> None:
    ledger = read_ledger(built)
    assert list(ledger) == ["codec", "teacher", "expert", "judge", "features"]
    for record in ledger.values():
        assert set(record) == {"settings", "cpu_seconds", "gate", "made_with", "curve"}
        assert record["settings"]["world"] == world_digest()
    codec = {name: value for name, value in ledger["codec"]["settings"].items() if name != "world"}
    assert ledger["teacher"]["settings"]["codec"] == codec


def test_second_build_trains_only_what_changed(built: Path) -> None:
    before, ledger = weights(built), (built / "build.json").read_bytes()
    build(built, settings=TINY)
    assert weights(built) == before
    assert (built / "build.json").read_bytes() == ledger
    build(built, settings=replace(TINY, judge=replace(TINY.judge, seed=1)))
    after = weights(built)
    assert {name for name in before if before[name] != after[name]} == {"judge/model.safetensors"}


def test_seeds_determine_the_weights(built: Path, tmp_path: Path) -> None:
    build(tmp_path, settings=replace(TINY, judge=replace(TINY.judge, seed=1)))
    build(built, settings=replace(TINY, judge=replace(TINY.judge, seed=1)))
    assert weights(tmp_path) == weights(built)
    # Nor does a config tell where it was made: a folder is pinned by the digest of all its files.
    configs = [path.relative_to(built) for path in built.rglob("*.json") if path.name != "build.json"]
    assert all((tmp_path / name).read_bytes() == (built / name).read_bytes() for name in configs)
