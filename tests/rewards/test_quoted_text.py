"""What a caption quotes, how much of it was read, and what nobody asked for."""

import pytest

from rglcd.rewards.quoted_text import has_unasked_text, least_distance, plain, quoted_texts, reading_score


@pytest.mark.parametrize(
    ("caption", "texts"),
    [
        ('a sign that says "OPEN 24"', ["open24"]),
        ("a shop called “Fresh Bread” with 'Open' in the window", ["freshbread", "open"]),
        ("a mug with ‘Don’t panic’ on it", ["don’tpanic"]),
        ("a note: 'don't panic'", ["don'tpanic"]),
        ("the dogs' bowl beside the cats' bed", []),
        ("it's a boy's bike", []),
        ('a 5" x 7" photo', []),
        ('a speech bubble with "..." in it', []),
        ('two signs, "STOP" and "STOP"', ["stop", "stop"]),
        ("a „ＦＵＬＬ　ｗｉｄｔｈ“ “Ｆｕｌｌ　ｗｉｄｔｈ”", ["fullwidth"]),
        ("a cat", []),
        ("", []),
    ],
)
def test_a_caption_quotes_what_stands_between_its_quotes(caption: str, texts: list[str]) -> None:
    assert quoted_texts(caption) == texts


def test_plain_text_has_no_case_spaces_or_control_characters() -> None:
    assert plain(" Straße\x01\u200b 24\n") == "strasse24"


@pytest.mark.parametrize(
    ("lines", "quoted", "score"),
    [
        (["open24"], ["open24"], 1.0),
        (["open", "24"], ["open24"], 1.0),  # broken over lines
        (["welcome", "open", "dailyfrom9to5"], ["open"], 1.0),  # what else is written costs nothing
        (["hallo"], ["hello"], 0.8),
        (["helo"], ["hello"], 0.8),
        (["heello"], ["hello"], 0.8),
        ([], ["hello"], 0.0),
        (["xyz"], ["hello"], 0.0),
        (["go", "stop"], ["stop", "go"], 1.0),  # in another order than the caption's
        (["stop"], ["stop", "stop"], 0.5),  # one reading is not counted twice
        (["stopgo"], ["stop", "go"], 1.0),
        (["a"], ["a", "b", "c", "d", "e"], 0.2),
    ],
)
def test_score_is_the_share_of_the_quoted_characters_that_were_read(lines: list[str], quoted: list[str], score: float) -> None:
    assert reading_score(lines, quoted) == pytest.approx(score)


def test_score_of_one_text_read_alone_is_that_of_flow_grpo() -> None:
    """1 - min(d, n) / n, d being Levenshtein's distance, which is written out here for texts that have no end to share."""

    def levenshtein(one: str, other: str) -> int:
        if not one or not other:
            return len(one) + len(other)
        return min(levenshtein(one[1:], other) + 1, levenshtein(one, other[1:]) + 1, levenshtein(one[1:], other[1:]) + (one[0] != other[0]))

    for read, asked in (("hallo", "hello"), ("hxllo", "hello"), ("hlo", "hello"), ("heallo", "hello"), ("open", "oben")):
        distance = levenshtein(read, asked)
        assert reading_score([read], [asked]) == pytest.approx(1 - min(distance, len(asked)) / len(asked)), (read, asked)


def test_nothing_between_texts_is_free_within_one() -> None:
    assert least_distance(["ab"], "a--b") == 1
    assert least_distance(["a", "b"], "a--b") == 0
    assert least_distance(["b", "a"], "a--b") == 1


@pytest.mark.parametrize(
    ("lines", "quoted", "alarm"),
    [
        (["buynow"], [], True),
        (["buynow"], ["open"], True),
        (["open"], ["open"], False),
        (["0pen"], ["open"], False),  # drawn or read badly, and asked for
        (["open24"], ["open"], False),  # most of it was asked for
        (["open", "sale"], ["open"], True),
        (["fresh", "bread"], ["freshbread"], False),
        (["0", "★", "og"], [], False),  # rings and stars are read as such
        ([], ["open"], False),
    ],
)
def test_text_that_is_mostly_in_no_quote_is_unasked(lines: list[str], quoted: list[str], alarm: bool) -> None:
    assert has_unasked_text(lines, quoted) == alarm
