"""Published prompt lists: read as their authors' scripts read them, counted by group, and refused by file and line."""

import codecs
import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from rglcd.cli import main
from rglcd.errors import InputError
from rglcd.evaluation.prompt_sets import kind_of, oddities, read_prompt_set
from tests.evaluation import prompt_files as files

WRITERS = {
    "parti": files.write_parti,
    "hpsv2": files.write_hpsv2,
    "geneval": files.write_geneval,
    "dpg": files.write_dpg,
    "compbench": files.write_compbench,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_each_published_list_is_known_by_its_names_and_first_line(tmp_path: Path, kind: str) -> None:
    assert kind_of(WRITERS[kind](tmp_path)) == kind


def test_partiprompts_keep_their_quotation_marks_and_carry_category_and_challenge(tmp_path: Path) -> None:
    found = read_prompt_set(files.write_parti(tmp_path), "parti")
    assert found.texts == [row.split("\t")[0] for row in files.PARTI_ROWS]
    assert found.texts[2].startswith('"G I G G L E" painted')
    assert found.prompts[2].groups == {"category": "Illustrations", "challenge": "Writing & Symbols"}
    assert found.groupings["challenge"] == {"Basic": 2, "Writing & Symbols": 2, "Complex": 1, "Style & Format": 1}
    assert found.prompts[5].line == 7


def test_hpsv2s_styles_follow_each_other_each_in_its_own_order(tmp_path: Path) -> None:
    found = read_prompt_set(files.write_hpsv2(tmp_path), "hpsv2")
    assert found.groupings == {"style": {"anime": 6, "concept-art": 6, "paintings": 6, "photo": 6}}
    assert found.prompts[7].key == "concept-art/00001"
    assert found.prompts[7].text == "concept-art number 1"
    one_style = read_prompt_set(tmp_path / "photo.json", "hpsv2")
    assert one_style.prompts[0].key == "photo/00000"


def test_genevals_objects_come_with_their_prompts(tmp_path: Path) -> None:
    found = read_prompt_set(files.write_geneval(tmp_path), "geneval")
    assert list(found.groupings["task"]) == ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
    assert [prompt.record for prompt in found.prompts] == files.GENEVAL_ROWS


def test_dpg_is_a_file_an_item_or_the_first_row_of_each_item_of_the_csv(tmp_path: Path) -> None:
    assert [prompt.key for prompt in read_prompt_set(files.write_dpg(tmp_path), "dpg").prompts] == list("012345")
    from_csv = read_prompt_set(files.write_dpg_csv(tmp_path), "dpg")
    assert [prompt.key for prompt in from_csv.prompts] == ["partiprompts0", "partiprompts1", "partiprompts2"]
    assert from_csv.texts[1] == "A room, number 1."
    assert from_csv.groupings == {}


def test_compbenchs_category_is_the_files_name(tmp_path: Path) -> None:
    found = read_prompt_set(files.write_compbench(tmp_path), "compbench")
    assert found.groupings == {"category": {"color": 3, "3d_spatial": 3}}
    assert found.prompts[4].key == "3d_spatial/000001"


@pytest.mark.parametrize("kind", ["lines", *WRITERS])
def test_the_mark_that_some_editors_begin_a_file_with_is_no_text(tmp_path: Path, kind: str) -> None:
    """The same file is read so where captions like its prompts are held out."""
    path = tmp_path / "mine.txt"
    if kind == "lines":
        path.write_text("a red circle\n")
    else:
        path = WRITERS[kind](tmp_path)
    before = read_prompt_set(path, kind).texts
    for file in path.iterdir() if path.is_dir() else [path]:
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert read_prompt_set(path, kind).texts == before


def test_the_digest_is_what_sha256sum_prints(tmp_path: Path) -> None:
    path = files.write_parti(tmp_path)
    assert read_prompt_set(path, "parti").sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    folder = tmp_path / "hpsv2"
    folder.mkdir()
    files.write_hpsv2(folder)
    printed = subprocess.run(["sh", "-c", "sha256sum *.json | sha256sum"], cwd=folder, capture_output=True, text=True, check=True)
    assert read_prompt_set(folder, "hpsv2").sha256 == printed.stdout.split()[0]


def test_what_is_odd_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("a house\na tree\na house\na \x07bell\n" + "x" * 1001 + "\n", encoding="utf-8")
    said = oddities(read_prompt_set(path, "lines"))
    assert said[0] == "mine.txt line 3: the same as mine.txt line 1: 'a house'"
    assert said[1] == "mine.txt line 4: characters that do not print (U+0007)"
    assert said[2].startswith("mine.txt line 5: 1,001 characters")
    said = oddities(read_prompt_set(files.write_parti(tmp_path), "parti"))
    assert said[0] == "6 prompts, and the published list has 1,632: a score of it is not the benchmark's"
    assert said[1].startswith("PartiPrompts.tsv line 5: blanks around the prompt, kept as published")


@pytest.mark.parametrize(
    ("name", "text", "kind", "said"),
    [
        ("p.tsv", "Prompt\tKind\n", "parti", "p.tsv line 1: expected the columns Prompt, Category, Challenge, Note"),
        ("p.tsv", "Prompt\tCategory\tChallenge\tNote\na\tb\n", "parti", "p.tsv line 2: 2 columns, and the header has 4"),
        ("g.jsonl", '{"tag": "x"', "geneval", "g.jsonl line 1 is not JSON"),
        ("g.jsonl", '{"tag": "x", "prompt": "y"}\n', "geneval", "g.jsonl line 1: expected an object with tag, include and prompt"),
        ("anime.json", '["a", 3]', "hpsv2", "anime.json entry 2: a prompt is a string, and this is int"),
        ("anime.json", '{"a": 1}', "hpsv2", "anime.json: expected a JSON list of prompts, found dict"),
        ("other.json", '["a"]', "hpsv2", "other.json: a file of HPSv2's benchmark is named after its style: anime"),
        ("colour.txt", "a\n", "compbench", "colour.txt: a file of T2I-CompBench is named after its category: color_val.txt"),
        ("color_val.txt", "a\n\nb\n", "compbench", "color_val.txt line 2: the prompt is empty"),
        ("d.csv", "id,text\n1,a\n", "dpg", "d.csv line 1: expected the columns item_id and text"),
        ("d.csv", "item_id,text\n1,a\n1,b\n", "dpg", "d.csv line 3: item 1 has another text than above"),
        ("l.txt", "\n\n", "lines", "l.txt holds no prompt: write one a line"),
    ],
)
def test_a_wrong_file_is_one_line_with_the_place(tmp_path: Path, name: str, text: str, kind: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as refusal:
        read_prompt_set(tmp_path / name, kind)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_set_that_lacks_a_style_is_refused_by_name(tmp_path: Path) -> None:
    files.write_hpsv2(tmp_path)
    (tmp_path / "photo.json").unlink()
    with pytest.raises(InputError, match=r"lacks photo\.json"):
        read_prompt_set(tmp_path, "hpsv2")


def test_data_prompts_prints_kind_counts_digest_and_oddities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = files.write_geneval(tmp_path)
    assert main(["data", "prompts", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{path}: 6 prompts of kind geneval"
    assert said[1] == "  task: single_object 1, two_object 1, counting 1, colors 1, position 1, color_attr 1"
    assert said[2] == f"  sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert said[3].startswith("  odd: 6 prompts, and the published list has 553")


def test_data_prompts_of_a_missing_or_unknown_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.json").write_text(json.dumps({"a": 1}))
    for path in (tmp_path / "none.txt", tmp_path / "words.json", tmp_path):
        with pytest.raises(SystemExit) as ended:
            main(["data", "prompts", str(path)])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("rglcd: ")


@pytest.mark.parametrize(
    ("name", "text", "kind", "said"),
    [
        ("photo.json", '["a cat", "a \\ud83d dog"]', "hpsv2", r"photo\.json line 2: the prompt holds \\ud83d, half of a character"),
        ("m.jsonl", '{"tag": "\\udc00", "include": [], "prompt": "a"}', "geneval", r"m\.jsonl line 1: the prompt holds \\udc00"),
        ("dpg_bench.csv", f"item_id,text\n1,{'x' * 200_000}\n", "dpg", r"dpg_bench\.csv line \d: field larger than field limit"),
    ],
)
def test_text_that_no_file_could_hold_again_is_refused_by_line(tmp_path: Path, name: str, text: str, kind: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        read_prompt_set(tmp_path / name, kind)
