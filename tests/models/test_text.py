"""Captions to ids to embeddings, as the teacher's own pipeline does it."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from rglcd.errors import InputError
from rglcd.models.text import TextEncoder
from tests.tiny_models import MAX_TOKENS, TEXT_WIDTH


def load(folder: Path) -> TextEncoder:
    return TextEncoder.load(folder, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def encoder(teacher_folder: Path) -> TextEncoder:
    return load(teacher_folder)


@settings(max_examples=30)
@given(captions=st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40), min_size=1, max_size=4))
def test_every_row_has_the_models_length_whatever_the_caption(encoder: TextEncoder, captions: list[str]) -> None:
    ids = encoder.tokenise(captions)
    assert (ids.shape, ids.dtype) == ((len(captions), MAX_TOKENS), torch.int64)
    alone = torch.cat([encoder.tokenise([caption]) for caption in captions])
    assert torch.equal(ids, alone), "a caption's ids do not depend on its neighbours"


def test_a_short_caption_is_padded_and_a_long_one_cut(encoder: TextEncoder) -> None:
    tokenizer = encoder.tokenizer
    short, long, longer = encoder.tokenise(["ab", "x" * 40, "x" * 50])
    assert short[0] == long[0] == tokenizer.bos_token_id
    assert (short[3:] == tokenizer.pad_token_id).all()
    assert long[-1] == tokenizer.eos_token_id
    assert (long[1:-1] != tokenizer.eos_token_id).all()
    assert torch.equal(long, longer)


def test_null_ids_are_those_of_the_empty_caption(encoder: TextEncoder) -> None:
    assert encoder.null_ids().shape == (1, MAX_TOKENS)
    assert torch.equal(encoder.null_ids(), encoder.tokenise([""]))
    assert not torch.equal(encoder.null_ids(), encoder.tokenise(["a"]))


def test_embeddings_are_those_of_diffusers_pipeline(encoder: TextEncoder, teacher_folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(teacher_folder, safety_checker=None, requires_safety_checker=False)
    captions = ["a red circle", "a very long caption that has to be cut"]
    conditional, unconditional = pipeline.encode_prompt(captions, "cpu", 1, True)
    torch.testing.assert_close(encoder.encode(encoder.tokenise(captions)).embeddings, conditional)
    torch.testing.assert_close(encoder.encode(encoder.null_ids()).embeddings.expand(2, -1, -1), unconditional)
    assert conditional.shape == (2, MAX_TOKENS, TEXT_WIDTH)


def test_the_encoder_is_frozen(encoder: TextEncoder) -> None:
    assert not encoder.encode(encoder.null_ids()).embeddings.requires_grad
    assert not encoder.model.training


@pytest.mark.parametrize("harm", ["missing", "empty"])
def test_a_tokenizer_that_is_not_there_is_refused_in_one_line(teacher_folder: Path, tmp_path: Path, harm: str) -> None:
    folder = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    shutil.rmtree(folder / "tokenizer")
    if harm == "empty":
        (folder / "tokenizer").mkdir()
    with pytest.raises(InputError, match="tokenizer") as refusal:
        load(folder)
    assert "\n" not in str(refusal.value)
