"""Students to draw with, those in force or a folder of one, and their teacher: found, verified, loaded once, ready to draw."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rglcd.config import Evaluation, Model, validate_section
from rglcd.core.consistency import BoundaryScalings, FlowBoundary
from rglcd.errors import InputError
from rglcd.evaluation.drawing import Asked, Canvas, DrawPicture
from rglcd.evaluation.measurement import TEACHER
from rglcd.evaluation.score_tables import read_score_table
from rglcd.evaluation.wording import in_report_order
from rglcd.models.adapter_shape import adapter_shape_of
from rglcd.models.codec import Codec
from rglcd.models.families import family_of
from rglcd.models.loading import read_json, weights_digest
from rglcd.models.precision import drawing_dtype, drawing_products
from rglcd.models.student import ADAPTER_FILE, Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from rglcd.stages.opened_artifact import opened_artifact
from rglcd.stages.student_export import RECORD
from rglcd.store.manifest import Manifest

_LCM_SCHEDULER = "LCMScheduler"
_INDEX = "model_index.json"


@dataclass(frozen=True)
class Painter:
    """A network that draws: its name, a digest of its weights, and whether the guidance scale changes what it draws."""

    name: str
    digest: str
    is_guided: bool
    draw: DrawPicture

    def timed(self, asked: Asked) -> tuple[Tensor, float]:
        """The picture, uint8 (1, 3, H, W) on the CPU, and the seconds that it took, text encoding and decoding included."""
        started = time.perf_counter()
        return self.draw(asked), time.perf_counter() - started


@dataclass(frozen=True)
class Studio:
    """Students to draw with, and their teacher. Networks are loaded when first asked for, and kept.

    ``artifacts`` holds the artifacts ``student`` and ``pretrained``; ``folder`` is one student's, in place of those in force.
    """

    artifacts: Path
    folder: Path | None
    evaluation: Evaluation
    _students: dict[str, Painter] = field(default_factory=dict)

    @cached_property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def names(self) -> list[str]:
        """The students by name: the last is the one that a report would be about. Raises :class:`InputError` if there is none."""
        if self.folder is not None:
            if not (self.folder / _INDEX).is_file() and not (self.folder / ADAPTER_FILE).is_file():
                raise InputError(f"{self.folder} holds neither a diffusers pipeline ({_INDEX}) nor an adapter ({ADAPTER_FILE})")
            return [self.folder.resolve().name]
        with self._artifact("student", made_by="distill", wanted=lambda name: name.endswith(f"/{RECORD}")) as (_, manifest):
            arms = {name.partition("/")[0] for name in manifest.files if name.count("/") == 1 and name.endswith(f"/{RECORD}")}
        if not arms:
            raise InputError(f"{self.artifacts / 'student'} holds no student; make one with: rglcd run distill")
        return in_report_order(arms)

    def student(self, name: str) -> Painter:
        """The student called ``name``. Raises :class:`InputError` for one that is not there or cannot be used."""
        if name not in self.names:
            raise InputError(f"there is no arm {name!r}; there are: {', '.join(self.names)}")
        if name not in self._students:
            self._students[name] = self._open_student(name)
        return self._students[name]

    @cached_property
    def teacher(self) -> Painter:
        """The teacher in force."""
        return self._open_teacher()

    def numbers(self, prompt: str, count: int) -> list[int]:
        """The numbers of ``count`` pictures of ``prompt``: those under which the report in force drew it, and then new ones.

        So the first picture is the report's own, wherever the report has this prompt. Without a report, or of another prompt, 0 is first.
        """
        table = next(iter(sorted((self.artifacts / "report/draws").glob(f"{TEACHER}-*/scores.csv"))), None)
        captions = () if table is None else read_score_table(table).captions
        drawn = [number for number, caption in enumerate(captions) if caption == prompt]
        first_new = len(captions) if drawn else 0
        return [*drawn, *range(first_new, first_new + count)][:count]

    # --- loading -------------------------------------------------------------------------------------

    def _open_student(self, name: str) -> Painter:
        if self.folder is not None:
            return self._painter(name, self.folder, digest=weights_digest(self.folder))
        with self._artifact("student", made_by="distill", wanted=lambda file: file.startswith(f"{name}/")) as (folder, manifest):
            return self._painter(name, folder / name, digest=manifest.digest)

    def _open_teacher(self) -> Painter:
        with self._artifact("pretrained", made_by="prepare", wanted=_no_file) as (_, manifest):
            draw = self._teachers_canvas.by_teacher(self._teacher_network())
            return Painter(TEACHER, manifest.digest, True, self._tf32_if_asked(draw))

    def _painter(self, name: str, folder: Path, *, digest: str) -> Painter:
        sampling = _sampling_of(folder)
        is_whole = _is_whole(folder)
        if is_whole:
            student = Student.load(folder, dtype=self._dtype, device=self.device)
        else:
            student = Student.load_adapter(folder, self._teacher_network(), adapter_shape_of(folder))
        canvas = self._canvas(folder) if is_whole and self.folder is not None else self._teachers_canvas
        scalings = FlowBoundary() if student.schedule.is_flow else sampling.scalings
        draw = canvas.by_student(student, scalings=scalings, original_steps=sampling.num_ddim_steps)
        return Painter(name, digest, student.takes_omega, self._tf32_if_asked(draw))

    @cached_property
    def _resolution(self) -> int:
        """Of all pictures. Raises :class:`InputError` where no file says it."""
        if self.folder is None:
            with self._artifact("student", made_by="distill", wanted=_no_file) as (_, manifest):
                return int(manifest.sections["model"]["resolution"])
        said = _sampling_of(self.folder).resolution
        if said is not None:
            return said
        if _is_whole(self.folder):
            return _side_of(self.folder)
        with self._teacher_folder() as teacher:
            return _side_of(teacher)

    def _teacher_network(self) -> Teacher:
        with self._teacher_folder() as folder:
            return Teacher.load(folder, dtype=self._dtype, device=self.device, resolution=self._resolution)

    @cached_property
    def _teachers_canvas(self) -> Canvas:
        with self._teacher_folder() as folder:
            return self._canvas(folder)

    def _canvas(self, folder: Path) -> Canvas:
        """VAE and text encoders of the pipeline in ``folder``."""
        codec = Codec.load(folder, dtype=self._dtype, device=self.device)
        return Canvas(codec, TextEncoder.load(folder, dtype=self._dtype, device=self.device), self._resolution, self.device)

    @property
    def _dtype(self) -> torch.dtype:
        return drawing_dtype(self.evaluation.precision)

    def _tf32_if_asked(self, draw: DrawPicture) -> DrawPicture:
        def drawn(asked: Asked) -> Tensor:
            with drawing_products(self.evaluation.precision, self.device):
                return draw(asked)

        return drawn

    @contextmanager
    def _teacher_folder(self) -> Iterator[Path]:
        with self._artifact("pretrained", made_by="prepare", wanted=lambda name: name.startswith("teacher/")) as (folder, _):
            yield folder / "teacher"

    def _artifact(self, artifact: str, *, made_by: str, wanted: Callable[[str], bool]) -> AbstractContextManager[tuple[Path, Manifest]]:
        return opened_artifact(artifact, self.artifacts / artifact, made_by=made_by, wanted=wanted)


def _no_file(_name: str) -> bool:
    return False


@dataclass(frozen=True)
class _Sampling:
    """How a student is sampled; its pictures' side where its folder says it."""

    num_ddim_steps: int
    scalings: BoundaryScalings
    resolution: int | None


