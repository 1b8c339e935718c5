"""Names, captions, JSON and urls as careless programs and attackers write them."""

import codecs
import json
import random
from typing import Any, Final

from rglcd.sharding.source import MAX_ROW_BYTES
from rglcd.sharding.texts import MAX_CAPTION_BYTES

_WORDS: Final = (
    *(
        "a red car",
        "Zürich – “quoted”",
        "سيارة ‮ red ‬",
        "e" + "\u0301" * 50,
        "👩‍👩‍👧‍👦",
        "\u2028\u2029\x85",
        "=HYPERLINK(1)",
        "<script>1</script>",
    ),
    *("'; $(touch x) `y` ${HOME} {{w}} --flag", "\ufeff", "\x7f\x1b[31m", "  ", "ﬀ\U000e0041", "\x0b\x0c", "%00 %2F..", "NaN", "null"),
)
_ENCODINGS: Final = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252", "cp1251", "shift_jis", "utf-32")


def caption(rng: random.Random) -> bytes:
    """The bytes of a caption: most of them a text, in an encoding that most often can be read."""
    text = " ".join(rng.choice(_WORDS) for _ in range(rng.randrange(1, 5)))
    match rng.randrange(10):
        case 0:
            return rng.randbytes(rng.randrange(60))
        case 1:
            return rng.choice((b"", b" \r\n", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, b"a\0b", b"\xed\xa0\xbd", b"a\nb\r\nc", b"\xff\xfea"))
        case 2:
            return b"x" * rng.choice((MAX_CAPTION_BYTES, MAX_CAPTION_BYTES + 1, MAX_ROW_BYTES + 1, 2 * MAX_ROW_BYTES))
        case 3 | 4:
            return text.encode(rng.choice(_ENCODINGS), "replace")
        case _:
            return text.encode()


def row(url: bytes, rng: random.Random) -> bytes:
    """A line of an index: most with ``url``, one tab and a caption."""
    if rng.random() < 0.25:
        url = rng.choice(
            (
                b"",
                b" ",
                b"../../etc/passwd",
                b"/etc/passwd",
                b"file:///etc/passwd",
                b"http://h/a",
                b"images",
                b"images/\xff.png",
                b"i/n\0.png",
                b"images/" + b"n" * 5000,
                b"images/none.png",
                b"images\\good.png",
                b"images/./" + url[7:],
                b"C:\\x.png",
                b"\xed\xa0\xbd",
            )
        )
    tab = rng.choice((b"", b"\t\t", b" ", b"\t" + url + b"\t")) if rng.random() < 0.1 else b"\t"
    return (url + tab + caption(rng)).replace(b"\n", b"\r" if rng.random() < 0.5 else b" ")


def stem(number: int, rng: random.Random) -> bytes:
    """The name of a file without its suffix, unlike any of another number."""
    odd = rng.choice(
        (
            b"",
            b"caf\xe9",
            "café".encode(),
            "cafe\u0301".encode(),
            b"a b",
            b"a\tb\nc\r",
            b"\\x",
            b"%E9",
            b"'\"$`",
            b"\xed\xa0\xbd",
            b"\xf0\x9f",
            b"-rf",
            "\u202e".encode(),
            b"n" * 180,
            b"\x01\x1b",
            b"{a,b}[1]*?",
            b"#?&=",
            "あ".encode() * 50,
            b"~",
            b"con",
        )
    )
    return b"%02d" % number + odd


def facts(rng: random.Random) -> bytes:
    """A JSON file, most of them an object; what it says is of any kind."""
    if rng.random() < 0.25:
        return rng.choice(
            (
                b"",
                b"{",
                b"[" * 100_000,
                b'{"a":' * 50_000,
                b"[]",
                b"null",
                b"9" * 5000,
                b'"text"',
                b"\xff\xfe{\0}\0",
                b"{\"caption\": 'a'}",
                b"NaN",
            )
        )
    given: dict[str, Any] = {"caption": _value(rng), "url": _value(rng)}
    if rng.random() < 0.6:
        given["caption"] = rng.choice(_WORDS)
    if rng.random() < 0.5:
        given |= {rng.choice(("width", "sha256", "key", "status", "", "exif")): _value(rng)}
    text = json.dumps(given, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.2:
        text = '{"caption": "first", ' + text[1:]
    return text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")), "surrogatepass")


def _value(rng: random.Random) -> Any:
    return rng.choice(
        (
            None,
            True,
            7,
            -1e308,
            10**400,
            [],
            {"a": 1},
            "\ud83d",
            "\udce9",
            "a\0b",
            "x" * 70_000,
            float("nan"),
            "http://h/\ud83d",
            " ",
            "\ufeff",
        )
    )


def path(rng: random.Random) -> bytes:
    """The path and query of a url, as hosts have them and as they should not."""
    return rng.choice(
        (
            b"a.jpg",
            b"a%2Fb%20c?x=%3A%2C&y=1,2",
            "café/あ.jpg".encode(),
            b"a b|c[d]^e`f",
            b"..//../a",
            b"a#b?c",
            b"%",
            b"%zz%E9",
            b"?",
            b";=&&",
            b"a" * 3000,
            b"\xe2\x80\xae.jpg",
            b"a\\b",
            b"@:80/",
            b"{a}",
            b"a\x7fb",
            b"'\"<>",
            b"a\x01b",
        )
    )
