"""``rglcd export-images``: images for the scripts of published benchmarks."""

import argparse
import sys
from pathlib import Path
from typing import Any

from rglcd.cli.files import add_params_option, add_set_option
from rglcd.cli.numbers import positive
from rglcd.cli.run import add_artifact_option, artifact_locations
from rglcd.config import load_params
from rglcd.evaluation.image_layouts import LAYOUTS
from rglcd.stages.table import inputs_of, stage_named


def add_verb(verbs: Any) -> None:
    """``rglcd export-images``."""
    export = verbs.add_parser(
        "export-images",
        help="draw images and lay them out for the scripts of HPSv2, GenEval, DPG-Bench or T2I-CompBench",
        description="Draw one sampler's images of evaluation.prompts as official scripts read them; a killed export goes on.",
    )
    export.add_argument("--layout", required=True, choices=LAYOUTS, help="whose script reads them; flat: numbered files and metadata.jsonl")
    export.add_argument("--sampler", required=True, metavar="NAME", help="who draws, in how many steps: teacher-50, rg-2, ...")
    export.add_argument("--count", type=positive, metavar="N", help="images of each prompt (default: as the script has it)")
    export.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to write")
    add_params_option(export)
    add_set_option(export)
    add_artifact_option(export)
    export.set_defaults(act=_export)


def _export(options: argparse.Namespace) -> None:
    from rglcd.launch.progress_display import drawing
    from rglcd.launch.settings import exporting_store, load_settings
    from rglcd.progress import reporting_to
    from rglcd.stages.export_images import export_images

    config = load_params(options.params, overrides=options.set)
    stage, location_of = stage_named("evaluate"), artifact_locations(options.artifact)
    artifacts = {name: location_of(name) for name in (*inputs_of(stage, config), *stage.outputs)}
    with exporting_store(load_settings()), drawing(sys.stderr) as sink, reporting_to(sink):
        said = export_images(config, artifacts, layout=options.layout, sampler=options.sampler, count=options.count, folder=options.out)
    print("\n".join(said))
