"""The command line: every verb explains itself without torch, and a wrong word is one line and exit code 2."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rglcd.cli import main
from rglcd.config import dump, load_params, load_preset, preset_names
from rglcd.stages.table import STAGES
from tests.object_store import put_folder
from tests.tiny_flows import write_tiny_sd3
from tests.tiny_line import tiny_config, up_to_latents, write_tiny_evaluation_data, write_tiny_project

HELP = f"""
import sys
for name in {("torch", "diffusers", "transformers", "safetensors", "webdataset", "numpy", "PIL", "torchx", "kfp", "dvc")!r}:
    sys.modules[name] = None  # importing it now raises
from rglcd.cli import main
for words in sys.argv[1:]:
    try:
        main([*words.split(), "--help"])
    except SystemExit as ended:
        assert not ended.code, words
"""
VERBS = [
    "run",
    "config",
    "config use",
    "config set",
    "config show",
    "data",
    "data use",
    "data prompts",
    "data coco",
    "export-images",
    "dvc",
    "dvc render",
    "adopt",
    "toy",
    "toy data",
    "toy build",
    "show",
    "runs",
    "clean",
    "draw",
    "compare",
    "ab",
    "ab build",
    "ab serve",
    "ab export",
    "ab simulate",
    "ab score",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test stands in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("rglcd: ")
    return line


def test_help_of_every_verb_needs_no_torch() -> None:
    ran = subprocess.run([sys.executable, "-c", HELP, "", *VERBS], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("usage: rglcd") == 1 + len(VERBS)
    assert all(stage.summary in ran.stdout for stage in STAGES)
    assert all(f" {code} " in ran.stdout.partition("exit codes:")[2].partition("usage:")[0] for code in (0, 2, 3, 70, 75))


def test_python_m_rglcd_is_the_command(elsewhere: Path) -> None:
    """Through a real process: exit code, one line, no traceback."""
    ran = subprocess.run([sys.executable, "-m", "rglcd", "run", "shrad"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert "'shrad'" in line
    assert "shard" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "shrad"], "invalid choice: 'shrad'"),
        (["run"], "required: STAGE"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "required: VERB"),
        (["run", "shard", "--wings"], "unrecognized arguments: --wings"),
        (["run", "shard", "--stage-version", "one"], "invalid int value: 'one'"),
        (["run", "shard"], "params.yaml is missing; write it with: rglcd config use toy"),
        (["run", "shard", "--stage-version", "99"], "not 99: run `rglcd dvc render`"),
        (["run", "shard", "--sections", "{"], "--sections is not JSON"),
        (["run", "shard", "--sections", "[]"], "--sections must be a JSON object"),
        (["run", "shard", "--sections", "{}", "--artifact", "source=."], "section 'sharding' is missing"),
        (["run", "shard", "--sections", '{"sharding": 3}', "--artifact", "source=."], "section sharding must be a mapping, not 3"),
        (["run", "shard", "--sections", '{"sharding": {"parst": 1}}', "--artifact", "source=."], "did you mean 'parts'"),
        (["run", "shard", "--sections", '{"sharding": {}}'], "shard reads source: say which folder it is in"),
        (["run", "all", "--sections", "{}"], "--sections goes with one stage, not with all"),
        (["run", "shard", "--artifact", "shards"], "--artifact takes name=folder, not 'shards'"),
        (["run", "shard", "--artifact", "shards="], "--artifact takes name=folder, not 'shards='"),
        (["run", "shard", "--artifact", "shrads=here"], "there is no artifact 'shrads'; there are: source, shards"),
        (["config", "use", "toi"], "unknown preset 'toi' (did you mean 'toy'?)"),
        (["config", "show", "toy", "--set", "nonsense"], "--set takes section.key=value, not 'nonsense'"),
        (["config", "show", "toy", "--set", "reward.weight=["], "--set reward.weight=[ is not YAML: while parsing"),
        (["config", "show", "toy", "--set", "reward.wieght=1"], "unknown key reward.wieght (did you mean 'weight'?)"),
        (["config", "show"], "params.yaml is missing"),
        (["dvc", "render"], "params.yaml is missing"),
        (["show"], "make it with: rglcd run evaluate"),
    ],
)
def test_wrong_argument_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert said in refusal(capsys, *words)


@pytest.mark.parametrize("name", preset_names())
def test_config_show_takes_a_preset_by_name_too(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--preset", name]) == 0
    assert capsys.readouterr().out == dump(load_preset(name))


def test_config_show_prints_yaml_equal_to_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "toy"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == load_preset("toy").model_dump(mode="json")


def test_config_use_writes_both_files_and_show_prints_what_is_in_force(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    assert main(["config", "use", "micro", "--set", "distillation.seed=7"]) == 0
    assert {path.name for path in elsewhere.iterdir()} == {"params.yaml", "dvc.yaml"}
    config = load_params(Path("params.yaml"))
    assert config == load_preset("micro", overrides=["distillation.seed=7"])
    assert set(yaml.safe_load(Path("dvc.yaml").read_text())["stages"]) >= {"shard", "prepare", "cache", "pretrain", "distill", "evaluate"}
    capsys.readouterr()
    assert main(["config", "show"]) == 0
    assert capsys.readouterr().out == dump(config)


def test_a_preset_that_is_refused_leaves_the_files_as_they_are(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    main(["config", "use", "micro"])
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    capsys.readouterr()
    refusal(capsys, "config", "use", "toy", "--set", "reward.weight=-1")
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before


def test_pretrain_does_not_run_without_a_latent_reward(capsys: pytest.CaptureFixture[str]) -> None:
    main(["config", "use", "micro", "--set", "reward={kind: none}", "--set", "distillation.arms=[lcm]"])
    capsys.readouterr()
    assert "pretrain does not run with reward.kind none" in refusal(capsys, "run", "pretrain")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    up_to_latents(root, tiny_config())
    return root


def test_run_reports_what_it_did_and_does_it_once(capsys: pytest.CaptureFixture[str], line: Path, elsewhere: Path) -> None:
    Path("params.yaml").write_text(dump(tiny_config()))
    shutil.copytree(line / "data", "data")
    assert main(["run", "shard"]) == 0
    first = capsys.readouterr()
    manifest = json.loads(Path("artifacts/shards/manifest.json").read_text())
    assert first.out.startswith("shard: done in ")
    assert first.out.endswith(f"artifacts/shards {manifest['digest'][:12]}\n")
    assert "pack shards: 12/12 rows" in first.err
    assert main(["run", "shard"]) == 0
    assert capsys.readouterr().out.startswith("shard: nothing to do; artifacts/shards")


def test_sections_option_gives_the_same_result_as_params_yaml(capsys: pytest.CaptureFixture[str], line: Path, elsewhere: Path) -> None:
    sections = json.dumps({"sharding": tiny_config().sharding.model_dump(mode="json")})
    words = ["--sections", sections, "--artifact", f"source={line / 'data'}", "--artifact", "shards=here"]
    assert main(["run", "shard", *words]) == 0
    made, known = (json.loads((folder / "manifest.json").read_text()) for folder in (Path("here"), line / "shards"))
    assert (made["key"], made["digest"]) == (known["key"], known["digest"])


def test_run_all_stops_at_a_failed_stage(capsys: pytest.CaptureFixture[str], line: Path, elsewhere: Path) -> None:
    Path("params.yaml").write_text(dump(tiny_config()))
    shutil.copytree(line / "data", "data")
    write_tiny_evaluation_data(Path("data"))
    Path("nowhere").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["run", "all"])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out.startswith("shard: done")
    assert said.err.splitlines()[-1].startswith("rglcd: ")
    assert {path.name for path in Path("artifacts").glob("[!.]*")} == {"shards"}


NO_OMEGA = "rglcd: distillation.student: a network of Stable Diffusion 3 has no input for omega that a UNet's student gets"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), NO_OMEGA),
        (
            ("distillation.student={kind: same_inputs}", "distillation.dropout=0.1"),
            "rglcd: distillation.dropout 0.1: a SD3Transformer2DModel has no residual blocks",
        ),
        (("distillation.arms={a: {distillation.student: {kind: lora, targets: [conv1]}}}",), "rglcd: student.targets names conv1"),
    ],
)
def test_a_student_that_the_teacher_cannot_have_is_refused_before_the_first_stage(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, overrides: tuple[str, ...], said: str
) -> None:
    write_tiny_project(elsewhere, *overrides, teacher=write_tiny_sd3)
    assert refusal(capsys, "run", "all").startswith(said)
    assert not list(Path("artifacts").glob("[!.]*"))


def test_a_teacher_that_is_fetched_is_asked_for_the_student_before_anything_is_encoded(
    capsys: pytest.CaptureFixture[str], elsewhere: Path, bucket: str
) -> None:
    write_tiny_project(elsewhere, teacher=write_tiny_sd3)
    put_folder(elsewhere / "models" / "teacher", f"{bucket}/teacher")
    with pytest.raises(SystemExit) as ended:
        main(["run", "all", "--set", f"model.teacher={bucket}/teacher"])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert [line.partition(":")[0] for line in said.out.splitlines()] == ["shard", "prepare"]
    assert said.err.splitlines()[-1].startswith(NO_OMEGA)
