"""Captions to token ids to embeddings, equal to diffusers' pipeline."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from rglcd.errors import InputError
from rglcd.models.text import TextEncoder
from tests.tiny_models import MAX_TOKENS, PROJECTION_WIDTH, RESOLUTION, TEXT_WIDTH


def load(folder: Path) -> TextEncoder:
    return TextEncoder.load(folder, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def encoder(teacher_folder: Path) -> TextEncoder:
    return load(teacher_folder)


@settings(max_examples=30)
@given(captions=st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40), min_size=1, max_size=4))
def test_token_ids_have_the_models_length_for_any_caption(encoder: TextEncoder, captions: list[str]) -> None:
    ids = encoder.tokenise(captions)
    assert (ids.shape, ids.dtype) == ((len(captions), MAX_TOKENS), torch.int64)
    alone = torch.cat([encoder.tokenise([caption]) for caption in captions])
    assert torch.equal(ids, alone), "a caption's ids do not depend on its neighbours"


def test_short_captions_are_padded_and_long_ones_truncated(encoder: TextEncoder) -> None:
    (tower,) = encoder.towers
    tokenizer = tower.tokenizer
    short, long, longer = encoder.tokenise(["ab", "x" * 40, "x" * 50])
    assert short[0] == long[0] == tokenizer.bos_token_id
    assert (short[3:] == tokenizer.pad_token_id).all()
    assert long[-1] == tokenizer.eos_token_id
    assert (long[1:-1] != tokenizer.eos_token_id).all()
    assert torch.equal(long, longer)


def test_unconditional_input_is_the_empty_caption(encoder: TextEncoder) -> None:
    empty, other = encoder.encode(encoder.tokenise(["", "a"])).embeddings
    torch.testing.assert_close(encoder.null().embeddings, empty[None])
    assert not torch.allclose(empty, other)


def test_text_embeddings_equal_diffusers_pipeline(encoder: TextEncoder, teacher_folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(teacher_folder, safety_checker=None, requires_safety_checker=False)
    captions = ["a red circle", "a very long caption that has to be cut"]
    conditional, unconditional = pipeline.encode_prompt(captions, "cpu", 1, True)
    torch.testing.assert_close(encoder.encode(encoder.tokenise(captions)).embeddings, conditional)
    torch.testing.assert_close(encoder.null().embeddings.expand(2, -1, -1), unconditional)
    assert conditional.shape == (2, MAX_TOKENS, TEXT_WIDTH)


def test_text_encoder_is_frozen(encoder: TextEncoder) -> None:
    assert not encoder.null().embeddings.requires_grad
    assert not any(tower.model.training for tower in encoder.towers)


@pytest.mark.parametrize("harm", ["missing", "empty"])
def test_missing_tokenizer_is_refused_in_one_line(teacher_folder: Path, tmp_path: Path, harm: str) -> None:
    folder = Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))
    shutil.rmtree(folder / "tokenizer")
    if harm == "empty":
        (folder / "tokenizer").mkdir()
    with pytest.raises(InputError, match="tokenizer") as refusal:
        load(folder)
    assert "\n" not in str(refusal.value)


# --- SDXL ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_text_embeddings_equal_diffusers_pipeline(xl_folder: Path, tmp_path: Path, zeros: bool) -> None:
    folder = Path(shutil.copytree(xl_folder, tmp_path / "xl"))
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"force_zeros_for_empty_prompt": zeros}))
    pipeline, encoder = StableDiffusionXLPipeline.from_pretrained(folder), load(folder)
    captions = ["a red circle", "a very long caption that has to be cut"]
    embeddings, null, pooled, null_pooled = pipeline.encode_prompt(captions, device="cpu", do_classifier_free_guidance=True)
    ours, ours_null = encoder.encode(encoder.tokenise(captions)), encoder.null()
    torch.testing.assert_close(ours.embeddings, embeddings)
    torch.testing.assert_close(ours.pooled, pooled)
    torch.testing.assert_close(ours_null.embeddings.expand(2, -1, -1), null)
    torch.testing.assert_close(ours_null.pooled.expand(2, -1), null_pooled)
    assert bool(ours_null.embeddings.count_nonzero()) is not zeros
    assert (ours.embeddings.shape, ours.pooled.shape) == ((2, MAX_TOKENS, 2 * TEXT_WIDTH), (2, PROJECTION_WIDTH))


def test_sdxl_token_ids_of_both_tokenizers_are_side_by_side_with_their_own_padding(xl_folder: Path) -> None:
    encoder = load(xl_folder)
    first, second = encoder.tokenise(["ab"])[0].split(MAX_TOKENS)
    assert torch.equal(first[:4], second[:4])
    assert (first[4:] == encoder.towers[0].tokenizer.pad_token_id).all()
    assert (second[4:] == encoder.towers[1].tokenizer.pad_token_id).all()
    assert not torch.equal(first, second)


def test_time_ids_for_sampling_equal_diffusers_pipeline(xl_folder: Path, teacher_folder: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_folder)
    side, width = (RESOLUTION, RESOLUTION), PROJECTION_WIDTH
    theirs = pipeline._get_add_time_ids(side, (0, 0), side, dtype=torch.float32, text_encoder_projection_dim=width)
    assert torch.equal(load(xl_folder).drawing_sizes(RESOLUTION).float(), theirs)
    assert load(teacher_folder).drawing_sizes(RESOLUTION) is None
