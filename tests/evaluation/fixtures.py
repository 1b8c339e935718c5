"""Made-up measurements: known scores, pictures of one colour each."""

import torch

from rglcd.evaluation.comparison import Comparison, compare
from rglcd.evaluation.contact_sheet import contact_sheet
from rglcd.evaluation.distances import NO_DISTANCES, Distances
from rglcd.evaluation.intervals import Estimate
from rglcd.evaluation.measurement import REAL, TEACHER, Measurement, Sampler
from rglcd.evaluation.pictures import Pictures
from rglcd.evaluation.report_data import Provenance

NUM_IMAGES = 64
SIDE = 16
BASIS = {"images": "64", "reference": "0123456789abcdef", "features (auto)": "ResNetModel"}


def measurement(who: str, num_steps: int, scores: dict[str, list[float]]) -> Measurement:
    num_images = len(next(iter(scores.values())))
    return Measurement(
        sampler=Sampler(who, num_steps),
        captions=[f"prompt {number}" for number in range(num_images)],
        scores=scores,
        full_marks={name: sum(value >= 1 for value in values) / len(values) for name, values in scores.items()},
        high_frequency=[0.02] * num_images,
        saturation=[0.1] * num_images,
        distances=NO_DISTANCES if who == REAL else Distances({"frechet": 10.0 + num_steps}, {"kernel_distance": Estimate(0.5, 0.4, 0.6)}),
        basis=BASIS,
        frechet_to_teacher=None if who in (REAL, TEACHER) else 5.0 + num_steps,
        diversity=1.5,
        seconds_per_image=None if who == REAL else 0.001 * num_steps,
        rate_seconds_per_image=0.002,
        total_seconds=NUM_IMAGES * (0.001 * num_steps + 0.002),
    )


def constant(value: float, *names: str, count: int = NUM_IMAGES) -> dict[str, list[float]]:
    return {name: [value] * count for name in names}


def measurements(
    student: dict[str, list[float]], *, plain: float = 0.2, num_steps: tuple[int, ...] = (1, 2), arm: str = "rg"
) -> list[Measurement]:
    """Real images at 1, a teacher at 0.5, a plain LCM at ``plain`` and ``arm`` with the scores ``student``, at every step count."""
    names, count = tuple(student), len(next(iter(student.values())))
    few = [measurement("lcm", steps, constant(plain, *names, count=count)) for steps in num_steps]
    few += [measurement(arm, steps, student) for steps in num_steps]
    real, teacher = (constant(value, *names, count=count) for value in (1.0, 0.5))
    return [measurement(REAL, 0, real), measurement(TEACHER, 50, teacher), *few]


def comparison(
    student: dict[str, list[float]],
    *,
    trained_on: str | None = "expert",
    akin: frozenset[str] = frozenset(),
    plain: float = 0.2,
    arm: str = "rg",
    num_features: int = 0,
) -> Comparison:
    made = measurements(student, plain=plain, arm=arm)
    return compare(made, seed=0, trained_on=trained_on, akin=akin, num_features=num_features)


def pictures(captions: list[str], *, side: int = SIDE, arm: str = "rg", judge: str = "judge") -> Pictures:
    samplers = [m.sampler for m in measurements(constant(0.7, judge), arm=arm) if m.sampler.who != REAL]
    images = torch.arange(len(captions), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, side, side) * 20
    sheet = contact_sheet(images)
    return Pictures(dict.fromkeys(samplers, sheet), side, captions, judge, {s: [0.5] * len(captions) for s in samplers})


def provenance(**changes: object) -> Provenance:
    stage = {"version": 1, "digest": "0123456789abcdef" * 4, "sections": {"sharding": {"resolution": 32}}, "facts": {"samples": 8192}}
    fields: dict[str, object] = {
        "stages": {"shard": stage},
        "seconds": {"shard": 12.0},
        "teacher": "./toy/teacher",
        "guidance_scale": 3.0,
        "distance": "12 real images (digest 0123456789ab), by ResNetModel",
        "prompts": "prompts/heldout.txt",
        "num_prompts": 108,
        "protocol": "",
        "precision": "float32",
        "device": "CPU",
        "has_gpu": False,
        "num_processes": 1,
        "versions": {"torch": "2.13"},
    }
    return Provenance(**(fields | changes))  # type: ignore[arg-type]
