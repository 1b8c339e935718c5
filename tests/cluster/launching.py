"""Jobs of the launcher on the test's cluster: what is launched, how, and what is there of it."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from torchx import specs

from rglcd.launch.placement import Placement
from rglcd.stages.table import stage_named
from tests.cluster.control_plane import Cluster
from tests.cluster.node import ROOT, process_environment

DISTILL = stage_named("distill")


def app(body: str, *, num_nodes: int = 1, image: str = "rg-lcd/train@sha256:0") -> specs.AppDef:
    resource = specs.Resource(cpu=1, gpu=8, memMB=1024)
    role = specs.Role(name="distill", image=image, entrypoint="python", args=["-c", body], num_replicas=num_nodes, resource=resource)
    return specs.AppDef(name="rglcd-distill", roles=[role])


SAVES = """
import pathlib, signal, sys, time
marker = pathlib.Path({marker!r})
if marker.exists():
    print("goes on from what was saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, lambda *_: (marker.touch(), sys.exit(75)))
time.sleep(60)
"""
"""Ends with 75 when it is asked to, and well the next time."""

LAUNCHER = """
import os, sys
from kubernetes import client, config
from rglcd.launch.boundary import process_boundary
from rglcd.launch.cluster_client import PatientClient
from rglcd.launch.kubernetes_job import run_kubernetes_job
from rglcd.launch.settings import load_settings, placement_of
from rglcd.stages.table import stage_named
from tests.cluster.launching import app
kubeconfig, body = sys.argv[1:]
configuration = client.Configuration()
config.load_kube_config(kubeconfig, client_configuration=configuration)
stage = stage_named("distill")
placement = placement_of(load_settings(), stage=stage, request=body)
with process_boundary():
    run_kubernetes_job(app(body), stage=stage, placement=placement, api=PatientClient(configuration), poll_seconds=0.3)
"""


def start_launcher(cluster: Cluster, placement: Placement, body: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", LAUNCHER, str(cluster.kubeconfig), body]
    variables = {"RGLCD_RUN": placement.run, "RGLCD_NAMESPACE": placement.namespace}
    environment = process_environment(**variables, RGLCD_IMAGE=placement.image, RGLCD_GRACE_SECONDS="10")
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)


def read_until_attached(launcher: subprocess.Popen[str]) -> None:
    assert launcher.stderr is not None
    line = launcher.stderr.readline()
    while not ("submitted" in line or "following" in line):
        assert line, "the launcher ended by itself"
        line = launcher.stderr.readline()


def jobs(cluster: Cluster, placement: Placement) -> list[dict[str, Any]]:
    return cluster.get("jobs.batch.volcano.sh", "-n", placement.namespace, "-l", f"rg-lcd/run={placement.run}")["items"]


def pods(cluster: Cluster, placement: Placement) -> list[dict[str, Any]]:
    return cluster.get("pods", "-n", placement.namespace, "-l", f"rg-lcd/run={placement.run}")["items"]


def wait_until(holds: Callable[[], Any], what: str, *, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return value


def running(cluster: Cluster, placement: Placement, number: int = 1) -> list[dict[str, Any]]:
    found = [pod for pod in pods(cluster, placement) if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]]
    return found if len(found) == number else []


def in_background(act: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread
