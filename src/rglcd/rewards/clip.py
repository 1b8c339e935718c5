"""CLIP-type reward models: the cosine of an image's and a caption's embedding.

HPSv2, PickScore and CLIPScore are all of this form; so is the toy world's expert. They differ in their weights, in how a
picture becomes a square, and in how a caption is cleaned before it is tokenised.

Shapes: B batch, (H, W) pixels, D embedding width.
"""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import ftfy
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPModel, PreTrainedTokenizerBase

from rglcd.errors import InputError
from rglcd.models.loading import load_tokenizer, load_weights, read_json, weights_digest
from rglcd.models.precision import at_least_float32
from rglcd.rewards.preprocessing import Fit, Preprocessing

CleanFn = Callable[[str], str]


def as_given(caption: str) -> str:
    """The caption unchanged: transformers' tokenizer does what it needs."""
    return caption


def cleaned(caption: str) -> str:
    """Broken encodings repaired, HTML entities (escaped twice, at times) resolved: open_clip's ``basic_clean``."""
    return html.unescape(html.unescape(ftfy.fix_text(caption))).strip()


class ClipReward:
    """A frozen ``CLIPModel`` with its tokenizer as a differentiable reward.

    ``folder`` is where its weights are, if they are anywhere. ``logit_scale`` is the inverse temperature before the weights
    were rounded to the precision of ``model``; left out, it is the model's own.
    """

    differentiable: Literal[True] = True
    range = (-1.0, 1.0)

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        preprocessing: Preprocessing,
        clean: CleanFn = as_given,
        folder: Path | None = None,
        logit_scale: float | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._preprocessing = preprocessing.like(self.model.visual_projection.weight)
        self._clean = clean
        self._folder = folder
        self._logit_scale = logit_scale

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "ClipReward":
        """The model of ``folder``, whose ``preprocessor_config.json`` gives the normalisation."""
        model, logit_scale = _open(folder, dtype, device)
        settings = read_json(folder / "preprocessor_config.json")
        if not {"image_mean", "image_std"} <= settings.keys():
            raise InputError(f"{folder}/preprocessor_config.json must give image_mean and image_std")
        preprocessing = Preprocessing.of(Fit.SHORTEST_CROPPED, mean=settings["image_mean"], std=settings["image_std"])
        return cls(model, load_tokenizer(folder), preprocessing=preprocessing, folder=folder, logit_scale=logit_scale)

    @classmethod
    def hpsv2(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "ClipReward":
        """Human Preference Score v2 and v2.1 (arXiv 2306.09341), as the package ``hpsv2`` computes it."""
        return cls._load(folder, dtype, device, preprocessing=Preprocessing.of(Fit.LONGEST_PADDED), clean=cleaned)

    @classmethod
    def clipscore(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "ClipReward":
        """The cosine of open_clip's ViT-H/14 (laion2B-s32B-b79K), without CLIPScore's factor and clipping (arXiv 2104.08718)."""
        return cls._load(folder, dtype, device, preprocessing=Preprocessing.of(Fit.SHORTEST_CROPPED), clean=cleaned)

    @classmethod
    def pickscore(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "ClipReward":
        """PickScore (arXiv 2305.01569): the cosine; times ``logit_scale`` it is what its README prints."""
        return cls._load(folder, dtype, device, preprocessing=Preprocessing.of(Fit.SHORTEST_CROPPED), clean=as_given)

    @classmethod
    def _load(cls, folder: Path, dtype: torch.dtype, device: torch.device, *, preprocessing: Preprocessing, clean: CleanFn) -> "ClipReward":
        model, logit_scale = _open(folder, dtype, device)
        return cls(model, load_tokenizer(folder), preprocessing=preprocessing, clean=clean, folder=folder, logit_scale=logit_scale)

    @property
    def logit_scale(self) -> float:
        return float(self.model.logit_scale.exp()) if self._logit_scale is None else self._logit_scale

    @property
    def text_width(self) -> int:
        return int(self.model.config.projection_dim)

    def weights_sha256(self) -> str | None:
        return None if self._folder is None else weights_digest(self._folder)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors (B, D)."""
        length = self.model.config.text_config.max_position_embeddings
        texts = [self._clean(caption) for caption in captions]
        # No attention mask: the tower is causal, so what follows the end of the text cannot reach the vector taken there.
        ids = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")["input_ids"]
        pooled = self.model.text_model(ids.to(self.model.device)).pooler_output
        return normalize(at_least_float32(self.model.text_projection(pooled)), dim=-1)

    def without_text(self) -> "ClipReward":
        """This reward, its text tower gone: 354 M of ViT-H/14's 986 M weights, which nobody needs once texts are cached features."""
        drop_text_tower(self.model)
        return self

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Cosine (B,) of pixels (B, 3, H, W) in [0, 1] and text features (B, D)."""
        image = self.embed_image(pixels)
        return (image * text.to(image.dtype)).sum(dim=-1)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """Unit vectors (B, D) of pixels (B, 3, H, W) in [0, 1]."""
        prepared = self._preprocessing(pixels, self.model.config.vision_config.image_size)
        pooled = self.model.vision_model(pixel_values=prepared).pooler_output
        return normalize(at_least_float32(self.model.visual_projection(pooled)), dim=-1)


def drop_text_tower(model: CLIPModel) -> None:
    """Remove from ``model`` what encodes captions."""
    for part in ("text_model", "text_projection"):
        if hasattr(model, part):
            delattr(model, part)


def _open(folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[CLIPModel, float]:
    """The network in ``dtype``, and its inverse temperature as it was stored.

    A temperature is not rounded with the weights: CLIP's 100 is 99 in bfloat16, and labels that are made with it are others.
    """
    model = load_weights(CLIPModel, folder, dtype=torch.float32)
    logit_scale = float(model.logit_scale.detach().exp())
    return nn.Module.to(model, device, dtype), logit_scale
