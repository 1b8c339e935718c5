"""The ``cache`` stage as a Kubeflow component."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def cache(model: dict, caching: dict, store: str, shards: Input[Dataset], pretrained: Input[Model], latents: Output[Dataset]) -> None:
    """Encode images and captions once: VAE mean and log-variance, token ids, reward text features."""
    from rglcd.launch.kubeflow import execute_component

    execute_component(
        "cache",
        sections={"model": model, "caching": caching},
        store=store,
        inputs={"shards": shards, "pretrained": pretrained},
        outputs={"latents": latents},
    )
