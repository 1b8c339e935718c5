"""A phone's HEIC pictures, where their decoder (the extra ``heic``) is installed."""

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from rglcd.sharding import decoding, heic
from rglcd.sharding.import_source import use
from rglcd.sharding.source import INDEX
from tests.sharding.hostile_server import picture_bytes
from tests.sharding.test_image_folder import fill, packed
from tests.stages.sharding_runs import SHARDING, run

pytestmark = pytest.mark.skipif(not heic.is_readable(), reason="needs its decoder, which the extra heic brings and the lock does not")


def heic_bytes(picture: Image.Image, **settings: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "HEIF", quality=90, **settings)
    return stream.getvalue()


def arrow() -> Image.Image:
    """Red above, blue below to the left, green below to the right: no turn and no mirroring gives it back."""
    pixels = np.zeros((64, 96, 3), dtype=np.uint8)
    pixels[:32, :, 0] = pixels[32:, :48, 2] = pixels[32:, 48:, 1] = 200
    return Image.fromarray(pixels)


def errors(rows: list[Mapping[str, Any]]) -> dict[str, str | None]:
    return {row["url"]: row["error_message"] for row in rows}


class TestPictures:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_picture_is_turned_upright_once(self, tmp_path: Path, orientation: int) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        turned = io.BytesIO()
        arrow().save(turned, "PNG", exif=exif)
        upright = decoding.decode(turned.getvalue())
        photos = fill(tmp_path / "photos", {"a.HEIC": heic_bytes(arrow(), exif=exif.tobytes()), "a.txt": b"an arrow"})
        assert errors(packed(photos, tmp_path)) == {"images/a.HEIC.jpg": None}
        made = decoding.decode((tmp_path / "source" / "images" / "a.HEIC.jpg").read_bytes())
        assert made.size == upright.size == ((96, 64) if orientation < 5 else (64, 96))
        middles = [np.asarray(one.resize((4, 4), Image.Resampling.BOX)).astype(int) for one in (made, upright)]
        assert np.abs(middles[0] - middles[1]).max() < 12

    def test_transparency_is_laid_on_white(self, tmp_path: Path) -> None:
        photos = fill(tmp_path / "photos", {"a.heic": heic_bytes(Image.new("RGBA", (64, 64), (255, 0, 0, 0))), "a.txt": b"nothing"})
        use(str(photos), tmp_path / "source")
        assert np.asarray(decoding.decode((tmp_path / "source" / "images" / "a.heic.jpg").read_bytes())).min() > 245

    def test_names_never_become_one(self, tmp_path: Path) -> None:
        pictures = {
            "a.heic": heic_bytes(arrow()),
            "a.heic.jpg": picture_bytes(image_format="JPEG"),
            "a.jpg": picture_bytes(image_format="JPEG"),
        }
        rows = packed(fill(tmp_path / "photos", pictures | {"a.txt": b"fox", "a.heic.txt": b"hen"}), tmp_path)
        assert sorted(row["caption"] for row in rows) == ["fox", "fox", "hen"]
        assert len({row["url"] for row in rows}) == 3


class TestBadFiles:
    def test_each_is_a_row_with_its_reason(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(decoding, "MAX_COPIED_PIXELS", 96 * 64)
        whole = heic_bytes(arrow())
        size = struct.pack(">II", 96, 64)
        files = {
            "cut.heic": whole[: len(whole) // 2],
            "large.heic": heic_bytes(Image.new("RGB", (96, 65))),
            "liar.heic": heic_bytes(Image.new("RGB", (960, 640))).replace(struct.pack(">II", 960, 640), size),
            "page.heic": b"<html>",
            "empty.heic": b"",
            "whole.heic": whole,
        }
        assert size in files["liar.heic"]
        photos = fill(tmp_path / "photos", files | {name.replace(".heic", ".txt"): b"fox" for name in files})
        use(str(photos), tmp_path / "source")
        assert (tmp_path / "source" / INDEX).read_text().count("\n") == 6
        facts = run(tmp_path / "source", tmp_path / "shards", SHARDING.model_copy(update={"samples_per_shard": 9}))
        assert (facts["samples"], facts["reasons"]) == (1, {"unknown_format": 5})

    def test_a_jpeg_that_is_called_heic_is_a_jpeg(self, tmp_path: Path) -> None:
        photos = fill(tmp_path / "photos", {"a.heic": picture_bytes(image_format="JPEG"), "a.txt": b"fox"})
        assert errors(packed(photos, tmp_path)) == {"images/a.heic": None}
        assert (tmp_path / "source" / "images" / "a.heic").read_bytes() == picture_bytes(image_format="JPEG")
