"""The door of the configuration: what it lets in, what it refuses, and in which words."""

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rglcd import recipe
from rglcd.cli import main
from rglcd.config import SECTIONS, NoReward, dump, load_params, load_preset, preset_names, validate_section
from rglcd.config.encodings import known_encoding
from rglcd.config.synonyms import SYNONYMS
from rglcd.errors import InputError
from rglcd.stages.table import stages_of

PROXIED = "reward={kind: latent, weight: 1.4, chunk_size: 32, tuning: {kind: online, learning_rate: 0.0003, label_every: 2}}"
"""The toy's reward through a proxy: the kind with most keys."""


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_resolves_and_survives_the_round_trip_through_params_yaml(name: str, tmp_path: Path) -> None:
    config = load_preset(name)
    (tmp_path / "params.yaml").write_text(dump(config))
    assert load_params(tmp_path / "params.yaml") == config


@pytest.mark.parametrize("name", preset_names())
def test_a_resolved_preset_matches_its_golden_file(name: str, check_golden) -> None:
    check_golden(f"preset-{name}.yaml", dump(load_preset(name)))


def test_each_section_validates_alone_as_it_does_in_the_whole() -> None:
    config = load_preset("toy")
    for name in SECTIONS:
        values = config.section(name).model_dump(mode="json")
        assert validate_section(name, values) == config.section(name)


