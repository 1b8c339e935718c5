"""What watches a training: the loop's monitor, made from the section ``monitoring``, and where it keeps what it saw.

A look draws from generators of its own, with a twin of the student that shares its weights and has no dropout; nothing that trains is
changed, and no other rank is asked for anything.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rglcd import progress
from rglcd.config import AnyReward, Monitoring, PanelMonitoring
from rglcd.errors import InputError, lack_of_memory
from rglcd.evaluation.looks import (
    FOLDER,
    SUSPICIOUS_LOOKS,
    TEACHERS,
    About,
    Figures,
    Look,
    read_looks,
    strip_name,
    suspicion,
    write_about,
    write_looks,
)
from rglcd.evaluation.training_panel import TrainingPanel
from rglcd.models.student import Student
from rglcd.stages.panel import OpenScoring, PanelCost, counted_cost, held_out, make_panel, opening_scorers
from rglcd.stages.step_cost import StepCosts
from rglcd.stages.student_export import Arm
from rglcd.store.manifest import digest_of
from rglcd.store.staging import remove_stale_staging, staging_file
from rglcd.training.distiller import Distiller
from rglcd.training.loop import Monitor, NoMonitor, Run

_PICTURES = "teacher.safetensors"
_NOT_WHAT_IS_SEEN = {"every", "share", "batch_size", "when_suspected"}


@dataclass(frozen=True)
class Watching:
    """How the arms of a stage are watched. ``reward`` is the reward section's; ``student`` is the stage's work folder."""

    monitoring: Monitoring
    reward: AnyReward
    costs: StepCosts
    student: Path

    def monitor(self, arm: Arm, distiller: Distiller, run: Run) -> Monitor:
        """What watches the training of ``arm``: nothing on ranks but the first, which alone draws.

        The teacher's pictures are drawn now, or found where another arm or a killed run left them. Raises :class:`InputError` for a
        scorer that cannot be opened.
        """
        if not isinstance(self.monitoring, PanelMonitoring) or not distiller.world.is_main:
            return NoMonitor()
        panel = make_panel(self.monitoring, arm.materials, distiller)
        with _generators_kept(panel.device):
            return self._monitor(arm, self.monitoring, panel, distiller.evaluated, run)

    def seen_of(self, arm: Arm) -> Path | None:
        """The folder of what was seen of ``arm``; None where nobody looked."""
        seen = self._folder(self.monitoring) / arm.name if isinstance(self.monitoring, PanelMonitoring) else None
        if seen is None or not seen.is_dir():
            return None
        remove_stale_staging(seen)
        return seen

    def sweep(self) -> None:
        """Remove what was seen from the work folder: exported arms have it."""
        for folder in self.student.glob(f".{FOLDER}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, monitoring: PanelMonitoring) -> Path:
        """Of all looks with these settings: what was seen with others cannot be compared."""
        return self.student / f".{FOLDER}-{digest_of(monitoring.model_dump(mode='json', exclude=_NOT_WHAT_IS_SEEN))[:12]}"

    def _monitor(self, arm: Arm, monitoring: PanelMonitoring, panel: TrainingPanel, student: Student, run: Run) -> Monitor:
        open_scoring = opening_scorers(panel, monitoring, arm.materials, self._reward_of(arm))
        costs = self.costs if arm.materials == self.costs.materials else StepCosts(arm.materials)
        cost = None if monitoring.every is not None else counted_cost(monitoring, costs, arm.reward, open_scoring)
        every = monitoring.every if cost is None else cost.interval(monitoring.share, num_steps=run.num_steps)
        if every is None:
            print(
                f"rglcd: {run.task}: nobody looks: {SUSPICIOUS_LOOKS + 1} looks would take more than {monitoring.share:.1%} of these "
                f"{run.num_steps} steps; raise monitoring.share, or say monitoring.every",
                file=sys.stderr,
            )
            return NoMonitor()
        folder = self._folder(monitoring)
        teachers = _teachers(panel, folder)
        teacher = panel.figures(teachers, teachers, open_scoring())
        about = self._about(arm, monitoring, teacher, every=every, share=_share(cost, every, run))
        (seen := folder / arm.name).mkdir(exist_ok=True)
        write_about(seen, about)
        with staging_file(seen / TEACHERS) as staging:
            panel.strip(teachers).save(staging, format="PNG")
        return PanelMonitor(run, panel, student, open_scoring, about, teachers, seen, stops=monitoring.when_suspected == "stop")

    def _reward_of(self, arm: Arm) -> AnyReward:
        """What is looked at of an arm without a reward too: the reward section's."""
        return self.reward if arm.reward.kind == "none" else arm.reward

    def _about(self, arm: Arm, monitoring: PanelMonitoring, teacher: Figures, *, every: int, share: float | None) -> About:
        return About(
            prompts=monitoring.prompts,
            images_per_prompt=monitoring.images_per_prompt,
            num_steps=monitoring.num_steps,
            teacher_steps=monitoring.teacher_steps,
            guidance_scale=monitoring.guidance_scale,
            trained_on=None if arm.reward.kind == "none" else arm.reward.expert,
            held_out=held_out(monitoring, arm.materials, self._reward_of(arm)),
            every=every,
            share=share,
            teacher=teacher,
        )


