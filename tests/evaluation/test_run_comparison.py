"""Two runs side by side: known differences are found, numbers of two kinds are named and not compared, and the page is inert."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from rglcd.errors import InputError
from rglcd.evaluation.comparable_runs import Measured, Run
from rglcd.evaluation.distances import Distances
from rglcd.evaluation.measurement import REAL, TEACHER, Sampler
from rglcd.evaluation.run_comparison import RunComparison, compare_runs
from rglcd.evaluation.run_comparison_page import as_text, page_html
from rglcd.evaluation.score_tables import ScoreTable

CAPTIONS = tuple(f"prompt {number % 20}" for number in range(60))
BASIS = {"reference": "abc", "images": "60", "features (auto)": "ResNetModel"}
SECTIONS: dict[str, Any] = {
    "evaluation": {"seed": 0},
    "model": {"resolution": 16},
    "reward": {"kind": "latent", "expert": "expert"},
    "distillation": {"arms": ["lcm", "rg"]},
    "preparation": {"scorers": {"judge": {"kind": "clip"}, "expert": {"kind": "clip"}}},
}
ALL = (Sampler(TEACHER, 50), Sampler("lcm", 2), Sampler("rg", 1), Sampler("rg", 2))


def scores(seed: int, shift: float = 0.0) -> tuple[float, ...]:
    return tuple((torch.randn(60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift).tolist())


def measured(*, shift: float = 0.0, seed: int = 1, captions: tuple[str, ...] = CAPTIONS, basis: Mapping[str, str] = BASIS) -> Measured:
    count = len(captions)
    values = {"expert": scores(seed, shift)[:count], "judge": scores(seed + 1, shift)[:count]}
    others = {"high_frequency": scores(7)[:count], "saturation": scores(8)[:count]}
    return Measured(ScoreTable(captions, values, others), Distances({"frechet": 9.0 + shift}, {}), basis, 0.5)


def run_of(
    name: str, *, shift: float = 0.0, samplers: tuple[Sampler, ...] = ALL, sections: Mapping[str, Any] = SECTIONS, **how: Any
) -> Run:
    """The teacher's pictures are the same in every run; students score higher by ``shift``."""
    found = {Sampler(REAL, 0): measured(seed=20, **how)}
    found |= {one: measured(shift=0.0 if one.who == TEACHER else shift, seed=1 if one.who == TEACHER else 3, **how) for one in samplers}
    return Run(name, "d" * 64, "e" * 64, sections, {}, found, lambda _: [Image.new("RGB", (16, 16), "red")] * 8)


def compared(a: Run, b: Run) -> RunComparison:
    return compare_runs(a, b, settings=[("distillation.num_steps", "4", "8")])


def changed(section: str, **values: Any) -> dict[str, Any]:
    return SECTIONS | {section: SECTIONS[section] | values}


def test_a_known_difference_is_found_with_its_sign_and_the_better_run_is_named_by_the_held_out_judge() -> None:
    found = compared(run_of("a"), run_of("b", shift=0.5))
    assert found.verdict == "RG-LCM in 2 steps: B is preferred to A by judge"
    (students,) = (one for one in found.samplers if one.sampler == Sampler("rg", 2))
    assert students.values["judge"].difference.value == pytest.approx(0.5)
    assert students.values["judge"].b - students.values["judge"].a == pytest.approx(0.5)
    assert students.values["judge"].wins is not None
    assert students.values["judge"].wins.value == 1
    assert students.distances["frechet"].b - students.distances["frechet"].a == pytest.approx(0.5)
    assert (found.num_images, found.num_captions) == (60, 20)
    assert compared(run_of("a", shift=0.5), run_of("b")).verdict == "RG-LCM in 2 steps: A is preferred to B by judge"


def test_a_run_and_itself_drew_the_same_pictures() -> None:
    found = compared(run_of("a"), run_of("b"))
    assert found.verdict == "RG-LCM in 2 steps: A and B drew the same pictures"
    assert all(value.is_same for one in found.samplers for value in one.values.values())
    assert "the same in every picture" in as_text(found)


def test_runs_that_differ_by_noise_cannot_be_told_apart() -> None:
    b = run_of("b")
    b.measured[Sampler("rg", 2)].table.scores["judge"] = scores(99)  # type: ignore[index]  # read-only to all but a test
    assert compared(run_of("a"), b).verdict == "RG-LCM in 2 steps: A and B cannot be told apart by judge"


def test_of_few_prompts_no_verdict_is_made() -> None:
    few = tuple(f"prompt {number % 9}" for number in range(60))
    found = compared(run_of("a", captions=few), run_of("b", shift=3.0, captions=few))
    assert found.verdict == "RG-LCM in 2 steps: 9 prompts are too few to tell A from B"
    assert any("9 prompts are few" in note for note in found.notes)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (changed("evaluation", seed=1), "scores: the noise is another (evaluation.seed is 0 in A and 1 in B)"),
        (changed("model", resolution=32), "scores: pictures of two sizes start from other noise (model.resolution is 16 in A and 32 in B)"),
    ],
)
def test_pictures_from_other_noise_are_no_pairs_and_their_distances_still_stand(sections: dict[str, Any], said: str) -> None:
    found = compared(run_of("a"), run_of("b", sections=sections))
    assert said in found.refused
    assert not any(one.values for one in found.samplers)
    assert all(one.distances for one in found.samplers)
    assert "distances alone" in found.verdict
    assert said in as_text(found)
    assert "<img" not in page_html(found)