def _sampling_of(folder: Path) -> _Sampling:
    """What our own record in a student's folder says, or else its scheduler. Raises :class:`InputError` for one that is not LCM's."""
    if (folder / RECORD).is_file():
        record = read_json(folder / RECORD)
        model = validate_section("model", record.get("config", {}).get("model", {}))
        assert isinstance(model, Model)
        return _Sampling(model.num_ddim_steps, BoundaryScalings(model.sigma_data, model.timestep_scaling), model.resolution)
    path = folder / "scheduler" / "scheduler_config.json"
    scheduler = read_json(path)
    if scheduler.get("_class_name") != _LCM_SCHEDULER:
        raise InputError(
            f"{path} is of a {scheduler.get('_class_name')}, not of an {_LCM_SCHEDULER}, and there is no {RECORD} beside it: this is no "
            "consistency model that can be drawn with here"
        )
    # diffusers' LCMScheduler has sigma_data 0.5, and these defaults for a file that does not name them.
    scalings = BoundaryScalings(0.5, float(scheduler.get("timestep_scaling", 10.0)))
    return _Sampling(int(scheduler.get("original_inference_steps", 50)), scalings, None)


def _is_whole(folder: Path) -> bool:
    """Whether a student's folder holds all of it, not an adapter alone."""
    return not (folder / ADAPTER_FILE).is_file()


def _side_of(folder: Path) -> int:
    """Pixels of the pictures that the pipeline in ``folder`` was made for. Raises :class:`InputError` if it does not say."""
    network = f"{family_of(folder).folder}/config.json"
    latent, blocks = read_json(folder / network).get("sample_size"), read_json(folder / "vae/config.json").get("block_out_channels")
    if not isinstance(latent, int) or not isinstance(blocks, list):
        raise InputError(f"{folder} does not say how large its pictures are: sample_size in {network}, and the VAE's blocks")
    return int(latent * 2 ** (len(blocks) - 1))