def test_kubeflows_floats_become_the_integers_they_were() -> None:
    # Protobuf's Struct knows no integers: 3 arrives as 3.0.
    section = validate_section("distillation", {"num_steps": 3.0, "arms": ["rg"]})
    assert section.num_steps == 3
    with pytest.raises(InputError, match=r"distillation\.num_steps"):
        validate_section("distillation", {"num_steps": 3.5})
    reward = validate_section("reward", {"kind": "latent", "tuning": {"kind": "online", "label_every": 2.0}})
    assert isinstance(reward.tuning.label_every, int)
    with pytest.raises(InputError, match=r"reward\.tuning\.label_every"):
        validate_section("reward", {"kind": "latent", "tuning": {"kind": "online", "label_every": 2.5}})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("distillation.num_step=3", "unknown key distillation.num_step (did you mean 'num_steps'?)"),
        ("distillation.lr=1e-4", "unknown key distillation.lr (did you mean 'distillation.learning_rate'?)"),
        ("pretraining.lr=1e-4", "unknown key pretraining.lr (did you mean 'pretraining.learning_rate'?)"),
        ("evaluation.cfg=7", "unknown key evaluation.cfg (did you mean 'evaluation.guidance_scale'?)"),
        ("reward.kind=pixel", "reward: kind pixel has no tuning: give reward whole: --set 'reward={kind: pixel, ...}'"),
        ("reward.tuning.kind=frozen", "reward.tuning: kind frozen has no learning_rate, label_every: give reward.tuning whole: --set"),
        ("model.teacher=3", "model.teacher: a mapping of keys is wanted (found 3)"),
        ("distillation.student=lora", "distillation.student: write it as {kind: lora} (found 'lora')"),
        ("reward=3", "reward: a mapping is wanted, as in {kind: none}; there are: none, pixel, latent (found 3)"),
        ("preparation.scorers=[expert]", "preparation.scorers: a mapping of keys is wanted (found ['expert'])"),
        ("preparation.scorers.source=3", "preparation.scorers.source: a mapping of keys is wanted (found 3)"),
        ("evaluation=", "evaluation: a mapping of keys is wanted (found None)"),
        ("caching.scorers=expert", "caching.scorers: a list is wanted, as in [a, b] (found 'expert')"),
        ("distillation.arms={no: {}}", "distillation.arms.0: YAML takes this key for no text: put it in quotes (found False)"),
        ("preparation.scorers={../x: {kind: toy-checker}}", "preparation: scorers: '../x' names a folder: no '/' in it"),
        ("reward={kind: none, kind: pixel}", "'kind' is there twice, in line 1: leave one out"),
        ("distillation.seed=2026-13-45", "YAML takes for a date or a number, and is none (month must be in 1..12): put it in quotes"),
        ("reward.weight=true", "reward.weight: a number is wanted (found true)"),
        ("distillation.omega=[no, 5]", "distillation.omega.0: a number is wanted (found false)"),
        ("reward.tuning.labels={kind: soft, logit_scale: on}", "reward.tuning.labels.logit_scale: a number is wanted (found true)"),
        ("distillation.arms={a: {reward.weight: yes}}", "distillation.arms.a: reward.weight: a number is wanted (found true)"),
        ("reward.wieght=2", "unknown key reward.wieght (did you mean 'weight'?)"),
        ("distilation.num_steps=3", "unknown key distilation (did you mean 'distillation'?)"),
        ("reward.weight=-1", "reward.weight: Input should be greater than or equal to 0 (found -1)"),
        ("distillation.omega=[5, 1]", "omega runs from low to high"),
        ("reward.expert=nobody", "add it to caching.scorers"),
        ("evaluation.scorers=[nobody]", "preparation.scorers has expert, judge, checker"),
        ("model.resolution=64", "they must be equal"),
        ("model.teacher.uri=some-folder", "neither a hub id"),
        ("model.teacher.uri=org/name", "name the revision"),
        ("model.teacher={uri: org/name, revision: v1.0}", "may move: name its commit"),
        ("reward.kind=pixle", "reward: there is no kind 'pixle' (did you mean 'pixel'?); there are: none, pixel, latent"),
        ("preparation.scorers.mine.name=x", "preparation.scorers.mine has no kind; there are: clip, hpsv2, clipscore, "),
        ("distillation.arms=[rg, rg]", "each once"),
        ("nonsense", "--set takes section.key=value"),
        ("distillation.target={kind: ema, decai: 0.9}", "unknown key distillation.target.decai (did you mean 'decay'?)"),
        ("reward.tuning.labels={kind: soft, logit_scal: 3}", "unknown key reward.tuning.labels.logit_scal (did you mean 'logit_scale'?)"),
        ("reward.tuning.labels={kind: softt}", "reward.tuning.labels: there is no kind 'softt' (did you mean 'soft'?)"),
        ("distillation.target={kind: ema, decay: 2}", "distillation.target.decay: Input should be less than or equal to 1 (found 2)"),
        ("distillation.student={kind: lora, targets: []}", "distillation.student.targets: Tuple should have at least 1 item"),
        ("distillation.timesteps={kind: uniform, span: [1, 0]}", "distillation.timesteps: span runs from low to high"),
        ("distillation.target=3", "distillation.target: a mapping is wanted, as in {kind: ema}; there are: ema, stop_gradient (found 3)"),
        ('evaluation.prompts="a\\ud800b"', "evaluation.prompts: 'a\\ud800b' is no text: \\ud800 is half of a surrogate pair"),
        ('monitoring={kind: panel, prompts: [x, "\\udc00"], scorers: [judge]}', "monitoring.prompts.1: '\\udc00' is no text"),
        ('preparation.scorers={"\\ud800": 1}', "preparation.scorers: '\\ud800' is no text"),
    ],
)
def test_a_mistake_is_named_in_one_line(override: str, said: str) -> None:
    with pytest.raises(InputError) as refusal:
        load_preset("toy", overrides=[PROXIED, override])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("distillation.grid={kind: doubling, start: 100, end: 50}", "distillation.grid: the curriculum starts with few steps and ends"),
        ("distillation.grid={kind: doubling, end: 1000}", "distillation.grid.end: Input should be less than 1000 (found 1000)"),
        ("model.num_ddim_steps=5000", "model.num_ddim_steps: Input should be less than 1000 (found 5000)"),
        ("model.num_ddim_steps=1", "evaluation.num_steps asks for 8 steps of a grid of 1 (model.num_ddim_steps)"),
        ("evaluation.num_steps=[]", "evaluation.num_steps: Tuple should have at least 1 item after validation, not 0"),
        ("evaluation.num_steps=[2, 4, 2]", "evaluation.num_steps: 2 stands there more than once: name each once (found [2, 4, 2])"),
        ("evaluation.num_images=1", "evaluation.num_images: Input should be greater than or equal to 2 (found 1)"),
        ("evaluation.scorers=[]", "evaluation.scorers: Tuple should have at least 1 item after validation, not 0"),
        ("evaluation.seed=18446744073709551616", "evaluation.seed: Input should be less than 18446744073709551616"),
        ("evaluation.prompts=/etc/hosts", "evaluation.prompts: /etc/hosts does not lie in the source folder: name a path in it"),
        ("evaluation.prompts={kind: lines, source: ../a.txt}", "evaluation.prompts.source: ../a.txt does not lie in the source folder"),
        ("evaluation.reference=../index.tsv", "evaluation.reference: ../index.tsv does not lie in the source folder"),
        ("evaluation.teacher_steps=[50, 0]", "evaluation.teacher_steps.1: Input should be greater than 0 (found 0)"),
        ("evaluation.teacher_steps=[]", "evaluation.teacher_steps: Tuple should have at least 1 item after validation, not 0"),
        ("evaluation.teacher_steps=1001", "evaluation.teacher_steps: Input should be less than or equal to 1000 (found 1001)"),
        (
            "distillation.student={kind: full, omega_embedding_dim: 2}",
            "embedding_dim: Input should be greater than or equal to 4 (found 2)",
        ),
        ("distillation.student={kind: full, omega_embedding_dim: 3}", "embedding_dim: Input should be a multiple of 2 (found 3)"),
        ("distillation.student={kind: lora, rank: 0}", "distillation.student.rank: Input should be greater than 0 (found 0)"),
        ("distillation.learning_rate=.inf", "distillation.learning_rate: Input should be a finite number (found inf)"),
        ("distillation.omega=[5, .nan]", "distillation.omega.1: Input should be a finite number (found nan)"),
        ("reward.tuning.learning_rate=.inf", "reward.tuning.learning_rate: Input should be a finite number (found inf)"),
        (
            "distillation.timesteps={kind: lognormal, p_mean: .inf}",
            "timesteps.p_mean: Input should be a finite number (found inf)",
        ),
        ("distillation.seed=-1", "distillation.seed: Input should be greater than or equal to 0 (found -1)"),
        ("pretraining.seed=-1", "pretraining.seed: Input should be greater than or equal to 0 (found -1)"),
        ("reward.tuning.label_every=5", "reward.tuning.label_every 5 does not divide distillation.batch_size"),
        ("reward.prediction={kind: shared, every: 5}", "reward.prediction.every 5 does not divide distillation.batch_size"),
        ("pretraining.tower.num_heads=7", "pretraining.tower: num_heads 7 does not divide width"),
        (
            "reward.tuning.trains={kind: last, num_blocks: 99}",
            "reward.tuning.trains.num_blocks is 99; the latent tower (pretraining.tower) has",
        ),
        ("reward={kind: pixel, expert: checker}", "reward.expert 'checker' has no gradient: use reward.kind latent"),
    ],
)
def test_what_arithmetic_can_refuse_is_refused_by_the_configuration(override: str, said: str) -> None:
    with pytest.raises(InputError) as refusal:
        load_preset("toy", overrides=[PROXIED, override])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_unrewarded_run_may_have_any_batch_size() -> None:
    overrides = ["distillation.arms=[lcm]", "distillation.match_compute=false", "distillation.batch_size=7"]
    assert load_preset("toy", overrides=overrides).distillation.batch_size == 7


