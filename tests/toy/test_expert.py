import torch

from rglcd.toy.expert import PREPROCESSOR, changed, normalise
from rglcd.toy.scene import ATTRIBUTES, VALUES, all_scenes


def test_changed_visits_every_other_value_of_one_attribute_only() -> None:
    scene = all_scenes()[123]
    for column, (attribute, values) in enumerate(zip(ATTRIBUTES, VALUES, strict=True)):
        turned = [changed(scene, attribute, turn).indices for turn in range(len(values))]
        assert turned[0] == scene.indices
        assert {indices[column] for indices in turned} == set(range(len(values)))
        assert {indices[:column] + indices[column + 1 :] for indices in turned} == {scene.indices[:column] + scene.indices[column + 1 :]}


def test_expert_normalisation_equals_its_preprocessor_config() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(PREPROCESSOR[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    torch.testing.assert_close(normalise(pixels), (pixels - mean) / std)
