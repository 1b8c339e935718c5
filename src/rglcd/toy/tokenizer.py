"""The toy's CLIP tokenizer: each word of a caption is one token."""

from collections.abc import Iterable
from string import ascii_lowercase
from typing import Final

from transformers import CLIPTokenizer

from rglcd.toy.scene import all_scenes, caption

MAX_TOKENS: Final = 16  # a caption is eleven words between two markers
START: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the toy world's captions."""
    return tokenizer_of({word for scene in all_scenes() for word in caption(scene).split()})


def tokenizer_of(words: Iterable[str]) -> CLIPTokenizer:
    """Letters, and the merges that lead from a word's letters to the whole word; other characters are unknown."""
    merges = whole_word_merges(sorted(words))
    pieces = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase), *("".join(pair) for pair in merges)]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def whole_word_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merges under which each word ends as one piece.

    A word joins its first two pieces until one is left, after the merges of the words before it. Merges found later
    rank below those, and while a word is in pieces one of its own merges applies: so no later one can disturb it.
    """
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = _segment(word, merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _segment(word, merges)
    return merges


def _segment(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The word under byte-pair encoding: each merge in rank order, wherever it applies."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    for first, second in merges:
        place = 0
        while place + 1 < len(pieces):
            if (pieces[place], pieces[place + 1]) == (first, second):
                pieces[place : place + 2] = [first + second]
            place += 1
    return pieces
