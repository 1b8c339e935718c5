"""Server of the ``hpsv2`` package for :mod:`rglcd.rewards.hpsv2_process`, run by the Python that has it; it need not have this project.

    hpsv2-python hpsv2_server.py FOLDER DEVICE

FOLDER holds ``open_clip_config.json`` and ``model.safetensors``, as ``prepare`` laid them out. Requests and answers are lines
of JSON on standard input and output; captions and arrays go through files that the request names. It ends when its input does.

    {"captions": "c.json", "text": "t.npy"}                       writes the unit vectors (B, D) of a list of captions to t.npy
    {"pixels": "p.npy", "text": "t.npy", "scores": "s.npy"}       reads uint8 (B, H, W, 3) and (B, D), writes scores (B,)
"""

import contextlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file


class Scorer:
    """The package's own model, preprocessing and tokenizer, used as its ``img_score.score`` does."""

    def __init__(self, folder: Path, device: str) -> None:
        if importlib.util.find_spec("_tkinter") is None:
            # hpsv2 1.2.0 has a stray `from turtle import forward`, which needs Tk.
            stray = types.ModuleType("turtle")
            stray.__dict__["forward"] = None
            sys.modules["turtle"] = stray
        from hpsv2.src.open_clip import (  # type: ignore[import-not-found]  # only its own environment has it
            add_model_config,
            create_model_and_transforms,
            get_tokenizer,
        )

        description = folder / "open_clip_config.json"
        add_model_config(description)
        self.device = device
        self.model, _, self.preprocess = create_model_and_transforms(
            description.stem, None, precision="amp", device=device, light_augmentation=True, output_dict=True
        )
        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        self.model.eval()
        # Its tokenizer is the same for every model without a Hugging Face text tower.
        self.tokenizer = get_tokenizer("ViT-H-14")

    def facts(self) -> dict[str, Any]:
        return {"logit_scale": self.model.logit_scale.exp().item(), "text_width": self.model.text_projection.shape[1]}

    def answer(self, request: dict[str, Any]) -> None:
        with torch.no_grad(), torch.autocast("cuda", enabled=self.device.startswith("cuda")):
            if "captions" in request:
                captions = json.loads(Path(request["captions"]).read_text(encoding="utf-8"))
                features = self.model.encode_text(self.tokenizer(captions).to(self.device), normalize=True)
                np.save(request["text"], features.float().cpu().numpy())
                return
            pictures = [Image.fromarray(levels) for levels in np.load(request["pixels"])]
            batch = torch.stack([self.preprocess(picture) for picture in pictures]).to(self.device)
            image = self.model.encode_image(batch, normalize=True)
            text = torch.from_numpy(np.load(request["text"])).to(image)
            np.save(request["scores"], (image * text).sum(dim=-1).float().cpu().numpy())


def serve(folder: Path, device: str, *, requests: TextIO, answers: TextIO) -> None:
    """Answer until ``requests`` end. What the package prints goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        scorer = Scorer(folder, device)
        _say(answers, scorer.facts())
        for line in requests:
            scorer.answer(json.loads(line))
            _say(answers, {})


def _say(answers: TextIO, fact: dict[str, Any]) -> None:
    answers.write(json.dumps(fact) + "\n")
    answers.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2], requests=sys.stdin, answers=sys.stdout)
