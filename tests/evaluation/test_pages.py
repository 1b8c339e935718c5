import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

from rglcd.evaluation.comparison import compare
from rglcd.evaluation.distances import NO_DISTANCES, Distances
from rglcd.evaluation.intervals import Estimate
from rglcd.evaluation.pages import figure_svg, report_html, report_markdown
from rglcd.evaluation.plots import FRAME, Panel, Point, Series
from rglcd.evaluation.report_data import Report, report_data
from rglcd.evaluation.result_files import metrics, quality_csv
from rglcd.evaluation.wording import css_class
from tests.evaluation.fixtures import SIDE, comparison, constant, measurements, pictures, provenance

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


CAPTIONS = ("a red circle", "a blue square")


def report(captions=CAPTIONS, *, side=SIDE, curves=None, pretraining=(), arm="rg", judge="judge", **changes) -> Report:
    found = comparison({**constant(0.7, "expert"), **constant(0.7, judge)}, arm=arm)
    shown = pictures(list(captions), side=side, arm=arm, judge=judge)
    return report_data(found, pictures=shown, provenance=provenance(**changes), curves=curves or {}, pretraining=pretraining)


def rendered(captions=CAPTIONS, **changes) -> str:
    return report_html(report(captions, **changes))


def distances(*arms: str) -> dict[str, list[dict[str, float]]]:
    return {arm: [{"step": n, "images": 32 * n, "distance": 1 / (n + 1)} for n in range(50)] for arm in arms}


def test_page_is_well_formed_html_with_the_verdict_as_its_only_heading_of_level_one():
    reader = Reader(rendered())
    assert "Two steps of RG-LCM are preferred to the teacher’s fifty, by judge." in reader.text
    assert [tag for tag, _ in reader.tags].count("h1") == 1


