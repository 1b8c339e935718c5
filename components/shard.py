"""The ``shard`` stage as a Kubeflow component."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from components import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def shard(sharding: dict, source: str, store: str, shards: Output[Dataset]) -> None:
    """Pack the source index's images and captions into verified webdataset tars."""
    from rglcd.launch.kubeflow import execute_component

    execute_component("shard", sections={"sharding": sharding}, source=source, store=store, inputs={}, outputs={"shards": shards})
