"""Stage prepare: every frozen model laid out, verified and opened, or refused by name."""

import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from rglcd import progress
from rglcd.cli import main
from rglcd.config import Config, dump
from rglcd.errors import InputError
from rglcd.models.inception import InceptionPool3
from rglcd.stages.pretrained import Pretrained
from rglcd.stages.run import Outcome
from rglcd.store import remembered_files
from rglcd.store.manifest import folder_digest, read_manifest
from tests.object_store import CREDENTIALS
from tests.rewards.published_models import ASSETS, publish, publish_heads
from tests.tiny_line import published_model_settings, run, tiny_config, write_published_models, write_tiny_source
from tests.tiny_models import PROJECTION_WIDTH, write_tiny_teacher

PLACES = {"teacher": "teacher", "scorers/expert": "expert", "features": "features"}
"""Where prepare puts each of the source models."""


@pytest.fixture(scope="module")
def models_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source_models = tmp_path_factory.mktemp("source_models")
    write_published_models(source_models)
    return source_models


@pytest.fixture
def source_models(models_once: Path, tmp_path: Path) -> Path:
    """Model folders as others would publish them; a test may spoil them."""
    return Path(shutil.copytree(models_once, tmp_path / "source_models"))


def config_of(source_models: Path, *overrides: str) -> Config:
    return tiny_config(*published_model_settings(source_models), *overrides)


def prepare(source_models: Path, *overrides: str) -> Outcome:
    return run(source_models.parent, config_of(source_models, *overrides), "prepare")


def refusal(source_models: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as refused:
        prepare(source_models, *overrides)
    assert not (source_models.parent / "pretrained").exists(), "nothing is published"
    message = str(refused.value)
    assert "\n" not in message
    return message


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(folder).items() if name not in ("manifest.json", "timings.json")}


def test_prepare_lays_out_the_models_and_reports_their_digests(source_models: Path) -> None:
    outcome = prepare(source_models, "preparation.scorers.checker.kind=toy-checker")
    for place, name in PLACES.items():
        assert files_of(outcome.folder / place) == files_of(source_models / name)
        assert outcome.manifest.facts["models"][place] == folder_digest(source_models / name)
    pretrained = Pretrained.open(outcome.folder)
    assert pretrained.catalogue() == {"expert": {"kind": "clip"}, "checker": {"kind": "toy-checker"}}
    assert pretrained.feature_folders() == [("auto", outcome.folder / "features")]
    assert not (outcome.folder / "scorers" / "checker").exists()


def test_several_feature_networks_have_a_folder_each_and_inceptions_file_is_converted(source_models: Path) -> None:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in InceptionPool3().state_dict().items()}
    (source_models / "inception").mkdir()
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, source_models / "inception" / "weights.pth")
    inception = f"{{kind: inception, source: {{uri: {source_models}/inception, file: weights.pth}}}}"
    folder = prepare(source_models, f"preparation.features=[{inception}, {{kind: auto, source: {source_models}/features}}]").folder
    pretrained = Pretrained.open(folder)
    assert pretrained.feature_folders() == [(kind, folder / "features" / kind) for kind in ("inception", "auto")]
    assert files_of(folder / "features" / "auto") == files_of(source_models / "features")
    assert sorted(path.name for path in (folder / "features" / "inception").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ("[{kind: auto, source: ./x}, {kind: auto, source: ./y}]", "name one network of each kind, not auto, auto"),
        ("[]", "name one network of each kind, not none"),
        ("[{kind: clip, source: ./x}]", "CMMD (clip) stands beside a Fréchet distance: name auto, inception or dinov2 too"),
        ("[{kind: auto, sourc: ./x}]", "unknown key preparation.features.0.sourc (did you mean 'source'?)"),
    ],
)
def test_feature_networks_that_do_not_go_together_are_refused(source_models: Path, features: str, said: str) -> None:
    assert said in refusal(source_models, f"preparation.features={features}")


