"""A teacher in one file, as Civitai, kohya's scripts and the web UIs have them, becomes a diffusers pipeline folder.

Names are turned by diffusers' own converters. Sizes and schedules are those of ``planning/shapes``, whose files name where they are from;
the vocabulary is CLIP's, which all of these models share. Nothing is fetched, and weights are written one tensor at a time.
"""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import diffusers
import torch
from diffusers.loaders import single_file_utils
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rglcd.errors import InputError
from rglcd.models.tensor_files import write_tensors

SUFFIX: Final = ".safetensors"

_VOCABULARY: Final = "models/clip_vocabulary.txt.gz"
"""OpenAI's ``bpe_simple_vocab_16e6.txt.gz`` (https://github.com/openai/CLIP, MIT License)."""
_NUM_MERGES: Final = 49_408 - 2 * 256 - 2

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_CLIP_1, _OPEN_CLIP_2 = "cond_stage_model.transformer.", "cond_stage_model.model."
_CLIP_XL, _OPEN_CLIP_XL = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."

_SHAPES: Final = {"v1": "stable-diffusion-v1-5", "v2": "stable-diffusion-2-1", "xl_base": "stable-diffusion-xl-base-1.0"}
_OTHERS: Final = {
    "inpainting": "an inpainting model",
    "inpainting_v2": "an inpainting model",
    "xl_inpaint": "an inpainting model",
    "xl_refiner": "SDXL's refiner",
    "upscale": "an upscaling model",
    "playground-v2-5": "Playground v2.5 (EDM: continuous noise levels)",
}
_V_PREDICTION, _ZERO_SNR = "v_pred", "ztsnr"
"""Empty tensors by which ComfyUI and kohya's scripts mark such a model."""


@dataclass(frozen=True)
class _Part:
    """A folder of a pipeline, the beginning of its tensors' names in the file, and how these become the part's own."""

    folder: str
    kind: str
    prefix: str
    convert: Callable[[dict[str, Tensor], Mapping[str, Any]], Mapping[str, Tensor]]


