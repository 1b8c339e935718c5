"""Conversion of published checkpoints: every tensor is accounted for, at full size too, and damaged files are refused."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig

from rglcd.errors import InputError
from rglcd.models.checkpoint_import import read_checkpoint
from rglcd.rewards import conversion
from rglcd.rewards.conversion import CONVERTERS, convert_clip, convert_imagereward, convert_open_clip
from tests.rewards.published_models import layout, publish, publish_heads, state


def on_meta(name: str) -> dict[str, Tensor]:
    return {tensor: torch.empty(shape, device="meta") for tensor, shape in layout(name).items()}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What would be written of a model that has no values: a billion parameters cost nothing."""
    kept: dict[str, Tensor] = {}
    monkeypatch.setattr(conversion, "save_file", lambda tensors, path, metadata: kept.update(tensors))
    return kept


@pytest.mark.parametrize("convert", [convert_clip, convert_open_clip])
def test_every_tensor_of_a_full_size_vit_h_14_is_converted(
    convert: Callable[[dict[str, Tensor], Path], None], written: dict[str, Tensor], tmp_path: Path
) -> None:
    convert(on_meta("open_clip ViT-H-14"), tmp_path)
    # open_clip counts 986.1 million for it (docs/model_profile.csv).
    assert sum(tensor.numel() for tensor in written.values()) == 986_109_441


def test_config_read_off_a_vit_h_14_equals_its_model_card(written: dict[str, Tensor], tmp_path: Path) -> None:
    """laion/CLIP-ViT-H-14-laion2B-s32B-b79K, config.json."""
    convert_clip(on_meta("open_clip ViT-H-14"), tmp_path)
    config = CLIPConfig.from_pretrained(tmp_path)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    assert [getattr(config.vision_config, name) for name in names] == [1280, 5120, 32, 16, "gelu"]
    assert [getattr(config.text_config, name) for name in names] == [1024, 4096, 24, 16, "gelu"]
    assert (config.vision_config.image_size, config.vision_config.patch_size, config.projection_dim) == (224, 14, 1024)
    assert (config.text_config.vocab_size, config.text_config.max_position_embeddings) == (49408, 77)


def test_open_clip_config_of_a_vit_h_14_equals_hpsv2s(written: dict[str, Tensor], tmp_path: Path) -> None:
    """hpsv2/src/open_clip/model_configs/ViT-H-14.json."""
    convert_open_clip(on_meta("open_clip ViT-H-14"), tmp_path)
    assert json.loads((tmp_path / "open_clip_config.json").read_text()) == {
        "embed_dim": 1024,
        "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
    }