def test_reported_digests_can_pin_the_models(source_models: Path) -> None:
    models = prepare(source_models).manifest.facts["models"]
    pins = [
        f"model.teacher.sha256={models['teacher']}",
        f"preparation.scorers.expert.source.sha256={models['scorers/expert']}",
        f"preparation.features.source.sha256={models['features']}",
    ]
    assert prepare(source_models, *pins).manifest.facts["models"] == models


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("model.teacher", "teacher"),
        ("preparation.scorers.expert.source", "scorers/expert"),
        ("preparation.features.source", "features"),
    ],
)
def test_a_model_with_another_digest_than_pinned_is_refused_with_both(source_models: Path, key: str, place: str) -> None:
    pin = "0123456789abcdef" * 4
    message = refusal(source_models, f"{key}.sha256='{pin}'")
    assert message.startswith(f"{place} from {source_models}/{PLACES[place]} has digest {folder_digest(source_models / PLACES[place])}")
    assert pin in message


def test_pickles_are_never_copied_and_never_part_of_a_digest(source_models: Path) -> None:
    before = folder_digest(source_models / "teacher")
    for name in ("teacher/unet/diffusion_pytorch_model.bin", "expert/weights.pt", "features/run.py"):
        (source_models / name).write_bytes(b"\x80\x04.")
    outcome = prepare(source_models)
    assert {path.suffix for path in outcome.folder.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".txt", ".md"}
    assert outcome.manifest.facts["models"]["teacher"] == before


def test_a_link_is_refused(source_models: Path) -> None:
    (source_models / "expert" / "notes.txt").symlink_to("/etc/hostname")
    assert "notes.txt is a link" in refusal(source_models)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("preparation.scorers.expert.kind=hps", "preparation.scorers.expert: there is no kind 'hps' (did you mean 'hpsv2'?)"),
        ("preparation.features.kind=resnet", "features.kind 'resnet' is unknown; there are: auto, clip, dinov2, inception"),
        ("preparation.features.kind=inception", "preparation.features: source must name its `file`: weights-inception-2015-12-05"),
        ("preparation.scorers.expert.source=null", "preparation.scorers.expert.source: a mapping of keys is wanted"),
        ("preparation.features.source=null", "preparation.features needs a source"),
        ("model.teacher.uri=./no/such/folder", "model folder no/such/folder is missing"),
        ("preparation.scorers.expert.source.uri=./no/such/folder", "model folder no/such/folder is missing"),
    ],
)
def test_a_model_that_cannot_be_fetched_is_refused(source_models: Path, override: str, said: str) -> None:
    assert said in refusal(source_models, override)