def test_page_loads_nothing_and_runs_no_script():
    text = rendered(curves=distances("rg"))
    reader = Reader(text)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in reader.tags}
    assert [attributes for tag, attributes in reader.tags if tag == "form"] == [{"id": "zoom"}], "it sends nothing: its button resets"
    for _, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
        assert "href" not in attributes
    assert "url(" not in text
    assert "@import" not in text
    policies = [a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"]


def elements(text: str) -> list[tuple[str, list[str]]]:
    return [(tag, list(attributes)) for tag, attributes in Reader(text).tags]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_page_escapes_captions_settings_and_lineage(hostile):
    stage = {"version": hostile, "digest": hostile, "sections": {"a": {"b": hostile}}}
    text = rendered([hostile], teacher=hostile, prompts=hostile, device=hostile, versions={hostile: hostile}, stages={hostile: stage})
    assert elements(text) == elements(rendered(["plain"]))
    assert Reader(text).text.count(hostile) >= 7


@pytest.mark.parametrize("hostile", [*HOSTILE, 'x" onmouseover="alert(1)', "<b>", "x focus first"])
def test_page_escapes_arm_and_scorer_names_in_text_and_attributes(hostile):
    text = rendered(arm=hostile, judge=hostile, curves=distances("lcm", hostile))
    assert elements(text) == elements(rendered(curves=distances("lcm", "rg")))
    reader = Reader(text)
    assert reader.text.count(hostile) >= 10
    assert {a["alt"] for tag, a in reader.tags if tag == "img"} >= {f"{hostile}, 2 steps"}
    classes = {word for _, attributes in reader.tags for word in (attributes.get("class") or "").split()}
    assert {word for word in classes if word.startswith("arm-")} - {"arm-lcm", "arm-teacher", "arm-real"} == {css_class(hostile)}
    assert [tag for tag, a in reader.tags if "focus" in (a.get("class") or "").split()] == ["tr"]


@pytest.mark.parametrize("hostile", ["a|b", "a\n| b |", "<b>x</b>", "*x* [y](http://example.com) `z`", "back\\slash|"])
def test_markdown_table_stays_rectangular_whatever_names_hold(hostile):
    plain = report_markdown(report()).splitlines()
    text = report_markdown(report(arm=hostile, judge=hostile)).splitlines()
    assert len(text) == len(plain)
    for line, ordinary in zip(text, plain, strict=True):
        unescaped = re.sub(r"\\.", "", line)
        assert unescaped.count("|") == ordinary.count("|")
        assert not {"<", "`"} & set(unescaped)


def test_markdown_of_plain_names_has_no_backslash():
    text = report_markdown(report(judge="hps_v2.1"))
    assert "\\" not in text
    assert "| wins, hps_v2.1 |" in text


def test_long_captions_are_shortened():
    assert "x" * 300 not in rendered(["x" * 5000])


def test_small_images_are_embedded_without_loss():
    uris = re.findall(r'src="data:image/png;base64,([^"]*)"', rendered(["a", "b", "c"]))
    # a teacher and two arms at two step counts, three prompts
    assert len(uris) == 15
    colours = [Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB").getcolors() for uri in uris]
    assert colours[0] == [(SIDE * SIDE, (0, 0, 0))]
    assert colours[-1] == [(SIDE * SIDE, (40, 40, 40))]


def test_large_images_are_embedded_as_previews():
    (first, *_) = re.findall(r'src="data:image/webp;base64,([^"]*)"', rendered(["a"], side=768))
    assert Image.open(io.BytesIO(base64.b64decode(first))).size == (512, 512)


@pytest.mark.slow
def test_page_of_many_large_pictures_of_noise_stays_below_20_mb():
    """What compresses worst, 24 rows of five: all get smaller together, and all rows are there."""
    noise = Image.effect_noise((8 * 512, 3 * 512), 120).convert("RGB")
    shown = pictures([f"{number} {'ä' * 300}" for number in range(24)], side=4)
    shown = replace(shown, sheets=dict.fromkeys(shown.sheets, noise), side=512)
    text = report_html(report_data(comparison(constant(0.7, "judge")), pictures=shown, provenance=provenance(), curves={}))
    assert 5_000_000 < len(text.encode()) < 20_000_000
    sizes = {Image.open(io.BytesIO(base64.b64decode(uri))).size for uri in re.findall(r'src="data:image/webp;base64,([^"]*)"', text)}
    assert len(sizes) == 1
    assert text.count("<img") == 24 * 5


def test_rows_that_would_make_a_page_too_large_are_left_out_and_it_says_how_many_it_shows(monkeypatch):
    monkeypatch.setattr("rglcd.evaluation.pictures._MOST_PICTURES", 39)
    text = rendered([f"prompt {number}" for number in range(12)])
    assert text.count("<img") == 7 * 5
    assert "The first 7 prompts" in " ".join(Reader(text).text.split())


def gallery(text: str) -> list[tuple[str, dict[str, str | None]]]:
    return [(tag, attributes) for tag, attributes in Reader(text).tags if tag in ("input", "label", "button", "figure", "td")]


def test_every_label_of_the_pictures_names_a_button_that_is_there():
    found = gallery(rendered(["a", "b", "c"]))
    buttons = [attributes["id"] for tag, attributes in found if tag == "input"]
    assert buttons == ["open", "blind", "told", "z", *(f"z{place}" for place in range(15))]
    assert {attributes["for"] for tag, attributes in found if tag == "label"} == set(buttons) - {"z"}
    assert all(attributes["type"] == "reset" for tag, attributes in found if tag == "button")
    assert [attributes["id"] for tag, attributes in found if "checked" in attributes] == ["open", "z"]


def test_blind_view_shuffles_each_row_by_itself_whatever_the_names_are():
    def orders(**changes):
        found = gallery(rendered([f"prompt {number}" for number in range(8)], **changes))
        places = [int((a["class"] or "").split()[1][1:]) for tag, a in found if tag == "figure"]
        styles = [a["style"] for tag, a in found if tag == "td" and "style" in a]
        assert styles == [f"--blind:{place}" for place in places]
        return [places[start : start + 5] for start in range(0, 40, 5)]

    rows = orders()
    assert [sorted(row) for row in rows] == [list(range(start, start + 5)) for start in range(0, 40, 5)]
    assert len({tuple(place % 5 for place in row) for row in rows}) > 4
    assert rows == orders(arm="another")


def test_reward_stands_against_distance_with_the_pareto_line_in_words_too():
    labels = [a["aria-label"] or "" for tag, a in Reader(rendered()).tags if tag == "svg" and "aria-label" in a]
    (judge, *_) = [label for label in labels if "On the Pareto line" in label]
    assert judge == "judge: never seen in training. On the Pareto line: RG-LCM, 1"


@pytest.mark.parametrize(("num_images", "num_prompts", "said"), [(64, 64, "20"), (64, 6, "12")])
def test_page_says_on_how_many_pictures_and_blocks_kernel_distances_are(num_images, num_prompts, said):
    """The real images' captions are their own: a dozen of one picture each."""
    real, *drawn = measurements(constant(0.7, "judge", count=num_images))
    real = replace(real, captions=[f"real {number}" for number in range(12)], scores=constant(1.0, "judge", count=12))
    drawn = [replace(one, captions=[f"prompt {number % num_prompts}" for number in range(num_images)]) for one in drawn]
    found = compare([real, *drawn], seed=0, trained_on=None)
    text = report_html(report_data(found, pictures=pictures(["a"]), provenance=provenance(), curves={}))
    assert f"between {num_images} pictures and 12 real ones, with the interval of a jackknife over {said} blocks" in text


def test_pretraining_of_the_proxy_has_plots_of_its_own():
    records = [{"step": n, "images": 128 * n, "loss": 1 / (n + 1), "grad_norm": 1.0} for n in range(50)]
    text = rendered(
        pretraining=[*records, {"step": 50, "images": 6400, "retrieval_accuracy": 0.8}, records[-1] | {"retrieval_accuracy": 0.9}]
    )
    assert "Retrieval accuracy of the proxy" in text
    assert "Contrastive loss" in text
    assert "Gradient norm" not in text
    assert "Training" not in Reader(rendered()).text


def test_training_plots_are_those_of_recorded_figures():
    assert 'id="training"' not in rendered()
    text = rendered(curves=distances("lcm", "rg"))
    assert "Consistency distance" in text
    assert "Proxy against expert" not in text


def test_page_lists_lineage_and_commands():
    text = rendered()
    assert "0123456789abcdef" in text
    assert "rglcd run shard" in text
    assert "8,192 samples" in text


def test_markdown_report_holds_verdict_and_table():
    text = report_markdown(report())
    rows = [line for line in text.partition("Drawn and rated in")[0].splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert "expert (trained on)" in rows[0]
    assert text.startswith("**Two steps of RG-LCM are preferred")


def test_reports_say_how_fast_images_were_drawn_and_rated_and_what_it_took():
    """The fixture's images take a millisecond for each step and two to be rated, on one process; there are 64 of each."""
    on_gpus = {"has_gpu": True, "num_processes": 8, "device": "NVIDIA A100-SXM4-80GB", "precision": "tf32"}
    hours = 64 * (6 * 0.002 + 0.001 * (50 + 1 + 2 + 1 + 2)) / 3600
    markdown, page = report_markdown(report(**on_gpus)), rendered(**on_gpus)
    assert f"Drawn and rated in {hours:.3g} GPU-hours (tf32, NVIDIA A100-SXM4-80GB, 8 processes)" in markdown
    assert "| RG-LCM | 2 | 500 | 500 |" in markdown.splitlines()
    assert "| Real images | – | – | 500 |" in markdown.splitlines()
    text = " ".join(Reader(page).text.split())
    assert f"All were drawn and rated in {hours:.3g} GPU-hours" in text
    assert "NVIDIA A100-SXM4-80GB, 8 processes; tf32" in text
    assert "process-hours" in report_markdown(report())


def test_reports_say_what_the_distance_is_of_and_do_not_call_it_fid():
    said = "between 64 images and 12 real images (digest 0123456789ab), by ResNetModel. The Fréchet distance is not FID"
    assert said in report_markdown(report())
    text = " ".join(Reader(rendered()).text.split())
    assert "between 64 pictures and 12 real images (digest 0123456789ab), by ResNetModel" in text
    assert text.count("FID") == 1


def test_a_distance_by_inception_alone_is_called_fid():
    def by_inception(measured):
        distances = Distances({"fid": 12.5}, {"kid": Estimate(0.004, -0.001, 0.009)}) if measured.distances.frechet else NO_DISTANCES
        return replace(measured, distances=distances)

    found = compare([by_inception(m) for m in measurements(constant(0.7, "judge"))], seed=0, trained_on=None)
    made = report_data(found, pictures=pictures(list(CAPTIONS)), provenance=provenance(), curves={})
    markdown = report_markdown(made)
    assert "| FID | KID |" in markdown
    assert "12.50 | 0.004 [-0.001, 0.009] |" in markdown
    assert "not FID" not in markdown
    text = " ".join(Reader(report_html(made)).text.split())
    assert "FID to real images 12.5" in text
    assert "Fréchet: not FID" not in text
    assert metrics(found)["rg"]["2"]["fid"] == 12.5
    assert "frechet" not in metrics(found)["rg"]["2"]
    assert "rg fid" in quality_csv(found)


def test_figure_holds_its_panels_side_by_side_as_one_svg():
    line = Series("RG-LCM", "arm-rg", (Point(1, 0.1, 0.1, 0.1), Point(2, 0.2, 0.2, 0.2)))
    panel = Panel("quality", "a note", (line,), (), (1, 2), "steps", logarithmic=True)
    root = ElementTree.fromstring(figure_svg([panel, panel]))
    assert root.get("viewBox") == f"0 0 {2 * FRAME.width} {FRAME.height}"
    assert [child.get("x") for child in root if child.tag.endswith("}svg")] == ["0", str(FRAME.width)]
