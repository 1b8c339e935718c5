"""The published formats of prompt lists, read as their authors' own scripts read them.

No torch is imported: a list is looked at before anything is drawn.

    lines      one prompt a line
    hpsv2      <style>.json, a list of strings each                     (tgxs002/HPSv2, hpsv2/__init__.py: benchmark_prompts)
    parti      TAB-separated: Prompt, Category, Challenge, Note         (google-research/parti, PartiPrompts.tsv)
    geneval    a JSON object a line: tag, include, exclude, prompt      (djghosh13/geneval, prompts/create_prompts.py)
    dpg        <item_id>.txt, a prompt each; or item_id and text of a csv  (TencentQQGYLab/ELLA, dpg_bench/)
    compbench  <category>_val.txt, a prompt a line, up to a TAB         (Karine-Huang/T2I-CompBench, GORS_finetune/inference_eval.py)
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rglcd.errors import InputError

HPSV2_STYLES: Final = ("anime", "concept-art", "paintings", "photo")
COMPBENCH_CATEGORIES: Final = ("color", "shape", "texture", "spatial", "3d_spatial", "non_spatial", "numeracy", "complex")
COMPBENCH_ENDING: Final = "_val"
PARTI_HEADER: Final = ("Prompt", "Category", "Challenge", "Note")


@dataclass(frozen=True)
class Prompt:
    """One prompt: its ``text`` as published, where it stands (``file`` and ``line``, from 1; a list's entry counts as its line).

    ``key`` is its name within the set, by which official scripts find its images; ``groups`` are what its scores are grouped by
    (grouping -> group); ``record`` is all that was published of it, where a script wants that back.
    """

    text: str
    file: Path
    line: int
    key: str
    groups: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None


Reader = Callable[[Path], Iterator[Prompt]]


def read_lines_format(path: Path) -> Iterator[Prompt]:
    """A prompt a line, without blanks around it; empty lines are passed over."""
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        if line.strip():
            yield Prompt(line.strip(), path, number, key=f"{number:05d}")


def read_hpsv2(path: Path) -> Iterator[Prompt]:
    """The four styles of a folder, or one style's file; the i-th prompt of a style belongs to ``<style>/<i>``."""
    files = [path] if path.is_file() else [path / f"{style}.json" for style in HPSV2_STYLES]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: HPSv2's benchmark is {len(HPSV2_STYLES)} files, one a style")
    for file in files:
        if file.stem not in HPSV2_STYLES:
            raise InputError(f"{file}: a file of HPSv2's benchmark is named after its style: {', '.join(HPSV2_STYLES)} (.json)")
        entries = _json(text_of(file), file)
        if not isinstance(entries, list):
            raise InputError(f"{file}: expected a JSON list of prompts, found {type(entries).__name__}")
        for index, entry in enumerate(entries):
            yield Prompt(_text(entry, file, index + 1), file, index + 1, key=f"{file.stem}/{index:05d}", groups={"style": file.stem})


def read_parti(path: Path) -> Iterator[Prompt]:
    """By category and challenge.

    Quotation marks are text there (``"G I G G L E" painted in``): a csv reader with quoting takes them away, and some rows together.
    """
    lines = _lines(path)
    header = tuple(lines[0].split("\t")) if lines else ()
    if header[:3] != PARTI_HEADER[:3]:
        raise InputError(f"{path} line 1: expected the columns {', '.join(PARTI_HEADER)} with TABs between, found {lines[0][:80]!r}")
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) != len(header):
            raise InputError(
                f"{path} line {number}: {len(fields)} columns, and the header has {len(header)}; mend the line or fetch it again"
            )
        groups = {"category": fields[1], "challenge": fields[2]}
        yield Prompt(_text(fields[0], path, number), path, number, key=f"{number - 2:05d}", groups=groups)


def read_geneval(path: Path) -> Iterator[Prompt]:
    """By task (``tag``); the whole object is kept, for the official script wants it beside the images."""
    for index, line in enumerate(_lines(path)):
        number, record = index + 1, _json(line, path, line=index + 1)
        if not isinstance(record, dict) or not {"tag", "include", "prompt"} <= record.keys():
            raise InputError(f"{path} line {number}: expected an object with tag, include and prompt (evaluation_metadata.jsonl)")
        groups = {"task": _text(record["tag"], path, number)}
        yield Prompt(_text(record["prompt"], path, number), path, number, key=f"{index:05d}", groups=groups, record=record)


