"""Exports are read back by the reading rules of the official scripts, restated here with their sources."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rglcd.errors import InputError
from rglcd.evaluation.image_layouts import USUAL_COUNT, Layout, lay_out
from rglcd.evaluation.prompt_sets import PromptSet, read_prompt_set
from tests.evaluation import prompt_files as files


def exported(tmp_path: Path, layout: str, write: Callable[[Path], Path], **options: int) -> tuple[Path, PromptSet, Layout]:
    """Files that hold the numbers of their images."""
    (tmp_path / "prompts").mkdir()
    prompts = read_prompt_set(write(tmp_path / "prompts"), layout if layout != "flat" else "parti")
    found = lay_out(layout, prompts, count=options.get("count", USUAL_COUNT[layout]))
    root = tmp_path / "out"
    for file in found.files:
        (root / file.path).parent.mkdir(parents=True, exist_ok=True)
        (root / file.path).write_text(json.dumps(file.images))
    for path, text in found.texts.items():
        (root / path).write_text(text)
    return root, prompts, found


def numbers_in(path: Path) -> list[int]:
    return list(json.loads(path.read_text()))


def test_hpsv2_finds_each_prompts_picture(tmp_path: Path) -> None:
    """tgxs002/HPSv2, hpsv2/evaluation.py: ``style_list = os.listdir(img_path)``, then ``f'{idx:05d}.jpg'`` for each entry of the style."""
    root, prompts, _ = exported(tmp_path, "hpsv2", files.write_hpsv2)
    style_list = [path.name for path in root.iterdir()]
    assert sorted(style_list) == ["anime", "concept-art", "paintings", "photo"]
    for style in style_list:
        annotations = json.loads((tmp_path / "prompts" / f"{style}.json").read_text())
        for idx in range(len(annotations)):
            (number,) = numbers_in(root / style / f"{idx:05d}.jpg")
            assert prompts.texts[number] == annotations[idx]


def test_geneval_finds_metadata_and_four_samples_of_each(tmp_path: Path) -> None:
    """djghosh13/geneval, evaluation/evaluate_images.py: main."""
    root, prompts, _ = exported(tmp_path, "geneval", files.write_geneval)
    found = []
    for folderpath in root.iterdir():
        if not folderpath.is_dir() or not folderpath.name.isdigit():
            continue
        metadata = json.loads((folderpath / "metadata.jsonl").read_text())
        for imagepath in (folderpath / "samples").iterdir():
            if not imagepath.is_file() or not re.match(r"\d+\.png", imagepath.name):
                continue
            found.append((metadata["prompt"], numbers_in(imagepath)[0]))
    assert len(found) == 24
    assert all(prompts.texts[number % 6] == prompt for prompt, number in found)
    assert len({number for _, number in found}) == 24


def test_dpg_finds_every_item_by_its_name_and_nothing_else(tmp_path: Path) -> None:
    """TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py: every file there, ``osp.basename(image_path).split('.')[0]`` is the item."""
    root, prompts, _ = exported(tmp_path, "dpg", files.write_dpg_csv)
    keys = {path.name.split(".")[0]: numbers_in(path) for path in root.iterdir()}
    assert keys == {prompt.key: [row, row + 3, row + 6, row + 9] for row, prompt in enumerate(prompts.prompts)}


def test_compbench_reads_prompts_and_numbers_out_of_names(tmp_path: Path) -> None:
    """Karine-Huang/T2I-CompBench, BLIPvqa_eval/BLIP_vqa.py: Create_annotation_for_BLIP; names of GORS_finetune/inference_eval.py."""
    root, prompts, found = exported(tmp_path, "compbench", files.write_compbench)
    assert found.notes == ()
    for category in ("color", "3d_spatial"):
        file_names = [path.name for path in (root / category / "samples").iterdir()]
        file_names.sort(key=lambda x: int(x.split("_")[-1].split(".")[0]))
        assert [int(name.split("_")[-1].split(".")[0]) for name in file_names] == list(range(30))
        texts = [prompt.text for prompt in prompts.prompts if prompt.groups["category"] == category]
        # inference_eval.py draws all images of a prompt before the next one's.
        assert [name.split("_")[0] for name in file_names] == [text for text in texts for _ in range(10)]


def test_compbench_says_which_prompts_no_name_can_hold(tmp_path: Path) -> None:
    (tmp_path / "color_val.txt").write_text("a red/blue cup\na fine cup\n" + "x" * 300 + "\n")
    found = lay_out("compbench", read_prompt_set(tmp_path, "compbench"), count=1)
    assert [note.partition(":")[0] for note in found.notes] == ["color_val.txt line 1", "color_val.txt line 3"]
    assert found.files[0].path.name == "a red blue cup_000000.png"
    assert len(found.files[2].path.name) == 255


def test_flat_is_an_imagefolder_with_the_text_of_each_file(tmp_path: Path) -> None:
    root, prompts, _ = exported(tmp_path, "flat", files.write_parti, count=2)
    rows = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    assert {row["file_name"]: row["text"] for row in rows} == {f"{number:05d}.png": prompts.texts[number % 6] for number in range(12)}
    assert len(list(root.glob("*.png"))) == 12


def test_a_layout_takes_its_own_prompts_and_its_scripts_number_of_images(tmp_path: Path) -> None:
    prompts = read_prompt_set(files.write_parti(tmp_path), "parti")
    with pytest.raises(InputError, match=r"--layout geneval wants prompts of kind geneval, and evaluation.prompts is of kind parti"):
        lay_out("geneval", prompts, count=4)
    folder = tmp_path / "hpsv2"
    folder.mkdir()
    with pytest.raises(InputError, match="--count 2: the script for hpsv2 reads 1 images of each prompt"):
        lay_out("hpsv2", read_prompt_set(files.write_hpsv2(folder), "hpsv2"), count=2)