def test_null_is_the_default_of_every_choice_that_takes_it() -> None:
    """Hence Kubeflow, whose dicts hold no null, changes nothing by leaving it out."""
    choices = [member for member in vars(recipe).values() if isinstance(member, type) and is_dataclass(member)]
    nullable = [field for choice in choices for field in fields(choice) if NoneType in get_args(field.type)]
    assert len(nullable) == 4
    assert all(field.default is None for field in nullable)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'micro'"):
        load_preset("mirco")


def test_a_missing_params_file_says_what_writes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rglcd config use"):
        load_params(tmp_path / "params.yaml")


def test_a_section_that_is_there_twice_is_named_with_its_lines(tmp_path: Path) -> None:
    """Readers of YAML keep the last and say nothing: what stood above would be lost."""
    text = dump(load_preset("micro"))
    first = text[: text.index("\nreward:")].count("\n") + 2
    last = text.count("\n") + 1
    (tmp_path / "params.yaml").write_text(f"{text}reward: {{kind: none}}\n")
    with pytest.raises(InputError, match=f"params.yaml: 'reward' is there twice, in lines {first} and {last}: leave one out"):
        load_params(tmp_path / "params.yaml")


def test_keys_that_are_merged_in_are_not_there_twice(tmp_path: Path) -> None:
    text = dump(load_preset("micro")).replace("expert:\n      kind", "expert: &expert\n      kind")
    more = "    more: {<<: *expert, kind: clip}\n  features:"
    (tmp_path / "params.yaml").write_text(text.replace("  features:", more, 1))
    scorers = load_params(tmp_path / "params.yaml").preparation.scorers
    assert scorers["more"] == scorers["expert"]


