"""Sources of hostile rows, a class for each parser and decoder, and what the stage ``shard`` made of them, and with what.

A class writes its cases as a source, through ``rglcd data use`` where a user would, and says how many rows that must be.
"""

import io
import os
import random
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

from rglcd.cli import main
from rglcd.config import Sharding, WebDownload
from rglcd.sharding import decoding, download, image_folder, source, survey, third_party_tars
from rglcd.sharding.accounting import Reason
from rglcd.stages.run import run_stage
from tests.faults import hostile_text
from tests.faults.hostile_images import FORMATS, image_of
from tests.faults.scripted_server import ScriptedServer
from tests.sharding.hostile_server import OPEN, picture_bytes
from tests.tiny_models import RESOLUTION

SAMPLE: Final = "sample"

_ROWS, _CAPTIONS, _MEMBERS, _JSON, _ANSWERS = "rows of an index", "files of captions", "members of tars", "JSON objects", "HTTP answers"

_OF_CAPTIONS: Final = {SAMPLE, Reason.EMPTY_CAPTION, Reason.CAPTION_TOO_LONG, Reason.UNREADABLE_CAPTION}
_OF_ROWS: Final = _OF_CAPTIONS | {Reason.MALFORMED_ROW, Reason.FORBIDDEN_PATH, Reason.FORBIDDEN_SCHEME, Reason.MISSING_FILE}
_OF_TARS: Final = _OF_CAPTIONS | {Reason.INCOMPLETE_SAMPLE, Reason.UNKNOWN_EXTENSION, Reason.REPEATED_MEMBER}
_OF_IMAGES: Final = {SAMPLE, Reason.UNDECODABLE, Reason.UNKNOWN_FORMAT, Reason.TOO_LARGE}
_OF_HOSTS: Final = {
    *(Reason.MALFORMED_URL, Reason.FORBIDDEN_ADDRESS, Reason.FORBIDDEN_SCHEME, Reason.UNREACHABLE, Reason.CUT_SHORT),
    *(Reason.TOO_MANY_REDIRECTS, Reason.OPTED_OUT, Reason.GONE, Reason.REFUSED, Reason.HOST_BUSY, Reason.SERVER_ERROR),
    *(Reason.UNEXPECTED_ANSWER, Reason.UNRESOLVED),
}

Write = Callable[[Path, int, random.Random, ScriptedServer], int]
"""Make a source of so many cases in a folder; returns its number of rows."""


@dataclass(frozen=True)
class Kind:
    """A class of cases: how they are made, what may become of them, and the parser or decoder that half of them must come to."""

    write: Write
    allowed: set[str]
    parser: str


@dataclass(frozen=True)
class Result:
    """How many rows a source must have, what became of those that the stage counted, and what its parsers and decoders were given."""

    num_rows: int
    outcomes: Counter[str]
    reached: Counter[str]


def run_kind(kind: Kind, root: Path, count: int, rng: random.Random, server: ScriptedServer) -> Result:
    """Write ``count`` cases to ``root`` and run the stage on them, with settings at random."""
    sharding = Sharding(
        resolution=RESOLUTION,
        image_format=rng.choice(("png", "jpeg", "webp")),
        resize=rng.choice(("center_crop", "border", "keep_ratio", "no")),
        samples_per_shard=rng.choice((7, 1000)),
        download=WebDownload(store=str(root / "store"), allowed_networks=(f"{OPEN}/32",), total_seconds=10, num_retries=0),
    )
    with _counting() as reached:
        num_rows = kind.write(root / "source", count, rng, server)
        facts = run_stage("shard", {"sharding": sharding}, {"source": root / "source", "shards": root / "shards"}).manifest.facts
    outcomes = Counter({SAMPLE: facts["samples"], **facts["reasons"]})
    assert facts["rows"] == outcomes.total(), f"{facts['rows']} rows became {outcomes}"
    return Result(num_rows, outcomes, reached)


