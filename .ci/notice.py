"""`python .ci/notice.py > NOTICE`: what the project is made with and what it ships, with licences, from what requirements.lock installed.

Run it with the environment that `make install` made: the licences are those that the installed packages declare of themselves.
"""

import importlib.metadata as metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

HEAD = """\
rg-lcd
Copyright the rg-lcd maintainers
Licensed under the Apache License, Version 2.0 (LICENSE).

Made by `make notice`; `make release-check` refuses another state of it.

What is shipped and not written for this project
------------------------------------------------

src/rglcd/toy/sprites.png
    Drawings of Microsoft's Fluent Emoji (https://github.com/microsoft/fluentui-emoji), scaled. MIT License, Copyright (c) Microsoft
    Corporation: src/rglcd/toy/sprites-license.txt, which the wheel holds too.
src/rglcd/models/clip_vocabulary.txt.gz
    The byte-pair vocabulary of OpenAI's CLIP (https://github.com/openai/CLIP, bpe_simple_vocab_16e6.txt.gz). MIT License, Copyright (c)
    2021 OpenAI: src/rglcd/models/clip_vocabulary-license.txt, which the wheel holds too.
src/rglcd/planning/shapes/
    Sizes of published networks, from the config.json files of the models that each file names. No weights.

The toy's models (toy/) were trained here, on pictures that this project's programs compose of the drawings above. No weights of others
are shipped. Weights that `rglcd run prepare` fetches have licences of their own, and a student's weights inherit their teacher's.

What is installed beside it
---------------------------

None of these packages is part of the wheel. An image that `make images` builds holds those of its extra, so whoever hands it on hands them
on. Licences are as each package's own metadata has them. The last column says which extra of rg-lcd brings it along, or that it came into
the lock by another way, as a tool of the tests. torch is not in the lock: its wheel is the machine's choice, and says itself what is in it.

"""


def requirements() -> dict[str, str]:
    """Package and version of every line of the lock."""
    pairs = (line.split("==") for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").split())
    return {canonicalize_name(name): version for name, version in pairs}


def licence_of(name: str) -> str:
    """The licence as the package declares it: the expression, else the shorter text, else the classifiers, else its file's first line."""
    about = metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return str(expression)
    text = (about.get("License") or "").strip()
    classified = [one.split(" :: ")[-1] for one in about.get_all("Classifier", []) if one.startswith("License :: ")]
    if text and len(text) < 60 and not re.search("Copyright|Dual License", text):
        return text
    if named := [one for one in classified if one != "OSI Approved"]:
        return " / ".join(named)
    for file in metadata.files(name) or []:
        if re.fullmatch(r"LICEN[CS]E(\.\w+)?", file.name):
            return next(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    return ""


def needed_by() -> dict[str, list[str]]:
    """Of each package the parts of rg-lcd (``base``, or an extra) that bring it along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    parts = {"base": project["dependencies"], **project["optional-dependencies"]}
    found: dict[str, list[str]] = {}
    for part, asked in parts.items():
        for name in set(_closure(asked)):
            found.setdefault(name, []).append(part)
    return found


def _closure(asked: list[str]) -> Iterator[str]:
    seen, open_ = set(), [Requirement(text) for text in asked]
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *sorted(requirement.extras)):
            if (name, extra) in seen or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
                continue
            seen.add((name, extra))
            yield name
            try:
                further = [Requirement(text) for text in metadata.requires(name) or []]
            except metadata.PackageNotFoundError:
                continue
            open_ += [one for one in further if one.marker is None or one.marker.evaluate({"extra": extra})]


def notice() -> str:
    """The whole file. Ends the process where the environment is not the lock's, or a package says nothing of its licence."""
    parts, rows = needed_by(), []
    for name, version in requirements().items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = "nothing"
        if installed != version:
            sys.exit(f"notice: the lock has {name} {version}, and {installed} is installed; run: make install")
        if not (licence := licence_of(name)):
            sys.exit(f"notice: {name} says nothing of its licence")
        by = [part for part in parts.get(name, []) if part not in {"all", "docs", "page"}]
        rows.append((f"{name} {version}", licence, ", ".join(["base"] if "base" in by else by or ["the lock alone"])))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name:{widths[0]}}  {licence:{widths[1]}}  {by}".rstrip() for name, licence, by in rows]
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(notice(), end="")
