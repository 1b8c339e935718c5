"""F6: rows and images as the web has them, and as an attacker would make them."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from rglcd.config import Sharding
from rglcd.errors import InputError
from rglcd.latents.cache import LatentCache
from rglcd.sharding.accounting import Reason
from rglcd.sharding.decoding import MAX_PIXELS
from rglcd.sharding.shards import Sample, write_shard
from rglcd.sharding.source import MAX_IMAGE_BYTES
from rglcd.sharding.texts import MAX_CAPTION_BYTES
from rglcd.stages.run import run_stage
from tests.faults.rounds import Trial
from tests.faults.watched_process import run_forked
from tests.publishing import publish
from tests.tiny_line import run, tiny_config, write_pretrained_artifact
from tests.tiny_models import RESOLUTION

_SAMPLE = "sample"
_PEAK = 1 << 30
_SECONDS = 60.0
_EVERY_CACHE = 4
"""Of so many rounds one gives the input to cache instead of shard."""

Make = Callable[[random.Random], bytes]
Kinds = Mapping[str, tuple[Make, frozenset[str]]]


def _or(*outcomes: str) -> frozenset[str]:
    return frozenset(outcomes)


_ANY_IMAGE = _or(_SAMPLE, Reason.UNDECODABLE, Reason.UNKNOWN_FORMAT, Reason.TOO_LARGE)


def _row(text: str) -> Make:
    return lambda rng: text.encode()


_ROWS: Kinds = {
    "a NUL": (lambda rng: b"images/good.png\tcap\0tion %d" % rng.randrange(99), _or(Reason.UNREADABLE_CAPTION)),
    "no tab": (lambda rng: b"images/good.png caption %d" % rng.randrange(99), _or(Reason.MALFORMED_ROW)),
    "two tabs": (_row("images/good.png\tone\ttwo"), _or(Reason.MALFORMED_ROW)),
    "nothing": (_row(""), _or(Reason.MALFORMED_ROW)),
    "blanks": (_row(" \t "), _or(Reason.MALFORMED_ROW)),
    "no caption": (_row("images/good.png\t "), _or(Reason.EMPTY_CAPTION)),
    "a caption of a megabyte": (lambda rng: b"images/good.png\t" + b"x" * ((1 << 20) + rng.randrange(99)), _or(Reason.CAPTION_TOO_LONG)),
    "a caption too long by one byte": (lambda rng: b"images/good.png\t" + b"x" * (MAX_CAPTION_BYTES + 1), _or(Reason.CAPTION_TOO_LONG)),
    "a url of a megabyte": (lambda rng: b"u" * (1 << 20) + b"\tcaption", _or(Reason.MALFORMED_ROW, Reason.CAPTION_TOO_LONG)),
    "bad UTF-8": (lambda rng: b"images/good.png\tcaption \xff%d" % rng.randrange(99), _or(Reason.UNREADABLE_CAPTION)),
    "a lone surrogate": (lambda rng: b"images/good.png\t\xed\xa0\x80", _or(Reason.UNREADABLE_CAPTION)),
    "random bytes": (
        lambda rng: rng.randbytes(rng.randrange(1, 200)).replace(b"\n", b" "),
        _or(*(reason.value for reason in Reason)),
    ),
    "right to left": (_row("images/good.png\tسيارة ‮ red car ‬"), _or(_SAMPLE)),
    "a formula": (_row('images/good.png\t=HYPERLINK("http://x","y")'), _or(_SAMPLE)),
    "markup": (_row("images/good.png\t<script>alert(1)</script>&amp;"), _or(_SAMPLE)),
    "a shell's words": (_row("images/good.png\t'; $(touch x) `touch y` ${HOME} {{workflow.name}} --flag"), _or(_SAMPLE)),
    "emoji and marks": (_row("images/good.png\t👩‍👩‍👧‍👦 e" + "\u0301" * 200), _or(_SAMPLE)),
    "a byte order mark": (_row("\ufeffimages/good.png\tcaption"), _or(_SAMPLE)),
    "a carriage return": (_row("images/good.png\tcaption\r"), _or(_SAMPLE)),
    "a way out": (_row("../../etc/passwd\tcaption"), _or(Reason.FORBIDDEN_PATH)),
    "an absolute path": (_row("/etc/passwd\tcaption"), _or(Reason.FORBIDDEN_PATH)),
    "a scheme of its own": (lambda rng: rng.choice([b"file", b"ftp", b"data", b"s3"]) + b"://a/b\tcaption", _or(Reason.FORBIDDEN_SCHEME)),
    "a name too long": (lambda rng: b"images/" + b"n" * 5000 + b"\tcaption", _or(Reason.MISSING_FILE)),
    "a missing file": (_row("images/none.png\tcaption"), _or(Reason.MISSING_FILE)),
    "a folder": (_row("images\tcaption"), _or(Reason.MISSING_FILE)),
}

# --- images --------------------------------------------------------------------------------------


def _picture(rng: random.Random, width: int = 40, height: int = 30, *, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def _file(image: Image.Image, image_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def _whole(rng: random.Random) -> bytes:
    return _file(_picture(rng), rng.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP"]))


def _truncated(rng: random.Random) -> bytes:
    whole = _whole(rng)
    return whole[: rng.randrange(1, len(whole))]


def _damaged(rng: random.Random) -> bytes:
    whole = bytearray(_whole(rng))
    for _ in range(rng.randrange(1, 9)):
        whole[rng.randrange(len(whole))] = rng.randrange(256)
    return bytes(whole)


def _animated(rng: random.Random) -> bytes:
    frames = [_picture(rng) for _ in range(5)]
    return _file(frames[0], rng.choice(["GIF", "WEBP", "PNG"]), save_all=True, append_images=frames[1:])


def _sixteen_bits(rng: random.Random) -> bytes:
    pixels = np.random.default_rng(rng.randrange(99)).integers(0, 65536, (30, 40), dtype=np.uint16)
    return _file(Image.fromarray(pixels), "PNG")


def _sixteen_bit_colour(rng: random.Random) -> bytes:
    """PNG of 16 bits a channel, which Pillow reads and does not write."""
    rows = b"".join(b"\0" + rng.randbytes(40 * 6) for _ in range(30))
    header = struct.pack(">IIBBBBB", 40, 30, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _turned(rng: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = rng.randrange(0, 12)
    return _file(_picture(rng), "JPEG", exif=exif)


def _profiled(rng: random.Random) -> bytes:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"sRGB", b"xRGB"))
    for _ in range(rng.randrange(0, 20)):
        profile[rng.randrange(len(profile))] = rng.randrange(256)
    return _file(_picture(rng), rng.choice(["PNG", "JPEG"]), icc_profile=bytes(profile))


def _vector(rng: random.Random) -> bytes:
    return b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"


def _two_in_one(rng: random.Random) -> bytes:
    head = _file(_picture(rng), rng.choice(["JPEG", "GIF"]))
    return head + rng.choice([b"PK\x03\x04" + rng.randbytes(500), b"<html><script>1</script>", b"%PDF-1.4\n" + rng.randbytes(100)])


def _other_format(rng: random.Random) -> bytes:
    return rng.choice(
        [_file(_picture(rng), rng.choice(["TIFF", "PPM", "ICO"])), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", rng.randbytes(300)]
    )


def _header_of(megapixels: int) -> Make:
    """A header that says so, and next to nothing behind it."""
    side = int((megapixels * 1e6) ** 0.5)
    return lambda rng: b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)) + b"\0\x10\0\0IDAT"


def _really(megapixels: int) -> Make:
    """A PNG of so many pixels, all of them there, in a few kilobytes: 1 bit each, and all alike."""
    side = int((megapixels * 1e6) ** 0.5)

    def make(rng: random.Random) -> bytes:
        packer = zlib.compressobj(9)
        row = bytes(1 + (side + 7) // 8)
        pixels = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.compress(row * (side % 100)) + packer.flush()
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")

    return make


def _text_bomb(rng: random.Random) -> bytes:
    """A PNG whose compressed text is a hundred megabytes when somebody unpacks it."""
    facts = PngImagePlugin.PngInfo()
    facts.add_text("comment", "x" * (100 << 20), zip=True)
    return _file(_picture(rng), "PNG", pnginfo=facts)


def _scans(rng: random.Random) -> bytes:
    data = _file(_picture(rng), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    return data[:scan] + data[scan:-2] * rng.randrange(101, 5000) + data[-2:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


_IMAGES: Kinds = {
    "truncated": (_truncated, _or(_SAMPLE, Reason.UNDECODABLE, Reason.UNKNOWN_FORMAT)),
    "damaged": (_damaged, _ANY_IMAGE),
    "no bytes": (lambda rng: b"", _or(Reason.UNKNOWN_FORMAT)),
    "CMYK": (lambda rng: _file(_picture(rng, mode="CMYK"), "JPEG"), _or(_SAMPLE)),
    "16-bit grey": (_sixteen_bits, _or(_SAMPLE)),
    "16-bit colour": (_sixteen_bit_colour, _or(_SAMPLE)),
    "animated": (_animated, _or(_SAMPLE)),
    "transparent": (lambda rng: _file(_picture(rng, mode="RGBA"), rng.choice(["PNG", "WEBP"])), _or(_SAMPLE)),
    "EXIF rotation": (_turned, _or(_SAMPLE)),
    "ICC profile": (_profiled, _or(_SAMPLE, Reason.UNDECODABLE)),
    "svg": (_vector, _or(Reason.UNKNOWN_FORMAT)),
    "two files in one": (_two_in_one, _or(_SAMPLE)),
    "another format": (_other_format, _or(Reason.UNKNOWN_FORMAT)),
    "a header of 144 megapixels": (_header_of(144), _or(Reason.TOO_LARGE)),
    "a header of 400 megapixels": (_header_of(400), _or(Reason.TOO_LARGE)),
    "144 megapixels": (_really(144), _or(Reason.TOO_LARGE)),
    "256 megapixels": (_really(256), _or(Reason.TOO_LARGE)),
    "400 megapixels": (_really(400), _or(Reason.TOO_LARGE)),
    "31 megapixels": (_really(31), _or(_SAMPLE)),
    "60 megapixels, JPEG": (lambda rng: _file(Image.new("RGB", (MAX_PIXELS // 8000 - 500, 8000), "red"), "JPEG"), _or(_SAMPLE)),
    "a strip": (lambda rng: _file(_picture(rng, 1, 60_000), "JPEG"), _or(_SAMPLE)),
    "text of 100 MB in PNG": (_text_bomb, _or(_SAMPLE, Reason.UNDECODABLE, Reason.TOO_LARGE)),
    "thousands of scans": (_scans, _or(Reason.UNDECODABLE)),
    "more than 20 MB": (lambda rng: _whole(rng) + bytes(MAX_IMAGE_BYTES), _or(Reason.TOO_LARGE)),
}

_KINDS = [*((name, _ROWS) for name in _ROWS), *((name, _IMAGES) for name in _IMAGES)]


# --- the row -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "pretrained"
    write_pretrained_artifact(folder)
    return folder


@pytest.mark.fault(
    "F6",
    fault="malformed rows and images, and bombs, given to shard and cache",
    must="no crash, none longer than 60 s, less than 1 GiB; each row a sample or one reason of those its kind allows; "
    "rows = samples + reasons",
    unit="inputs",
    num_rounds=1000,
    sample=range(0, len(_KINDS), 2),
)
def test_malformed_input_is_a_sample_or_has_a_reason(trial: Trial, pretrained: Path, tmp_path: Path) -> None:
    turn, at = divmod(trial.number, len(_KINDS))
    name, kinds = _KINDS[at]
    make, allowed = kinds[name]
    (tmp_path / "data").mkdir()
    to_cache = kinds is _IMAGES and turn % _EVERY_CACHE == _EVERY_CACHE - 1
    written = run_forked(lambda: _write_source(tmp_path / "data", make(trial.rng()), is_row=kinds is _ROWS))
    assert written.error is None, f"{name} could not be written: {written.error!r}"
    act = _cache if to_cache else _shard
    idle = run_forked(lambda: None).peak_bytes  # a child begins with what the tests before have left in this process
    ended = run_forked(lambda: act(tmp_path, pretrained), timeout=_SECONDS)
    assert ended.error is None, f"{name}: ended with {ended.error!r}"
    assert ended.exit_code == 0, f"{name}: ended with exit code {ended.exit_code}"
    taken = ended.peak_bytes - idle
    assert taken < _PEAK, f"{name}: took {taken >> 20} MiB"
    outcome = str(ended.value)
    if not to_cache:
        assert outcome in allowed, f"{name} became {outcome!r}, and not {' or '.join(sorted(allowed))}"
    given_to = "cache" if to_cache else "shard"
    trial.record(f"{name}, given to {given_to}: {outcome}; {ended.seconds:.1f} s, {taken >> 20} MiB")


def _write_source(folder: Path, made: bytes, *, is_row: bool) -> None:
    """One good row, and one of the kind."""
    (folder / "images").mkdir()
    Image.new("RGB", (20, 20), "green").save(folder / "images/good.png")
    (folder / "images/other.png").write_bytes(b"" if is_row else made)
    (folder / "index.tsv").write_bytes(b"images/good.png\tfirst\n" + (made if is_row else b"images/other.png\tother") + b"\n")


def _shard(root: Path, pretrained: Path) -> str:
    """What became of the second row: a sample, or its reason."""
    sharding = Sharding(resolution=RESOLUTION, image_format="png", samples_per_shard=5)
    outcome = run_stage("shard", {"sharding": sharding}, {"source": root / "data", "shards": root / "shards"})
    facts = outcome.manifest.facts
    assert facts["rows"] == 2 == facts["samples"] + sum(facts["reasons"].values()), f"two rows became {facts}"
    return _SAMPLE if facts["samples"] == 2 else "".join(facts["reasons"])


def _cache(root: Path, pretrained: Path) -> str:
    """What cache made of a shard that holds the image as it is: refused by its key, or cached and finite."""
    good = Image.new("RGB", (RESOLUTION, RESOLUTION), "green")
    images = {"00000": _file(good, "PNG"), "00001": (root / "data" / "images" / "other.png").read_bytes()}
    (root / "shards").mkdir()
    write_shard(root / "shards", 0, [Sample(key, image, "caption", {"key": key}) for key, image in images.items()], extension="png")
    publish(root / "shards", stage="shard")
    (root / "pretrained").symlink_to(pretrained)
    try:
        run(root, tiny_config(), "cache")
    except InputError as refused:
        said = str(refused)
        assert "00001" in said, f"the refusal does not name the sample: {said}"
        assert "\n" not in said, f"the refusal is more than a line: {said}"
        assert not (root / "latents").exists(), "refused, and published"
        return f"refused: {refused}"
    batch = LatentCache.open(root / "latents").batch(torch.arange(2))
    assert all(moments.isfinite().all() for moments in (batch.mean, batch.logvar)), "cached, and not finite"
    return "cached"
