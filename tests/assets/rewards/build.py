"""Ask the reference implementations, in environments of their own, and write down what they say.

    python build.py open-clip     with hpsv2 1.2.0, open_clip_torch 3.3.0, torchvision and transformers 5
    python build.py image-reward  with image-reward 1.5, timm 0.6.13, fairscale 0.4.13, torchvision and transformers 4.30
    hpsv2: its wheel lacks src/open_clip/bpe_simple_vocab_16e6.txt.gz; copy open_clip's into it first

The references run at tiny sizes on weights that `published.py` draws, so that only names, shapes and answers are kept here:

    layouts.json             the names and shapes of their state dicts, tiny and published
    hpsv2.safetensors        of the package hpsv2:    pixels (P, 3, S, S), text (C, D), scores (P, C), logit_scale
    clipscore.safetensors    of open_clip:            the same
    imagereward.safetensors  of image-reward:         pixels, tokens (C, 35), scores (P, C)
    clip_tokenizer/          the part of CLIP's vocabulary that the captions need
    bert_tokenizer/          a vocabulary in bert-base-uncased's format
"""

import json
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from published import CAPTIONS, pictures, weights
from safetensors.torch import save_file

HERE = Path(__file__).parent
TINY_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 28, "layers": 2, "width": 160, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
VIT_H_14 = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}
WORDS = ("[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = [chr(code) for code in range(33, 127) if not chr(code).isupper()] + list("—“”’éï")
BERT_VOCABULARY = [*WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS), "red", "fox", "in", "the", "snow", "castle", "cats", "##s"]


def random_state(module: torch.nn.Module, *, seed: int) -> dict[str, torch.Tensor]:
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    return {name: torch.from_numpy(value) for name, value in weights(shapes, seed=seed).items()}


