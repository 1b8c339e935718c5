"""``rglcd data``: a source folder of what one has, and the prompts to evaluate with."""

import argparse
from pathlib import Path
from typing import Any, Final, get_args

from rglcd.cli.files import DATA
from rglcd.config.encodings import known_encoding
from rglcd.config.sources import PromptKind
from rglcd.errors import InputError

PROMPT_KINDS: Final = get_args(PromptKind)
COCO_COUNTS: Final = (30_000, 10_000, 5_000)
_SHOWN: Final = 20


def add_data(verbs: Any) -> None:
    """``rglcd data use | prompts | coco``."""
    data = verbs.add_parser("data", help="make a source folder of what you have, and look at sets of prompts")
    actions = data.add_subparsers(metavar="ACTION", required=True)
    use = actions.add_parser("use", help="take a TSV (url TAB caption), webdataset tars, img2dataset's output or a folder of images")
    use.add_argument("what", metavar="WHAT", help="a .tsv, .tar files ('s3://bucket/{00000..01242}.tar'), or a folder of tars or images")
    use.add_argument("--folder", type=Path, default=DATA, metavar="DIR", help="the source folder to make (default: data)")
    use.add_argument("--prompts", type=Path, metavar="FILE", help="the prompts to evaluate with, one a line (default: captions held out)")
    use.add_argument(
        "--reference", type=int, metavar="N", help="hold out N rows: the real images to evaluate with, which are not trained on"
    )
    use.add_argument(
        "--caption-encoding",
        metavar="NAME",
        help="what captions are in that are not UTF-8, such as latin-1 (an index, or a folder of images)",
    )
    use.set_defaults(act=_data_use)
    prompts = actions.add_parser("prompts", help="read a set of prompts, and say what it holds: kind, counts by group, digest, what is odd")
    prompts.add_argument("path", type=Path, metavar="FILE", help="a file of prompts, or a folder of a published set")
    prompts.add_argument("--kind", choices=PROMPT_KINDS, help="what it is (default: by its name and first line)")
    prompts.set_defaults(act=_data_prompts)
    coco = actions.add_parser("coco", help="take images and captions of MS-COCO 2014 val, by a written rule, to evaluate with")
    coco.add_argument("where", metavar="WHERE", help="a folder, or s3://bucket/prefix, with annotations/ and val2014/ as they are unpacked")
    coco.add_argument("--count", type=int, choices=COCO_COUNTS, default=COCO_COUNTS[0], help="how many (default: %(default)s)")
    coco.add_argument("--seed", type=int, default=0, metavar="N", help="which of them (default: %(default)s)")
    coco.add_argument("--folder", type=Path, default=DATA, metavar="DIR", help="the source folder to write to (default: data)")
    coco.set_defaults(act=_data_coco)


def _data_use(options: argparse.Namespace) -> None:
    from rglcd.sharding.import_source import use
    from rglcd.store.disk_space import disk_space_for

    encoding = None if options.caption_encoding is None else _encoding(options.caption_encoding)
    held_out = {"prompts": options.prompts, "reference": options.reference}
    with disk_space_for(options.folder):
        print("\n".join(use(options.what, options.folder, **held_out, caption_encoding=encoding)))


def _encoding(name: str) -> str:
    try:
        return known_encoding(name)
    except ValueError as error:
        raise InputError(f"--caption-encoding: {error}") from None


def _data_prompts(options: argparse.Namespace) -> None:
    from rglcd.evaluation.prompt_sets import kind_of, oddities, read_prompt_set

    path: Path = options.path
    found = read_prompt_set(path, options.kind or kind_of(path))
    print(f"{path}: {len(found.prompts):,} prompts of kind {found.kind}")
    for grouping, counts in found.groupings.items():
        print(f"  {grouping}: {', '.join(f'{group} {count:,}' for group, count in counts.items())}")
    print(f"  sha256 {found.sha256}" + (f" ({found.published_as})" if found.published_as else ""))
    odd = oddities(found)
    for line in odd[:_SHOWN]:
        print(f"  odd: {line}")
    if len(odd) > _SHOWN:
        print(f"  odd: and {len(odd) - _SHOWN:,} more")


def _data_coco(options: argparse.Namespace) -> None:
    from rglcd.sharding.coco import use_coco
    from rglcd.store.disk_space import disk_space_for

    with disk_space_for(options.folder):
        print("\n".join(use_coco(options.where, options.folder, count=options.count, seed=options.seed)))