def convert_single_file(path: Path, destination: Path) -> str:
    """Write the pipeline of the file at ``path`` to ``destination``; returns in words what it was taken for.

    Raises :class:`InputError` for a file that is damaged, incomplete or none of Stable Diffusion 1.x, 2.x and XL.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            return _converted(opened, path, destination)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path.name} cannot be read as safetensors: {' '.join(str(error).split())[:300]}; get it again") from None


def published_sizes(model: str) -> dict[str, Any]:
    """What of the ``config.json`` files of ``model`` shapes its networks, and its schedule."""
    sizes: dict[str, Any] = json.loads((files("rglcd") / f"planning/shapes/{model}.json").read_text(encoding="utf-8"))
    return sizes


def _converted(opened: Any, path: Path, destination: Path) -> str:
    names = frozenset(opened.keys())
    version = _version(opened, names, path)
    published = published_sizes(_SHAPES[version])
    configs = {"unet": published["unet"], "vae": published["vae"]} | {
        f"text_encoder{number}": sizes for number, sizes in zip(("", "_2"), published["text_encoders"], strict=False)
    }
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline" if version == "xl_base" else "StableDiffusionPipeline"}
    index |= {"_diffusers_version": diffusers.__version__, "scheduler": ["diffusers", "DDIMScheduler"]}
    for part in _parts(version):
        held = sorted(name for name in names if name.startswith(part.prefix))
        if not held:
            raise InputError(f"{path.name} has no tensor {part.prefix}...: it lacks the {part.folder}; name a file with all parts")
        _write_part(part, opened, held, configs[part.folder], destination / part.folder)
        library = "diffusers" if part.folder in ("unet", "vae") else "transformers"
        index[part.folder] = [library, part.kind]
    paddings = {"tokenizer": "!" if version == "v2" else "<|endoftext|>"} | ({"tokenizer_2": "!"} if version == "xl_base" else {})
    for tokenizer, padding in paddings.items():
        _write_tokenizer(destination / tokenizer, padding)
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
    scheduler, said = _scheduler(published["scheduler"], names, opened.metadata() or {})
    _write_json(destination / "scheduler/scheduler_config.json", scheduler)
    _write_json(destination / "model_index.json", index)
    return f"{path.name} is taken for a {_SHAPES[version]} that predicts {scheduler['prediction_type']} ({said})"


def _version(opened: Any, names: frozenset[str], path: Path) -> str:
    shapes = {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in names}
    found: str = single_file_utils.infer_diffusers_model_type(shapes)
    if f"{_UNET}input_blocks.0.0.weight" not in names or found not in _SHAPES:
        what = _OTHERS.get(found, "none of Stable Diffusion 1.x, 2.x and XL with all its parts, by the names of its tensors")
        raise InputError(f"{path.name} is {what}: name the file of a whole Stable Diffusion 1.x, 2.x or XL, or a diffusers folder")
    return found


def _parts(version: str) -> Iterator[_Part]:
    yield _Part("unet", "UNet2DConditionModel", _UNET, single_file_utils.convert_ldm_unet_checkpoint)
    yield _Part("vae", "AutoencoderKL", _VAE, single_file_utils.convert_ldm_vae_checkpoint)
    if version == "v1":
        yield _Part("text_encoder", "CLIPTextModel", _CLIP_1, _clip)
    elif version == "v2":
        yield _Part("text_encoder", "CLIPTextModel", _OPEN_CLIP_2, _open_clip(_OPEN_CLIP_2))
    else:
        yield _Part("text_encoder", "CLIPTextModel", _CLIP_XL, _clip)
        yield _Part("text_encoder_2", "CLIPTextModelWithProjection", _OPEN_CLIP_XL, _open_clip(_OPEN_CLIP_XL))


def _clip(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> Mapping[str, Tensor]:
    converted: Mapping[str, Tensor] = single_file_utils.convert_ldm_clip_checkpoint(tensors)
    return {name: tensor for name, tensor in converted.items() if not name.endswith("position_ids")}


def _open_clip(prefix: str) -> Callable[[dict[str, Tensor], Mapping[str, Any]], Mapping[str, Tensor]]:
    def convert(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> Mapping[str, Tensor]:
        network = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
        converted: dict[str, Tensor] = single_file_utils.convert_open_clip_checkpoint(network, tensors, prefix=prefix)
        if prefix == _OPEN_CLIP_2:
            converted.pop("text_projection.weight", None)  # of a model whose last layer is read, and which projects nothing
        return converted

    return convert


def _write_part(part: _Part, opened: Any, held: list[str], config: Mapping[str, Any], folder: Path) -> None:
    """The UNet, most of the file, is renamed alone, so each of its tensors is read when it is written; the others are read as a whole."""
    if part.folder == "unet":
        blank = {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in held}
        given = {id(tensor): name for name, tensor in blank.items()}
        new_names = {new: given[id(tensor)] for new, tensor in part.convert(blank, config).items()}
        read = {new: (lambda name=name: opened.get_tensor(name)) for new, name in new_names.items()}
        file = "diffusion_pytorch_model.safetensors"
    else:
        converted = part.convert({name: opened.get_tensor(name) for name in held}, config)
        read = {new: (lambda tensor=tensor: tensor) for new, tensor in converted.items()}
        file = "diffusion_pytorch_model.safetensors" if part.folder == "vae" else "model.safetensors"
    named = {"architectures": [part.kind]} if part.folder.startswith("text") else {"_class_name": part.kind}
    model_type = {"model_type": "clip_text_model"} if part.folder.startswith("text") else {}
    _write_json(folder / "config.json", named | model_type | dict(config))
    write_tensors(folder / file, read)


def _scheduler(published: Mapping[str, Any], names: frozenset[str], metadata: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """The schedule, and what says so: kohya's metadata (``modelspec``), ComfyUI's marks, or nothing but what is usual."""
    declared = {"epsilon": "epsilon", "v": "v_prediction"}.get(metadata.get("modelspec.prediction_type", ""))
    if declared is not None:
        kind, said = declared, "its metadata say so"
    elif _V_PREDICTION in names:
        kind, said = "v_prediction", f"it is marked {_V_PREDICTION}"
    else:
        kind, said = published["prediction_type"], "it does not say; this is usual"
    scheduler = {"_class_name": "DDIMScheduler", **published, "prediction_type": kind, "clip_sample": False, "set_alpha_to_one": False}
    return scheduler | {"steps_offset": 1, "rescale_betas_zero_snr": _ZERO_SNR in names}, said


def _write_tokenizer(folder: Path, padding: str) -> None:
    """CLIP's byte-pair vocabulary as transformers reads it: all bytes, all bytes that end a word, the merges, and two marks."""
    folder.mkdir(parents=True)
    lines = gzip.decompress((files("rglcd") / _VOCABULARY).read_bytes()).decode().split("\n")
    merges = lines[1 : 1 + _NUM_MERGES]
    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": padding}
    _write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **marks}
    )
    _write_json(folder / "special_tokens_map.json", marks)


def _letters() -> list[str]:
    """A printable letter for each byte, in CLIP's order: those that are printable stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len([number for number in range(256) if number not in printable])
    return [*map(chr, printable), *(chr(256 + number) for number in range(others))]


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