@pytest.mark.parametrize("uri", ["s3://models/sd", "s3://models/sd.safetensors"])
def test_a_store_of_models_that_is_away_asks_to_try_again(source_models: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """It was bad input (2), which nobody tries again."""
    import fsspec

    monkeypatch.setattr("rglcd.store.connection.NUM_ATTEMPTS", 2)
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    monkeypatch.chdir(source_models.parent)
    Path("params.yaml").write_text(dump(config_of(source_models, f"model.teacher={uri}")))
    with pytest.raises(SystemExit) as ended:
        main(["run", "prepare"])
    assert ended.value.code == 75
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rglcd: ")]
    assert line.startswith("rglcd: s3://models")
    assert "cannot be reached" in line
    assert line.endswith("run the same command again")
    assert not Path("artifacts/pretrained").exists()


def test_a_resolution_that_the_teacher_cannot_draw_is_refused(source_models: Path) -> None:
    assert "model.resolution 17 is not a multiple of 2" in refusal(source_models, "model.resolution=17", "sharding.resolution=17")


def _swap(source_models: Path, first: str, second: str) -> None:
    shutil.rmtree(source_models / first)
    shutil.copytree(source_models / second, source_models / first)


SPOILT = {
    "expert is a text encoder": (
        lambda source_models: _swap(source_models, "expert", "teacher/text_encoder"),
        "describes a CLIPTextModel, not a CLIPModel",
    ),
    "teacher is a scorer": (lambda source_models: _swap(source_models, "teacher", "expert"), "teacher/model_index.json is missing"),
    "unet is a VAE": (
        lambda source_models: _swap(source_models, "teacher/unet", "teacher/vae"),
        "describes a AutoencoderKL, not a UNet2DConditionModel",
    ),
    "no unet": (lambda source_models: shutil.rmtree(source_models / "teacher/unet"), "unet is missing"),
    "no tokenizer": (lambda source_models: shutil.rmtree(source_models / "teacher/tokenizer"), "tokenizer is missing"),
    "no scheduler": (lambda source_models: shutil.rmtree(source_models / "teacher/scheduler"), "scheduler_config.json is missing"),
    "features without weights": (
        lambda source_models: (source_models / "features/model.safetensors").unlink(),
        "features cannot be opened as a vision model",
    ),
    "features cut": (
        lambda source_models: (source_models / "features/model.safetensors").write_bytes(b"\xff" * 64),
        "features cannot be opened",
    ),
}


@pytest.mark.parametrize("harm", SPOILT)
def test_a_model_that_cannot_be_opened_is_refused_by_prepare(source_models: Path, harm: str) -> None:
    spoil, said = SPOILT[harm]
    spoil(source_models)
    assert said in refusal(source_models)


def test_a_half_copied_model_of_a_killed_run_is_fetched_anew(source_models: Path, tmp_path: Path) -> None:
    expected = prepare(source_models)
    key = read_manifest(expected.folder, made_by="prepare").key
    whole = results(expected.folder)
    shutil.rmtree(expected.folder)
    staging = tmp_path / ".work" / f"pretrained-{key[:12]}"
    (staging / "teacher" / "vae").mkdir(parents=True)
    (staging / "teacher" / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    (staging / "teacher" / "left_over.json").write_text("{}")
    again = prepare(source_models)
    assert again.manifest.digest == expected.manifest.digest
    assert results(again.folder) == whole


def test_progress_counts_the_models(source_models: Path) -> None:
    events: list[progress.Event] = []
    with progress.reporting_to(events.append):
        prepare(source_models)
    assert [(event.done, event.total, event.unit) for event in events] == [(done, 3, "models") for done in range(4)]


# --- published files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of others, as they publish them, and the folders of the tokenizers that they read."""
    root = tmp_path_factory.mktemp("published")
    for kind in ("hpsv2", "imagereward"):
        publish(kind, root)
    publish_heads(root, width=PROJECTION_WIDTH)
    for name in ("clip_tokenizer", "bert_tokenizer"):
        shutil.copytree(ASSETS / name, root / name)
    # The source_models of the tokenizer is that of a model, too, which nobody asked for.
    (root / "clip_tokenizer" / "model.safetensors").write_bytes(b"gigabytes")
    return root


def scorers(published: Path, source_models: Path) -> list[str]:
    """Overrides that add a scorer of each sort of file, and a mixture."""

    def file(name: str) -> dict[str, str]:
        return {"uri": str(published), "file": name}

    added = {
        "hps": {"kind": "hpsv2", "source": file("HPS_v2.1_compressed.pt"), "tokenizer": {"uri": f"{published}/clip_tokenizer"}},
        "human": {
            "kind": "imagereward",
            "form": "hinge",
            "source": file("ImageReward.pt"),
            "tokenizer": {"uri": f"{published}/bert_tokenizer"},
        },
        "beauty": {"kind": "aesthetic-v2", "source": {"uri": f"{source_models}/expert"}, "head": file("sac+logos+ava1-l14-linearMSE.pth")},
        "both": {"kind": "mixture", "weights": {"hps": 1.0, "human": 0.1}, "logit_scale": 10},
    }
    return [f"preparation.scorers.{name}={json.dumps(scorer)}" for name, scorer in added.items()]


def test_published_weights_are_verified_converted_and_not_kept(published_once: Path, source_models: Path) -> None:
    outcome = prepare(source_models, *scorers(published_once, source_models))
    digests = outcome.manifest.facts["models"]
    for what, name in {
        "scorers/hps": "HPS_v2.1_compressed.pt",
        "scorers/human": "ImageReward.pt",
        "scorers/beauty/head": "sac+logos+ava1-l14-linearMSE.pth",
    }.items():
        assert digests[what] == hashlib.sha256((published_once / name).read_bytes()).hexdigest()
    files = {path.relative_to(outcome.folder).as_posix() for path in outcome.folder.rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in files} == {".json", ".safetensors", ".txt"}
    assert not any(part.startswith(".") for name in files for part in Path(name).parts)
    hps = {Path(name).name for name in files if name.startswith("scorers/hps/")}
    assert hps == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    pretrained = Pretrained.open(outcome.folder)
    layout = pretrained.catalogue()
    assert layout["human"] == {"kind": "imagereward", "form": "hinge"}
    assert layout["both"] == {"kind": "mixture", "weights": {"hps": 1.0, "human": 0.1}, "logit_scale": 10.0}
    mixed = pretrained.scorer("both", dtype=torch.float32, device=torch.device("cpu"))
    assert mixed.differentiable
    assert torch.isfinite(mixed.score(torch.rand(2, 3, 32, 32), mixed.encode_text(["a", "b"]))).all()
    assert pretrained.scorer_digest("both") not in {pretrained.scorer_digest("hps"), pretrained.scorer_digest("human")}


@pytest.mark.parametrize("what", ["scorers/hps", "scorers/hps/tokenizer", "scorers/beauty/head"])
def test_published_weights_with_another_digest_than_pinned_are_refused(published_once: Path, source_models: Path, what: str) -> None:
    _, name, role = f"{what}/source".split("/")[:3]
    pin = "0123456789abcdef" * 4
    message = refusal(source_models, *scorers(published_once, source_models), f"preparation.scorers.{name}.{role}.sha256='{pin}'")
    assert message.startswith(f"{what} from {published_once}")
    assert pin in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("hps.source.file=ImageReward.pt", "scorers/hps from .*: unknown tensor 'blip"),
        ("hps.source.file=none.pt", "has no none.pt"),
        ("hps.tokenizer.uri={source_models}/features", "has no added_tokens.json and no merges.txt"),
        ("hps.tokenizer=null", "HPS_v2.1_compressed.pt holds no tokenizer: name its folder as `tokenizer`"),
        ("hps.source.file=../secret.pt", "String should match pattern"),
        ("hps.source.file=a/../../secret.pt", "climbs out of"),
        ("beauty.head.file=null", "head must name its `file`"),
        ("both.weights={{nobody: 1}}", "scorers.both.weights names 'nobody'"),
        ("both.weights={{both: 1}}", "scorers.both.weights names 'both'"),
        ("mine={{kind: entry-point, name: nobodys}}", "no installed package offers the reward 'nobodys'"),
    ],
)
def test_an_unusable_published_model_is_refused_with_the_reason(
    published_once: Path, source_models: Path, override: str, said: str
) -> None:
    message = refusal(
        source_models, *scorers(published_once, source_models), "preparation.scorers." + override.format(source_models=source_models)
    )
    assert re.search(said, message), message