def test_of_other_prompts_nothing_is_compared() -> None:
    other = (*CAPTIONS[:5], "another", *CAPTIONS[6:])
    with pytest.raises(InputError, match=r"nothing of a and b .* \(picture 5 is 'prompt 5' in A and 'another' in B\)"):
        compared(run_of("a"), run_of("b", captions=other))


@pytest.mark.parametrize("key", list(BASIS))
def test_distances_that_were_measured_otherwise_are_named_and_not_compared(key: str) -> None:
    found = compared(run_of("a"), run_of("b", basis=BASIS | {key: "other"}))
    assert not any(one.distances for one in found.samplers)
    (said,) = (reason for reason in found.refused if reason.startswith("distances"))
    assert f"{key}: {BASIS[key]} in A, other in B" in said
    assert found.scorers == ("expert", "judge"), "settings say that the scorers are the same"


def test_a_scorer_of_one_name_that_is_another_network_is_found_by_the_real_images() -> None:
    b = run_of("b")
    b.measured[Sampler(REAL, 0)].table.scores["judge"] = scores(77)  # type: ignore[index]  # read-only to all but a test
    found = compared(run_of("a"), b)
    assert found.scorers == ("expert",)
    assert any(reason.startswith("scorer judge: it gives the same real images other scores") for reason in found.refused)


def test_without_real_images_in_common_a_scorer_of_other_settings_is_not_compared() -> None:
    sections = SECTIONS | {"preparation": {"scorers": {"judge": {"kind": "pickscore"}, "expert": {"kind": "clip"}}}}
    found = compared(run_of("a"), run_of("b", basis=BASIS | {"reference": "other"}, sections=sections))
    assert found.scorers == ("expert",)


def test_what_only_one_run_has_is_said_and_fewer_pictures_are_compared_with_as_many() -> None:
    b = run_of("b", samplers=(*ALL[:2], Sampler("rg", 2), Sampler("mine", 4)), captions=CAPTIONS[:40])
    found = compared(run_of("a"), b)
    assert "rg-1 is in A alone" in found.notes
    assert "mine-4 is in B alone" in found.notes
    assert "A has 60 pictures and B 40: the first 40 are compared" in found.notes
    assert found.num_images == 40
    with pytest.raises(InputError, match="no sampler is in both runs: a has teacher-50, lcm-2, rg-1 and rg-2, b has mine-4"):
        compared(run_of("a"), run_of("b", samplers=(Sampler("mine", 4),)))


def test_the_training_reward_is_called_so_whichever_arm_it_trained() -> None:
    sections = changed("distillation", arms={"strong": {"reward": {"kind": "pixel", "expert": "judge"}}, "rg": {}})
    found = compared(run_of("a"), run_of("b", sections=sections))
    assert found.training_rewards == {"expert", "judge"}
    assert as_text(compared(run_of("a"), run_of("b", shift=0.1))).count("training reward") == 3


HOSTILE = [
    "</td><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "\x1b[31m red",
    "a\u202eb",
    "&lt;b&gt;",
    "x" * 5000,
]


@pytest.fixture(scope="module")
def hostile() -> RunComparison:
    captions = tuple(HOSTILE + [f"prompt {number}" for number in range(20)])
    samplers = (Sampler(TEACHER, 50), Sampler(HOSTILE[0], 2))
    a, b = (replace(run_of(HOSTILE[1], samplers=samplers, captions=captions), digest=HOSTILE[0], student=HOSTILE[2]) for _ in "ab")
    return compare_runs(a, b, settings=[(HOSTILE[0], HOSTILE[1], HOSTILE[2])])


def test_hostile_captions_names_and_settings_are_inert_text_on_the_page(hostile: RunComparison) -> None:
    page = page_html(hostile)
    assert "<script" not in page
    assert "{{ 7 * 7 }}" in page
    assert "alert(1)" in page, "shown as text"
    assert "&amp;lt;b&amp;gt;" in page
    assert re.findall(r"<img src=\"(?!data:image/)", page) == []
    assert set(re.findall(r"<img src=\"data:image/(\w+)", page)) == {"png"}
    assert not re.search(r"<[^>]*\son\w+=(?![^<>]*&)", page)
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", page), "it needs nothing else"
    assert len(page) < 200_000, "long captions are cut"


def test_a_terminal_gets_nothing_to_obey(hostile: RunComparison) -> None:
    assert "\x1b" not in as_text(hostile)
    assert "\x1b" not in as_text(compare_runs(*(replace(run_of("\x1b[31m"), digest="d") for _ in "ab"), settings=[]))
