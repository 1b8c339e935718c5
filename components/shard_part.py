"""One of the workers that share the packing of shards out among themselves."""

from kfp import dsl

from components import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def shard_part(sharding: dict, source: str, store: str, part: int) -> None:
    """Make one part of the shards; the shard stage itself then finds them made, and publishes."""
    from rglcd.launch.kubeflow import assist_component

    assist_component("shard", sections={"sharding": sharding}, source=source, store=store, part=part)