def test_every_tensor_of_a_full_size_imagereward_is_converted(written: dict[str, Tensor], tmp_path: Path) -> None:
    source = on_meta("ImageReward")
    convert_imagereward(source, tmp_path)
    unused = {name for name in source if name.endswith("position_ids") or name.startswith(("blip.vision_proj", "blip.text_proj"))}
    assert len(unused) == 5
    assert sum(tensor.numel() for tensor in written.values()) == sum(source[name].numel() for name in source.keys() - unused)
    declared = json.loads((tmp_path / "config.json").read_text())
    # BLIP-large as models/BLIP/blip.py builds it, and med_config.json.
    assert [declared["vision"][name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size")] == [
        1024,
        24,
        16,
        224,
    ]
    assert [declared["text"][name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")] == [
        768,
        12,
        12,
        30524,
    ]
    assert declared["head"] == [768, 1024, 128, 64, 16, 1]


def test_conversion_for_the_hpsv2_package_keeps_its_tensor_names(tmp_path: Path) -> None:
    source = state("open_clip tiny", seed=1)
    convert_open_clip(source, tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == source.keys()
    assert all(torch.equal(written[name], source[name]) for name in source)


def test_aesthetic_heads_keep_the_order_of_layers(tmp_path: Path) -> None:
    for kind, path in zip(("aesthetic-v1", "aesthetic-v2"), publish_heads(tmp_path / "published", width=8), strict=True):
        source = read_checkpoint(path)
        CONVERTERS[kind](source, tmp_path)
        written = load_file(tmp_path / "head.safetensors")
        assert [written[f"{number}.weight"].shape[0] for number in range(len(written) // 2)] == (
            [1] if kind == "aesthetic-v1" else [1024, 128, 64, 16, 1]
        )
        assert sum(tensor.numel() for tensor in written.values()) == sum(tensor.numel() for tensor in source.values())


DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a tensor is missing": (lambda tensors: tensors.pop("visual.ln_post.bias"), "1 missing .*vision_model.post_layernorm.bias"),
    "a tensor too many": (
        lambda tensors: tensors.update({"score_predictor.weight": torch.zeros(1)}),
        "unknown tensor 'score_predictor.weight'",
    ),
    "a wrong shape": (lambda tensors: tensors.update({"visual.proj": torch.zeros(160, 31)}), "'visual_projection.weight' has shape"),
    "no picture tower": (lambda tensors: tensors.pop("visual.conv1.weight"), "gives the model's size is missing"),
}


@pytest.mark.parametrize("harm", DAMAGE)
def test_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, harm: str) -> None:
    damage, said = DAMAGE[harm]
    tensors = state("open_clip tiny", seed=1)
    damage(tensors)
    with pytest.raises(InputError, match=said) as refusal:
        convert_clip(tensors, tmp_path)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "model.safetensors").exists()


class TestForeign:
    def test_state_dict_key_and_module_prefix_are_removed(self, tmp_path: Path) -> None:
        tensors = {"a.weight": torch.ones(2), "b": torch.zeros(())}
        for number, content in enumerate(
            [tensors, {"state_dict": tensors, "epoch": 3}, {f"module.{name}": tensor for name, tensor in tensors.items()}]
        ):
            torch.save(content, tmp_path / f"{number}.pt")
            assert read_checkpoint(tmp_path / f"{number}.pt").keys() == tensors.keys()

    def test_checkpoint_of_torchs_old_format_is_read(self, tmp_path: Path) -> None:
        torch.save({"weight": torch.ones(1, 3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        assert torch.equal(read_checkpoint(tmp_path / "old.pth")["weight"], torch.ones(1, 3))

    def test_packed_zip_is_refused_before_it_is_unpacked(self, tmp_path: Path) -> None:
        """A bomb: torch would unpack a thousand times its size. torch.save packs nothing."""
        torch.save({"weight": torch.zeros(1 << 20)}, tmp_path / "whole.pt")
        with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
            for name in whole.namelist():
                bomb.writestr(name, whole.read(name))
        with pytest.raises(InputError, match=r"bomb\.pt cannot be read as weights alone: its part '.*' is packed"):
            read_checkpoint(tmp_path / "bomb.pt")

    @pytest.mark.parametrize(
        "header",
        [
            '{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 99]}}',
            '{"a": {"dtype": "F32", "shape": [1099511627776, 1099511627776], "data_offsets": [0, 16]}}',
            '{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
            '{"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}',
            '{"a": {"dtype": "PICKLE", "shape": [4], "data_offsets": [0, 16]}}',
            "[" * 100_000,
            "",
        ],
        ids=["beyond the end", "overflow", "overlap", "negative", "no dtype", "deep", "nothing"],
    )
    def test_safetensors_whose_header_lies_are_refused(self, tmp_path: Path, header: str) -> None:
        path = tmp_path / "model.safetensors"
        for length in (len(header), 1 << 62):
            path.write_bytes(length.to_bytes(8, "little") + header.encode() + bytes(16))
            with pytest.raises(InputError, match=r"model\.safetensors cannot be read as weights alone"):
                read_checkpoint(path)

    def test_pickle_with_code_is_refused_and_not_run(self, tmp_path: Path) -> None:
        class Payload:
            def __reduce__(self) -> tuple[object, tuple[Path]]:
                return Path.touch, (tmp_path / "was-run",)

        torch.save({"state_dict": {"weight": Payload()}}, tmp_path / "evil.pt")
        (tmp_path / "evil.bin").write_bytes(pickle.dumps(Payload(), protocol=2))
        for name in ("evil.pt", "evil.bin"):
            with pytest.raises(InputError, match=f"{name} cannot be read as weights alone"):
                read_checkpoint(tmp_path / name)
        assert not (tmp_path / "was-run").exists()

    @pytest.mark.parametrize(("content", "said"), [({}, "it is empty"), ([1, 2], "it is empty"), ({"weight": 3}, "'weight' is no tensor")])
    def test_file_that_is_no_state_dict_is_refused(self, tmp_path: Path, content: object, said: str) -> None:
        torch.save(content, tmp_path / "odd.pt")
        with pytest.raises(InputError, match=said):
            read_checkpoint(tmp_path / "odd.pt")

    def test_truncated_checkpoint_is_refused(self, tmp_path: Path) -> None:
        whole = publish("imagereward", tmp_path).read_bytes()
        (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=r"cut\.pt cannot be read"):
            read_checkpoint(tmp_path / "cut.pt")