def test_a_file_in_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(dump(load_preset("micro")).encode() + "# für später\n".encode("latin-1"))
    lines = dump(load_preset("micro")).count("\n") + 1
    with pytest.raises(InputError, match=rf"params.yaml line {lines} is not UTF-8: save the file as UTF-8"):
        load_params(tmp_path / "params.yaml")


@given(st.text(max_size=200))
def test_any_text_as_params_yaml_is_refused_as_input_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass") if text.isascii() else path.write_bytes(text.encode("utf-8", "ignore"))
    with pytest.raises(InputError):
        load_params(path)


def test_config_and_table_import_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None\nimport rglcd.config, rglcd.stages.table, rglcd.stages.run, rglcd.cli"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_synonym_suggests_a_key_that_exists() -> None:
    config = load_preset("sd15").model_dump(mode="json")
    proxied = load_preset("toy", overrides=[PROXIED]).model_dump(mode="json")
    for word, targets in SYNONYMS.items():
        for target in targets:
            assert _has(config, target) or _has(proxied, target), (word, target)


def _has(values: object, path: str) -> bool:
    for key in path.split("."):
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def test_a_string_is_a_source_and_a_number_a_list_of_one() -> None:
    config = load_preset("toy", overrides=["model.teacher=../models/sd15", "evaluation.num_steps=3", "evaluation.scorers=judge"])
    assert config.model.teacher.uri == "../models/sd15"
    assert config.evaluation.num_steps == (3,)
    assert config.evaluation.scorers == ("judge",)
    with pytest.raises(InputError, match="name the revision"):
        load_preset("toy", overrides=["model.teacher=org/name"])


def test_a_key_with_a_blank_is_named_where_something_is_wrong_with_it() -> None:
    with pytest.raises(InputError, match=r"preparation\.scorers\.my judge\.source\.uri: Field required"):
        load_preset("toy", overrides=["preparation.scorers.my judge={kind: clip, source: {}}"])


