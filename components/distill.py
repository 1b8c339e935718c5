"""The ``distill`` stage as a Kubeflow component."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def distill(
    model: dict,
    reward: dict,
    distillation: dict,
    monitoring: dict,
    store: str,
    latents: Input[Dataset],
    pretrained: Input[Model],
    student: Output[Model],
    reward_model: Input[Model] = None,
) -> None:
    """Distil the teacher into a latent consistency model, guided by the reward."""
    from rglcd.launch.kubeflow import execute_component

    execute_component(
        "distill",
        sections={"model": model, "reward": reward, "distillation": distillation, "monitoring": monitoring},
        store=store,
        inputs={"latents": latents, "pretrained": pretrained, "reward_model": reward_model},
        outputs={"student": student},
    )
