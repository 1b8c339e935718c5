"""The benchmark of the step: its networks have the published sizes, and the step does no work that its networks do not need."""

import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel

from benchmarks.planned import planned_mib
from benchmarks.step import main
from benchmarks.step_bench import MODES, Bench, Setting, sd21_sizes, toy_sizes
from benchmarks.step_measuring import memory_line, utilisation


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sd21_has_the_sizes_of_stable_diffusion_2_1_and_hpsv2s_image_tower() -> None:
    sizes = sd21_sizes()
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel.from_config(sizes.unet), AutoencoderKL.from_config(sizes.vae)
        vision = CLIPModel(CLIPConfig(**sizes.expert)).vision_model
    assert count(unet) == 865_910_724
    assert count(vae) == 83_653_863
    assert count(vision) == pytest.approx(631e6, rel=0.005)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("mode", MODES)
def test_a_step_does_no_operation_twice_and_mixes_no_devices(mode: str, device: str) -> None:
    """Every network runs as often as the equations name it: teacher twice, target once, student forth and back, and the reward's own.

    The meta device has no values. Like a GPU it refuses the host's tensors among its own.
    """
    setting = Setting("toy", 32, "float32", device, 2, 1, "eager", "contiguous", 1, 1.0)
    flops = Bench(setting, toy_sizes()).flops(mode)
    assert flops.counted == pytest.approx(flops.needed, rel=1e-6)


@pytest.mark.parametrize(("budget", "largest"), [(40, 30), (130, 120), (131, None)])
def test_the_largest_batch_is_extrapolated_near_measurements_only(
    budget: float, largest: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 GiB and one a sample, and never less than 25; measured are 10, 20 and 30 samples."""
    monkeypatch.setattr("benchmarks.step_measuring.peak_bytes", lambda bench, mode, batch: 2**30 * max(10 + batch, 25))
    setting = Setting("toy", 32, "float32", "cpu", 10, 1, "eager", "contiguous", 1, budget)
    line = memory_line(SimpleNamespace(setting=setting), "plain")
    assert (line["fixed_mib"], line["per_sample_mib"], line["largest_batch"]) == (10 * 2**10, 2**10, largest)
    assert line["error_at_one_batch"] == pytest.approx(20 / 25 - 1, abs=1e-4)


@pytest.mark.slow
def test_the_benchmark_prints_one_json_line_with_hardware_and_versions(capsys: pytest.CaptureFixture[str]) -> None:
    # Of two samples the gradients, not the activations, are the peak: memory is a line from four on.
    main(["--device", "cpu", "--batch-size", "4", "--steps", "1"])
    line = json.loads(capsys.readouterr().out)
    assert set(line["modes"]) == set(MODES)
    for mode in line["modes"].values():
        assert sum(mode["split_ms"].values()) > 0
        assert abs(mode["memory"]["error_at_one_batch"]) < 0.01
        assert mode["mfu"] is None
    assert line["versions"]["torch"] == torch.__version__
    assert line["hardware"]["threads"] >= 1


RECORDED = [json.loads(line) for line in Path("docs/gpu.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("line", [line for line in RECORDED if "mode" in line], ids=lambda line: line["mode"])
def test_the_plan_beside_a_steps_peak_is_within_a_tenth_of_what_a_gpu_measured(line: dict[str, Any]) -> None:
    setting = Setting(**{field.name: line[field.name] for field in fields(Setting)} | {"device": "meta"})
    planned = planned_mib(Bench(setting, sd21_sizes()), line["mode"])
    assert planned == pytest.approx(line["peak_mib"], rel=0.1)


def test_a_cpu_has_no_known_peak_on_a_machine_with_a_gpu_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    setting = Setting("toy", 32, "bfloat16", "cpu", 1, 1, "eager", "contiguous", 1, 1.0)
    assert utilisation(setting, 1e12) is None
