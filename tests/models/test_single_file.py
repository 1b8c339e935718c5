"""Teachers in one file: random files with the published names become pipeline folders that hold the same weights, and are opened."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from rglcd.errors import InputError
from rglcd.models import single_file
from rglcd.models.single_file import convert_single_file, published_sizes
from rglcd.models.text import TextEncoder
from tests.models.original_names import original_clip, original_open_clip, original_unet, original_vae
from tests.tiny_line import published_model_settings, run, tiny_config, write_published_models

MODELS = {"v1": "stable-diffusion-v1-5", "v2": "stable-diffusion-2-1", "xl": "stable-diffusion-xl-base-1.0"}
_WIDTH, _PROJECTION = 8, 12


def tiny_sizes(version: str) -> dict[str, Any]:
    """The published sizes with few channels: all names are those of the published networks, but for the layers of the text encoders."""
    sizes = published_sizes(MODELS[version])
    num_blocks = len(sizes["unet"]["block_out_channels"])
    channels = {"norm_num_groups": 4, "sample_size": 2}
    sizes["unet"] |= channels | {"block_out_channels": [8] * num_blocks, "attention_head_dim": 4, "cross_attention_dim": _WIDTH}
    sizes["vae"] |= channels | {"block_out_channels": [8] * 4}
    texts = {"hidden_size": _WIDTH, "intermediate_size": 8, "num_attention_heads": 2, "projection_dim": _PROJECTION}
    sizes["text_encoders"] = [sizes | texts | {"num_hidden_layers": 10} for sizes in sizes["text_encoders"]]
    if version == "xl":
        sizes["unet"] |= {"cross_attention_dim": 2 * _WIDTH, "addition_time_embed_dim": 8}
        sizes["unet"] |= {"projection_class_embeddings_input_dim": 6 * 8 + _PROJECTION}
    return sizes


def networks(version: str, sizes: Mapping[str, Any]) -> dict[str, nn.Module]:
    texts = [CLIPTextConfig(**sizes) for sizes in sizes["text_encoders"]]
    parts: dict[str, nn.Module] = {"unet": UNet2DConditionModel.from_config(sizes["unet"]), "vae": AutoencoderKL.from_config(sizes["vae"])}
    parts["text_encoder"] = CLIPTextModel(texts[0])
    if version == "xl":
        parts["text_encoder_2"] = CLIPTextModelWithProjection(texts[1])
    return parts


def in_one_file(version: str, parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    held = {name: dict(network.state_dict()) for name, network in parts.items()}
    tensors = original_unet(held["unet"]) | original_vae(held["vae"])
    if version == "v2":
        return tensors | original_open_clip(held["text_encoder"], "cond_stage_model.model.")
    if version == "v1":
        return tensors | original_clip(held["text_encoder"], "cond_stage_model.transformer.")
    tensors |= original_clip(held["text_encoder"], "conditioner.embedders.0.transformer.")
    return tensors | original_open_clip(held["text_encoder_2"], "conditioner.embedders.1.model.")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_by_model = {MODELS[version]: tiny_sizes(version) for version in ("v1", "xl")}
    monkeypatch.setattr(single_file, "published_sizes", tiny_by_model.__getitem__)


def write_file(path: Path, version: str, **options: Any) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    parts = {name: network.half() for name, network in networks(version, tiny_sizes(version)).items()}
    save_file({name: tensor.clone() for name, tensor in in_one_file(version, parts).items()}, path, **options)
    return parts


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("version", ["v1", "xl"])
def test_prepare_makes_a_pipeline_of_a_file_with_the_same_weights(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_published_models(tmp_path / "source_models")
    parts = write_file(tmp_path / "model.safetensors", version)
    settings = [*published_model_settings(tmp_path / "source_models"), f"model.teacher={tmp_path / 'model.safetensors'}"]
    run(tmp_path, tiny_config(*settings), "prepare")
    assert "taken for a stable-diffusion-" in capsys.readouterr().err
    for name, network in parts.items():
        (weights,) = (tmp_path / "pretrained/teacher" / name).glob("*.safetensors")
        found = {key.removeprefix("text_model."): tensor for key, tensor in load_file(weights).items()}
        given = {key.removeprefix("text_model."): tensor for key, tensor in network.state_dict().items()}
        assert found.keys() == given.keys()
        assert all(torch.equal(found[key], given[key]) and found[key].dtype == torch.float16 for key in given)
    ids = TextEncoder.load(tmp_path / "pretrained/teacher", dtype=torch.float32, device=torch.device("cpu")).tokenise(["a photo of a cat"])
    assert ids[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]  # CLIP's own ids of these words
    assert ids.shape == (1, 77 * len([name for name in parts if name.startswith("text")]))


@pytest.mark.parametrize("version", MODELS)
def test_the_published_names_and_shapes_become_those_of_the_networks(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of full size, on ``meta``: no weight has a value."""
    with torch.device("meta"):
        parts = networks(version, published_sizes(MODELS[version]))
        opened = _Opened(in_one_file(version, parts))
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    monkeypatch.setattr(single_file, "safe_open", lambda path, framework: opened)
    monkeypatch.setattr(
        single_file,
        "write_tensors",
        lambda path, read: shapes.update({path.parent.name: {name: tuple(get().shape) for name, get in read.items()}}),
    )
    assert MODELS[version] in convert_single_file(tmp_path / "model.safetensors", tmp_path / "teacher")
    for name, network in parts.items():
        found = {key.removeprefix("text_model."): shape for key, shape in shapes[name].items()}
        assert found == {key.removeprefix("text_model."): tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "teacher/tokenizer")
    assert tokenizer.pad_token == ("!" if version == "v2" else "<|endoftext|>")


