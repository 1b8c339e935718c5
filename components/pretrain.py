"""The ``pretrain`` stage as a Kubeflow component."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def pretrain(
    model: dict, pretraining: dict, store: str, latents: Input[Dataset], pretrained: Input[Model], reward_model: Output[Model]
) -> None:
    """Pretrain the latent proxy reward model (LRM) contrastively on the cached latents."""
    from rglcd.launch.kubeflow import execute_component

    execute_component(
        "pretrain",
        sections={"model": model, "pretraining": pretraining},
        store=store,
        inputs={"latents": latents, "pretrained": pretrained},
        outputs={"reward_model": reward_model},
    )
