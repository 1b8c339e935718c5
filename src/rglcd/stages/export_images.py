"""Images of one sampler as the official scripts read them, drawn from the noise that ``evaluate`` draws from.

This is no stage: nothing here reads them back.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rglcd import progress
from rglcd.config import Config
from rglcd.errors import InputError
from rglcd.evaluation.drawn_files import as_image
from rglcd.evaluation.generation import as_png
from rglcd.evaluation.image_layouts import USUAL_COUNT, ImageFile, Layout, lay_out
from rglcd.evaluation.measurement import REAL, Sampler
from rglcd.evaluation.observation import DrawFn
from rglcd.models.export import exported_weights
from rglcd.models.precision import drawing_products
from rglcd.stages.computation import Artifacts, opened_inputs, plan
from rglcd.stages.evaluation_context import EvaluationContext, context_for_drawing
from rglcd.stages.prompts import pinned_prompts
from rglcd.store.manifest import digest_of, read_manifest
from rglcd.store.staging import remove_stale_staging, staging_file, write_text

JPEG_QUALITY: Final = 95
"""HPSv2's own images are JPEGs of a quality that it does not name; a score of PNGs is another one."""

_COMMENT, _KEYWORD = "comment", "drawn as"
"""Where a JPEG, and where a PNG, holds a text."""


def export_images(config: Config, artifacts: Artifacts, *, layout: str, sampler: str, count: int | None, folder: Path) -> list[str]:
    """Write ``count`` images of each prompt (None: as many as the script reads) of ``sampler`` to ``folder``; returns what to say.

    A file that is there already stays, so a killed export goes on. Raises :class:`InputError` for a sampler that the configuration
    does not draw, prompts that the layout is not for, and a folder that holds anything else, which the scripts would take for images of
    this sampler: another's, or those of another training or other settings, among it.
    """
    computation = plan("evaluate", {name: config.section(name) for name in ("model", "evaluation")}, artifacts)
    with opened_inputs(computation) as inputs:
        evaluation = config.evaluation
        prompts = pinned_prompts(evaluation.prompt_source, inputs["source"])
        found = lay_out(layout, prompts, count=USUAL_COUNT[layout] if count is None else count)
        _refuse_other_files(folder, found)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        context = context_for_drawing(
            config.model, evaluation, pretrained=inputs["pretrained"], student=inputs["student"], prompts=prompts, device=device
        )
        with drawing_products(evaluation.precision, device):
            num_drawn = _write(found, context, _sampler(context, sampler), folder)
    said = [f"{folder} holds {len(found.files):,} files for {layout}, {num_drawn:,} images drawn now; prompts: {prompts.described}"]
    return [*said, *found.notes]


def _refuse_other_files(folder: Path, found: Layout) -> None:
    wanted = {str(file.path) for file in found.files} | {str(path) for path in found.texts}
    remove_stale_staging(folder)
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in wanted and not path.name.startswith("."):
            raise InputError(
                f"{folder} holds {name}, which is not of this export, and the scripts read whatever is there: name an empty folder"
            )


def _sampler(context: EvaluationContext, name: str) -> Sampler:
    samplers = {sampler.name: sampler for sampler in context.samplers if sampler.who != REAL}
    if name not in samplers:
        raise InputError(f"--sampler {name}: the configuration draws {', '.join(samplers)}")
    return samplers[name]


def _drawn_as(context: EvaluationContext, sampler: Sampler) -> str:
    """A digest of what decides a picture beside its number, which stands in the picture's own text."""
    files = read_manifest(context.pretrained.folder, made_by="prepare").files
    weights = {name: entry.sha256 for name, entry in files.items() if name.startswith("teacher/")}
    if sampler.who in context.arms:
        students = read_manifest(context.student, made_by="distill").files
        weights |= exported_weights({name: entry.sha256 for name, entry in students.items()}, sampler.who)
    evaluation = context.evaluation
    settings = {"seed": evaluation.seed, "guidance_scale": evaluation.guidance_scale, "precision": evaluation.precision}
    model = context.model.model_dump(mode="json", exclude={"teacher"})  # of the teacher its weights say more than where they were
    return digest_of({"sampler": sampler.name, "weights": weights, "model": model, "prompts": context.prompts, **settings})


def _refuse_others_pictures(folder: Path, found: Layout, drawn_as: str) -> None:
    for path in (folder / file.path for file in found.files):
        if path.is_file() and _said_in(path) != drawn_as:
            raise InputError(f"{path} was drawn by another sampler or student, or with other prompts or settings: name an empty folder")


def _said_in(path: Path) -> str | None:
    """What :func:`_drawn_as` said when the picture was drawn; None for one that does not say it."""
    try:
        with Image.open(path) as image:
            said = image.info.get(_COMMENT if path.suffix == ".jpg" else _KEYWORD)
    except OSError:
        return None
    return said.decode(errors="replace") if isinstance(said, bytes) else said


def _write(found: Layout, context: EvaluationContext, sampler: Sampler, folder: Path) -> int:
    drawn_as = _drawn_as(context, sampler)
    _refuse_others_pictures(folder, found, drawn_as)
    for path, text in found.texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / path, text)
    missing = [file for file in found.files if not (folder / file.path).is_file()]
    total = sum(len(file.images) for file in found.files)
    num_missing = sum(len(file.images) for file in missing)
    task, done = f"draw {sampler.name}", total - num_missing
    progress.report(task, done=done, total=total, unit="images")
    draw = context.draw_fn(sampler) if missing else None
    for batch in _batches(missing, context.evaluation.batch_size):
        assert draw is not None
        _write_batch(batch, draw, folder, drawn_as, task=task)
        done += sum(len(file.images) for file in batch)
        progress.report(task, done=done, total=total, unit="images")
    return num_missing


def _batches(files: Sequence[ImageFile], size: int) -> Iterator[list[ImageFile]]:
    """Files of about ``size`` images together, at least one."""
    batch: list[ImageFile] = []
    for file in files:
        if batch and sum(len(other.images) for other in batch) + len(file.images) > size:
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def _write_batch(files: Sequence[ImageFile], draw: DrawFn, folder: Path, drawn_as: str, *, task: str) -> None:
    drawn = draw([image for file in files for image in file.images])
    if not bool(drawn.isfinite().all()):
        raise InputError(f"{task}: a picture of {files[0].path} or the files after it is not finite (NaN): this model is broken")
    pictures = as_png(drawn).cpu()
    for file in files:
        target, mine = folder / file.path, pictures[: len(file.images)]
        pictures = pictures[len(file.images) :]
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging_file(target) as staging, staging.open("wb") as stream:
            if target.suffix == ".jpg":
                _picture(mine).save(stream, format="JPEG", quality=JPEG_QUALITY, subsampling=0, **{_COMMENT: drawn_as})
            else:
                info = PngInfo()
                info.add_text(_KEYWORD, drawn_as)
                _picture(mine).save(stream, format="PNG", pnginfo=info)


def _picture(images: Tensor) -> Image.Image:
    """One image (1, 3, H, W), or four as one of twice the sides: the first two above, as DPG-Bench's script cuts them out."""
    if len(images) == 1:
        return as_image(images)
    upper, lower = torch.cat([images[0], images[1]], dim=2), torch.cat([images[2], images[3]], dim=2)
    return as_image(torch.cat([upper, lower], dim=1)[None])
