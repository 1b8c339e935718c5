"""The text that a caption quotes, and how much of it was read in a picture.

The score is Flow-GRPO's (arXiv 2505.05470, ``flow_grpo/ocr.py``): 1 - min(d, n) / n for n characters that the caption asks for, d the
edit distance (Levenshtein) to what was read, without spaces and case. Here d is to the part of the text read that fits best, as there
where the text is read without a fault, so that what else is written in a picture costs nothing; and a caption may quote several texts.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import accumulate, permutations
from typing import Final

LEAST_CHARACTERS: Final = 3
"""Letters and digits of a line that counts as text which nobody asked for: a ring is read as 0, a star as ★."""

_ALL_ORDERS: Final = 4
"""Quoted texts that may stand in a picture in any order; more than these are looked for in the caption's."""

_QUOTES: Final = re.compile(
    r"""(?<!\w)"([^"]+)"(?!\w)"""  # not the inches of 5" x 7"
    r"""|“([^“”]+)”"""
    r"""|(?<!\w)'((?:[^']|(?<=\w)'(?=\w))+)'(?!\w)"""  # not the apostrophes of the dogs' and the cats' bowls
    r"""|(?<!\w)‘((?:[^‘’]|(?<=\w)’(?=\w))+)’(?!\w)"""
)


def quoted_texts(caption: str) -> list[str]:
    """What ``caption`` has in "double", 'single', “curly” or ‘curly single’ quotes, :func:`plain`; none without a letter or a digit."""
    texts = (plain(next(filter(None, found.groups()))) for found in _QUOTES.finditer(caption))
    return [text for text in texts if any(map(str.isalnum, text))]


def plain(text: str) -> str:
    """``text`` as it is compared: compatibility characters resolved (NFKC), without case, spaces and what is not printed."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(character for character in folded if character.isprintable() and not character.isspace())


def reading_score(lines: Sequence[str], quoted: Sequence[str]) -> float:
    """Of the characters that are ``quoted`` the share that ``lines``, which were read in a picture, hold: 0 to 1. Both are :func:`plain`.

    The quoted texts are laid on the lines, one after the other in the order that fits best, so that no character that was read counts
    for two of them. A text may be broken over lines.
    """
    read = "".join(lines)
    orders = set(permutations(quoted)) if len(quoted) <= _ALL_ORDERS else {tuple(quoted)}
    return 1 - min(least_distance(order, read) for order in orders) / sum(map(len, quoted))


def has_unasked_text(lines: Sequence[str], quoted: Sequence[str]) -> bool:
    """Whether one of ``lines`` is text that is not ``quoted``: three letters or digits at least, and most of it in no quoted text."""
    asked = "".join(quoted)
    texts = (line for line in lines if sum(map(str.isalnum, line)) >= LEAST_CHARACTERS)
    return any(2 * least_distance([text], asked) > len(text) for text in texts)


def least_distance(texts: Sequence[str], within: str) -> int:
    """The least edit distance of ``texts``, in this order, to parts of ``within`` that do not overlap; what lies between is free.

    Sellers 1980 (The theory and computation of evolutionary distances, section 4) for one text.
    """
    reached = [0] * (len(within) + 1)  # the least cost of all so far, whose last part ends here or before
    for text in texts:
        row = list(accumulate(reached, min))
        for character in text:
            above, row = row, [row[0] + 1]
            for place, other in enumerate(within, start=1):
                row.append(min(above[place - 1] + (character != other), above[place] + 1, row[-1] + 1))
        reached = row
    return min(reached)
