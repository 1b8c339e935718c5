"""Ask torch-fidelity 0.4.0, in an environment of its own (torch, torchvision, torch-fidelity), and write down what it says.

    python build.py        writes reference.safetensors: features (4, 2048) of the first two pictures of each set, fid and kid of the sets
                           by all their features, and the names and shapes of its state dict in layout.json

The file of weights is written to a temporary folder; only answers are kept here.
"""

import json
import tempfile
from pathlib import Path

import torch
from published import pictures, weights
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

HERE = Path(__file__).parent
SIDES = (64, 350)
"""One that is enlarged, one that is made smaller."""


def layout() -> dict[str, list[int]]:
    """Of the network without weights: it is built before its file is looked for."""
    shapes: dict[str, list[int]] = {}

    def note(self: torch.nn.Module, *_: object, **__: object) -> None:
        shapes.update({name: list(tensor.shape) for name, tensor in self.state_dict().items()})
        raise KeyboardInterrupt

    original, torch.nn.Module.load_state_dict = torch.nn.Module.load_state_dict, note
    with tempfile.TemporaryDirectory() as folder:
        torch.save({}, f"{folder}/empty.pth")
        try:
            FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=f"{folder}/empty.pth")
        except KeyboardInterrupt:
            pass
        finally:
            torch.nn.Module.load_state_dict = original
    return shapes


def main() -> None:
    shapes = layout()
    floating = {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}
    state = {name: torch.from_numpy(value) for name, value in weights(floating).items()}
    state |= {name: torch.tensor(0) for name in shapes.keys() - floating.keys()}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, f"{folder}/weights.pth")
        extractor = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=f"{folder}/weights.pth")
    sets = [extractor(torch.from_numpy(pictures(side, seed=seed)))[0] for seed, side in enumerate(SIDES)]
    statistics = [fid_features_to_statistics(features) for features in sets]
    fid = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    kid = kid_features_to_metric(*sets, kid_subsets=1, kid_subset_size=len(sets[0]), verbose=False)["kernel_inception_distance_mean"]
    kept = {"features": torch.cat([features[:2] for features in sets])}
    kept |= {name: torch.tensor(value, dtype=torch.float64) for name, value in (("fid", fid), ("kid", kid))}
    save_file(kept, HERE / "reference.safetensors")
    (HERE / "layout.json").write_text(json.dumps(shapes, separators=(",", ":")) + "\n")
    print(fid, kid, [features.std().item() for features in sets])


if __name__ == "__main__":
    main()
