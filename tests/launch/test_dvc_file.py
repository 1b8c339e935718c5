"""``dvc.yaml`` says what the table says, and a run made through another interface leaves DVC nothing to do."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from rglcd.config import Config, dump, load_preset
from rglcd.errors import InputError
from rglcd.launch.dvc_file import adopt, render
from rglcd.stages.computation import digest_of_parts, source_digest, stage_key
from rglcd.stages.outside import outside_digests
from rglcd.stages.table import SOURCE, WHOLE, Stage, inputs_of, parts_read, stages_of
from rglcd.store.manifest import Manifest, read_manifest, results_digest, scan, write_manifest

WITH_LRM = load_preset("toy", overrides=["reward={kind: latent}"])
WITHOUT_LRM = load_preset("toy", overrides=["reward={kind: none}"])


@pytest.mark.parametrize("config", [WITH_LRM, WITHOUT_LRM], ids=["latent", "none"])
def test_dvc_stage_holds_inputs_outputs_and_sections_of_the_table(config: Config) -> None:
    written = yaml.safe_load(render(config))["stages"]
    assert list(written) == [stage.name for stage in stages_of(config)]
    for stage in stages_of(config):
        entry = written[stage.name]
        assert entry["cmd"] == f"rglcd run {stage.name} --stage-version {stage.version}"
        expected = []
        for name in inputs_of(stage, config):
            folder = "data" if name == SOURCE else f"artifacts/{name}"
            # Ready-made shards stand in place of an index: where no data is at hand, an index is taken to be.
            expected += [str(Path(folder) / part) for part in parts_read(stage, config)[name] if part != "shards.json"]
        assert entry.get("deps", []) == expected
        assert entry["params"] == list(stage.keyed)
        assert entry["outs"] == [{f"artifacts/{name}": {"persist": True}} for name in stage.outputs]


def test_dvc_depends_on_what_the_source_has_of_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shards.json").touch()
    (tmp_path / "data" / "notes.txt").touch()
    entry = yaml.safe_load(render(WITH_LRM, source=tmp_path / "data"))["stages"]["shard"]
    assert entry["deps"] == ["data/shards.json"]


def test_dvc_file_of_toy_is_the_golden_one(check_golden) -> None:
    check_golden("dvc-toy.yaml", render(WITH_LRM))


# --- adopt: a git and DVC repository with artifacts as a finished run leaves them ------------------


def finish(stage: Stage, config: Config, root: Path) -> None:
    """Leave ``stage``'s artifact as a run of it does: a result, and a manifest with the key of the computation."""
    (output,) = stage.outputs
    folder = root / "artifacts" / output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.bin").write_text(f"{stage.name} {config.distillation.num_steps}")
    for reader in stages_of(config):  # something of each part that is read of it
        for part in parts_read(reader, config).get(output, WHOLE):
            place = folder / part if "." in part else folder / part / "weights"
            if part != ".":
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(part)
    if output == "report":
        (folder / "metrics").mkdir(exist_ok=True)
        (folder / "metrics" / "rg-2.json").write_text('{"judge": 0.9}')
        (folder / "quality.csv").write_text("steps,rg judge,lcm judge\n1,.2,.1\n2,.3,.2\n")
    made_from = {
        name: source_digest(root / "data", parts, memory=root / ".seen")
        if name == SOURCE
        else digest_of_parts(read_manifest(root / "artifacts" / name, made_by=""), parts, where=root)
        for name, parts in parts_read(stage, config).items()
        if name in inputs_of(stage, config)
    }
    sections = {name: config.section(name) for name in stage.sections}
    key = stage_key(stage, sections, made_from | outside_digests(sections, published=folder))
    files = scan(folder)
    write_manifest(folder, Manifest(output, stage.name, stage.version, key, results_digest(files), made_from, {}, files))


def configure(root: Path, config: Config) -> None:
    (root / "params.yaml").write_text(dump(config))
    (root / "dvc.yaml").write_text(render(config))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # local model folders are looked for from where one is
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "data").mkdir()
    for name in ("images/0.png", "prompts/heldout.txt", "reference/index.tsv"):
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    (tmp_path / "data" / "index.tsv").write_text("images/0.png\ta caption\n")
    with Repo.init(str(tmp_path)) as repo:
        repo.add(str(tmp_path / "data"))
    configure(tmp_path, WITH_LRM)
    for stage in stages_of(WITH_LRM):
        finish(stage, WITH_LRM, tmp_path)
    return tmp_path


