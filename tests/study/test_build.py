import json
import struct
from pathlib import Path
from shutil import make_archive

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rglcd.errors import InputError
from rglcd.evaluation.contact_sheet import SHEET_COLUMNS
from rglcd.store.manifest import Manifest, results_digest, scan, write_manifest
from rglcd.study.build import build
from rglcd.study.records import Question, read_key, read_study, verify_pictures
from rglcd.study.sources import Drawn, from_folders, from_report
from tests.study.studies import ARMS, design, drawn, picture, small_study


def chunks(data: bytes) -> list[bytes]:
    """The names of a PNG's chunks."""
    names, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        names.append(data[at + 4 : at + 8])
        at += 12 + length
    return names


def test_every_pair_of_arms_is_there_for_every_prompt_and_the_key_alone_knows_the_arms(tmp_path: Path) -> None:
    study = small_study(tmp_path / "study", arms=ARMS, num_prompts=4)
    key = read_key(tmp_path / "study")
    assert read_study(tmp_path / "study") == study
    assert len(study.pairs) == 3 * 4
    assert sorted(set(key.drawn_by.values())) == sorted({(ARMS[0], ARMS[1]), (ARMS[0], ARMS[2]), (ARMS[1], ARMS[2])})
    others = [path for path in (tmp_path / "study").rglob("*") if path.is_file() and path.name != "key.json"]
    for arm in ARMS:
        assert not [path for path in others if arm.encode() in path.read_bytes() or arm in path.name]
    assert (tmp_path / "study/key.json").stat().st_mode & 0o777 == 0o600


def test_the_pictures_are_the_arms_own_pixel_for_pixel(tmp_path: Path) -> None:
    source = drawn(3)
    study, key = build(tmp_path / "study", source, design()), read_key(tmp_path / "study")
    for row, pair in enumerate(study.pairs):
        for arm, name in zip(key.drawn_by[pair.id], pair.pictures, strict=True):
            with Image.open(tmp_path / "study/pictures" / name) as opened:
                assert opened.tobytes() == source.arms[arm][row]().tobytes()


def test_pictures_lose_metadata_dates_and_names(tmp_path: Path) -> None:
    notes = PngInfo()
    notes.add_text("parameters", "guided-arm, 2 steps")
    for arm, suffix in (("a", "png"), ("b", "jpg")):
        (tmp_path / arm).mkdir()
        for row in range(3):
            exif = Image.Exif()
            exif[0x010E] = "guided-arm"
            words = {"pnginfo": notes} if suffix == "png" else {"comment": b"guided-arm"}
            picture(row, 64).save(tmp_path / arm / f"{row}.{suffix}", exif=exif, **words)
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    source = from_folders({"a": tmp_path / "a", "b": tmp_path / "b"}, tmp_path / "prompts.txt")
    build(tmp_path / "study", source, design())
    files = list((tmp_path / "study/pictures").iterdir())
    assert len(files) == 3 + 3 + 2  # and two in disorder; the whole ones of the checks are an arm's
    for path in files:
        assert set(chunks(path.read_bytes())) == {b"IHDR", b"IDAT", b"IEND"}
        assert len(path.stem) == 32
    (date,) = {path.stat().st_mtime for path in files}
    assert date < 1e9, "of no day on which a study was built"
    assert make_archive(str(tmp_path / "study"), "zip", tmp_path / "study"), "a zip file has no dates before 1980"


def test_the_same_pictures_have_other_names_in_another_study(tmp_path: Path) -> None:
    first, second = (small_study(tmp_path / name) for name in ("one", "two"))
    assert not {name for pair in first.pairs for name in pair.pictures} & {name for pair in second.pairs for name in pair.pictures}