def test_every_file_of_every_artifact_may_be_read_by_whom_the_umask_says(source_models: Path) -> None:
    """Students above all: whoever serves them is seldom who trained them."""
    before = os.umask(0o027)
    try:
        root = source_models.parent
        write_tiny_source(root / "data")
        for name in ("prepare", "shard", "cache", "pretrain", "distill"):
            run(root, config_of(source_models, "distillation.match_compute=false"), name)
    finally:
        os.umask(before)
    results = [root / name for name in ("pretrained", "shards", "latents", "reward_model", "student")]
    files = [path for folder in results for path in folder.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".safetensors" for path in files) > 10
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}


# --- what changes outside ------------------------------------------------------------------------


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The source files that are read to find out what they are, from now on, an hour after all were written."""
    read: list[Path] = []
    sha256_of, time_ns = remembered_files.sha256_of, time.time_ns

    def noting(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    monkeypatch.setattr(remembered_files, "sha256_of", noting)
    monkeypatch.setattr(time, "time_ns", lambda: time_ns() + 3_600_000_000_000)
    return read


def test_a_model_replaced_in_place_is_prepared_again_and_what_did_not_change_is_not_read(
    source_models: Path, files_read: list[Path]
) -> None:
    first = prepare(source_models)
    num_files = len(files_read)
    assert prepare(source_models).was_done
    assert len(files_read) == num_files
    write_tiny_teacher(source_models / "teacher", seed=1)
    files_read.clear()
    second = prepare(source_models)
    assert not second.was_done
    assert second.manifest.digest != first.manifest.digest
    assert {path.relative_to(source_models).parts[0] for path in files_read} == {"teacher"}
    digest = folder_digest(source_models / "teacher")
    assert second.manifest.facts["models"]["teacher"] == digest
    for path in source_models.rglob("*"):
        path.touch()
    assert prepare(source_models).was_done, "what was touched is read, and is what it was"


def test_a_published_file_replaced_in_place_is_prepared_again(published_once: Path, source_models: Path, tmp_path: Path) -> None:
    published = Path(shutil.copytree(published_once, tmp_path / "published"))
    head = published / "sac+logos+ava1-l14-linearMSE.pth"
    overrides = [override for override in scorers(published, source_models) if ".both=" not in override]
    first = prepare(source_models, *overrides)
    weights = torch.load(head, weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in weights.items()}, head)
    second = prepare(source_models, *overrides)
    assert not second.was_done
    what = "scorers/beauty/head"
    assert second.manifest.facts["models"][what] == hashlib.sha256(head.read_bytes()).hexdigest() != first.manifest.facts["models"][what]


def test_a_model_folder_that_is_gone_is_what_it_was_when_it_was_prepared(source_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = prepare(source_models)
    shutil.rmtree(source_models / "teacher")
    again = prepare(source_models)
    assert again.was_done
    assert again.manifest == first.manifest
    assert f"{source_models}/teacher is missing" in capsys.readouterr().err
    shutil.rmtree(first.folder)
    assert f"model folder {source_models}/teacher is missing" in refusal(source_models)


def test_rehash_reads_every_file_again(
    source_models: Path, files_read: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(source_models.parent)
    Path("params.yaml").write_text(dump(config_of(source_models)))
    main(["run", "prepare"])
    num_files = len(files_read)
    for words, expected in ([], 0), (["--rehash"], num_files), ([], 0):
        files_read.clear()
        main(["run", "prepare", *words])
        assert len(files_read) == expected
    assert capsys.readouterr().out.count("prepare: nothing to do") == 3


# --- tried before anything is made ---------------------------------------------------------------


def edit_json(path: Path, **values: object) -> None:
    """``None`` removes the key."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def edit_tensor(path: Path, name: str, value: float) -> None:
    tensors = load_file(path)
    tensors[name].view(-1)[3] = value
    save_file(tensors, path, metadata={"format": "pt"})


def another_unet(source_models: Path, **changes: object) -> None:
    config = json.loads((source_models / "teacher/unet/config.json").read_text())
    kept = {name: value for name, value in config.items() if not name.startswith("_")}
    UNet2DConditionModel(**kept | changes).save_pretrained(source_models / "teacher/unet")


UNET, VAE = "teacher/unet/diffusion_pytorch_model.safetensors", "teacher/vae/diffusion_pytorch_model.safetensors"
INDEX, TOKENIZER = "teacher/model_index.json", "teacher/tokenizer/tokenizer_config.json"

UNUSABLE = {
    "NaN in the UNet": (
        lambda root: edit_tensor(root / UNET, "conv_in.weight", float("nan")),
        "the tensor conv_in.weight holds values that are NaN",
    ),
    "infinity in the VAE": (
        lambda root: edit_tensor(root / VAE, "decoder.conv_out.weight", float("inf")),
        "the tensor decoder.conv_out.weight holds values that are infinite",
    ),
    "NaN in a scorer": (
        lambda root: edit_tensor(root / "expert/model.safetensors", "visual_projection.weight", float("nan")),
        "scorers/expert/model.safetensors: the tensor visual_projection.weight holds values that are NaN",
    ),
    "NaN in the feature network": (
        lambda root: edit_tensor(root / "features/model.safetensors", "embedder.embedder.convolution.weight", float("nan")),
        "features/model.safetensors: the tensor embedder.embedder.convolution.weight holds values that are NaN",
    ),
    "NaN in weights of eight bits, beside the UNet's": (
        lambda root: save_file({"a": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)}, root / "teacher/unet/eight.safetensors"),
        "eight.safetensors: the tensor a holds values that are NaN",
    ),
    "weights that overflow": (
        lambda root: edit_tensor(root / VAE, "decoder.conv_out.weight", 3e38),
        "the picture that it gives back is not finite",
    ),
    "an inpainting model": (
        lambda root: another_unet(root, in_channels=9),
        "takes 9 channels and the VAE's latents have 4: it is an inpainting model",
    ),
    "an edit model": (lambda root: another_unet(root, in_channels=8), "it is an edit or upscaling model"),
    "a learned variance": (lambda root: another_unet(root, out_channels=8), "gives 8 channels"),
    "a UNet for another text encoder": (
        lambda root: another_unet(root, cross_attention_dim=24),
        "reads captions of width 24, and the text encoder gives 16",
    ),
    "AuraFlow": (
        lambda root: edit_json(root / INDEX, _class_name="AuraFlowPipeline"),
        "is a AuraFlowPipeline, AuraFlow (flow matching, a transformer): name a teacher of Stable Diffusion 1.x, 2.x or XL, ",
    ),
    "a pipeline that is not what its index says": (
        lambda root: edit_json(root / INDEX, _class_name="StableDiffusion3Pipeline"),
        "teacher/text_encoder/config.json describes a CLIPTextModel, not a CLIPTextModelWithProjection",
    ),
    "another transformer": (
        lambda root: edit_json(root / INDEX, _class_name="NewPipeline", unet=None, transformer=["diffusers", "X"]),
        "NewPipeline whose network is a transformer",
    ),
    "latents scaled by channel": (
        lambda root: edit_json(root / "teacher/vae/config.json", latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        "says latents_mean",
    ),
    "a tokenizer without a length": (
        lambda root: edit_json(root / TOKENIZER, model_max_length=None),
        'model_max_length is missing, and [...]/text_encoder has 16 positions; write "model_max_length": 16 into it',
    ),
    "a tokenizer with too great a length": (lambda root: edit_json(root / TOKENIZER, model_max_length=32), "model_max_length is 32"),
    "another model's tokenizer": (
        lambda root: _cut_vocabulary(root),
        "they are not of one model",
    ),
}


def _cut_vocabulary(root: Path) -> None:
    config = CLIPTextConfig(**json.loads((root / "teacher/text_encoder/config.json").read_text()) | {"vocab_size": 100})
    CLIPTextModel(config).save_pretrained(root / "teacher/text_encoder")


@pytest.mark.parametrize("harm", UNUSABLE)
def test_what_could_not_be_used_after_hours_is_refused_by_prepare(source_models: Path, harm: str) -> None:
    spoil, said = UNUSABLE[harm]
    spoil(source_models)
    message = refusal(source_models)
    assert re.search(re.escape(said).replace(re.escape("[...]"), ".*"), message), message


def test_a_grid_that_does_not_divide_the_schedule_is_refused_with_those_that_do(source_models: Path) -> None:
    message = refusal(source_models, "model.num_ddim_steps=60")
    assert "model.num_ddim_steps 60 does not divide the 1000 timesteps" in message
    assert message.endswith("choose one of 10, 20, 25, 40, 50, 100, 125, 200, 250")


OWN_FAULTS = {
    "raises": ("raise ZeroDivisionError('by zero')", "the scorer 'mine' cannot be called: ZeroDivisionError: by zero"),
    "one score for a batch": ("return pixels.mean()", "the scorer 'mine': a score has shape (), not (1,)"),
    "NaN": ("return pixels.mean(dim=(1, 2, 3)) * float('nan')", "the scorer 'mine': a score is not finite"),
}


@pytest.mark.parametrize("fault", OWN_FAULTS)
def test_an_own_reward_that_cannot_score_a_picture_is_refused_by_prepare(
    source_models: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    body, said = OWN_FAULTS[fault]
    name = f"own_{sum(map(ord, fault))}"
    metadata = source_models.parent / "site" / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[rglcd.rewards]\nmine = {name}:Own\n")
    (metadata.parent / f"{name}.py").write_text(
        "import torch\nclass Own:\n    differentiable, range, logit_scale, text_width = True, (0, 1), 1.0, 0\n"
        "    def __init__(self, folder, **place): pass\n    def weights_sha256(self): return None\n"
        f"    def encode_text(self, captions): return torch.zeros(len(captions), 0)\n    def score(self, pixels, text): {body}\n"
    )
    monkeypatch.syspath_prepend(str(metadata.parent))
    assert said in refusal(source_models, "preparation.scorers.mine={kind: entry-point, name: mine}")
