"""Commands as the documentation says them, cut into words."""

import re
import shlex
from collections.abc import Iterator

_ENDS = {"&&", "||", "|", ";", "&"}
_SHELL = {"for", "do", "done", "while", "if", "then", "fi", "exec"}


def commands(text: str) -> Iterator[list[str]]:
    """The commands in a block, with loops' bodies and both sides of a pipe; variables, here-documents and redirections left out."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(<<'(\w+)').*?^\2$", r"", text, flags=re.MULTILINE | re.DOTALL))
    for line in joined.splitlines():
        reader = shlex.shlex(line, posix=True, punctuation_chars=True)
        reader.whitespace_split = True
        reader.commenters = "#"
        words: list[str] = []
        for word in [*reader, ";"]:
            if word in _ENDS:
                yield from _plain(words)
                words = []
            else:
                words.append(word)


def _plain(words: list[str]) -> Iterator[list[str]]:
    if words[:1] == ["for"]:
        return
    while words and (words[0] in _SHELL or re.fullmatch(r"[A-Z_]+=.*", words[0])):
        words = words[1:]
    until = next((number for number, word in enumerate(words) if re.fullmatch(r"[<>]+|\(|\)", word)), len(words))
    if words[:until]:
        yield words[:until]