def test_a_check_is_a_picture_beside_its_own_pixels_in_disorder(tmp_path: Path) -> None:
    study, key = small_study(tmp_path / "study", num_checks=4), read_key(tmp_path / "study")
    assert len(study.checks) == 4
    for check in study.checks:
        shown = [Image.open(tmp_path / "study/pictures" / name) for name in check.pictures]
        whole, other = shown[key.whole[check.id]], shown[1 - key.whole[check.id]]
        assert whole.tobytes() in {picture(5000 + row).tobytes() for row in range(6)}
        assert whole.tobytes() != other.tobytes()
        assert sorted(whole.get_flattened_data()) == sorted(other.get_flattened_data())


def test_a_sample_of_the_prompts_is_drawn_by_the_seed(tmp_path: Path) -> None:
    studies = [build(tmp_path / str(place), drawn(50), design(num_prompts=10, seed=seed)) for place, seed in enumerate((1, 1, 2))]
    first, again, other = ([pair.prompt for pair in study.pairs] for study in studies)
    assert len(first) == 10
    assert first == again != other


def test_pictures_of_a_pair_that_differ_in_size_are_refused_or_resized(tmp_path: Path) -> None:
    source = drawn(2)
    larger = {**source.arms, ARMS[1]: [lambda: picture(1, 16), lambda: picture(2, 16)]}
    uneven = Drawn(source.prompts, larger, source.for_checks)
    with pytest.raises(InputError, match="differ in size"):
        build(tmp_path / "study", uneven, design())
    assert list(tmp_path.iterdir()) == []
    study = build(tmp_path / "study", uneven, design(side=12))
    sizes = {Image.open(tmp_path / "study/pictures" / name).size for pair in (*study.pairs, *study.checks) for name in pair.pictures}
    assert sizes == {(12, 12)}


