"""FID's Inception-v3: equal to torch-fidelity's on random weights in the published layout, and nothing else passes for it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rglcd.errors import InputError
from rglcd.evaluation.frechet import FeatureMoments, frechet_distance
from rglcd.evaluation.kernel_distance import blocks_of, cubic, kernel_distance
from rglcd.models.checkpoint_import import read_checkpoint
from rglcd.models.features import load_features
from rglcd.models.inception import convert_inception, load_inception
from tests.assets.inception.published import NUM_PICTURES, pictures, weights

ASSETS = Path(__file__).parents[1] / "assets" / "inception"
CPU = torch.device("cpu")
SIDES = (64, 350)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """The file as torch-fidelity publishes it, with random weights."""
    shapes = json.loads((ASSETS / "layout.json").read_text())
    counters = {name: torch.tensor(0) for name in shapes if name.endswith("num_batches_tracked")}
    state = {name: torch.from_numpy(value) for name, value in weights({n: s for n, s in shapes.items() if n not in counters}).items()}
    path = tmp_path_factory.mktemp("inception") / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(state | counters, path)
    return path


@pytest.fixture(scope="module")
def folder(published: Path, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("converted")
    convert_inception(read_checkpoint(published), place)
    return place


def features_of(folder: Path, count: int) -> list[torch.Tensor]:
    network = load_features("inception", folder, device=CPU)
    return [network(torch.from_numpy(pictures(side, seed=seed)[:count]).float() / 255) for seed, side in enumerate(SIDES)]


def test_features_are_torch_fidelitys(folder: Path) -> None:
    """Of pictures that are enlarged and of pictures that are made smaller: recorded by tests/assets/inception/build.py."""
    reference = load_file(ASSETS / "reference.safetensors")["features"]
    ours = torch.cat(features_of(folder, 2))
    assert ours.shape == (4, 2048)
    assert float((ours - reference).norm() / reference.norm()) < 1e-5


@pytest.mark.slow
def test_fid_and_kid_are_torch_fidelitys(folder: Path) -> None:
    reference, features = load_file(ASSETS / "reference.safetensors"), features_of(folder, NUM_PICTURES)
    fid = frechet_distance(*(FeatureMoments.of(rows) for rows in features))
    assert fid == pytest.approx(float(reference["fid"]), rel=1e-3)
    blocks = blocks_of([str(number) for number in range(NUM_PICTURES)])
    kid = kernel_distance(*features, kernel=cubic, our_blocks=blocks, their_blocks=blocks)
    assert kid is not None
    assert kid.value == pytest.approx(float(reference["kid"]), rel=1e-3)


def test_the_weights_may_come_as_safetensors_too(published: Path, folder: Path, tmp_path: Path) -> None:
    save_file(read_checkpoint(published), tmp_path / "inception.safetensors")
    convert_inception(read_checkpoint(tmp_path / "inception.safetensors"), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_another_inception_is_refused_by_the_tensor_that_differs(published: Path, tmp_path: Path) -> None:
    state = read_checkpoint(published)
    with pytest.raises(
        InputError, match=r"has a tensor Conv2d_1a_3x3\.conv\.weight .*the file lacks it: name the file that torch-fidelity"
    ):
        convert_inception({name: value for name, value in state.items() if name != "Conv2d_1a_3x3.conv.weight"}, tmp_path)
    with pytest.raises(InputError, match=r"has 1 tensors that FID's Inception-v3 has not, AuxLogits"):
        convert_inception(state | {"AuxLogits.fc.weight": torch.zeros(1)}, tmp_path)
    with pytest.raises(InputError, match="cannot be opened as FID's Inception-v3"):
        load_inception(tmp_path / "none", device=CPU)
