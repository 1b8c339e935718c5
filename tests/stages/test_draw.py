"""``rglcd draw``: the report's own pictures, again, as files; and one line for whatever cannot be drawn."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from PIL import Image

from rglcd.cli import main
from rglcd.config import Evaluation, dump
from rglcd.core.consistency import BoundaryScalings
from rglcd.errors import InputError
from rglcd.evaluation.contact_sheet import sheet_image
from rglcd.evaluation.drawing import Asked, Canvas
from rglcd.evaluation.drawn_files import file_name, slug
from rglcd.models.codec import Codec
from rglcd.models.export import CardFacts, SamplingGrid, export_student
from rglcd.models.student import ADAPTER_FILE, AdapterShape, Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from rglcd.stages.drawing_page import _asked, drawn_for_page
from rglcd.stages.studio import Studio
from tests.stages.evaluated_line import config
from tests.tiny_flows import write_tiny_pixart
from tests.tiny_models import RESOLUTION

PROMPT = "a <b>blue</b> square"
CPU = torch.device("cpu")
ADAPTER = AdapterShape(rank=2, alpha=6, targets=("to_q", "to_v", "conv1"))


@pytest.fixture
def project(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose artifacts are the evaluated line's, which are only read."""
    (tmp_path / "artifacts").symlink_to(evaluated)
    (tmp_path / "params.yaml").write_text(dump(config()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["draw", *words])
    said = capsys.readouterr()
    assert ended.value.code == 2
    (line,) = said.err.splitlines()
    return line


def in_report(evaluated: Path, sampler: str, number: int) -> np.ndarray:
    with Image.open(evaluated / "report/draws" / sampler / "images.png") as sheet:
        return np.asarray(sheet_image(sheet.convert("RGB"), number, side=RESOLUTION)).astype(int)


def largest_difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


def test_pictures_of_a_prompt_of_the_report_are_the_reports_own(project: Path, evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["draw", PROMPT, "--count", "3", "--teacher", "--out", "drawn", "--steps", "2"])
    said = capsys.readouterr().out.splitlines()
    # The report's three prompts take turns in six pictures: this one is 1 and 4. A batch of another size rounds otherwise: a grey level.
    for sampler, name, steps in (("rg-2", "rg", 2), ("teacher-3", "teacher", 3)):
        for number in (1, 4):
            path = Path("drawn") / file_name(Asked(PROMPT, 0, number, steps, 3.0), name)
            assert largest_difference(np.asarray(Image.open(path)).astype(int), in_report(evaluated, sampler, number)) <= 1
    assert largest_difference(in_report(evaluated, "rg-2", 1), in_report(evaluated, "rg-2", 4)) > 1, "these two pictures differ"
    assert len([line for line in said if line.endswith(" ms")]) == 6, "paths with times"
    assert any(line.startswith("rg, 2 steps, guidance 3, seed 0: ") and line.endswith(" ms a picture") for line in said)
    sheet = Image.open(said[-1].removeprefix("side by side: "))
    assert sheet.width > 2 * RESOLUTION
    assert sheet.height > 3 * RESOLUTION
    new = Image.open(Path("drawn") / file_name(Asked(PROMPT, 0, 6, 2, 3.0), "rg"))
    assert new.text["prompt"] == PROMPT
    assert (new.text["picture"], new.text["seed"], new.text["steps"], new.text["drawn by"]) == ("6", "0", "2", "rg")
    assert len(new.text["digest"]) == 64


def test_seed_steps_arm_and_guidance_each_make_another_picture(project: Path) -> None:
    studio = Studio(Path("artifacts"), None, config().evaluation)
    first = Asked("any", 0, 0, 1, 3.0)
    assert studio.names == ["lcm", "rg"]
    others = [Asked("any", 1, 0, 1, 3.0), Asked("any", 0, 1, 1, 3.0), Asked("any", 0, 0, 2, 3.0), Asked("other", 0, 0, 1, 3.0)]
    pictures = [studio.student("rg").draw(asked) for asked in (first, *others)]
    pictures.append(studio.student("lcm").draw(first))
    assert len({picture.numpy().tobytes() for picture in pictures}) == len(pictures)
    assert torch.equal(studio.student("rg").draw(first), pictures[0])
    assert studio.student("rg") is studio.student("rg"), "a network is loaded once"


def test_a_folder_of_a_student_draws_what_the_arm_draws_without_a_project(evaluated: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(evaluated / "student/lcm", tmp_path / "mine")
    asked, nowhere = Asked("any", 3, 0, 2, 3.0), tmp_path / "nothing"
    here = Studio(nowhere, folder, Evaluation()).student("mine")
    theirs = Studio(evaluated, None, config().evaluation).student("lcm")
    assert torch.equal(here.draw(asked), theirs.draw(asked))
    (folder / "rglcd.json").unlink()  # as a folder of others' has none
    assert torch.equal(Studio(nowhere, folder, Evaluation()).student("mine").draw(asked), theirs.draw(asked))


def test_a_transformers_folder_of_others_draws_pictures_of_its_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_pixart(tmp_path / "theirs")
    LCMScheduler(num_train_timesteps=1000, clip_sample=False).save_pretrained(tmp_path / "theirs/scheduler")
    main(["draw", "any", "--student", "theirs", "--steps", "2", "--out", "drawn"])
    (picture,) = (tmp_path / "drawn").glob("*.png")
    assert Image.open(picture).size == (RESOLUTION, RESOLUTION)


def test_an_adapter_draws_as_it_was_exported_and_its_rank_is_read_from_its_file(evaluated: Path, tmp_path: Path) -> None:
    base = evaluated / "pretrained/teacher"
    teacher = Teacher.load(base, dtype=torch.float32, device=CPU)
    student = Student.adapting(teacher, ADAPTER, seed=0)
    torch.manual_seed(5)
    for name, parameter in student.trainable_parameters.items():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    card = CardFacts("t", "t", "rg", "none", 1, 1, (1.0, 5.0), 3.0)
    export_student(student, teacher=base, folder=tmp_path / "lora", grid=SamplingGrid(50, 10.0), card=card)
    canvas = Canvas(
        Codec.load(base, dtype=torch.float32, device=CPU), TextEncoder.load(base, dtype=torch.float32, device=CPU), RESOLUTION, CPU
    )
    asked = Asked("any", 0, 0, 2, 3.0)
    expected = canvas.by_student(student, scalings=BoundaryScalings(0.5, 10.0), original_steps=50)(asked)
    painter = Studio(evaluated, tmp_path / "lora", config().evaluation).student("lora")
    assert largest_difference(painter.draw(asked).int().numpy(), expected.int().numpy()) <= 1
    assert not painter.is_guided
    plain = Student.adapting(teacher, ADAPTER, seed=0)
    unlearned = canvas.by_student(plain, scalings=BoundaryScalings(0.5, 10.0), original_steps=50)(asked)
    assert largest_difference(unlearned.int().numpy(), expected.int().numpy()) > 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["any", "--arm", "rgb"], "there is no arm 'rgb'; there are: lcm, rg"),
        (["any", "--steps", "51"], "51 steps are more than the 50 of the grid"),
        (["any", "--steps", "0"], "'0' is no whole number from 1 on"),
        (["any", "--guidance", "1"], "'1' is no number above 1"),
        (["any", "--guidance", "nan"], "'nan' is no number above 1"),
        (["any", "--student", "nowhere"], "nowhere holds neither a diffusers pipeline"),
        (["any", "--student", "artifacts/pretrained/teacher"], "is no consistency model"),
        (["any", "--student", "artifacts/student/rg", "--arm", "rg"], "give one of them"),
        (["any", "--artifacts", "nowhere"], "nowhere/student is missing or unfinished; make it with: rglcd run distill"),
        (["any", "--params", "nowhere.yaml"], "nowhere.yaml is missing"),
        ([], "say what to draw, or --page"),
        (["any", "--page"], "not both"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(project: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert said in refusal(capsys, *words)
    assert not list(project.glob("**/*.png"))


def test_an_altered_student_is_not_drawn_with(own_evaluated: Path) -> None:
    (weights,) = (own_evaluated / "student/rg/unet").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    studio = Studio(own_evaluated, None, config().evaluation)
    studio.student("lcm")
    with pytest.raises(InputError, match=r"rg/unet/.* has sha256"):
        studio.student("rg")


def test_an_adapter_of_several_ranks_or_of_none_is_refused(project: Path, evaluated: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "lora"
    shutil.copytree(evaluated / "student/lcm/scheduler", folder / "scheduler")
    for names, said in (
        ({"unet.a.lora_A.weight": 2, "unet.b.lora_A.weight": 3}, "ranks 2, 3"),
        ({"lora_unet_a.lora_down.weight": 2}, "no layer in diffusers'"),
    ):
        save_file({name: torch.zeros(rank, 4) for name, rank in names.items()}, folder / ADAPTER_FILE)
        with pytest.raises(InputError, match=said):
            Studio(Path("artifacts"), folder, config().evaluation).student("lora")


def test_the_page_is_an_extra_and_says_so_in_a_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    line = refusal(capsys, "--page")
    assert "gradio is not installed" in line
    assert "[page]'" in line


def test_the_page_draws_what_the_command_draws_and_says_how_long_it_took(evaluated: Path) -> None:
    studio = Studio(evaluated, None, config().evaluation)
    ours, theirs, said = drawn_for_page(studio, _asked(PROMPT, steps=2.0, seed=0.0, guidance=3.0), arm="rg", beside_teacher=True)
    assert theirs is not None
    for shown, sampler in ((ours, "rg-2"), (theirs, "teacher-3")):
        times = shown.width // RESOLUTION
        assert largest_difference(np.asarray(shown).astype(int)[::times, ::times], in_report(evaluated, sampler, 1)) <= 1
    assert said.startswith("rg, 2 steps: ")
    assert "; teacher, 3 steps: " in said
    _, none, _ = drawn_for_page(studio, _asked("any", steps=1, seed=0, guidance=3), arm="lcm", beside_teacher=False)
    assert none is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": "  "}, "say what to draw"),
        ({"prompt": "a" * 1001}, "1000 characters"),
        ({"steps": 1.5}, "no number of steps"),
        ({"steps": float("nan")}, "no number of steps"),
        ({"seed": 0.5}, "no seed"),
        ({"seed": float("nan")}, "no seed"),
        ({"seed": None}, "no seed"),
        ({"guidance": 1.0}, "no guidance scale"),
        ({"guidance": float("inf")}, "no guidance scale"),
    ],
)
def test_the_pages_api_refuses_what_the_page_would_not_send(given: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        _asked(**({"prompt": "any", "steps": 1.0, "seed": 0.0, "guidance": 3.0} | given))  # type: ignore[arg-type]


def test_names_of_files_hold_letters_digits_and_dashes_and_differ_where_prompts_do() -> None:
    assert slug("a red circle") == "a-red-circle"
    hostile = ["../../etc/passwd", "a/b", "a\\b", "", "ночь", "день", "x" * 300, "x" * 301, "A red circle", "a red  circle", "\n"]
    names = [slug(prompt) for prompt in hostile]
    assert len(set(names)) == len(hostile)
    assert all(name and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and len(name) < 60 for name in names)