@pytest.mark.parametrize(
    ("source", "changes", "said"),
    [
        (drawn(3, arms=("one",)), {}, "two arms or more"),
        (drawn(3, arms=("one", "t\nwo")), {}, "printable"),
        (drawn(3), {"num_prompts": 4}, "there are 3 prompts with pictures, not 4"),
        (drawn(3), {"pairs_per_rater": 4}, "there are 3 pairs"),
        (drawn(0), {}, "no prompts"),
    ],
)
def test_what_is_no_study_is_one_line_and_leaves_nothing(tmp_path: Path, source: Drawn, changes: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(tmp_path / "study", source, design(**changes))
    assert list(tmp_path.iterdir()) == []


def test_a_study_is_not_built_over_another(tmp_path: Path) -> None:
    small_study(tmp_path / "study")
    with pytest.raises(InputError, match="exists already"):
        small_study(tmp_path / "study")


@pytest.mark.parametrize("name", ["study.json", "key.json", "manifest.json"])
def test_a_record_that_was_changed_is_refused_by_name(tmp_path: Path, name: str) -> None:
    small_study(tmp_path / "study")
    path = tmp_path / "study" / name
    path.write_text(path.read_text().replace("0", "1", 1) if name != "manifest.json" else "{")
    read = read_key if name == "key.json" else read_study
    with pytest.raises(InputError, match=name):
        read(tmp_path / "study")


def test_a_picture_that_was_changed_is_refused_by_name(tmp_path: Path) -> None:
    study = small_study(tmp_path / "study")
    path = tmp_path / "study/pictures" / study.pairs[0].pictures[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=path.name):
        verify_pictures(tmp_path / "study", study)


# --- folders -------------------------------------------------------------------------------------


def folders(root: Path, **names: list[str]) -> dict[str, Path]:
    for arm, files in names.items():
        for number, name in enumerate(files):
            (root / arm / name).parent.mkdir(parents=True, exist_ok=True)
            picture(number).save(root / arm / name)
    return {arm: root / arm for arm in names}


def test_names_are_ordered_as_people_count(tmp_path: Path) -> None:
    arms = folders(tmp_path, a=["2.png", "10.png", "1.png"], b=["1.png", "2.png", "10.jpg"])
    (tmp_path / "prompts.txt").write_text("first\nsecond\ntenth\n")
    source = from_folders(arms, tmp_path / "prompts.txt")
    assert [read().tobytes() for read in source.arms["a"]] == [picture(number).tobytes() for number in (2, 0, 1)]
    assert source.prompts == ["first", "second", "tenth"]


@pytest.mark.parametrize(
    ("names", "prompts", "said"),
    [
        ({"a": ["1.png", "2.png"], "b": ["1.png"]}, "x\ny\n", "'2'"),
        ({"a": ["1.png"], "b": ["1.png"]}, "x\ny\n", "has 2 prompts, and .*a 1 pictures"),
        ({"a": ["1.png"], "b": ["1.png"]}, "\n", "line 1 is empty"),
        ({"a": ["1.png", "1.jpg"], "b": ["1.png"]}, "x\n", "two pictures called '1'"),
        ({"a": ["1.png"], "b": ["1.bmp"]}, None, r"prompts\.txt is missing"),
    ],
)
def test_folders_that_do_not_go_together_are_one_line(tmp_path: Path, names: dict[str, list[str]], prompts: str | None, said: str) -> None:
    arms = folders(tmp_path, **names)
    if prompts is not None:
        (tmp_path / "prompts.txt").write_text(prompts)
    with pytest.raises(InputError, match=said):
        from_folders(arms, tmp_path / "prompts.txt")


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    arms = folders(tmp_path, a=["1.png"], b=["1.png"])
    (tmp_path / "b/1.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "prompts.txt").write_text("x\n")
    source = from_folders(arms, tmp_path / "prompts.txt")
    with pytest.raises(InputError, match=r"b/1\.png is no picture"):
        build(tmp_path / "study", source, design())


# --- a report ------------------------------------------------------------------------------------


def report(folder: Path, **prompts: list[str]) -> Path:
    for place, (arm, captions) in enumerate(prompts.items()):
        name = arm.replace("_", "-")
        (folder / "draws" / name).mkdir(parents=True)
        sheet = Image.new("RGB", (SHEET_COLUMNS * 8, 16))
        for row in range(len(captions)):
            sheet.paste(picture(100 * place + row), (row % SHEET_COLUMNS * 8, row // SHEET_COLUMNS * 8))
        sheet.save(folder / "draws" / name / "images.png")
        lines = "".join(f"{row},0.5,0.1,0.2,{json.dumps(caption)}\n" for row, caption in enumerate(captions))
        (folder / "draws" / name / "scores.csv").write_text(f"image,judge,high_frequency,saturation,caption\n{lines}")
    files = scan(folder)
    write_manifest(folder, Manifest("report", "evaluate", 3, "k", results_digest(files), {}, {}, files))
    return folder


def test_a_reports_arms_are_shown_and_checks_are_made_of_the_real_images(tmp_path: Path) -> None:
    prompts = [f"prompt {row}" for row in range(10)]
    prompts[3] = "'=a formula"  # as tables have it
    source = from_report(report(tmp_path / "report", rg_2=prompts, teacher_50=prompts, real=["real"] * 10), ["rg-2", "teacher-50"])
    assert source.prompts[3] == "=a formula"
    assert [read().tobytes() for read in source.arms["teacher-50"]] == [picture(100 + row).tobytes() for row in range(10)]
    assert source.for_checks[9][0] == "real"
    assert source.for_checks[9][1]().tobytes() == picture(209).tobytes()


def test_an_arm_that_the_report_lacks_or_altered_pictures_are_one_line(tmp_path: Path) -> None:
    made = report(tmp_path / "report", rg_2=["x"], teacher_50=["x"])
    with pytest.raises(InputError, match="no pictures of 'rg-4'; it has: rg-2, teacher-50"):
        from_report(made, ["rg-2", "rg-4"])
    (made / "draws/rg-2/images.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"draws/rg-2/images\.png has 1 bytes"):
        from_report(made, ["rg-2", "teacher-50"])


def test_questions_are_kept_in_the_order_asked(tmp_path: Path) -> None:
    asked = [Question.ALIGNMENT, Question.PREFERENCE]
    small_study(tmp_path / "study", questions=asked)
    assert list(read_study(tmp_path / "study").questions) == asked
