"""Opening two runs to compare: a project, its artifacts or a kept report, with everything that they were made from."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from PIL import Image

from rglcd.errors import InputError
from rglcd.evaluation.comparable_runs import Measured, Run
from rglcd.evaluation.contact_sheet import SHEET_COLUMNS, open_sheet, sheet_image
from rglcd.evaluation.distances import Distances
from rglcd.evaluation.measurement import REAL, TEACHER, Sampler
from rglcd.evaluation.run_comparison import RunComparison, compare_runs
from rglcd.evaluation.score_tables import read_score_table
from rglcd.models.loading import read_json
from rglcd.stages.opened_artifact import opened_artifact
from rglcd.stages.results import changed_settings, origins_of
from rglcd.store.manifest import Manifest
from rglcd.store.places import manifest_in

_READ: Final = re.compile(r"draws/[^/]+/(measurement\.json|scores\.csv|speed\.json|images\.png)")
_MEASUREMENT: Final = "measurement.json"


@contextmanager
def compared(a: Path, b: Path) -> Iterator[RunComparison]:
    """The comparison of the runs in the folders ``a`` and ``b``, whose pictures can be read while this lasts.

    Raises :class:`InputError` for a folder that holds no report, and for runs of which nothing can be compared.
    """
    with _opened(a) as ours, _opened(b) as theirs:
        settings = changed_settings(ours.sections, theirs.sections) + changed_settings(ours.origins, theirs.origins)
        yield compare_runs(ours, theirs, settings=settings)


@contextmanager
def _opened(folder: Path) -> Iterator[Run]:
    report = _report_in(folder)
    with opened_artifact("report", report, made_by="evaluate", wanted=lambda name: _READ.fullmatch(name) is not None) as (found, manifest):
        yield Run(
            name=str(folder) if folder.name else folder.resolve().name,
            digest=manifest.digest,
            student=str(manifest.lineage.get("distill", {}).get("digest", "")),
            sections=_sections(manifest),
            origins=origins_of(manifest),
            measured=_measured(found, manifest),
            pictures=lambda sampler: _first_pictures(found / "draws" / sampler.name / "images.png"),
        )


def _report_in(folder: Path) -> Path:
    """The report that ``folder`` is, or holds as a project or its artifacts do."""
    for place in (folder, folder / "report", folder / "artifacts" / "report"):
        manifest = manifest_in(place)
        if manifest is not None and manifest.stage == "evaluate":
            return place
    raise InputError(f"{folder} is no report, and neither report nor artifacts/report in it is one; make it with: rglcd run evaluate")


def _sections(manifest: Manifest) -> Mapping[str, Any]:
    """The settings of every stage behind a report."""
    found: dict[str, Any] = {}
    for stage in manifest.lineage.values():
        found |= stage["sections"]
    return found | manifest.sections


def _measured(report: Path, manifest: Manifest) -> dict[Sampler, Measured]:
    folders = [report / name.removesuffix(f"/{_MEASUREMENT}") for name in manifest.files if name.endswith(f"/{_MEASUREMENT}")]
    found = dict(_read(folder) for folder in folders)
    return {sampler: found[sampler] for sampler in sorted(found, key=_as_reported)}


def _as_reported(sampler: Sampler) -> tuple[bool, str, int]:
    return sampler.who not in (REAL, TEACHER), sampler.who, sampler.num_steps


def _read(folder: Path) -> tuple[Sampler, Measured]:
    record = read_json(folder / _MEASUREMENT)
    try:
        sampler, distances = Sampler(**record["sampler"]), Distances.from_json(record["distances"])
        speed = json.loads((folder / "speed.json").read_text(encoding="utf-8"))
        return sampler, Measured(read_score_table(folder / "scores.csv"), distances, record["basis"], speed["seconds_per_image"])
    except (KeyError, TypeError, OSError, ValueError) as error:
        raise InputError(f"{folder} was measured by another version of rglcd ({error!r}); make it again: rglcd run evaluate") from None


def _first_pictures(path: Path) -> Sequence[Image.Image]:
    """The first row of a contact sheet."""
    with open_sheet(path) as opened:
        sheet = opened.convert("RGB")
    return [sheet_image(sheet, index, side=sheet.width // SHEET_COLUMNS) for index in range(SHEET_COLUMNS)]