@dataclass
class PanelMonitor:
    """Looks at ``student`` every so many steps; the last look is at the end of the run. ``folder`` holds what was seen."""

    run: Run
    panel: TrainingPanel
    student: Student
    open_scoring: OpenScoring
    about: About
    teachers: Tensor
    folder: Path
    stops: bool
    _looks: list[Look] = field(default_factory=list)
    _suspicion: str | None = None

    def is_due(self, done: int) -> bool:
        return done > 0 and (self.run.num_steps - done) % self.about.every == 0

    def resume(self, done: int) -> None:
        self._looks = [look for look in read_looks(self.folder) if look.step <= done]
        self._judge()
        if self.is_due(done) and not any(look.step == done for look in self._looks):
            self.look(done)

    def look(self, done: int) -> None:
        try:
            with _generators_kept(self.panel.device):
                look = self._seen(done)
        except Exception as error:
            if not isinstance(error, InputError | OSError) and lack_of_memory(error) is None:
                raise
            # A run of days does not end because nobody could look at it for a moment.
            print(f"rglcd: {self.run.task}: no look after step {done}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
            return
        self._looks = [earlier for earlier in self._looks if earlier.step < done] + [look]
        write_looks(self.folder, self._looks)
        before = self._suspicion
        self._judge()
        if self._suspicion is not None and before is None and not self.stops:
            print(f"rglcd: {self.run.task}: {self._suspicion}", file=sys.stderr)
        figures = {f"look_{name}": value for name, value in look.figures.means().items()}
        suspected = float(self._suspicion is not None)
        progress.report(self.run.task, done=done, total=self.run.num_steps, unit="steps", **figures, look_suspected=suspected)

    @property
    def objection(self) -> str | None:
        if not self.stops or self._suspicion is None:
            return None
        return f"{self._suspicion}. Lower the reward's weight, or go on all the same: --set monitoring.when_suspected=warn"

    def _seen(self, done: int) -> Look:
        started = time.perf_counter()
        pictures = self.panel.students(self.student)
        figures = self.panel.figures(pictures, self.teachers, self.open_scoring())
        if self.panel.device.type == "cuda":
            torch.cuda.empty_cache()  # what drew and rated is gone: its memory is the training's again
        with staging_file(self.folder / strip_name(done)) as staging:
            self.panel.strip(pictures).save(staging, format="PNG")
        return Look(done, done * self.run.images_per_step, figures, round(time.perf_counter() - started, 3))

    def _judge(self) -> None:
        self._suspicion = suspicion(self._looks, trained_on=self.about.trained_on, held_out=self.about.held_out)


def _share(cost: PanelCost | None, every: int, run: Run) -> float | None:
    return None if cost is None else cost.share(every, num_steps=run.num_steps)


def _teachers(panel: TrainingPanel, folder: Path) -> Tensor:
    """The teacher's pictures: those that lie in ``folder``, or drawn now and kept there."""
    path = folder / _PICTURES
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with staging_file(path) as staging:
            save_file({"pictures": panel.teachers().contiguous()}, staging)
    pictures: Tensor = load_file(path)["pictures"]
    return pictures


@contextmanager
def _generators_kept(device: torch.device) -> Iterator[None]:
    """What is drawn from torch's global generators within this context is not missing from them after it: opened networks draw weights."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