def read_dpg(path: Path) -> Iterator[Prompt]:
    """Without groups: DPG-Bench's categories are of questions, not of prompts."""
    yield from _dpg_csv(path) if path.is_file() and path.suffix == ".csv" else _dpg_files(path)


def _dpg_files(path: Path) -> Iterator[Prompt]:
    files = [path] if path.is_file() else sorted(path.glob("*.txt"), key=lambda file: (len(file.stem), file.stem))
    for file in files:
        yield Prompt(_text(text_of(file).strip("\r\n"), file, 1), file, 1, key=file.stem)


def _dpg_csv(path: Path) -> Iterator[Prompt]:
    """The csv has a row for each question: the first of each item counts."""
    rows = csv.DictReader(io.StringIO(text_of(path), newline=""))
    try:
        yield from _dpg_rows(rows, path)
    except csv.Error as error:
        raise InputError(f"{path} line {rows.line_num}: {error}; mend the line or fetch the file again") from None


def _dpg_rows(rows: "csv.DictReader[str]", path: Path) -> Iterator[Prompt]:
    if not {"item_id", "text"} <= set(rows.fieldnames or ()):
        raise InputError(
            f"{path} line 1: expected the columns item_id and text (dpg_bench.csv), found {', '.join(rows.fieldnames or ())[:80]}"
        )
    seen: dict[str, str] = {}
    for row in rows:
        key, number = str(row["item_id"]), rows.line_num
        if key not in seen:
            seen[key] = _text(row["text"], path, number)
            yield Prompt(seen[key], path, number, key=key)
        elif row["text"] != seen[key]:
            raise InputError(f"{path} line {number}: item {key} has another text than above; fetch the file again")


def read_compbench(path: Path) -> Iterator[Prompt]:
    """By category; the number counts through one category, as the official scripts' do."""
    files = [path] if path.is_file() else [path / f"{category}{COMPBENCH_ENDING}.txt" for category in COMPBENCH_CATEGORIES]
    found = [file for file in files if file.is_file()]
    for file in found:
        category = file.stem.removesuffix(COMPBENCH_ENDING)
        if category not in COMPBENCH_CATEGORIES or not file.stem.endswith(COMPBENCH_ENDING):
            names = ", ".join(f"{name}{COMPBENCH_ENDING}.txt" for name in COMPBENCH_CATEGORIES)
            raise InputError(f"{file}: a file of T2I-CompBench is named after its category: {names}")
        for index, line in enumerate(_lines(file)):
            text = _text(line.split("\t")[0], file, index + 1)
            yield Prompt(text, file, index + 1, key=f"{category}/{index:06d}", groups={"category": category})


READERS: Final[Mapping[str, Reader]] = {
    "lines": read_lines_format,
    "hpsv2": read_hpsv2,
    "parti": read_parti,
    "geneval": read_geneval,
    "dpg": read_dpg,
    "compbench": read_compbench,
}


def text_of(path: Path) -> str:
    """The UTF-8 text of a file, without the mark that some editors begin it with. Raises :class:`InputError` where there is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is missing: expected prompts, one a line") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; name the file of prompts in it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _lines(path: Path) -> Sequence[str]:
    """The lines up to a newline: other line ends that ``splitlines`` knows (U+2028, form feeds) are text of a prompt."""
    lines = [line.removesuffix("\r") for line in text_of(path).split("\n")]
    return lines[:-1] if lines and not lines[-1] else lines


def _json(text: str, path: Path, *, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"{path}" if line is None else f"{path} line {line}"
        raise InputError(f"{where} is not JSON: {' '.join(str(error).split())[:200]}") from None


def _text(found: Any, path: Path, line: int) -> str:
    if not isinstance(found, str):
        raise InputError(f"{path} entry {line}: a prompt is a string, and this is {type(found).__name__}")
    if not found.strip():
        raise InputError(f"{path} line {line}: the prompt is empty; remove the line or fetch the file again")
    if lone := [letter for letter in found if 0xD800 <= ord(letter) < 0xE000]:
        raise InputError(f"{path} line {line}: the prompt holds \\u{ord(lone[0]):04x}, half of a character and no text; mend the line")
    return found
