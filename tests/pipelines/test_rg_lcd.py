"""The pipeline is the stage table: its edges, its parameters, and nothing that the table does not say."""

import json
import random
import re
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
import yaml
from kfp.compiler import Compiler

from components import STEP_IMAGE, TRAIN_IMAGE
from pipelines.__main__ import main
from pipelines.rg_lcd import LAUNCH_SECONDS, STORE, arguments, compile_pipeline, pipeline, source_reference
from rglcd.config import SECTIONS, Config, dump, load_preset, preset_names, validate_section
from rglcd.errors import InputError
from rglcd.launch.placement import Placement
from rglcd.launch.resources import RESOURCES
from rglcd.launch.settings import load_settings
from rglcd.stages.table import SOURCE, STAGES, inputs_of, maker_of, stage_named, stages_of
from tests.cluster.control_plane import free_port
from tests.tiny_flows import write_tiny_sd3
from tests.tiny_line import write_tiny_project

PROXIED = "reward={kind: latent}"
"""With a proxy there is every stage there is."""
MD5 = "0123456789abcdef0123456789abcdef.dir"


def compiled(config: Config, tmp_path: Path) -> tuple[dict, dict]:
    path = tmp_path / "pipeline.yaml"
    compile_pipeline(config, path, source=f"{STORE}/data@{MD5}", cluster=load_settings())
    pipeline, platform = yaml.safe_load_all(path.read_text())
    return pipeline, platform


def tasks_of(ir: dict) -> dict:
    """The stages' tasks: those that the exit handler is around."""
    (name,) = set(ir["root"]["dag"]["tasks"]) - {"end-jobs"}
    return ir["components"][f"comp-{name}"]["dag"]["tasks"]


def test_compiled_toy_is_the_golden_one(check_golden, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    compile_pipeline(load_preset("toy", overrides=[PROXIED]), path, source=f"{STORE}/data@{MD5}", cluster=load_settings())
    # Kubeflow's comment at the head lists the inputs in whatever order protobuf has them.
    check_golden("pipeline-toy.yaml", "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#")))


@pytest.mark.parametrize("overrides", [[PROXIED], ["reward={kind: none}"], ["reward={kind: pixel}"]], ids=["latent", "none", "pixel"])
def test_edges_of_the_pipeline_are_those_of_the_stage_table(tmp_path: Path, overrides: list[str]) -> None:
    config = load_preset("toy", overrides=overrides)
    tasks = tasks_of(compiled(config, tmp_path)[0])
    assert set(tasks) == {stage.name for stage in stages_of(config)}
    for stage in stages_of(config):
        read = tasks[stage.name]["inputs"].get("artifacts", {})
        edges = {
            name: (edge["taskOutputArtifact"]["producerTask"], edge["taskOutputArtifact"]["outputArtifactKey"])
            for name, edge in read.items()
        }
        assert edges == {name: (maker_of(name).name, name) for name in inputs_of(stage, config) if name != SOURCE}
        parameters = tasks[stage.name]["inputs"]["parameters"]
        assert {name: value["componentInputParameter"] for name, value in parameters.items()} == {
            name: f"pipelinechannel--{name}" for name in (*stage.sections, "store", *({SOURCE} & set(stage.inputs)))
        }
        assert not tasks[stage.name]["cachingOptions"].get("enableCache", False)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    return compiled(load_preset("toy", overrides=[PROXIED]), tmp_path_factory.mktemp("ir"))


ALL = [*(stage.name for stage in STAGES), "end-jobs"]