def test_after_adopting_dvc_has_nothing_to_do(checkout: Path, monkeypatch) -> None:
    monkeypatch.chdir(checkout)
    with Repo(str(checkout)) as repo:
        assert repo.status()
    assert adopt(WITH_LRM, checkout) == [stage.name for stage in stages_of(WITH_LRM)]
    with Repo(str(checkout)) as repo:
        assert repo.status() == {}
        assert repo.reproduce() == []  # nothing ran
        (metrics,) = repo.metrics.show()[""]["data"].values()
        assert metrics["data"] == {"judge": 0.9}
    locked = yaml.safe_load((checkout / "dvc.lock").read_text())["stages"]
    assert set(locked) == {stage.name for stage in stages_of(WITH_LRM)}
    assert locked["distill"]["params"]["params.yaml"]["distillation"] == WITH_LRM.distillation.model_dump(mode="json")


def test_after_adopting_a_changed_section_re_runs_its_readers_only(checkout: Path, monkeypatch) -> None:
    monkeypatch.chdir(checkout)  # DVC names stages from where it is
    adopt(WITH_LRM, checkout)
    configure(checkout, load_preset("toy", overrides=["reward={kind: latent}", "evaluation.seed=1"]))
    with Repo(str(checkout)) as repo:
        assert list(repo.status()) == ["evaluate"]


def test_dvc_plots_are_read_from_the_report(checkout: Path) -> None:
    adopt(WITH_LRM, checkout)
    with Repo(str(checkout)) as repo:
        shown = repo.plots.show()
        read = shown["workspace"]["sources"]["data"]
    assert set(shown["workspace"]["definitions"]["data"]["dvc.yaml"]["data"]) >= {"judge by number of steps", "frechet by number of steps"}
    ((name, plot),) = read.items()
    assert name.endswith("quality.csv")
    assert [row["rg judge"] for row in plot["data"]] == [".2", ".3"]


def test_after_adopting_one_more_prompt_re_runs_the_evaluation_only(checkout: Path, monkeypatch) -> None:
    monkeypatch.chdir(checkout)
    adopt(WITH_LRM, checkout)
    (checkout / "data" / "prompts" / "heldout.txt").write_text("one more")
    with Repo(str(checkout)) as repo:
        assert list(repo.status()) == ["data.dvc", "evaluate"]


def test_after_adopting_another_scorer_in_pretrained_re_runs_no_reader_of_the_others(checkout: Path, monkeypatch) -> None:
    monkeypatch.chdir(checkout)
    adopt(WITH_LRM, checkout)
    (checkout / "artifacts" / "pretrained" / "scorers" / "another").mkdir()
    (checkout / "artifacts" / "pretrained" / "scorers" / "another" / "weights").write_text("another")
    with Repo(str(checkout)) as repo:
        assert list(repo.status()) == ["prepare"]  # whose result it is


def test_an_unfinished_stage_is_named_and_nothing_is_recorded(checkout: Path) -> None:
    (checkout / "artifacts" / "latents" / "manifest.json").unlink()
    with pytest.raises(InputError, match="rglcd run cache"):
        adopt(WITH_LRM, checkout)
    assert not (checkout / "dvc.lock").exists()


def test_a_stage_done_with_other_parameters_is_named(checkout: Path) -> None:
    other = load_preset("toy", overrides=["reward={kind: latent}", "distillation.num_steps=7"])
    configure(checkout, other)
    with pytest.raises(InputError, match=r"stage distill: .* made with other parameters"):
        adopt(other, checkout)


def test_a_stage_done_from_another_source_is_named(checkout: Path) -> None:
    (checkout / "data" / "index.tsv").write_text("images/0.png\tanother caption\n")
    with pytest.raises(InputError, match="stage shard"):
        adopt(WITH_LRM, checkout)


@pytest.mark.parametrize(("name", "remedy"), [("dvc.yaml", "rglcd dvc render"), ("params.yaml", "rglcd config use toy")])
def test_stale_dvc_file_is_named_with_its_remedy(checkout: Path, name: str, remedy: str) -> None:
    (checkout / name).write_text("stages: {}\n")
    with pytest.raises(InputError, match=remedy):
        adopt(WITH_LRM, checkout)


def test_redrawn_source_is_adopted_and_another_one_refused(checkout: Path, monkeypatch) -> None:
    monkeypatch.chdir(checkout)
    recorded = (checkout / "data.dvc").read_text()
    shutil.rmtree(checkout / ".dvc" / "cache")
    adopt(WITH_LRM, checkout)
    assert (checkout / "data.dvc").read_text() == recorded
    with Repo(str(checkout)) as repo:
        assert repo.status() == {}
    (checkout / "data" / "index.tsv").write_text("images/0.png\tanother caption\n")
    for stage in stages_of(WITH_LRM):
        finish(stage, WITH_LRM, checkout)
    with pytest.raises(InputError, match=r"data is modified: not what data\.dvc versions"):
        adopt(WITH_LRM, checkout)
