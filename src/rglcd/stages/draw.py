"""Drawing what one asks for: pictures of a prompt as files. No stage, for nothing reads them back."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from rglcd.evaluation.drawing import Asked
from rglcd.evaluation.drawn_files import file_name, save_picture, save_sheet, slug
from rglcd.evaluation.measurement import Sampler
from rglcd.stages.studio import Painter, Studio


@dataclass(frozen=True)
class Drawn:
    """A picture that was drawn: its file, who drew it, and in how many seconds."""

    path: Path
    who: str
    num_steps: int
    seconds: float


@dataclass(frozen=True)
class Drawing:
    """All that was drawn; ``sheet`` shows student and teacher side by side."""

    pictures: tuple[Drawn, ...]
    sheet: Path | None

    def seconds_of(self, who: str) -> float:
        """A picture's, the median: the first may warm up."""
        return statistics.median(one.seconds for one in self.pictures if one.who == who)


def draw(
    studio: Studio, first: Asked, *, arm: str, count: int, teacher_steps: int | None, out: Path, on_drawn: Callable[[Drawn], None]
) -> Drawing:
    """Draw ``first`` and the pictures of its prompt after it, ``count`` in all, and the teacher's if ``teacher_steps`` says so.

    ``on_drawn`` is called as each file is there. Raises :class:`InputError`.
    """
    asked = [replace(first, number=number) for number in studio.numbers(first.prompt, count)]
    painters = [(studio.student(arm), first.num_steps)]
    if teacher_steps is not None:
        painters.append((studio.teacher, teacher_steps))
    made: list[Drawn] = []
    columns: dict[Sampler, Sequence[Tensor]] = {}
    for painter, num_steps in painters:
        pictures: list[Tensor] = []
        for one in asked:
            mine = replace(one, num_steps=num_steps)
            picture, seconds = painter.timed(mine)
            path = out / file_name(mine, painter.name)
            save_picture(picture, path, facts_of(mine, painter))
            pictures.append(picture)
            made.append(Drawn(path, painter.name, num_steps, seconds))
            on_drawn(made[-1])
        columns[Sampler(painter.name, num_steps)] = pictures
    return Drawing(tuple(made), None if teacher_steps is None else _sheet(columns, asked, out=out))


def _sheet(columns: dict[Sampler, Sequence[Tensor]], asked: Sequence[Asked], *, out: Path) -> Path:
    first = asked[0]
    sides = "-".join(slug(sampler.name) for sampler in columns)
    path = out / f"{slug(first.prompt)}-{sides}-seed{first.seed}-{first.number}-sheet.png"
    save_sheet(columns, [f"{one.prompt} (seed {one.seed}, picture {one.number})" for one in asked], path)
    return path


def facts_of(asked: Asked, painter: Painter) -> dict[str, str]:
    """What a picture's metadata says of it."""
    facts = {"prompt": asked.prompt, "drawn by": painter.name, "digest": painter.digest, "steps": str(asked.num_steps)}
    facts |= {"seed": str(asked.seed), "picture": str(asked.number), "software": "rg-lcd"}
    return facts | ({"guidance scale": f"{asked.guidance_scale:g}"} if painter.is_guided else {})