@pytest.mark.parametrize("name", ALL)
class TestEveryTask:
    def container(self, toy: tuple[dict, dict], name: str) -> dict:
        return toy[0]["deploymentSpec"]["executors"][f"exec-{name}"]["container"]

    def platform(self, toy: tuple[dict, dict], name: str) -> dict:
        return toy[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{name}"]

    def test_task_has_resources_and_asks_for_no_gpu_itself(self, toy: tuple[dict, dict], name: str) -> None:
        resources = self.container(toy, name)["resources"]
        assert resources["resourceCpuLimit"] == resources["resourceCpuRequest"]
        assert resources["resourceMemoryLimit"] == resources["resourceMemoryRequest"]
        assert "accelerator" not in resources

    def test_task_runs_without_root_off_the_gpu_nodes_and_has_a_deadline(self, toy: tuple[dict, dict], name: str) -> None:
        platform = self.platform(toy, name)
        assert platform["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}
        (affinity,) = platform["nodeAffinity"]
        assert affinity["matchExpressions"] == [{"key": "nvidia.com/gpu.present", "operator": "DoesNotExist"}]
        assert int(platform["activeDeadlineSeconds"]) > 0
        assert platform["podMetadata"]["labels"] == {"azure.workload.identity/use": "true"}

    def test_only_launching_tasks_run_the_light_image_and_know_their_run(self, toy: tuple[dict, dict], name: str) -> None:
        launches = name == "end-jobs" or RESOURCES[stage_named(name).profile].gpus > 0
        container = self.container(toy, name)
        assert container["image"] == (STEP_IMAGE if launches else TRAIN_IMAGE)
        fields = {field["name"]: field["fieldPath"] for field in self.platform(toy, name).get("fieldPathAsEnv", [])}
        assert fields.get("RGLCD_RUN") == ("metadata.labels['pipeline/runid']" if launches else None)
        assert fields.get("RGLCD_LAUNCHER_UID") == ("metadata.uid" if launches else None)
        variables = {variable["name"]: variable["value"] for variable in container.get("env", [])}
        assert variables.get("RGLCD_RUNTIME") == ("torchx:kubernetes" if launches else None)

    def test_task_whose_pod_is_lost_is_retried(self, toy: tuple[dict, dict], name: str) -> None:
        tasks = tasks_of(toy[0]) | toy[0]["root"]["dag"]["tasks"]
        assert tasks[name]["retryPolicy"]["maxRetryCount"] == 3
        assert not tasks[name]["cachingOptions"].get("enableCache", False)


def test_sharding_has_as_many_workers_as_configured(tmp_path: Path) -> None:
    ir, platform = compiled(load_preset("toy", overrides=["sharding.parts=3"]), tmp_path)
    (name,) = tasks_of(ir)["shard"]["dependentTasks"]
    loop = tasks_of(ir)[name]
    assert json.loads(loop["parameterIterator"]["items"]["raw"]) == [0, 1, 2]
    assert loop["iteratorPolicy"]["parallelismLimit"] == 3
    assert list(ir["components"][f"comp-{name}"]["dag"]["tasks"]) == ["shard-part"]
    worker, stage = (ir["deploymentSpec"]["executors"][f"exec-{task}"]["container"] for task in ("shard-part", "shard"))
    assert worker["resources"] == stage["resources"]
    mounts = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert mounts["exec-shard-part"]["pvcMount"] == mounts["exec-shard"]["pvcMount"]


def test_launching_task_outlives_the_deadlines_of_its_job(toy: tuple[dict, dict]) -> None:
    placement = Placement(run="r", image="i")
    assert placement.queue_seconds + placement.run_seconds < LAUNCH_SECONDS


def test_last_task_runs_however_the_others_ended(toy: tuple[dict, dict]) -> None:
    (name,) = set(toy[0]["root"]["dag"]["tasks"]) - {"end-jobs"}
    last = toy[0]["root"]["dag"]["tasks"]["end-jobs"]
    assert last["dependentTasks"] == [name]
    assert last["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


@pytest.mark.parametrize("preset", preset_names())
def test_sections_survive_the_protobuf_struct(preset: str, tmp_path: Path) -> None:
    """Kubeflow's dicts hold no null and know no integer: what a task receives validates to the very section that was sent."""
    config = load_preset(preset)
    inputs = compiled(config, tmp_path)[0]["root"]["inputDefinitions"]["parameters"]
    for name in SECTIONS:
        assert validate_section(name, inputs[name]["defaultValue"]) == config.section(name)


def test_null_is_the_default_of_every_key_that_takes_it() -> None:
    """Hence leaving nulls out changes nothing."""
    from rglcd import config as module

    sections = [item for item in vars(module).values() if isinstance(item, type) and issubclass(item, module.Section)]
    nullable = [field for section in sections for field in section.model_fields.values() if NoneType in get_args(field.annotation)]
    assert len(nullable) >= 5
    assert all(not field.is_required() and field.default is None for field in nullable)


def test_pipeline_arguments_are_json_values() -> None:
    values = arguments(load_preset("toy"), source="data@x", store="artifacts")
    assert json.loads(json.dumps(values)) == values


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(dump(load_preset("micro")))
    (tmp_path / "data.dvc").write_text(f"outs:\n- md5: {MD5}\n  path: data\n")
    return tmp_path


def test_source_reference_is_what_data_dvc_names(checkout: Path) -> None:
    assert source_reference(checkout) == f"{checkout / 'data'}@{MD5}"
    assert source_reference(checkout, uri="/store/data") == f"/store/data@{MD5}"


@pytest.mark.parametrize("text", [None, "", "outs: []\n", "outs:\n- path: data\n", ": :\n- ["])
def test_source_reference_without_a_md5_is_refused(checkout: Path, text: str | None) -> None:
    (checkout / "data.dvc").unlink()
    if text is not None:
        (checkout / "data.dvc").write_text(text)
    with pytest.raises(InputError, match="dvc add data"):
        source_reference(checkout)


def test_compile_writes_to_a_file_or_stdout(checkout: Path, capsys) -> None:
    main(["compile", "--out", "ir.yaml"])
    main(["compile"])
    written, printed = ((yaml.safe_load_all(text)) for text in ((checkout / "ir.yaml").read_text(), capsys.readouterr().out))
    assert list(printed) == list(written)


def test_compile_makes_the_folder_of_its_file(checkout: Path) -> None:
    main(["compile", "--out", "of/the/team/ir.yaml"])
    assert (checkout / "of" / "the" / "team" / "ir.yaml").is_file()


@pytest.mark.parametrize("store", ["/data/run", "run", "/store/../run", ""])
def test_a_store_that_tasks_do_not_have_is_refused(checkout: Path, capsys, store: str) -> None:
    """What a task writes beside its claim is gone with its pod."""
    for words in (["compile", "--store", store], ["submit", "--host", "http://127.0.0.1:1", "--store", store]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert f"--store {store!r} is neither a URL nor a folder of the claim, which is at /store" in capsys.readouterr().err


def test_a_store_may_be_a_folder_of_the_claim(checkout: Path, capsys) -> None:
    (checkout / "cluster.yaml").write_text("store_claim: mine=/mnt/x\n")
    main(["compile", "--store", "/mnt/x/run"])
    ir = next(yaml.safe_load_all(capsys.readouterr().out))
    assert ir["root"]["inputDefinitions"]["parameters"]["store"]["defaultValue"] == "/mnt/x/run"


def test_artifacts_may_lie_in_an_object_store(checkout: Path, capsys) -> None:
    main(["compile", "--store", "s3://bucket/run"])
    ir, platform = yaml.safe_load_all(capsys.readouterr().out)
    assert ir["root"]["inputDefinitions"]["parameters"]["store"]["defaultValue"] == "s3://bucket/run"
    for name, executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items():
        if name != "exec-end-jobs":
            (keys,) = executor["secretAsEnv"]
            assert (keys["secretName"], keys["optional"]) == ("rglcd-store", True)
            variables = {entry["name"]: entry["value"] for entry in ir["deploymentSpec"]["executors"][name]["container"]["env"]}
            assert variables["RGLCD_CACHE"] == "/store/.cache"


def variables_of(ir: dict, name: str) -> dict[str, str]:
    container = ir["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
    return {entry["name"]: entry["value"] for entry in container["env"]}


def test_settings_of_cluster_yaml_are_in_the_compiled_pipeline(checkout: Path, capsys, monkeypatch) -> None:
    settings = {"queue": "research", "image": "mine@sha256:1", "store_claim": "mine=/mnt/x", "store": "s3://bucket/run", "failures": 5}
    settings |= {"devices": {"vpc.amazonaws.com/efa": 4}, "cache": "/of/this/machine", "run": "mine"}
    (checkout / "cluster.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("RGLCD_FAILURES", "7")  # goes before the file here too
    main(["compile"])
    ir, platform = yaml.safe_load_all(capsys.readouterr().out)
    assert ir["root"]["inputDefinitions"]["parameters"]["store"]["defaultValue"] == "/mnt/x"
    launching = variables_of(ir, "distill")
    assert (launching["RGLCD_QUEUE"], launching["RGLCD_FAILURES"], launching["RGLCD_IMAGE"]) == ("research", "7", "mine@sha256:1")
    assert (launching["RGLCD_STORE"], launching["RGLCD_STORE_CLAIM"]) == ("s3://bucket/run", "mine=/mnt/x")
    assert launching["RGLCD_DEVICES"] == "vpc.amazonaws.com/efa=4"
    assert (launching["RGLCD_CACHE"], "RGLCD_RUN" in launching) == ("/mnt/x/.cache", False)
    assert variables_of(ir, "shard") == {"RGLCD_STORE": "s3://bucket/run", "RGLCD_CACHE": "/mnt/x/.cache"}
    (mount,) = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-distill"]["pvcMount"]
    assert (mount["constant"], mount["mountPath"]) == ("mine", "/mnt/x")


def test_submit_without_a_host_says_what_to_do(checkout: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["submit"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("rglcd: submit needs --host")


def test_submit_to_an_unreachable_host_is_refused(checkout: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RGLCD_IMAGE", "mine@sha256:1")
    with pytest.raises(SystemExit) as ended:
        main(["submit", "--host", f"http://127.0.0.1:{free_port()}"])
    assert ended.value.code == 2
    assert "does not take the run" in capsys.readouterr().err


def test_a_local_run_ends_with_its_stage_s_line_and_exit_code(checkout: Path, capfd) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run"])  # there are neither data nor models, whichever task comes first
    assert ended.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    *progress, line = err.splitlines()
    assert re.match(r"rglcd: .* is missing", line)
    assert all(re.fullmatch(r"[a-z ]+: \d+/\d+ [a-z]+", shown) for shown in progress)
    assert not (checkout / "artifacts" / ".kfp").exists()


def test_crash_of_a_local_run_shows_the_end_of_its_log(checkout: Path, capfd, monkeypatch) -> None:
    # Nothing else is in these: that they are there is looked at before the first stage.
    for name in ("data/index.tsv", "data/prompts/heldout.txt", "data/reference/index.tsv", "artifacts/pretrained/manifest.json"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    (checkout / "data" / "prompts" / "heldout.txt").write_text("a house\n")  # prompts are read there and then
    (checkout / "broken" / "rglcd").mkdir(parents=True)
    (checkout / "broken" / "rglcd" / "__init__.py").write_text("raise MemoryError('of this process')")
    monkeypatch.setenv("PYTHONPATH", str(checkout / "broken"))
    with pytest.raises(SystemExit) as ended:
        main(["run"])
    assert ended.value.code == 1
    lines = capfd.readouterr().err.splitlines()
    assert any("MemoryError: of this process" in line for line in lines)
    assert lines[-1].startswith("rglcd: Pipeline 'rg-lcd' finished with status FAILURE")


def test_hostile_strings_come_out_of_the_compiled_yaml_as_they_went_in(tmp_path: Path) -> None:
    alphabet = [
        "'; $(touch x)",
        "${app_id}",
        "{{workflow.name}}",
        "$(inputs.x)",
        "\n",
        "--flag",
        "\\",
        '"',
        ": ",
        "# ",
        "é😀",
        "\t",
        "- ",
        "%",
        "0",
        "null",
    ]
    draw = random.Random(0)
    strings = ["".join(draw.choices(alphabet, k=draw.randint(1, 6))) for _ in range(500)]
    config = load_preset("toy")
    values = arguments(config, source=f"{STORE}/data@{MD5}", store=STORE)
    values["evaluation"] |= {"prompts": strings}
    path = tmp_path / "hostile.yaml"
    Compiler().compile(pipeline(config, cluster=load_settings()), str(path), pipeline_parameters=values)
    ir = next(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    assert ir["root"]["inputDefinitions"]["parameters"]["evaluation"]["defaultValue"]["prompts"] == strings


def test_a_student_that_the_teacher_cannot_have_starts_no_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_project(tmp_path, "distillation.student={kind: same_inputs}", "distillation.dropout=0.1", teacher=write_tiny_sd3)
    with pytest.raises(SystemExit) as ended:
        main(["run"])
    assert ended.value.code == 2
    assert "distillation.dropout 0.1: a SD3Transformer2DModel has no residual blocks" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"models", "data", "params.yaml"}