def layout(module: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def record(layouts: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Add to ``layouts.json``, a model a line."""
    path = HERE / "layouts.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    known |= layouts
    path.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(known[name])}" for name in sorted(known)) + "\n}\n")


# --- open_clip and hpsv2 -------------------------------------------------------------------------


def open_clip_references() -> None:
    stray = types.ModuleType("turtle")
    stray.__dict__["forward"] = None
    sys.modules["turtle"] = stray  # hpsv2 1.2.0: `from turtle import forward`
    import hpsv2.src.open_clip as of_hpsv2
    import open_clip

    description = HERE / "tiny_open_clip.json"
    description.write_text(json.dumps(TINY_CLIP))
    for package in (of_hpsv2, open_clip):
        package.add_model_config(description)
    description.unlink()
    hps, _, fit = of_hpsv2.create_model_and_transforms(description.stem, light_augmentation=True, output_dict=True)
    clip, _, crop = open_clip.create_model_and_transforms(description.stem)
    tokenise = of_hpsv2.get_tokenizer("ViT-H-14")
    assert torch.equal(tokenise(list(CAPTIONS)), open_clip.get_tokenizer("ViT-H-14")(list(CAPTIONS)))
    save_clip_tokenizer(open_clip.tokenizer.SimpleTokenizer(), tokenise(list(CAPTIONS)))
    save_file(clip_answers(hps, fit, tokenise, seed=1), HERE / "hpsv2.safetensors")
    save_file(clip_answers(clip, crop, tokenise, seed=2), HERE / "clipscore.safetensors")
    with torch.device("meta"):
        published = of_hpsv2.CLIP(**VIT_H_14)
    assert layout(hps) == layout(clip)
    record({"open_clip tiny": layout(hps), "open_clip ViT-H-14": layout(published)})


@torch.no_grad()
def clip_answers(model: Any, preprocess: Any, tokenise: Any, *, seed: int) -> dict[str, torch.Tensor]:
    model.load_state_dict(random_state(model, seed=seed))
    model.eval()
    pixels = torch.stack([preprocess(picture) for picture in pictures()])
    tokens = tokenise(list(CAPTIONS))
    image, text = model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)
    return {"pixels": pixels, "text": text, "scores": image @ text.T, "logit_scale": model.logit_scale.exp().detach()}


def save_clip_tokenizer(tokenizer: Any, tokens: torch.Tensor) -> None:
    """transformers' tokenizer with CLIP's own merges, those alone that could ever join two pieces of the captions' words."""
    from open_clip.tokenizer import _clean_lower
    from transformers import CLIPTokenizer

    words = {
        "".join(tokenizer.byte_encoder[byte] for byte in word.encode()) + "</w>"
        for caption in CAPTIONS
        for word in tokenizer.pat.findall(_clean_lower(caption))
    }
    merges = [pair for pair in tokenizer.bpe_ranks if any("".join(pair) in word for word in words)]
    letters = [letter + end for letter in tokenizer.byte_encoder.values() for end in ("", "</w>")]
    vocabulary = {piece: tokenizer.encoder[piece] for piece in [*letters, *("".join(pair) for pair in merges)]}
    vocabulary |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    ours = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    ours.save_pretrained(HERE / "clip_tokenizer")
    whole = CLIPTokenizer(
        vocab={
            piece.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): number
            for piece, number in tokenizer.encoder.items()
        },
        merges=list(tokenizer.bpe_ranks),
        model_max_length=77,
    )
    for mine in (ours, whole):
        for caption, row in zip(CAPTIONS, tokens.tolist(), strict=True):
            ids = mine(_clean_lower(caption), truncation=True, max_length=77)["input_ids"]
            assert ids == row[: len(ids)], caption
            assert not any(row[len(ids) :]), caption


# --- ImageReward ---------------------------------------------------------------------------------


def image_reward_references() -> None:
    import importlib.util

    # The packages' own __init__ import openai's clip and the training code: only the model itself is wanted.
    root = Path(importlib.util.find_spec("ImageReward").submodule_search_locations[0])
    for name, folder in (
        ("ImageReward", root),
        ("ImageReward.models", root / "models"),
        ("ImageReward.models.BLIP", root / "models" / "BLIP"),
    ):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    import ImageReward.ImageReward as reference  # noqa: N813 (module and class bear one name)
    import ImageReward.models.BLIP.blip_pretrain as pretrain
    from ImageReward.models.BLIP.vit import VisionTransformer
    from transformers import BertTokenizer

    vocabulary = HERE / "bert_tokenizer" / "vocab.txt"
    vocabulary.parent.mkdir(exist_ok=True)
    vocabulary.write_text("\n".join(BERT_VOCABULARY) + "\n", encoding="utf-8")
    (vocabulary.parent / "tokenizer_config.json").write_text(
        '{"do_lower_case": true, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}\n'
    )

    def tokenizer() -> Any:
        made = BertTokenizer(str(vocabulary))
        made.add_special_tokens({"bos_token": "[DEC]"})
        made.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        return made

    def tiny_vit(*_: Any) -> tuple[Any, int]:
        return VisionTransformer(img_size=32, patch_size=16, embed_dim=128, depth=2, num_heads=2), 128

    # The published med_config.json with other sizes (THUDM/ImageReward on the hub).
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 30524}
    tiny = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": len(BERT_VOCABULARY) + 2,
    }
    pretrain.init_tokenizer = tokenizer
    published = layout(reference.ImageReward(med_config(sizes)))  # its constructor cannot run on the meta device
    create_vit, pretrain.create_vit = pretrain.create_vit, tiny_vit
    model = reference.ImageReward(med_config(tiny))
    pretrain.create_vit = create_vit
    model.mlp, model.preprocess = reference.MLP(128), reference._transform(32)
    model.load_state_dict(random_state(model, seed=3), strict=False)
    model.eval()
    scores = [[model.score(caption, picture) for caption in CAPTIONS] for picture in pictures()]
    tokens = model.blip.tokenizer(list(CAPTIONS), padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    answers = {
        "pixels": torch.stack([model.preprocess(picture) for picture in pictures()]),
        "tokens": tokens["input_ids"],
        "scores": torch.tensor(scores),
    }
    save_file(answers, HERE / "imagereward.safetensors")
    record({"ImageReward tiny": layout(model), "ImageReward": published})


def med_config(sizes: dict[str, int]) -> str:
    path = HERE / "med_config.json"
    constants = {
        "add_cross_attention": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
    }
    path.write_text(json.dumps({"model_type": "bert", "encoder_width": 768, **constants, **sizes}))
    return str(path)


if __name__ == "__main__":
    {"open-clip": open_clip_references, "image-reward": image_reward_references}[sys.argv[1]]()
    (HERE / "med_config.json").unlink(missing_ok=True)
