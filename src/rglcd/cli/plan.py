"""``rglcd plan``: does it fit, and how long does it take."""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rglcd.cli.files import add_params_option, add_set_option
from rglcd.config import Config, Hardware, load_params, load_preset, preset_hardware, preset_names
from rglcd.errors import InputError
from rglcd.extras import install_command
from rglcd.planning.gpus import GPUS, gpu_named

_DESCRIPTION = """\
Count the memory that training, caching and evaluation take of each GPU, by part, and the hours that they take: without a GPU, in up to
a minute. What is fixed does not depend on the batch; what is per sample is multiplied by how many are worked on at once.
"""

_EPILOG = f"""\
when it does not fit, in this order
  distillation.micro_batch=N           fewer samples at once, the gradients added up: the same run, a little slower
  reward.precision=bfloat16            half of the decoder's memory
  reward.chunk_size=1                  fewer images decoded with gradient at once
  reward.activations=recomputed        the decoder keeps less and computes more
  distillation.activations=recomputed  so does the student

examples
  rglcd plan --preset sd21-paper
  rglcd plan --preset sd15 --gpu rtx-4090 --count 1 --set distillation.micro_batch=1
  rglcd plan --json                    what params.yaml says, on what its preset runs on

known GPUs: {", ".join(gpu.name for gpu in GPUS)}
exit code 2, with one line on stderr, when a stage cannot fit
"""


def add_verb(verbs: Any) -> None:
    """``rglcd plan``."""
    plan = verbs.add_parser(
        "plan",
        help="count memory and hours before a GPU is asked for",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = plan.add_mutually_exclusive_group()
    which.add_argument("--preset", metavar="NAME", help=f"a preset instead of params.yaml: {', '.join(preset_names())}")
    add_params_option(which)
    add_set_option(plan)
    plan.add_argument("--gpu", metavar="GPU", help="the card (default: what the preset's file names in runs_on)")
    plan.add_argument("--count", type=int, metavar="N", help="how many train together (default: what runs_on says, or 1)")
    plan.add_argument("--pretrained", type=Path, metavar="DIR", help="what `rglcd run prepare` made, for a teacher of your own")
    plan.add_argument("--json", action="store_true", help="print plain values")
    plan.add_argument("--markdown", action="store_true", help="print tables as docs/plan.md has them")
    plan.set_defaults(act=_plan)


def _plan(options: argparse.Namespace) -> None:
    config = (
        load_params(options.params, overrides=options.set) if options.preset is None else load_preset(options.preset, overrides=options.set)
    )
    hardware = _hardware(config, options)
    if hardware is None:
        print(f"{config.preset} runs on a CPU: name a card to plan for, as in --gpu l4")
        return
    if find_spec("torch") is None:
        raise InputError(f"rglcd plan counts with torch, which is not installed here: {install_command('train')}")
    from rglcd.planning.page import as_json, as_markdown, as_text
    from rglcd.planning.plan import plan, require_fit

    made = plan(config, gpu_named(hardware.gpu), hardware.count, pretrained=options.pretrained)
    if options.json:
        print(json.dumps(as_json(made), indent=1))
    else:
        print(as_markdown(made) if options.markdown else as_text(made), end="")
    require_fit(made)


def _hardware(config: Config, options: argparse.Namespace) -> Hardware | None:
    """The options' cards, or the preset's."""
    named = preset_hardware(config.preset)
    if options.count is not None and options.count < 1:
        raise InputError(f"--count is {options.count}: name at least one GPU")
    if options.gpu is None and named is None:
        return None
    gpu = options.gpu or (named.gpu if named else "")
    return Hardware(gpu=gpu_named(gpu).name, count=options.count or (named.count if named else 1))
