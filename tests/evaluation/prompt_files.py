"""Six rows of each published prompt list, written in its authors' format: the files themselves are not in this repository."""

import json
from pathlib import Path

PARTI_ROWS = [
    "bond\tAbstract\tBasic\tBiology-inspired concepts with multiple meanings",
    "peace\tAbstract\tBasic\t",
    '"G I G G L E" painted in thick colorful lettering on a red brick wall\tIllustrations\tWriting & Symbols\t',
    "aviator goggles, flying over the city of Mars. \tWorld Knowledge\tComplex\t",
    "a store front that has the word ‘openai’ written on it.\tOutdoor Scenes\tWriting & Symbols\tDALL-E",
    "a drawing of a hammer\tIllustrations\tStyle & Format\t",
]

GENEVAL_ROWS = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "two_object", "include": [{"class": "cow", "count": 1}, {"class": "tie", "count": 1}], "prompt": "a photo of a cow and a tie"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "pink"}], "prompt": "a photo of a pink car"},
    {
        "tag": "position",
        "include": [{"class": "couch", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a dog right of a couch",
    },
    {
        "tag": "color_attr",
        "include": [{"class": "cake", "count": 1, "color": "red"}, {"class": "bed", "count": 1, "color": "blue"}],
        "prompt": "a photo of a red cake and a blue bed",
    },
]

DPG_COLUMNS = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"


def write_parti(folder: Path) -> Path:
    path = folder / "PartiPrompts.tsv"
    path.write_text("\n".join(["Prompt\tCategory\tChallenge\tNote", *PARTI_ROWS]) + "\n", encoding="utf-8", newline="")
    return path


def write_hpsv2(folder: Path, *, each: int = 6) -> Path:
    for style in ("anime", "concept-art", "paintings", "photo"):
        (folder / f"{style}.json").write_text(json.dumps([f"{style} number {index}" for index in range(each)]))
    return folder


def write_geneval(folder: Path) -> Path:
    path = folder / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in GENEVAL_ROWS))
    return path


def write_dpg(folder: Path) -> Path:
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"A long description, number {number}, of a room in which much stands.")
    return folder


def write_dpg_csv(folder: Path) -> Path:
    path = folder / "dpg_bench.csv"
    rows = [
        f'partiprompts{item},"A room, number {item}.",,{question},0,entity,whole,entity - whole (room),Is there a room?'
        for item in range(3)
        for question in (1, 2)
    ]
    path.write_text("\n".join([DPG_COLUMNS, *rows]) + "\n")
    return path


def write_compbench(folder: Path) -> Path:
    for category in ("color", "3d_spatial"):
        (folder / f"{category}_val.txt").write_text("".join(f"a bench of {category[:2]} and a bowl {index}\n" for index in range(3)))
    return folder
