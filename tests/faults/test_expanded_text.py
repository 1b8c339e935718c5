"""F15: what shells and templates would expand, in every text that a configuration takes, on its way through each launcher."""

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from pipelines.rg_lcd import arguments, compile_pipeline
from rglcd.cli import main
from rglcd.config import SECTIONS, Config, dump, load_params
from rglcd.errors import InputError
from rglcd.launch.dvc_file import write_dvc_file
from rglcd.launch.settings import load_settings
from rglcd.stages.table import stage_named
from tests.cluster.pod_process import expanded
from tests.evaluation.test_pages import Reader, rendered
from tests.faults.rounds import Trial
from tests.launch.conftest import IMAGE
from tests.tiny_line import tiny_config

_STRINGS = 10
_PIECES = (
    *("'; $(touch canary) #", "`touch canary`", "| touch canary", "&& touch canary", "$IFS", "~", "*", "%s"),
    *("${app_id}", "${img_root}", "${rank0_env}", "$${x}", "$(HOME)", "$$(HOME)", "$(RGLCD_POD_IP)", "$(inputs.x)"),
    *("{{workflow.name}}", "{{inputs.parameters.x}}", "{{$.inputs.parameters['x']}}", "{{ x }}", "{% x %}"),
    *("${distillation.seed}", "${item}", "\\${a}", "\\", '"', "'", "\n", "\t", "--flag", ": ", " #", "&a", "*a", "!!python/name:os.system"),
    *("null", "1e3", "<script>x</script>", "&amp;", "</td>", "é", "\u202e", "\u2028", "😀", "../", "\x7f"),
)


def hostile(rng: random.Random) -> str:
    return "".join(rng.choice(_PIECES) for _ in range(rng.randint(1, 4)))


def config_with(texts: list[str]) -> Config:
    """Each of ``texts`` where a configuration takes any: file names of the source, and folders of models."""
    prompts, reference, teacher, features, *others = texts
    scorers = {"expert": {"kind": "clip", "source": {"uri": "./nowhere"}}}
    scorers |= {f"s{number}": {"kind": "clip", "source": {"uri": f"./{text}"}} for number, text in enumerate(others)}
    given = {
        "evaluation.prompts": prompts,
        "evaluation.reference": f"{reference}/index.tsv",
        "model.teacher.uri": f"./{teacher}",
        "preparation.features.source.uri": f"./{features}",
        "preparation.scorers": scorers,
    }
    return tiny_config(*(f"{key}={in_yaml(value)}" for key, value in given.items()))


def in_yaml(value: Any) -> str:
    """``value`` in one line, as ``--set`` takes it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


@pytest.mark.fault(
    "F15",
    fault="ten strings of shell commands, TorchX's, Kubernetes', Argo's, DVC's, YAML's and HTML's own signs, as names of files and models "
    "and as captions",
    must="params.yaml, the pods' command as Kubernetes expands it, the pipeline's defaults, DVC's stages and the report's page hold each "
    "as it was; what Argo would expand is refused by its key; no command runs",
    unit="tens of strings",
    num_rounds=50,
    sample=(0,),
)
def test_text_comes_through_each_launcher_as_it_was(trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    rng = trial.rng()
    texts = [hostile(rng) for _ in range(_STRINGS)]
    config = config_with(texts)
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(dump(config), encoding="utf-8")
    assert load_params(Path("params.yaml")) == config
    for stage in ("prepare", "evaluate"):
        _check_command(stage, config, capsys)
    refused = _check_pipeline(config, tmp_path)
    _check_dvc(config, tmp_path)
    page = Reader(rendered(texts)).text
    assert [text for text in texts if text not in page] == []
    assert not Path("canary").exists()
    trial.record(f"{texts[0]!r} and nine more: as they were everywhere{', but for Argo, which would have expanded one' if refused else ''}")


def _check_command(stage: str, config: Config, capsys) -> None:
    """The pod's command, as ``rglcd launch --dry-run`` prints it and Kubernetes expands it, says what the configuration says."""
    capsys.readouterr()
    assert main(["launch", stage, "--dry-run", "--image", IMAGE, "--run", "r"]) == 0
    (container,) = yaml.safe_load(capsys.readouterr().out)["spec"]["tasks"][0]["template"]["spec"]["containers"]
    variables = {**os.environ, **{entry["name"]: entry.get("value", "its value") for entry in container["env"]}}
    words = [expanded(word, variables) for word in (*container["command"], *container.get("args", []))]
    sections = json.loads(words[words.index("--sections") + 1])
    assert sections == {name: config.section(name).model_dump(mode="json") for name in stage_named(stage).sections}


def _check_pipeline(config: Config, folder: Path) -> bool:
    """The compiled pipeline's defaults are the configuration's; whether a text had to be mended first, which was refused."""
    held = {name: config.section(name).model_dump(mode="json") for name in SECTIONS}
    refused = "{{" in json.dumps(held)
    if refused:
        with pytest.raises(InputError, match=r"Kubeflow's Argo expands '\{\{'"):
            arguments(config, source="/store/data@0", store="/store")
        config = load_params(Path("params.yaml"), overrides=_without_braces(held))
    compile_pipeline(config, folder / "pipeline.yaml", source="/store/data@0", cluster=load_settings())
    spec = next(yaml.safe_load_all((folder / "pipeline.yaml").read_text(encoding="utf-8")))
    defaults = {name: each.get("defaultValue") for name, each in spec["root"]["inputDefinitions"]["parameters"].items()}
    for name, value in arguments(config, source="/store/data@0", store="/store").items():
        assert defaults[name] == value, name
    return refused


def _without_braces(sections: Mapping[str, Any]) -> list[str]:
    changed = {name: json.loads(json.dumps(values).replace("{{", "{ {")) for name, values in sections.items()}
    return [f"{name}={in_yaml(values)}" for name, values in changed.items() if values != sections[name]]


def _check_dvc(config: Config, root: Path) -> None:
    """DVC reads the names that the configuration has, and runs the commands of the table."""
    write_dvc_file(config, root)
    Repo.init(str(root), no_scm=True)
    with Repo(str(root)) as repo:
        stages = {stage.addressing: stage for stage in repo.index.stages}
    assert {name: stage.cmd for name, stage in stages.items()} == {
        name: f"rglcd run {name} --stage-version {stage_named(name).version}" for name in stages
    }
    names = [dependency.def_path for dependency in stages["evaluate"].deps if dependency.def_path.startswith("data/")]
    assert f"data/{Path(config.evaluation.prompts)}" in names
