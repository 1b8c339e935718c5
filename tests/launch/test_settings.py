"""``cluster.yaml`` and the variables that override it: typed, refused by name, and shown with where each value comes from."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from rglcd.cli import main
from rglcd.config import dump, load_preset
from rglcd.errors import InputError
from rglcd.launch.execute import execute
from rglcd.launch.placement import Accelerators, CpuStages, EarlierAttempts, Owner, Placement
from rglcd.launch.resources import Pool
from rglcd.launch.settings import ClusterSettings, Runtime, exporting_store, load_settings, placement_of, variable_of
from rglcd.stages.run import Outcome
from rglcd.stages.table import stage_named
from rglcd.store.environment import cache_limit, store_in_force

ROOT = Path(__file__).parents[2]
DISTILL, EVALUATE = stage_named("distill"), stage_named("evaluate")
IMAGE = "registry/train@sha256:" + "a" * 64
SECRET = "do-not-print-me"

EVERYTHING: dict[str, tuple[Any, str, Any]] = {
    # key: as the file says it, as the variable says it, the value
    "runtime": ("torchx:kubernetes", "torchx:kubernetes", Runtime.KUBERNETES),
    "namespace": ("elsewhere", "elsewhere", "elsewhere"),
    "queue": ("research", "research", "research"),
    "service_account": ("somebody", "somebody", "somebody"),
    "image": (IMAGE, IMAGE, IMAGE),
    "gpu_label": ("nvidia.com/gpu.family=hopper", "nvidia.com/gpu.family=hopper", "nvidia.com/gpu.family=hopper"),
    "num_nodes": (2, "2", 2),
    "num_processes": (4, "4", 4),
    "devices": (
        {"vpc.amazonaws.com/efa": 4, "hugepages-2Mi": "5120Mi"},
        "vpc.amazonaws.com/efa=4,hugepages-2Mi=5120Mi",
        {"vpc.amazonaws.com/efa": "4", "hugepages-2Mi": "5120Mi"},
    ),
    "store_claim": ("claim=/mnt/x", "claim=/mnt/x", "claim=/mnt/x"),
    "store": ("s3://bucket/run", "s3://bucket/run", "s3://bucket/run"),
    "cache": ("/scratch", "/scratch", "/scratch"),
    "cache_gib": (12.5, "12.5", 12.5),
    "queue_seconds": (10, "10", 10),
    "start_seconds": (15, "15", 15),
    "run_seconds": (20, "20", 20),
    "grace_seconds": (60, "60", 60),
    "failures": (7, "7", 7),
    "collective_timeout": (90, "90", 90),
    "rendezvous_port": (1234, "1234", 1234),
    "task_retries": (0, "0", 0),
    "hand_on": (["AWS_ENDPOINT_URL"], " AWS_ENDPOINT_URL, ", ("AWS_ENDPOINT_URL",)),
    "variables": ({"NO_PROXY": "a,b=c"}, '{"NO_PROXY": "a,b=c"}', {"NO_PROXY": "a,b=c"}),
    "secrets": (["hub/HF_TOKEN"], "hub/HF_TOKEN", ("hub/HF_TOKEN",)),
    "pull_secrets": (["registry"], "registry", ("registry",)),
    "priority": ("gold", "gold", "gold"),
    "gpus": (4, "4", 4),
    "gpu_resource": ("nvidia.com/mig-3g.40gb", "nvidia.com/mig-3g.40gb", "nvidia.com/mig-3g.40gb"),
    "any_gpu_label": ("cloud.google.com/gke-accelerator", "cloud.google.com/gke-accelerator", "cloud.google.com/gke-accelerator"),
    "cpus": (32, "32", 32),
    "memory_gib": (200, "200", 200),
    "disk_gib": (90, "90", 90),
    "node_selector": ({"cloud.google.com/gke-spot": "true"}, "cloud.google.com/gke-spot=true", {"cloud.google.com/gke-spot": "true"}),
    "tolerations": (["spot=true:NoSchedule", "x"], "spot=true:NoSchedule,x", ("spot=true:NoSchedule", "x")),
    "cpu_stages": ("anywhere", "anywhere", CpuStages.ANYWHERE),
    "cpu_node_selector": ({"pool": "cpu"}, "pool=cpu", {"pool": "cpu"}),
    "cpu_tolerations": (["batch:NoExecute"], "batch:NoExecute", ("batch:NoExecute",)),
    "tensorboard": ("/store/events", "/store/events", "/store/events"),
    "mlflow": ("https://mlflow.example.org/", "https://mlflow.example.org", "https://mlflow.example.org"),
    "mlflow_experiment": ("toys", "toys", "toys"),
    "git_commit": ("abc", "abc", "abc"),
    "dvc_lock": ("def", "def", "def"),
    "accelerators": ("simulated", "simulated", Accelerators.SIMULATED),
    "earlier_attempts": ("counted", "counted", EarlierAttempts.COUNTED),
    "run": ("r1", "r1", "r1"),
    "launcher_name": ("pod-1", "pod-1", "pod-1"),
    "launcher_uid": ("u-1", "u-1", "u-1"),
}


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test stands in a folder of its own, without settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("RGLCD_")]:
        monkeypatch.delenv(name)
    return tmp_path


def write(**settings: Any) -> None:
    Path("cluster.yaml").write_text(yaml.safe_dump(settings))


# --- where a value comes from --------------------------------------------------------------------


def test_table_below_holds_every_setting() -> None:
    assert EVERYTHING.keys() == ClusterSettings.model_fields.keys()


@pytest.mark.parametrize("key", EVERYTHING)
def test_file_and_variable_say_every_setting_alike(key: str, monkeypatch) -> None:
    in_file, in_variable, value = EVERYTHING[key]
    default = getattr(load_settings(), key)
    write(**{key: in_file})
    assert getattr(load_settings(), key) == value != default
    Path("cluster.yaml").unlink()
    monkeypatch.setenv(variable_of(key), in_variable)
    assert getattr(load_settings(), key) == value


def test_environment_goes_before_file_and_option_before_both(monkeypatch) -> None:
    write(queue="file", namespace="file", image="file")
    monkeypatch.setenv("RGLCD_NAMESPACE", "environment")
    monkeypatch.setenv("RGLCD_IMAGE", "environment")
    settings = load_settings(image="option")
    assert (settings.queue, settings.namespace, settings.image) == ("file", "environment", "option")


def test_empty_variable_says_nothing(monkeypatch) -> None:
    write(queue="file")
    monkeypatch.setenv("RGLCD_QUEUE", "")
    assert load_settings().queue == "file"


@pytest.mark.parametrize("text", [None, "", "# nothing said\n"])
def test_without_a_file_or_a_word_in_it_all_is_default(text: str | None) -> None:
    if text is not None:
        Path("cluster.yaml").write_text(text)
    assert load_settings().model_fields_set == set()


def test_variables_of_settings_are_read_back_as_the_same_settings(monkeypatch) -> None:
    write(**{key: in_file for key, (in_file, _, _) in EVERYTHING.items()})
    settings = load_settings()
    Path("cluster.yaml").unlink()
    for variable, value in settings.as_variables().items():
        monkeypatch.setenv(variable, value)
    assert load_settings() == settings


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quue: x", "cluster.yaml: unknown key quue (did you mean 'queue'?)"),
        ("zzz: x", "cluster.yaml: unknown key zzz"),
        ("queue: 3", "cluster.yaml: queue is 3; it should be a valid string"),
        ("queue: ", "cluster.yaml: queue is None; it should be a valid string"),
        ("num_nodes: true", "cluster.yaml: num_nodes is True; it is a whole number from 1 on"),
        ("failures: 1.5", "cluster.yaml: failures is 1.5; it is a whole number from 1 on"),
        ("num_nodes: 0", "cluster.yaml: num_nodes is 0; it is a whole number from 1 on"),
        ("cache_gib: .inf", "cluster.yaml: cache_gib is inf; it should be a finite number"),
        ("cache_gib: 0", "cluster.yaml: cache_gib is 0; it should be greater than 0"),
        ("devices: {a: }", "cluster.yaml: devices is {'a': None}; it takes the form name=amount, separated by commas"),
        (
            "node_selector: {spot: true}",
            "cluster.yaml: node_selector is {'spot': True}; 'spot' is True to YAML, and no text: put it in quotes",
        ),
        (
            "variables: {VERSION: 1.10}",
            "cluster.yaml: variables is {'VERSION': 1.1}; 'VERSION' is 1.1 to YAML, and no text: put it in quotes",
        ),
        ("gpu_label: a=", "cluster.yaml: gpu_label is 'a='; it takes the form label=value, or label for any value"),
        ("tolerations: [a=b:Never]", "cluster.yaml: tolerations is 'a=b:Never'; 'a=b:Never' does not take the form key=value:Effect"),
        ("secrets: [HF_TOKEN]", "cluster.yaml: secrets is 'HF_TOKEN'; 'HF_TOKEN' does not take the form secret/KEY"),
        ("failures: -1", "cluster.yaml: failures is -1; it is a whole number from 1 on"),
        ("- 3", "cluster.yaml must be a mapping of settings, not [3]"),
        (": [", "cluster.yaml is not YAML: "),
        ("namespace: a\nqueue: q\nnamespace: b\n", "cluster.yaml: 'namespace' is there twice, in lines 1 and 3: leave one out"),
        ('variables: {A: "x\\ud800"}', "cluster.yaml: variables: A: 'x\\ud800' is no text: \\ud800 is half of a surrogate pair"),
    ],
)
def test_wrong_file_is_refused_with_key_and_value(text: str, message: str) -> None:
    Path("cluster.yaml").write_text(text)
    with pytest.raises(InputError) as refused:
        load_settings()
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("RGLCD_NUM_NODES", "none", "RGLCD_NUM_NODES is 'none'; it is a whole number from 1 on"),
        ("RGLCD_NUM_PROCESSES", "1.0", "RGLCD_NUM_PROCESSES is '1.0'; it is a whole number from 1 on"),
        ("RGLCD_QUEUE_SECONDS", "0", "RGLCD_QUEUE_SECONDS is '0'; it is a whole number from 1 on"),
        ("RGLCD_COLLECTIVE_TIMEOUT", "0", "RGLCD_COLLECTIVE_TIMEOUT is '0'; it is a whole number from 1 on"),
        ("RGLCD_STORE_CLAIM", "claim", "RGLCD_STORE_CLAIM is 'claim'; it takes the form claim=/path"),
        ("RGLCD_STORE_CLAIM", "claim=relative", "RGLCD_STORE_CLAIM is 'claim=relative'; it takes the form claim=/path"),
        ("RGLCD_STORE", "bucket", "RGLCD_STORE is 'bucket'; it is a URL such as s3://bucket/prefix"),
        ("RGLCD_ACCELERATORS", "imagined", "RGLCD_ACCELERATORS is 'imagined'; it is one of: real, simulated"),
        ("RGLCD_RUNTIME", "slurm", "RGLCD_RUNTIME is 'slurm'; it is one of: inline, torchx:local_cwd, torchx:kubernetes"),
        ("RGLCD_DEVICES", "vpc.amazonaws.com/efa", "RGLCD_DEVICES is 'vpc.amazonaws.com/efa'; it takes the form name=amount"),
        ("RGLCD_VARIABLES", '{"A": "\\udfff"}', "RGLCD_VARIABLES: A: '\\udfff' is no text: \\udfff is half of a surrogate pair"),
        ("RGLCD_DEVICES", "=4", "RGLCD_DEVICES is '=4'; it takes the form name=amount"),
        ("RGLCD_PATIENCE", "60", "RGLCD_PATIENCE has another name now: RGLCD_COLLECTIVE_TIMEOUT"),
    ],
)
def test_wrong_variable_is_refused_by_its_name(monkeypatch, variable: str, value: str, message: str) -> None:
    write(**{key: in_file for key, (in_file, _, _) in EVERYTHING.items()})
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError) as refused:
        load_settings()
    assert str(refused.value).startswith(message)


# --- a job's placement ---------------------------------------------------------------------------


def test_placement_without_settings_is_the_default_one() -> None:
    placement = placement_of(load_settings(image=IMAGE), stage=DISTILL, request={})
    expected = Placement(run=placement.run, image=IMAGE, processes_per_node=8, provenance={"image": "sha256:" + "a" * 64})
    assert placement == expected


def test_placement_takes_every_setting_of_a_job(monkeypatch) -> None:
    write(**{key: in_file for key, (in_file, _, _) in EVERYTHING.items()})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert placement_of(load_settings(), stage=DISTILL, request={}) == Placement(
        run="r1",
        image=IMAGE,
        namespace="elsewhere",
        queue="research",
        service_account="somebody",
        gpu_label="nvidia.com/gpu.family=hopper",
        any_gpu_label="cloud.google.com/gke-accelerator",
        pool=Pool(gpus=4, gpu_resource="nvidia.com/mig-3g.40gb", cpus=32, memory_gib=200, disk_gib=90),
        cpu_stages=CpuStages.ANYWHERE,
        node_selector={"cloud.google.com/gke-spot": "true"},
        tolerations=("spot=true:NoSchedule", "x"),
        cpu_node_selector={"pool": "cpu"},
        cpu_tolerations=("batch:NoExecute",),
        pull_secrets=("registry",),
        priority="gold",
        secrets=("hub/HF_TOKEN",),
        num_nodes=2,
        processes_per_node=4,
        store=("/mnt/x", "claim"),
        object_store="s3://bucket/run",
        queue_seconds=10,
        start_seconds=15,
        run_seconds=20,
        grace_seconds=60,
        collective_timeout_seconds=90,
        num_failures=7,
        devices={"vpc.amazonaws.com/efa": "4", "hugepages-2Mi": "5120Mi"},
        rendezvous_port=1234,
        accelerators=Accelerators.SIMULATED,
        earlier_attempts=EarlierAttempts.COUNTED,
        owner=Owner("pod-1", "u-1"),
        provenance={"image": "sha256:" + "a" * 64, "git-commit": "abc", "dvc-lock": "def"},
        environment={
            "NO_PROXY": "a,b=c",
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            "RGLCD_TENSORBOARD": "/store/events",
            "RGLCD_MLFLOW": "https://mlflow.example.org",
            "RGLCD_MLFLOW_EXPERIMENT": "toys",
        },
    )


def test_only_distill_has_several_nodes_and_devices_of_the_network_between_them() -> None:
    write(num_nodes=2, devices={"vpc.amazonaws.com/efa": 4}, image=IMAGE)
    placement = placement_of(load_settings(), stage=EVALUATE, request={})
    assert (placement.num_nodes, placement.devices) == (1, {})


def test_placement_without_an_image_says_where_to_name_it() -> None:
    with pytest.raises(InputError, match=r"name it in RGLCD_IMAGE or as image in cluster\.yaml, by digest"):
        placement_of(load_settings(), stage=DISTILL, request={})


def test_hand_on_of_a_variable_that_is_not_set_is_refused_by_its_name() -> None:
    write(image=IMAGE, hand_on=["HF_TOKNE"])
    with pytest.raises(InputError, match="hand_on names HF_TOKNE, which is not set here"):
        placement_of(load_settings(), stage=DISTILL, request={})


def test_run_id_follows_from_what_the_stage_is_asked() -> None:
    settings = load_settings(image=IMAGE)
    runs = [placement_of(settings, stage=DISTILL, request=request).run for request in ({"a": 1}, {"a": 1}, {"a": 2})]
    assert runs[0] == runs[1] != runs[2]


def test_setting_of_the_file_is_handed_on_like_a_variable() -> None:
    write(image=IMAGE, cache_gib=50, hand_on=["RGLCD_CACHE_GIB"])
    assert placement_of(load_settings(), stage=DISTILL, request={}).environment == {"RGLCD_CACHE_GIB": "50"}


# --- the object store ----------------------------------------------------------------------------


def test_store_settings_of_the_file_are_where_the_store_reads_them() -> None:
    write(store="s3://bucket/run", cache_gib=2)
    with exporting_store(load_settings()):
        assert (store_in_force(), cache_limit()) == ("s3://bucket/run", 2 * 2**30)
    assert store_in_force() is None


def test_stage_runs_with_the_store_of_the_file(tmp_path: Path) -> None:
    write(store="s3://bucket/run", cache="elsewhere", cache_gib=2)
    seen: dict[str, str | None] = {}

    def record(*_: object, **__: object) -> Outcome:
        seen.update({name: os.environ.get(name) for name in ("RGLCD_STORE", "RGLCD_CACHE", "RGLCD_CACHE_GIB")})
        return Outcome(Mock(), tmp_path, was_done=True, seconds=0.0)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("rglcd.launch.execute.run_stage", record)
        execute("shard", sections={}, artifacts={})
    assert seen == {"RGLCD_STORE": "s3://bucket/run", "RGLCD_CACHE": "elsewhere", "RGLCD_CACHE_GIB": "2"}


# --- the command, the example --------------------------------------------------------------------


def test_show_settings_prints_each_value_with_its_origin_and_no_secret(monkeypatch, capsys) -> None:
    write(queue="research", devices={"a/b": 4})
    monkeypatch.setenv("RGLCD_FAILURES", "5")
    monkeypatch.setenv("RGLCD_HAND_ON", "AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert main(["launch", "--show-settings", "--nodes", "3"]) == 0
    printed = capsys.readouterr().out
    assert SECRET not in printed
    origins = {line.partition(":")[0]: line.rpartition("# ")[2] for line in printed.splitlines()}
    assert origins.keys() == ClusterSettings.model_fields.keys()
    said = {
        "queue": "cluster.yaml",
        "devices": "cluster.yaml",
        "failures": "RGLCD_FAILURES",
        "hand_on": "RGLCD_HAND_ON",
        "num_nodes": "option",
    }
    assert {key: origin for key, origin in origins.items() if origin != "default"} == said
    values = yaml.safe_load(printed)
    assert (values["queue"], values["failures"], values["num_nodes"]) == ("research", 5, 3)


def test_what_show_settings_prints_is_a_cluster_yaml(capsys) -> None:
    main(["launch", "--show-settings"])
    Path("cluster.yaml").write_text(capsys.readouterr().out)
    assert load_settings().model_dump(exclude={"store_claim"}) == ClusterSettings.model_construct().model_dump(exclude={"store_claim"})


def test_example_names_every_setting_with_its_default() -> None:
    lines = (ROOT / "manifests" / "cluster.example.yaml").read_text().splitlines()
    said = [line.removeprefix("# ") for line in lines if line.removeprefix("# ").partition(":")[0] in ClusterSettings.model_fields]
    Path("cluster.yaml").write_text("\n".join(said))
    settings = load_settings()
    assert settings.model_fields_set == ClusterSettings.model_fields.keys()
    assert settings.model_dump() == ClusterSettings.model_construct().model_dump()


def job(capsys, *words: str) -> dict[str, Any]:
    Path("params.yaml").write_text(dump(load_preset("micro")))
    assert main(["launch", "distill", "--dry-run", *words]) == 0
    rendered: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return rendered


def test_settings_of_the_file_reach_the_volcano_job(capsys) -> None:
    write(
        image=IMAGE,
        queue="research",
        namespace="elsewhere",
        gpu_label="nvidia.com/gpu.product=H100",
        store_claim="mine=/mnt/x",
        store="s3://bucket/run",
        grace_seconds=77,
        run_seconds=88,
        collective_timeout=99,
    )
    rendered = job(capsys)
    assert (rendered["metadata"]["namespace"], rendered["spec"]["queue"]) == ("elsewhere", "research")
    pod = rendered["spec"]["tasks"][0]["template"]["spec"]
    assert (pod["terminationGracePeriodSeconds"], pod["activeDeadlineSeconds"]) == (77, 88)
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": "nvidia.com/gpu.product", "operator": "In", "values": ["H100"]}]
    (container,) = pod["containers"]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert (variables["RGLCD_STORE"], variables["RGLCD_COLLECTIVE_TIMEOUT"]) == ("s3://bucket/run", "99")
    assert container["image"] == IMAGE
    assert "latents=/mnt/x/latents" in container["command"]
    assert {"name": "store", "persistentVolumeClaim": {"claimName": "mine"}} in pod["volumes"]


def test_options_of_launch_go_before_the_file(capsys) -> None:
    write(image="file", store_claim="mine=/mnt/x", num_nodes=4)
    rendered = job(capsys, "--image", IMAGE, "--store", "/elsewhere", "--nodes", "2")
    pod = rendered["spec"]["tasks"][0]["template"]["spec"]
    assert pod["containers"][0]["image"] == IMAGE
    assert rendered["spec"]["minAvailable"] == 2
    assert {"name": "store", "mountPath": "/elsewhere"} in pod["containers"][0]["volumeMounts"]
    assert {"name": "store", "persistentVolumeClaim": {"claimName": "mine"}} in pod["volumes"]


def test_variable_goes_before_the_locked_image(capsys, monkeypatch) -> None:
    Path("images").mkdir()
    Path("images/lock.yaml").write_text("train: locked@sha256:1\n")
    monkeypatch.setenv("RGLCD_IMAGE", IMAGE)
    assert job(capsys)["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["image"] == IMAGE


@pytest.mark.parametrize("store", ["", "artifacts"])
def test_a_store_that_pods_cannot_have_is_refused_by_its_option(capsys, store: str) -> None:
    """It was the variable RGLCD_STORE_CLAIM that was blamed, which nobody had set."""
    with pytest.raises(SystemExit) as ended:
        main(["launch", "distill", "--store", store, "--dry-run"])
    assert ended.value.code == 2
    assert f"--store {store!r} is neither a URL nor a folder of the pods" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["", "data"])
def test_a_source_that_pods_cannot_have_is_refused_by_its_option(capsys, source: str) -> None:
    Path("params.yaml").write_text(dump(load_preset("micro")))
    with pytest.raises(SystemExit) as ended:
        main(["launch", "shard", "--image", IMAGE, "--source", source, "--dry-run"])
    assert ended.value.code == 2
    assert f"--source {source!r} is neither a URL nor a folder of the pods" in capsys.readouterr().err


def test_launch_without_a_stage_is_refused(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["launch", "--dry-run"])
    assert ended.value.code == 2
    assert "required: STAGE" in capsys.readouterr().err


def test_a_wrong_file_is_one_line_of_the_command(checkout: Path) -> None:
    Path("cluster.yaml").write_text("quue: x")
    ran = subprocess.run(
        [sys.executable, "-m", "rglcd", "run", "shard", "--sections", "{}", "--artifact", "source=."], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (2, "rglcd: cluster.yaml: unknown key quue (did you mean 'queue'?)\n")