class _Opened:
    """What ``safe_open`` gives, of tensors that have shapes alone."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __enter__(self) -> "_Opened":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def keys(self) -> list[str]:
        return list(self.tensors)

    def metadata(self) -> dict[str, str]:
        return {}

    def get_slice(self, name: str) -> "_Opened":
        return _Opened({"": self.tensors[name]})

    def get_shape(self) -> list[int]:
        return list(self.tensors[""].shape)

    def get_tensor(self, name: str) -> Tensor:
        return self.tensors[name]


@pytest.mark.usefixtures("tiny")
def test_what_a_file_says_of_its_prediction_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_file(path, "v1", metadata={"modelspec.prediction_type": "v"})
    assert "predicts v_prediction (its metadata say so)" in convert_single_file(path, tmp_path / "by_metadata")
    whole, other = load_file(path), tmp_path / "other.safetensors"
    save_file(whole | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, other)
    assert "predicts v_prediction (it is marked v_pred)" in convert_single_file(other, tmp_path / "by_marks")
    declared = json.loads((tmp_path / "by_marks/scheduler/scheduler_config.json").read_text())
    assert declared["rescale_betas_zero_snr"] is True
    save_file(whole, other)
    assert "predicts epsilon (it does not say; this is usual)" in convert_single_file(other, tmp_path / "by_usage")


@pytest.mark.usefixtures("tiny")
def test_a_file_that_is_no_whole_teacher_is_refused_by_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    write_file(tmp_path / "model.safetensors", "v1")
    whole = load_file(tmp_path / "model.safetensors")
    first = "model.diffusion_model.input_blocks.0.0.weight"
    files = {
        "an inpainting model": whole | {first: torch.zeros(8, 9, 3, 3)},
        "it lacks the vae": {name: tensor for name, tensor in whole.items() if not name.startswith("first_stage_model.")},
        "none of Stable Diffusion 1.x, 2.x and XL": {"lora_unet_x.lora_down.weight": torch.zeros(2, 2)},
        "Playground v2.5": whole | {"edm_mean": torch.zeros(4)},
    }
    for said, tensors in files.items():
        save_file(tensors, path)
        with pytest.raises(InputError, match=said):
            convert_single_file(path, tmp_path / "teacher")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        convert_single_file(path, tmp_path / "teacher")
