from pathlib import Path

from transformers import CLIPTokenizer

from rglcd.toy.scene import all_scenes, caption
from rglcd.toy.tokenizer import MAX_TOKENS, build_tokenizer, whole_word_merges


def test_every_word_of_a_toy_caption_is_one_token() -> None:
    tokenizer = build_tokenizer()
    for scene in all_scenes():
        assert [piece.removesuffix("</w>") for piece in tokenizer.tokenize(caption(scene))] == caption(scene).split()


def test_decoded_token_ids_give_back_the_caption_within_the_length() -> None:
    tokenizer = build_tokenizer()
    ids = [tokenizer(caption(scene)).input_ids for scene in all_scenes()]
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == list(map(caption, all_scenes()))
    assert max(map(len, ids)) <= MAX_TOKENS == tokenizer.model_max_length


def test_saved_tokenizer_loads_with_equal_tokens(tmp_path: Path) -> None:
    tokenizer, text = build_tokenizer(), caption(all_scenes()[77])
    tokenizer.save_pretrained(tmp_path)
    assert CLIPTokenizer.from_pretrained(tmp_path)(text).input_ids == tokenizer(text).input_ids


def test_merges_of_later_words_do_not_split_earlier_words() -> None:
    tokenizer = CLIPTokenizer
    words = ["aba", "ab", "baba", "bab", "abab"]
    merges = whole_word_merges(words)
    pieces = ["a", "b", "a</w>", "b</w>", *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges)
    assert [tokenizer.tokenize(word) for word in words] == [[f"{word}</w>"] for word in words]
