"""The feature network of the Fréchet distance: preprocessing, pooled features, and refusals."""

import json

import pytest
import torch
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

from rglcd.errors import InputError
from rglcd.models.features import load_features, read_preprocessing

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


def test_pixels_are_unchanged_without_a_preprocessor_config(tmp_path):
    pixels = torch.rand(2, 3, 16, 16)
    assert torch.equal(read_preprocessing(tmp_path)(pixels), pixels)


def test_unknown_feature_kind_is_refused_listing_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"inception.*auto"):
        load_features("inception", tmp_path, device=CPU)


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be opened"):
        load_features("auto", tmp_path, device=CPU)


def test_model_with_untrained_pooling_is_refused(tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16, patch_size=8)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"lacks .* tensors, pooler"):
        load_features("auto", tmp_path, device=CPU)
