"""What cluster.yaml says of a Kubeflow task's pod, beside its resources: where it runs, what it pulls, what it knows."""

from typing import Any

from rglcd.launch.placement import STORE_KEYS, CpuStages, toleration
from rglcd.launch.settings import ClusterSettings

STORE_VARIABLES = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_CA_BUNDLE"),
    *("HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
)
"""Keys of the Secret that become variables where it has them: Kubeflow takes no Secret as a whole, which a job's pods do."""

STAYS = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
"""Annotations that keep autoscalers from a pod: Kubeflow does not start a pod again that was deleted.
https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/FAQ.md and https://karpenter.sh/docs/concepts/disruption/"""


def place(task: Any, settings: ClusterSettings) -> None:
    """Give ``task``, whose pod has no GPU, the nodes, pull secrets, variables and Secrets that the settings name."""
    from kfp import kubernetes

    if settings.cpu_stages is CpuStages.APART and settings.gpus > 0:
        label = settings.any_gpu_label.partition("=")[0]
        kubernetes.add_node_affinity(task, match_expressions=[{"key": label, "operator": "DoesNotExist"}])
    for key, value in settings.cpu_node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for text in settings.cpu_tolerations:
        kubernetes.add_toleration(task, **toleration(text))
    if settings.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(settings.pull_secrets))
    for name, value in settings.variables.items():
        task.set_env_variable(name, value)
    for secret, _, key in (each.partition("/") for each in settings.secrets):
        kubernetes.use_secret_as_env(task, secret, {key: key})
    own = {key for _, _, key in (each.partition("/") for each in settings.secrets)} | settings.variables.keys()
    kubernetes.use_secret_as_env(task, STORE_KEYS, {name: name for name in STORE_VARIABLES if name not in own}, optional=True)


def keep_from_autoscalers(task: Any) -> None:
    """A pod that launches and waits looks idle, and its loss ends the pipeline."""
    from kfp import kubernetes

    for name, value in STAYS.items():
        kubernetes.add_pod_annotation(task, name, value)