class TestArms:
    """Students by names of the user's own, each with what it changes."""

    def test_each_arm_has_the_sections_with_its_own_changes(self) -> None:
        arms = "{lcm: {reward: {kind: none}}, strong: {reward.weight: 3}, early: {distillation.num_steps: 7}}"
        config = load_preset("toy", overrides=[f"distillation.arms={arms}"])
        plain, strong, early = config.arms
        assert plain.reward == NoReward()
        assert strong.reward.model_dump() == config.reward.model_dump() | {"weight": 3.0}
        assert (early.distillation.num_steps, early.has_own_length, strong.has_own_length) == (7, True, False)

    def test_two_names_need_no_more_than_their_names(self) -> None:
        named = load_preset("toy", overrides=["distillation.arms={lcm: {reward: {kind: none}}, rg: {}}"])
        listed = load_preset("toy", overrides=["distillation.arms=[lcm, rg]"])
        assert [(arm.name, arm.reward) for arm in named.arms] == [(arm.name, arm.reward) for arm in listed.arms]

    @pytest.mark.parametrize(
        ("arms", "words"),
        [
            ("[foo]", "distillation.arms.0: Input should be 'lcm' or 'rg' (found 'foo')"),
            ("{}", "arms must name at least one arm"),
            ("{a: {reward.weigth: 3}}", "distillation.arms.a: unknown key reward.weigth (did you mean 'weight'?)"),
            ("{a: {reward.weight: x}}", "distillation.arms.a: reward.weight: Input should be a valid number"),
            ("{a: {model.resolution: 64}}", "distillation.arms.a changes 'model.resolution': an arm may change reward"),
            ("{a: {distillation.arms: [rg]}}", "distillation.arms.a changes 'distillation.arms'"),
            ("{a: {distillation.batch_size: 15}}", "distillation.arms.a: reward.tuning.label_every 2 does not divide"),
            ("{a: {reward.expert: judge}}", "distillation.arms.a: reward.expert is 'judge'; add it to caching.scorers"),
            ("{a: {reward: {kind: pixel, expert: checker}}}", "distillation.arms.a: reward.expert 'checker' has no gradient: use"),
            ("{teacher: {}}", "teacher is what the report calls something else"),
            ("{../up: {}}", "arms: '../up' names a folder"),
        ],
    )
    def test_what_is_refused_names_arm_and_key(self, arms: str, words: str) -> None:
        with pytest.raises(InputError, match=re.escape(words)):
            load_preset("toy", overrides=[PROXIED, f"distillation.arms={arms}"])

    def test_a_proxy_is_pretrained_when_any_arm_asks_for_one(self) -> None:
        arms = "distillation.arms={lcm: {}, late: {reward: {kind: latent}}}"
        stages = [stage.name for stage in stages_of(load_preset("toy", overrides=["reward={kind: none}", arms]))]
        assert "pretrain" in stages


def test_the_resize_mode_that_is_called_no_needs_no_quotes() -> None:
    """YAML reads it as false."""
    assert load_preset("micro", overrides=["sharding.resize=no"]).sharding.resize == "no"


class TestCaptionEncoding:
    def test_one_encoding_has_one_spelling_and_none_leaves_the_key_out(self) -> None:
        spellings = [load_preset("micro", overrides=[f"sharding.caption_encoding={name}"]).sharding for name in ("latin-1", "ISO_8859-1")]
        assert spellings[0] == spellings[1]
        assert spellings[0].model_dump(mode="json")["caption_encoding"] == "iso8859-1"
        assert "caption_encoding" not in load_preset("micro").sharding.model_dump(mode="json"), "keys of results made before stay"

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("klingon", "no encoding of text"),
            ("rot13", "no encoding of text"),
            ("base64", "no encoding of text"),
            ("", "no encoding of text"),
            ("a\0b", "no encoding of text"),
            ("undefined", "no encoding of text"),
            ("utf-16-le", "no ASCII letters"),
            ("cp037", "no ASCII letters"),
            ("utf-7", "no ASCII letters"),
            ("unicode_escape", "no ASCII letters"),
        ],
    )
    def test_an_encoding_that_no_index_can_be_in_is_refused(self, name: str, why: str) -> None:
        with pytest.raises(ValueError, match=why):
            known_encoding(name)

    def test_it_is_refused_by_its_key_and_by_the_commands_option(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(InputError, match=r"sharding.caption_encoding.*'klingon' is no encoding of text.*write latin-1"):
            load_preset("micro", overrides=["sharding.caption_encoding=klingon"])
        (tmp_path / "a.tsv").write_bytes(b"images/a.png\tfox\n")
        with pytest.raises(SystemExit) as ended:
            main(["data", "use", str(tmp_path / "a.tsv"), "--folder", str(tmp_path / "data"), "--caption-encoding", "rot13"])
        assert ended.value.code == 2
        assert "--caption-encoding: 'rot13' is no encoding of text" in capsys.readouterr().err
        assert not (tmp_path / "data").exists()
