"""A set of prompts: what kind it is, its prompts with their groups, its digest, and what is odd about it.

The digest of a file is what ``sha256sum`` prints; of a folder what ``sha256sum * | sha256sum`` prints in it (the files read, by name).
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rglcd.errors import InputError
from rglcd.evaluation.prompt_formats import (
    COMPBENCH_CATEGORIES,
    COMPBENCH_ENDING,
    HPSV2_STYLES,
    PARTI_HEADER,
    READERS,
    Prompt,
    text_of,
)

KINDS: Final = tuple(READERS)

_PUBLISHED_COUNTS: Final[Mapping[str, int]] = {"parti": 1632, "geneval": 553, "dpg": 1065}
_PUBLISHED_PER_GROUP: Final[Mapping[str, int]] = {"hpsv2": 800, "compbench": 300}

PUBLISHED_DIGESTS: Final[Mapping[str, str]] = {
    "fab29e41bb512a16": "PartiPrompts.tsv (google-research/parti)",
    "5c48e0813e812e3c": "evaluation_metadata.jsonl (djghosh13/geneval)",
    "1634259756dbc77d": "color_val.txt (Karine-Huang/T2I-CompBench)",
    "37e1a276906c7ea9": "shape_val.txt (Karine-Huang/T2I-CompBench)",
    "fbb5363515b4a280": "texture_val.txt (Karine-Huang/T2I-CompBench)",
    "8707a1d7e42ce300": "spatial_val.txt (Karine-Huang/T2I-CompBench)",
}
"""The first 16 digits of the published files' sha256."""

NOTES: Final[Mapping[str, str]] = {
    "hpsv2": (
        "HPSv2’s protocol prints the cosine times 100, with the deviation over ten blocks of 80 images. Its public leaderboard does not "
        "reproduce (github.com/tgxs002/HPSv2/issues/43): compare with the teacher measured here, not with numbers from there."
    ),
    "geneval": "GenEval’s score is its own detector’s: `rglcd export-images --layout geneval` writes what its scripts read.",
    "dpg": "DPG-Bench’s score is its own question answering model’s: `rglcd export-images --layout dpg` writes what its script reads.",
    "compbench": "T2I-CompBench’s scores are its own models’: `rglcd export-images --layout compbench` writes what its scripts read.",
}
"""What a reader must know of the scores by group, by kind."""

_LONG: Final = 1000
"""Characters. CLIP reads 77 tokens, some 300 characters; what is far longer is no prompt but a mistake in the file."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one ``kind``, in the order in which they are drawn; ``sha256`` is of the files that they were read from."""

    kind: str
    prompts: tuple[Prompt, ...]
    sha256: str

    @property
    def texts(self) -> list[str]:
        return [prompt.text for prompt in self.prompts]

    @property
    def groupings(self) -> dict[str, dict[str, int]]:
        """For each grouping how many prompts each of its groups has, in the order of the file."""
        found: dict[str, dict[str, int]] = {}
        for prompt in self.prompts:
            for grouping, group in prompt.groups.items():
                counts = found.setdefault(grouping, {})
                counts[group] = counts.get(group, 0) + 1
        return found

    @property
    def described(self) -> str:
        """Kind, digest and, where it is known, the published name: what stands beside a number."""
        name = "" if self.published_as is None else f"{self.published_as}, "
        return f"{name}kind {self.kind}, {len(self.prompts):,} prompts, sha256 {self.sha256[:16]}"

    @property
    def published_as(self) -> str | None:
        """The published file that this is, by its digest; None for another, and for a folder."""
        return PUBLISHED_DIGESTS.get(self.sha256[:16])


def read_prompt_set(path: Path, kind: str) -> PromptSet:
    """The prompts in ``path``, a file or a folder of ``kind``. Raises :class:`InputError` naming file, line and what to do."""
    if kind not in READERS:
        raise InputError(f"prompts of kind {kind!r} are not known; there are: {', '.join(KINDS)}")
    prompts = tuple(READERS[kind](path))
    if not prompts:
        raise InputError(f"{path} holds no prompt: write one a line" if kind == "lines" else f"{path} holds no prompt of kind {kind}")
    return PromptSet(kind, prompts, _digest(path, prompts))


def kind_of(path: Path) -> str:
    """What kind of set ``path`` looks like, by names and headers. Raises :class:`InputError` for a folder that is none."""
    if path.is_dir():
        return _kind_of_folder(path)
    stem, suffix = path.stem, path.suffix.lower()
    if suffix in (".jsonl", ".json"):
        return "geneval" if suffix == ".jsonl" else "hpsv2"
    if suffix == ".csv":
        return "dpg"
    if stem.endswith(COMPBENCH_ENDING) and stem.removesuffix(COMPBENCH_ENDING) in COMPBENCH_CATEGORIES:
        return "compbench"
    return "parti" if text_of(path).startswith("\t".join(PARTI_HEADER[:3])) else "lines"


def _kind_of_folder(path: Path) -> str:
    names = {file.name for file in path.iterdir() if file.is_file()}
    if names & {f"{style}.json" for style in HPSV2_STYLES}:
        return "hpsv2"
    if names & {f"{category}{COMPBENCH_ENDING}.txt" for category in COMPBENCH_CATEGORIES}:
        return "compbench"
    if any(name.endswith(".txt") for name in names):
        return "dpg"
    raise InputError(
        f"{path} is no known set of prompts: HPSv2's has {HPSV2_STYLES[0]}.json, T2I-CompBench's {COMPBENCH_CATEGORIES[0]}"
        f"{COMPBENCH_ENDING}.txt, DPG-Bench's <item>.txt; name the file, or --kind"
    )


def oddities(found: PromptSet) -> list[str]:
    """What a reader of the set should know, a line each: counts that are not the published ones, then prompts by file and line."""
    return [*_other_counts(found), *_odd_prompts(found.prompts)]


def _other_counts(found: PromptSet) -> Iterator[str]:
    wanted = _PUBLISHED_COUNTS.get(found.kind)
    if wanted is not None and len(found.prompts) != wanted:
        yield f"{len(found.prompts):,} prompts, and the published list has {wanted:,}: a score of it is not the benchmark's"
    each = _PUBLISHED_PER_GROUP.get(found.kind)
    for grouping in found.groupings.values() if each is not None else ():
        for group, count in grouping.items():
            if count != each:
                yield f"{group}: {count:,} prompts, and the published list has {each:,}: a score of it is not the benchmark's"


def _odd_prompts(prompts: Sequence[Prompt]) -> Iterator[str]:
    first: dict[tuple[str, tuple[str, ...]], Prompt] = {}
    for prompt in prompts:
        where = f"{prompt.file.name} line {prompt.line}"
        before = first.setdefault((prompt.text, tuple(prompt.groups.values())), prompt)
        if before is not prompt:
            yield f"{where}: the same as {before.file.name} line {before.line}: {prompt.text[:60]!r}"
        if prompt.text != prompt.text.strip():
            yield f"{where}: blanks around the prompt, kept as published: {prompt.text[-40:]!r}"
        odd = Counter(
            unicodedata.name(letter, f"U+{ord(letter):04X}") for letter in prompt.text if unicodedata.category(letter) in ("Cc", "Cf")
        )
        if odd:
            yield f"{where}: characters that do not print ({', '.join(odd)})"
        if len(prompt.text) > _LONG:
            yield f"{where}: {len(prompt.text):,} characters; text encoders read the first 77 tokens"


def _digest(path: Path, prompts: Sequence[Prompt]) -> str:
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted({prompt.file for prompt in prompts}, key=lambda file: file.name)
    listing = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()
