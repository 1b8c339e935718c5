"""COCO 2014 val as reference: the rule on a small file in the published format, and refusals by entry."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rglcd.errors import InputError
from rglcd.sharding import coco
from rglcd.sharding.coco import choose, use_coco

IDS = [42, 7, 391895, 5, 184613, 9]


def annotations() -> dict[str, Any]:
    """cocodataset.org/#format-data, with the fields of captions_val2014.json; captions in no order, as there."""
    images = [
        {
            "license": 3,
            "file_name": f"COCO_val2014_{image:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/val2014/COCO_val2014_{image:012d}.jpg",
            "height": 24,
            "width": 32,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": "http://farm9.staticflickr.com/8186/x_z.jpg",
            "id": image,
        }
        for image in IDS
    ]
    captions = [
        {"image_id": image, "id": 1000 * (5 - turn) + number, "caption": f"Caption {5 - turn}  of\n{image}. "}
        for turn in range(5)
        for number, image in enumerate(IDS)
    ]
    return {"info": {"year": 2014}, "images": images, "licenses": [], "annotations": captions}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "coco"
    (place / "annotations").mkdir(parents=True)
    (place / "annotations" / "captions_val2014.json").write_text(json.dumps(annotations()))
    (place / "val2014").mkdir()
    for image in IDS:
        Image.fromarray(np.full((24, 32, 3), image % 256, dtype=np.uint8)).save(place / "val2014" / f"COCO_val2014_{image:012d}.jpg")
    return place


def test_the_rule_takes_images_by_digest_in_order_of_id_with_their_first_caption() -> None:
    chosen = choose(annotations(), count=4, seed=3, called="x")
    expected = sorted(sorted(IDS, key=lambda image: hashlib.sha256(f"3:{image}".encode()).hexdigest())[:4])
    assert [image.image_id for image in chosen] == expected
    assert [image.caption for image in chosen] == [f"Caption 1 of {image}." for image in expected]


def test_fewer_images_are_among_more_of_the_same_seed_and_another_seed_takes_others() -> None:
    taken = {
        (count, seed): {image.image_id for image in choose(annotations(), count=count, seed=seed, called="x")}
        for count in (2, 4)
        for seed in range(4)
    }
    assert all(taken[2, seed] < taken[4, seed] for seed in range(4))
    assert len({frozenset(taken[2, seed]) for seed in range(4)}) > 1


@pytest.mark.parametrize("as_url", [False, True])
def test_a_folder_or_a_store_becomes_reference_and_prompts(folder: Path, tmp_path: Path, as_url: bool) -> None:
    data = tmp_path / "data"
    said = use_coco(f"file://{folder}" if as_url else str(folder), data, count=4, seed=0)
    rows = [line.split("\t") for line in (data / "coco2014-val-4" / "index.tsv").read_text().splitlines()]
    assert (data / "prompts" / "coco2014-val-4.txt").read_text().splitlines() == [caption for _, caption in rows]
    for url, caption in rows:
        name = Path(url).name
        assert (data / "coco2014-val-4" / url).read_bytes() == (folder / "val2014" / name).read_bytes()
        assert caption == f"Caption 1 of {int(name[-16:-4])}."
    about = json.loads((data / "coco2014-val-4" / "about.json").read_text())
    assert about["annotations_sha256"] == hashlib.sha256((folder / coco.ANNOTATIONS).read_bytes()).hexdigest()
    assert said[1].endswith("evaluation.prompts=prompts/coco2014-val-4.txt evaluation.num_images=4")
    assert sorted(path.name for path in (data / "coco2014-val-4").iterdir()) == ["about.json", "images", "index.tsv"]
    assert not list(data.glob(".*"))


def _without_captions(folder: Path) -> None:
    (folder / coco.ANNOTATIONS).write_text(json.dumps(annotations() | {"annotations": [{"id": 1, "image_id": 2}]}))


def _instances(folder: Path) -> None:
    (folder / coco.ANNOTATIONS).write_text(json.dumps({"images": []}))


def _with_a_path(folder: Path) -> None:
    found = annotations()
    found["images"][0]["file_name"] = "../../etc/passwd"
    (folder / coco.ANNOTATIONS).write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without_captions, r"annotations\[0\] lacks one of id, image_id, caption"),
        (_instances, "expected a list called annotations"),
        (_with_a_path, r"file_name '\.\./\.\./etc/passwd' is no plain name of a file"),
        (lambda folder: (folder / coco.ANNOTATIONS).write_text("{"), "is not JSON"),
        (lambda folder: (folder / coco.ANNOTATIONS).unlink(), r"captions_val2014\.json is missing: unpack annotations_trainval2014\.zip"),
        (lambda folder: [path.unlink() for path in (folder / "val2014").iterdir()], "lacks 6 of the 6 images, val2014/COCO_val2014_0"),
    ],
)
def test_what_is_not_coco_is_refused_and_leaves_nothing(folder: Path, tmp_path: Path, spoil, said: str) -> None:
    spoil(folder)
    with pytest.raises(InputError, match=said) as refusal:
        use_coco(str(folder), tmp_path / "data", count=6, seed=0)
    assert "\n" not in str(refusal.value)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_more_images_than_there_are_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--count 7: .* has 6 images with captions"):
        use_coco(str(folder), tmp_path / "data", count=7, seed=0)