@contextmanager
def _counting() -> Iterator[Counter[str]]:
    """How often each parser and decoder is given something, while the context lasts; decoders by the format that was recognised."""
    reached = Counter[str]()

    def counted(where: Any, name: str, what: Callable[..., str | None]) -> Any:
        real = getattr(where, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            reached.update(filter(None, [what(*arguments)]))  # before it may raise
            return real(*arguments, **settings)

        return mock.patch.object(where, name, call)

    def parsed(where: Any) -> Any:
        real = where.facts_in

        def call(data: bytes, encoding: str | None) -> Mapping[str, Any]:
            facts: Mapping[str, Any] = real(data, encoding)
            reached.update([_JSON] if facts else [])
            return facts

        return mock.patch.object(where, "facts_in", call)

    real_decode = survey.decode

    def decode_preview(data: bytes) -> Any:
        before = Counter(reached)
        preview = real_decode(data)
        reached.clear()
        reached.update(before)  # what the stage wrote itself is no case
        return preview

    with ExitStack() as stack:
        for patch in (
            mock.patch.object(survey, "decode", decode_preview),
            counted(decoding, "_decode", lambda image, data: f"decoder of {'JPEG' if image.format == 'MPO' else image.format}"),
            counted(download.Downloader, "_follow", lambda *_: "urls asked for"),
            counted(download, "opted_out", lambda *_: _ANSWERS),
            counted(source, "checked_caption", lambda *_: _ROWS),
            counted(image_folder, "text_of", lambda *_: _CAPTIONS),
            counted(third_party_tars, "_read", lambda extent, *_: None if extent is None else _MEMBERS),
            parsed(image_folder),
            parsed(third_party_tars),
        ):
            stack.enter_context(patch)
        yield reached


# --- the classes ---------------------------------------------------------------------------------


def _rows(folder: Path, count: int, rng: random.Random, server: ScriptedServer) -> int:
    (folder / "images").mkdir(parents=True)
    (folder / "images/good.png").write_bytes(picture_bytes())
    lines = [b"images/good.png\tfirst", *(hostile_text.row(b"images/good.png", rng) for _ in range(count))]
    (folder / "index.tsv").write_bytes(b"".join(line + rng.choice((b"\n", b"\r\n")) for line in lines))
    return len(lines)


def _files(folder: Path, count: int, rng: random.Random, server: ScriptedServer) -> int:
    """Images whose names are any bytes, some of them links, each with a caption in a file of any kind."""
    photos = folder.parent / "photos"
    photos.mkdir()
    (photos / "good.png").write_bytes(picture_bytes())
    (photos / "good.txt").write_bytes(b"a good one")
    num_rows = 1
    for number in range(count):
        # In turn, not by chance: of any fifty, more than half come to the reader of captions.
        place = photos / (".hidden" if number % 10 == 9 else rng.choice(("", "a.b", "caf\udce9", "x y/z")))
        place.mkdir(parents=True, exist_ok=True)
        name = os.fsdecode(hostile_text.stem(number, rng))
        image = place / f"{name}.{rng.choice(('jpg', 'PNG', 'jfif', 'jpg_large', 'Webp'))}"
        if number % 10 == 4:
            target = rng.choice((photos / "good.png", Path("/etc/passwd"), image, Path("nowhere")))
            image.symlink_to(target)
            num_rows += target.name == "good.png"
        else:
            image.write_bytes(picture_bytes(number))
            num_rows += 1
        if number % 20 != 18:
            kind = "json" if number % 5 == 2 else rng.choice(("txt", "TXT", "text", "caption"))
            (place / f"{name}.{kind}").write_bytes(hostile_text.facts(rng) if kind == "json" else hostile_text.caption(rng))
    main(["data", "use", str(folder.parent / "photos"), "--folder", str(folder)])
    return num_rows


def _tars(folder: Path, count: int, rng: random.Random, server: ScriptedServer) -> int:
    """Tars of every format, some of them several written one behind the other."""
    num_rows, numbers = 0, list(range(count))
    (folder.parent / "tars").mkdir()
    for tar_number in range(2):
        stream = io.BytesIO()
        for _ in range(rng.randrange(1, 4)):
            kind = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
            with tarfile.open(fileobj=stream, mode="w", format=kind, encoding="utf-8", errors="surrogateescape") as tar:
                num_now = rng.randrange(count // 4)
                num_rows += sum(_add_sample(tar, numbers.pop(), rng) for _ in range(min(num_now, len(numbers))))
            stream.write(bytes(rng.randrange(3) * 512))
        with tarfile.open(fileobj=stream, mode="w") as tar:
            rest = numbers if tar_number else numbers[: len(numbers) // 2]
            num_rows += sum(_add_sample(tar, number, rng) for number in rest)
            num_rows += _add(tar, f"good{tar_number}.png", picture_bytes()) + _add(tar, f"good{tar_number}.txt", b"good") - 1
            numbers = numbers[len(rest) :]
        (folder.parent / f"tars/{tar_number}.tar").write_bytes(stream.getvalue())
    main(["data", "use", str(folder.parent / "tars"), "--folder", str(folder)])
    return num_rows


def _add_sample(tar: tarfile.TarFile, number: int, rng: random.Random) -> int:
    """One sample, whose members are files, links, devices or holes, or there twice; returns how many rows it makes."""
    folder = rng.choice(("", "./", "../", "/", "a.b/", "caf\udce9/", "d" * 90 + "/", "../../etc/"))
    odd = rng.choice(("", "caf\udce9", "é", "n" * 60, " a", "{}", "\\", "\u202e"))
    stem = f"{folder}{number:02d}{odd}"
    image = f"{stem}.{rng.choice(('jpg', 'PNG', 'jfif', 'webp', 'tiff', 'xyz', ''))}" if rng.random() < 0.3 else f"{stem}.png"
    match rng.randrange(12):
        case 0:
            _add(
                tar, image, b"", rng.choice((tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)), rng.choice(("/etc/passwd", "..", image))
            )
        case 1:
            _add(tar, image, b"", tarfile.LNKTYPE, rng.choice(("/etc/passwd", "nowhere.png", f"{number - 1:02d}.png")))
        case 2:
            _add(tar, image, picture_bytes(number))
            _add(tar, image, picture_bytes(number + 1))
            _add(tar, f"{stem}.txt", b"which?")
            return 2
        case 3:
            _add(tar, image, picture_bytes(number), tarfile.AREGTYPE)
        case 4:
            pass
        case _:
            _add(tar, image, picture_bytes(number))
    if rng.random() < 0.7:
        _add(tar, f"{stem}.{rng.choice(('txt', 'TXT', 'text', 'caption'))}", hostile_text.caption(rng))
    else:
        _add(tar, f"{stem}.json", hostile_text.facts(rng))
    return 1


def _json(folder: Path, count: int, rng: random.Random, server: ScriptedServer) -> int:
    (folder.parent / "tars").mkdir()
    with tarfile.open(folder.parent / "tars/0.tar", "w") as tar:
        _add(tar, "good.png", picture_bytes())
        _add(tar, "good.txt", b"good")
        for number in range(count):
            _add(tar, f"{number:02d}.png", picture_bytes(number))
            _add(tar, f"{number:02d}.json", hostile_text.facts(rng))
    main(["data", "use", str(folder.parent / "tars"), "--folder", str(folder)])
    return count + 1


def _images(folder: Path, count: int, rng: random.Random, server: ScriptedServer, *, image_format: str) -> int:
    (folder / "images").mkdir(parents=True)
    (folder / "images/good.png").write_bytes(picture_bytes())
    for number in range(count):
        (folder / f"images/{number}").write_bytes(image_of(image_format, rng))
    lines = ["images/good.png\tgood\n", *(f"images/{number}\tpicture {number}\n" for number in range(count))]
    (folder / "index.tsv").write_text("".join(lines))
    return count + 1


def _web(folder: Path, count: int, rng: random.Random, server: ScriptedServer) -> int:
    """Urls in any spelling, and answers in any bytes."""
    (folder / "images").mkdir(parents=True)
    (folder / "images/good.png").write_bytes(picture_bytes())
    (folder / "index.tsv").write_bytes(
        b"images/good.png\tgood\n" + b"".join(b"%s\tpicture %d\n" % (_url(server, number, rng), number) for number in range(count))
    )
    server.answers = {f"{number}": _answer(server, rng) for number in range(count)} | {"ok": _OK}
    return count + 1


_PICTURE: Final = picture_bytes()
_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(_PICTURE) + _PICTURE


def _url(server: ScriptedServer, number: int, rng: random.Random) -> bytes:
    origin = f"{rng.choice(('http', 'HTTP'))}://{rng.choice(('', '', '', 'user:pw@'))}{server.address}/{number}/".encode()
    if rng.random() < 0.15:
        return rng.choice(
            (
                b"http://[::1",
                b"http://h:notaport/",
                b"http:///x",
                b"http://127.0.0.1:1/",
                b"https://%s/" % server.address.encode(),
                b"http://\xe2\x91\xa0.example:99999/",
                b"ftp://h/a",
                b"http://xn--/",
                b"http://a..b/" + b"a" * 300,
                b"http://[fe80::1%25eth0]/",
            )
        )
    return origin + hostile_text.path(rng).replace(b"\t", b"").replace(b"\n", b"")


def _answer(server: ScriptedServer, rng: random.Random) -> bytes:
    """An answer to one request; empty for a connection that is reset."""
    here = server.address.encode()
    body = rng.choice((_PICTURE, _PICTURE, _PICTURE, _PICTURE[:60], b"<html>no</html>", b"", image_of(rng.choice(FORMATS), rng)))
    length = b"Content-Length: %d\r\n" % len(body)
    other = rng.choice(
        (
            b"",
            b"",
            b"X-Robots-Tag: %s\r\n" % rng.choice((b"noai", b"\xff", b"googlebot: noindex", b",:,")),
            b"X: " + b"x" * 70_000 + b"\r\n",
            b"Set-Cookie: %s\r\n" % (b"a=b; " * 999),
            b"X: caf\xe9\r\n",
            b"Y:\r\n" * 300,
            b"Content-Encoding: gzip\r\n",
            b"Z : 1\r\n",
            b"\0: 1\r\n",
        )
    )
    match rng.randrange(10):
        case 0 | 1:
            target = rng.choice(
                (
                    b"/ok",
                    b"//%s/ok" % here,
                    b"/ok/caf\xe9",
                    "/ok/é".encode(),
                    b"/ok/a b",
                    b"http://[::1",
                    b"http://[bad]/x",
                    b"//[/x",
                    b"",
                    b"http://h:notaport/",
                    b"file:///etc/passwd",
                    b"http://127.0.0.1:1/",
                    b"\xff\xfe",
                    b"?",
                    b"/ok#x",
                    b"/ok/%zz",
                    b"http:///x",
                )
            )
            return b"HTTP/1.1 %d Moved\r\nContent-Length: 0\r\nLocation: %s\r\n\r\n" % (rng.choice((301, 302, 303, 307, 308)), target)
        case 2:
            status = rng.choice(
                (b"204 No", b"206 Part", b"404 Not", b"403 No", b"429 Slow", b"500 Oh", b"999 What", b"200", b"451 ", b"0 ", b"2x0 ")
            )
            return b"HTTP/1.1 " + status + b"\r\n" + length + b"\r\n" + body
        case 3:
            chunks = b"%x;ext=1\r\n%s\r\n" % (len(body), body) if body else b""
            end = rng.choice((b"0\r\n\r\n", b"0\r\nTrailer: 1\r\n\r\n", b"", b"zz\r\n", b"-1\r\n"))
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + end
        case 4:
            said = rng.choice(
                (b"%d" % (len(body) + 9), b"-5", b"%d, %d" % (len(body), len(body)), b"x", b"9" * 30, b"%d\r\n" % len(body) + length[:-2])
            )
            return b"HTTP/1.1 200 OK\r\nContent-Length: " + said + b"\r\n\r\n" + body
        case 5:
            return rng.choice(
                (
                    b"",
                    b"\0\1\2\r\n\r\n",
                    b"HTTP/1.0 200 OK\r\n\r\n" + body,
                    b"HTTP/1.1 200 OK\n" + length[:-2] + b"\n\n" + body,
                    b"220 ftp\r\n",
                )
            )
        case _:
            return b"HTTP/1.1 200 OK\r\n" + other + length + b"\r\n" + body


def _add(tar: tarfile.TarFile, name: str, body: bytes, kind: bytes = tarfile.REGTYPE, target: str = "") -> int:
    header = tarfile.TarInfo(name)
    header.type, header.linkname, header.size = kind, target, len(body)
    tar.addfile(header, io.BytesIO(body))
    return 1


KINDS: Final[Mapping[str, Kind]] = {
    "rows": Kind(_rows, _OF_ROWS | {Reason.NOT_DOWNLOADED, Reason.FORBIDDEN_ADDRESS, Reason.UNRESOLVED}, _ROWS),
    "names and captions": Kind(_files, _OF_CAPTIONS, _CAPTIONS),
    "tars": Kind(_tars, _OF_TARS, _MEMBERS),
    "JSON": Kind(_json, _OF_TARS, _JSON),
    "urls and answers": Kind(_web, _OF_IMAGES | _OF_HOSTS, _ANSWERS),
    **{
        image_format: Kind(partial(_images, image_format=image_format), _OF_IMAGES, f"decoder of {image_format}")
        for image_format in FORMATS
    },
}
