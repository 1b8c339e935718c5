import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from rglcd.evaluation.page import page
from tests.evaluation.fixtures import SIDE, comparison, constant, pictures, provenance

HOSTILE = [
    '<script>alert("x")</script>',
    "<img src=http://example.com/x onerror=alert(1)>",
    "</style><b>bold</b> & \"quotes\" 'single'",
    "‮reversed‬ \x00 nul",
]
VOID = {"meta", "img", "link", "input", "br", "hr", "line", "circle", "rect", "polyline"}


class Reader(HTMLParser):
    """Tags, attributes and text; asserts that every element is closed by its own tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data


def rendered(captions=("a red circle", "a blue square"), *, side=SIDE, curves=None, pretraining=(), **changes) -> str:
    found = comparison({**constant(0.7, "expert"), **constant(0.7, "judge")})
    shown = pictures(list(captions), side=side)
    return page(found, pictures=shown, provenance=provenance(**changes), curves=curves or {}, pretraining=pretraining)


def test_the_page_is_well_formed_and_says_the_verdict_first():
    reader = Reader(rendered())
    assert "Two steps of RG-LCM are preferred to the teacher’s fifty, by judge." in reader.text
    assert [tag for tag, _ in reader.tags].count("h1") == 1


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs():
    text = rendered(curves={"rg": [{"step": n, "images": 32 * n, "distance": 1 / (n + 1)} for n in range(9)]})
    reader = Reader(text)
    assert not {"script", "link", "iframe", "form", "object", "embed", "base"} & {tag for tag, _ in reader.tags}
    for _, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert "href" not in attributes
    assert "url(" not in text
    assert "@import" not in text
    policies = [a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_stays_text_wherever_it_stands(hostile):
    harmless = Reader(rendered(["plain"]))
    stage = {"version": hostile, "digest": hostile, "sections": {"a": {"b": hostile}}}
    reader = Reader(rendered([hostile], teacher=hostile, prompts=hostile, device=hostile, stages={"shard": stage}))
    assert [tag for tag, _ in reader.tags] == [tag for tag, _ in harmless.tags]
    assert reader.text.count(hostile) >= 4


def test_long_captions_are_cut():
    assert "x" * 300 not in rendered(["x" * 5000])


def test_small_pictures_are_embedded_pixel_for_pixel():
    uris = re.findall(r'src="data:image/png;base64,([^"]*)"', rendered(["a", "b", "c"]))
    # a teacher and two arms at two step counts, three prompts
    assert len(uris) == 15
    colours = [Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB").getcolors() for uri in uris]
    assert colours[0] == [(SIDE * SIDE, (0, 0, 0))]
    assert colours[-1] == [(SIDE * SIDE, (40, 40, 40))]


def test_large_pictures_are_shrunk():
    (first, *_) = re.findall(r'src="data:image/webp;base64,([^"]*)"', rendered(["a"], side=512))
    assert Image.open(io.BytesIO(base64.b64decode(first))).size == (320, 320)


def test_the_proxys_learning_is_drawn_by_itself():
    records = [{"step": n, "images": 128 * n, "loss": 1 / (n + 1), "grad_norm": 1.0} for n in range(50)]
    text = rendered(
        pretraining=[*records, {"step": 50, "images": 6400, "retrieval_accuracy": 0.8}, records[-1] | {"retrieval_accuracy": 0.9}]
    )
    assert "Proxy finds the caption" in text
    assert "Contrastive loss" in text
    assert "Gradient norm" not in text
    assert "Training" not in Reader(rendered()).text


def test_curves_are_drawn_for_the_figures_there_are():
    assert 'id="training"' not in rendered()
    curves = {arm: [{"step": n, "images": 32 * n, "distance": 1 / (n + 1)} for n in range(50)] for arm in ("lcm", "rg")}
    text = rendered(curves=curves)
    assert "Consistency distance" in text
    assert "Proxy against expert" not in text


def test_the_lineage_and_the_commands_are_there():
    text = rendered()
    assert "0123456789abcdef" in text
    assert "rglcd run shard" in text
    assert "8,192 samples" in text
