"""The ``prepare`` stage as a Kubeflow component."""

from kfp import dsl
from kfp.dsl import Model, Output

from components import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def prepare(model: dict, preparation: dict, store: str, pretrained: Output[Model]) -> None:
    """Fetch the teacher, the reward models and the feature network; verify and lay them out."""
    from rglcd.launch.kubeflow import execute_component

    execute_component(
        "prepare", sections={"model": model, "preparation": preparation}, store=store, inputs={}, outputs={"pretrained": pretrained}
    )
