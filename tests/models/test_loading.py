"""Model folders are loaded only if complete, of the expected class and in safetensors; pickles are never opened."""

import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel
from transformers.convert_slow_tokenizer import import_protobuf

from rglcd.errors import InputError
from rglcd.models.loading import load_tokenizer, load_weights, read_json
from tests.tiny_flows import LETTERS, tiny_t5_tokenizer

PARTS = {
    "vae": (AutoencoderKL, "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "unet": (UNet2DConditionModel, "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "text_encoder": (CLIPTextModel, "model.safetensors", "pytorch_model.bin"),
}


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest, teacher_folder: Path, tmp_path: Path) -> tuple[type, Path, str]:
    """A class, a folder of it to spoil, and the name of its pickle."""
    kind, weights, pickled = PARTS[request.param]
    return kind, Path(shutil.copytree(teacher_folder / request.param, tmp_path / request.param)) / weights, pickled


def refusal(kind: type, folder: Path) -> str:
    with pytest.raises(InputError) as refused:
        load_weights(kind, folder, dtype=torch.float32)
    message = str(refused.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def test_load_weights_loads_every_tensor_of_a_folder(part) -> None:
    kind, weights, _ = part
    network = load_weights(kind, weights.parent, dtype=torch.float32)
    state = network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in load_file(weights).items() if name in state)


def test_folder_of_another_class_is_refused_naming_both_classes(teacher_folder: Path) -> None:
    message = refusal(UNet2DConditionModel, teacher_folder / "vae")
    assert "describes a AutoencoderKL, not a UNet2DConditionModel" in message
    assert "describes a CLIPTextModel, not a AutoencoderKL" in refusal(AutoencoderKL, teacher_folder / "text_encoder")


def test_missing_tensors_are_refused_with_their_number_and_the_first_name(part) -> None:
    kind, weights, _ = part
    tensors = load_file(weights)
    first, second = sorted(tensors)[:2]
    del tensors[first], tensors[second]
    save_file(tensors, weights, metadata={"format": "pt"})
    assert f"lacks 2 tensors of {kind.__name__}, {first} the first" in refusal(kind, weights.parent)


def test_a_tensor_of_another_shape_is_refused(part) -> None:
    kind, weights, _ = part
    tensors = load_file(weights)
    tensors[min(tensors)] = torch.zeros(3)
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "cannot be opened" in refusal(kind, weights.parent)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!"], ids=["empty", "long", "not JSON"])
def test_a_bad_safetensors_header_is_refused(part, content: bytes) -> None:
    kind, weights, _ = part
    weights.write_bytes(content)
    assert "cannot be opened" in refusal(kind, weights.parent)


def test_truncated_safetensors_file_is_refused(part) -> None:
    kind, weights, _ = part
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot be opened" in refusal(kind, weights.parent)


class Canary:
    """Unpickled, it sings."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_folder_of_pickles_is_refused_without_opening_one(part, tmp_path: Path) -> None:
    kind, weights, pickled = part
    weights.unlink()
    song = tmp_path / "sung"
    (weights.parent / pickled).write_bytes(pickle.dumps({"weight": Canary(song)}))
    refusal(kind, weights.parent)
    assert not song.exists()
    pickle.loads((weights.parent / pickled).read_bytes())
    assert song.exists(), "the canary can sing"


def test_custom_code_named_by_a_folder_is_not_run(teacher_folder: Path, tmp_path: Path) -> None:
    folder, song = Path(shutil.copytree(teacher_folder / "tokenizer", tmp_path / "tokenizer")), tmp_path / "sung"
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}})
    )
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(song)!r})\n")
    with pytest.raises(InputError, match="cannot be opened as a tokenizer"):
        load_tokenizer(folder)
    assert not song.exists()


@pytest.mark.parametrize(("content", "said"), [(None, "is missing"), ("{", "is not JSON"), ("[]", "must hold a JSON object")])
def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert said in refusal(AutoencoderKL, tmp_path)
    with pytest.raises(InputError, match=said):
        read_json(tmp_path / "config.json")


def test_a_missing_folder_says_what_was_expected(tmp_path: Path) -> None:
    assert "is missing: expected a AutoencoderKL" in refusal(AutoencoderKL, tmp_path / "vae")


def write_vocabulary_of_sentencepiece(folder: Path) -> None:
    """A tokenizer folder as PixArt-Sigma's: the pieces of :func:`tiny_t5_tokenizer` in ``spiece.model``, and no ``tokenizer.json``."""
    model = import_protobuf().ModelProto()
    for number, (piece, score) in enumerate(
        [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((one, -3.0) for one in LETTERS)]
    ):
        model.pieces.add(piece=piece, score=score, type=1 if number > 2 else 2 if piece == "<unk>" else 3)  # normal, unknown, control
    model.trainer_spec.model_type = 1  # unigram
    model.trainer_spec.unk_id = 2
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    declared = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(declared))


def test_a_tokenizer_that_is_a_vocabulary_of_sentencepiece_alone_is_read(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    write_vocabulary_of_sentencepiece(tmp_path)
    captions = ["a Red circle", "blue"]
    assert load_tokenizer(tmp_path)(captions)["input_ids"] == tiny_t5_tokenizer()(captions)["input_ids"]


def test_a_vocabulary_of_sentencepiece_is_refused_by_the_package_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vocabulary_of_sentencepiece(tmp_path)
    monkeypatch.setattr("rglcd.models.loading.is_sentencepiece_available", lambda: False)
    with pytest.raises(
        InputError, match=r"spiece\.model is read by the packages sentencepiece and protobuf, .*: pip install '.*\[train\]'"
    ):
        load_tokenizer(tmp_path)


def test_nobody_is_warned_of_a_torchvision_that_nothing_here_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = list[str]()
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: heard.append(record.getMessage()))
    logger = logging.getLogger("transformers.utils.import_utils")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.delitem(vars(transformers.models.clip), "CLIPImageProcessor", raising=False)
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]  # transformers' own
    assert transformers.models.clip.CLIPImageProcessor is not None
    logger.warning("another")
    assert heard == ["another"]
