"""The feature network of the Fréchet distance: preprocessing, pooled features, and refusals."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from rglcd.errors import InputError
from rglcd.models import features as features_module
from rglcd.models.features import described, load_features, read_preprocessing

CPU = torch.device("cpu")


def write_resnet(folder):
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    model = ResNetModel(config).eval()
    model.save_pretrained(folder)
    return model


def test_features_are_the_pooled_output_of_the_normalised_pixels(tmp_path):
    model = write_resnet(tmp_path)
    pixels = torch.rand(3, 3, 16, 16)
    features = load_features("auto", tmp_path, device=CPU)(pixels)
    assert features.shape == (3, 12)
    assert torch.allclose(features, model(pixel_values=pixels).pooler_output.flatten(1), atol=1e-6)

    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.5]}))
    normalised = (pixels - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.25, 0.5]).view(3, 1, 1)
    expected = model(pixel_values=normalised).pooler_output.flatten(1)
    assert torch.allclose(load_features("auto", tmp_path, device=CPU)(pixels), expected, atol=1e-6)


@pytest.mark.parametrize("size", [24, {"shortest_edge": 24}, {"height": 24, "width": 24}])
def test_pixels_are_resized_to_the_models_training_size(tmp_path, size):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    assert read_preprocessing(tmp_path)(torch.rand(2, 3, 16, 16)).shape == (2, 3, 24, 24)


DINOV2 = BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 36, "width": 36}, resample=3)
"""With its proportions: 256, of which 224 are kept."""


@pytest.mark.parametrize(
    "processor",
    [
        pytest.param(DINOV2, id="DINOv2: resized, then the middle"),
        pytest.param(DeiTImageProcessor(size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}), id="DeiT"),
        pytest.param(ConvNextImageProcessor(size={"shortest_edge": 28}, crop_pct=0.875), id="ConvNeXt: a share"),
        pytest.param(ViTImageProcessor(size={"height": 32, "width": 32}), id="ViT: bilinear"),
        pytest.param(BitImageProcessor(do_resize=False, crop_size={"height": 36, "width": 36}), id="the middle alone"),
    ],
)
@pytest.mark.parametrize("side", [48, 80])
def test_pixels_are_prepared_as_the_models_own_processor_does(tmp_path, processor, side):
    """To the eight bits in which it resizes."""
    processor.save_pretrained(tmp_path)
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)), size=(side, side), mode="bicubic"
    ).clamp(0, 1)
    levels = (smooth * 255).round()
    picture = Image.fromarray(levels[0].permute(1, 2, 0).numpy().astype(np.uint8))
    theirs = torch.as_tensor(np.asarray(processor(picture, return_tensors="np")["pixel_values"]))
    ours = read_preprocessing(tmp_path)(levels / 255)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1.2 / 255 / 0.224)


def test_what_is_done_to_pictures_is_said_in_words(tmp_path):
    write_resnet(tmp_path)
    assert described(tmp_path).startswith("ResNetModel (weights ")
    assert described(tmp_path).endswith("), pictures as they are")
    DINOV2.save_pretrained(tmp_path)
    assert described(tmp_path).endswith("pictures resized to 40 pixels (bicubic), of which the middle 36")


def test_a_crop_larger_than_the_picture_is_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 24, "do_center_crop": True, "crop_size": 32}))
    with pytest.raises(InputError, match="crop_size 32 is larger than size 24"):
        read_preprocessing(tmp_path)


def test_a_model_of_pictures_and_words_is_refused_when_it_is_opened(tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text = sizes | {"vocab_size": 16, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    CLIPModel(CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 64, "patch_size": 32})).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="CLIPModel cannot be called with pictures alone"):
        load_features("auto", tmp_path, device=CPU)


def test_pixels_are_unchanged_without_a_preprocessor_config(tmp_path):
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.equal(read_preprocessing(tmp_path)(pixels), pixels)


def test_unknown_feature_kind_is_refused_listing_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"'resnet' is unknown; there are: auto, clip, dinov2, inception"):
        load_features("resnet", tmp_path, device=CPU)


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be opened"):
        load_features("auto", tmp_path, device=CPU)


def test_model_with_untrained_pooling_is_refused(tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16, patch_size=8)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"lacks .* tensors, pooler"):
        load_features("auto", tmp_path, device=CPU)


def tiny_clip(folder):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text = sizes | {"vocab_size": 16, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 28, "patch_size": 14}, projection_dim=6)).eval()
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return model


def test_cmmds_features_are_clips_projected_unit_vectors(tmp_path, monkeypatch):
    model = tiny_clip(tmp_path)
    monkeypatch.setattr(features_module, "CLIP_SIZES", {"image_size": 28})
    pixels = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    found = load_features("clip", tmp_path, device=CPU)(pixels)
    embedded = model.visual_projection(model.vision_model(pixel_values=read_preprocessing(tmp_path)(pixels)).pooler_output)
    torch.testing.assert_close(found, embedded / embedded.norm(dim=-1, keepdim=True))


def test_dinov2s_features_are_the_class_token_after_the_last_normalisation(tmp_path, monkeypatch):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    model = Dinov2Model(Dinov2Config(**sizes)).eval()
    model.save_pretrained(tmp_path)
    DINOV2.save_pretrained(tmp_path)
    monkeypatch.setattr(features_module, "DINOV2_SIZES", {"model_type": "dinov2", "patch_size": 14})
    pixels = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    found = load_features("dinov2", tmp_path, device=CPU)(pixels)
    last = model(pixel_values=read_preprocessing(tmp_path)(pixels)).last_hidden_state
    torch.testing.assert_close(found, last[:, 0])


def test_names_stand_for_one_network_each(tmp_path):
    """Sizes of facebook/dinov2-large and openai/clip-vit-large-patch14-336; smaller ones are a Fréchet distance of kind auto."""
    large = Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=14).to_dict()
    assert all(large[key] == value for key, value in features_module.DINOV2_SIZES.items())
    clip = CLIPVisionConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=14, image_size=336).to_dict()
    assert all(clip[key] == value for key, value in features_module.CLIP_SIZES.items())
    tiny_clip(tmp_path)
    with pytest.raises(InputError, match=r"hidden_size is 8, and that of CLIP ViT-L/14 at 336 pixels is 1024; use features.kind auto"):
        load_features("clip", tmp_path, device=CPU)
    with pytest.raises(InputError, match="model_type is 'clip', and that of DINOv2 ViT-L/14 is 'dinov2'"):
        load_features("dinov2", tmp_path, device=CPU)
