"""Numbers on the command line."""

import argparse


def positive(word: str) -> int:
    """A whole number from 1 on."""
    if not word.isdecimal() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"{word!r} is no whole number from 1 on")
    return int(word)
