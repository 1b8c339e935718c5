"""The prompts that an evaluation draws, as the configuration names them. Imports no torch: the light image looks at them too."""

from pathlib import Path

from rglcd.config import Evaluation, PromptSource
from rglcd.errors import InputError
from rglcd.evaluation.prompt_sets import NOTES, PromptSet, read_prompt_set


def pinned_prompts(asked: PromptSource, source: Path) -> PromptSet:
    """The set that ``asked`` names within the folder ``source``.

    Raises :class:`InputError` for a set that cannot be read, or is not the one pinned.
    """
    found = read_prompt_set(source / asked.source, asked.kind)
    if asked.sha256 is not None and found.sha256 != asked.sha256:
        raise InputError(
            f"{source / asked.source} has digest {found.sha256}, and evaluation.prompts.sha256 pins {asked.sha256}: it is not the set meant"
        )
    return found


def prompts_to_draw(evaluation: Evaluation, source: Path) -> PromptSet:
    """The set that ``evaluation.prompts`` names within the folder ``source``.

    Raises :class:`InputError` as :func:`pinned_prompts` does, and for a set that is not drawn as often as ``per_prompt`` says.
    """
    asked = evaluation.prompt_source
    found = pinned_prompts(asked, source)
    wanted = len(found.prompts) * (asked.per_prompt or 0)
    if wanted and wanted != evaluation.num_images:
        raise InputError(
            f"evaluation.num_images is {evaluation.num_images:,}, and {len(found.prompts):,} prompts of {source / asked.source}, "
            f"{asked.per_prompt} images of each, are {wanted:,}: set evaluation.num_images={wanted}"
        )
    return found


def protocol_of(evaluation: Evaluation, found: PromptSet) -> str:
    """What stands beside scores of a published set; empty for lines of one's own that are named in short."""
    if not isinstance(evaluation.prompts, PromptSource):
        return ""
    return " ".join([f"Prompts: {found.described}.", NOTES.get(found.kind, "")]).strip()
