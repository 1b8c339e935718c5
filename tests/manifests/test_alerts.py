"""The alerts, run by Prometheus' own tool against made-up series."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.manifests.rendering import MANIFESTS

pytestmark = pytest.mark.debian
RULES = yaml.safe_load((MANIFESTS / "components/monitoring/alerts.yaml").read_text())["spec"]
SERIES = Path(__file__).parent / "alerts.yaml"


def promtool(*words: str) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.exit("the alerts' tests need Debian's package prometheus, for its promtool", returncode=2)
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_alert_fires_where_it_should_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    shutil.copy(SERIES, tmp_path / "alerts.yaml")
    promtool("check", "rules", "--lint-fatal", str(tmp_path / "rules.yaml"))
    promtool("test", "rules", str(tmp_path / "alerts.yaml"))


def test_every_alert_is_seen_to_fire() -> None:
    tests = yaml.safe_load(SERIES.read_text())["tests"]
    fired = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one.get("exp_alerts")}
    quiet = {one["alertname"] for test in tests for one in test["alert_rule_test"] if not one.get("exp_alerts")}
    named = {rule["alert"] for group in RULES["groups"] for rule in group["rules"]}
    assert fired == quiet & named == named
