"""``rglcd run shard`` while this machine's own network is away: no host is at fault, and no row is lost."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from rglcd.cli import main
from rglcd.config import dump
from rglcd.sharding.accounting import Reason
from tests.sharding.hostile_server import OPEN, HostileServer
from tests.tiny_line import tiny_config

NOWHERE: Final = "127.0.0.3"
"""An address that may be reached, and nothing listens there."""

ROWS_PER_SHARD: Final = 200


class Internet:
    """Names that lead to the test's server but for those called dead, while the network is there; ``away`` says how it is not.

    It goes before the name ``goes_at`` is asked for, or by hand. Connections that are kept open stay.
    """

    def __init__(self) -> None:
        self.kind, self.goes_at, self.is_away = "names fail", "", False
        self._lock = threading.Lock()

    def resolve(self, host: str, port: int, *others: Any, **options: Any) -> Any:
        with self._lock:
            self.is_away = self.is_away or host == self.goes_at
        if self.is_away and self.kind == "names fail":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if self.is_away and self.kind == "names are silent":
            threading.Event().wait(4)
        if host.startswith("dead"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        address = NOWHERE if self.is_away else OPEN
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Internet:
    internet = Internet()
    monkeypatch.setattr(socket, "getaddrinfo", internet.resolve)
    return internet


Run = Callable[[str], tuple[int, str]]


@pytest.fixture
def run_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``rglcd run shard`` in a project of this name, made on the first call: the exit code, and what it says on stderr."""

    def run(name: str) -> tuple[int, str]:
        project = tmp_path / name
        project.mkdir(exist_ok=True)
        monkeypatch.chdir(project)
        download = f"{{kind: web, allowed_networks: [{OPEN}/31], num_connections: 4, total_seconds: 3, num_retries: 0}}"
        settings = [f"sharding.download={download}", f"sharding.samples_per_shard={ROWS_PER_SHARD}"]
        Path("params.yaml").write_text(dump(tiny_config(*settings)))
        Path("data").mkdir(exist_ok=True)
        Path("data/index.tsv").write_bytes((tmp_path / "index.tsv").read_bytes())
        capsys.readouterr()
        try:
            return main(["run", "shard"]), capsys.readouterr().err
        except SystemExit as ended:
            return int(str(ended.code)), capsys.readouterr().err

    return run


def write_index(folder: Path, urls: list[str]) -> None:
    (folder / "index.tsv").write_text("".join(f"{url}\tcaption {number}\n" for number, url in enumerate(urls)))


def url_of(server: HostileServer, host: str, number: int) -> str:
    return f"http://{host}.example:{server.port}/image/{number % 50}?{number}"


def many_hosts(server: HostileServer, count: int) -> list[str]:
    """A host for each row but for one that many rows have, whose connections stay open; every fifth is dead."""
    hosts = ["hot" if number % 31 == 3 else f"dead{number}" if number % 5 == 1 else f"host{number}" for number in range(count)]
    return [url_of(server, host, number) for number, host in enumerate(hosts)]


def remembered(project: Path) -> dict[str, str | None]:
    """What each url gave, as the download store has it: a reason, or None for bytes."""
    records = [json.loads(path.read_text()) for path in project.glob("downloads/records/*/*.json")]
    return {record["address"]: record["reason"] for record in records}


def lost(project: Path) -> list[str]:
    """Urls of hosts that are alive, which are remembered to have given nothing."""
    return [url for url, reason in remembered(project).items() if reason is not None and "dead" not in url]


def digest(project: Path) -> str:
    return str(json.loads((project / "artifacts/shards/manifest.json").read_text())["digest"])


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        pytest.param("names fail", 54, id="within a shard"),
        pytest.param("names fail", 204, id="as a shard begins", marks=pytest.mark.slow),
        pytest.param("names fail", 393, id="in the list's last rows", marks=pytest.mark.slow),
        pytest.param("names are silent", 54, id="names are silent", marks=pytest.mark.slow),
        pytest.param("no connections", 54, id="no connections", marks=pytest.mark.slow),
    ],
)
def test_an_outage_loses_no_row_and_the_same_command_goes_on(
    server: HostileServer, internet: Internet, run_shard: Run, tmp_path: Path, kind: str, row: int
) -> None:
    """Every row after it was `unresolved`, `unreachable` or `timed_out`, remembered so, and missing in shards that were finished."""
    write_index(tmp_path, many_hosts(server, 400))
    assert run_shard("undisturbed")[0] == 0
    internet.kind, internet.goes_at = kind, f"host{row}.example"
    code, said = run_shard("disturbed")
    assert (code, said.count("nobody answers")) == (75, 1), said
    assert "run the same command again" in said.splitlines()[-1]
    assert lost(tmp_path / "disturbed") == []
    internet.goes_at, internet.is_away = "", False
    assert run_shard("disturbed")[0] == 0
    assert digest(tmp_path / "disturbed") == digest(tmp_path / "undisturbed")
    assert remembered(tmp_path / "disturbed") == remembered(tmp_path / "undisturbed")
    assert set(remembered(tmp_path / "disturbed").values()) == {None, Reason.UNRESOLVED}


@pytest.mark.slow
def test_rows_of_one_host_are_not_lost_either_when_the_command_begins_in_an_outage(
    server: HostileServer, internet: Internet, run_shard: Run, tmp_path: Path
) -> None:
    """One's own mirror: never many hosts that are silent. After a restart only the download store knows that it ever answered."""
    rows = [url_of(server, "mirror", number) for number in range(2 * ROWS_PER_SHARD)]  # of the second shard nothing is in the store
    write_index(tmp_path, rows[:ROWS_PER_SHARD])
    assert run_shard("disturbed")[0] == 0
    write_index(tmp_path, rows)
    internet.is_away = True
    for _ in range(2):
        code, said = run_shard("disturbed")
        assert (code, "and mirror.example, which did before" in said) == (75, True), said
        assert lost(tmp_path / "disturbed") == []
    internet.is_away = False
    assert run_shard("disturbed")[0] == run_shard("undisturbed")[0] == 0
    assert digest(tmp_path / "disturbed") == digest(tmp_path / "undisturbed")


def test_a_machine_that_never_reached_the_web_says_so(server: HostileServer, internet: Internet, run_shard: Run, tmp_path: Path) -> None:
    """A pod without egress packed nothing for hours, and remembered that no row of the index can be had."""
    write_index(tmp_path, [url_of(server, f"host{number}", number) for number in range(400)])
    internet.is_away = True
    code, said = run_shard("project")
    assert (code, "hosts in a row, from the first on" in said) == (75, True), said
    assert remembered(tmp_path / "project") == {}


def test_a_short_list_of_dead_hosts_is_one(server: HostileServer, internet: Internet, run_shard: Run, tmp_path: Path) -> None:
    write_index(tmp_path, [url_of(server, f"dead{number}", number) for number in range(90)])
    code, said = run_shard("project")
    assert (code, "no row became a sample (90 rows, 0 samples, unresolved 90)" in said) == (2, True), said
    assert set(remembered(tmp_path / "project").values()) == {Reason.UNRESOLVED}


def test_more_dead_hosts_in_a_row_than_an_outage_is_told_by_are_dead_while_another_answers(
    server: HostileServer, internet: Internet, run_shard: Run, tmp_path: Path
) -> None:
    """As in an index that is sorted; hosts that answer are hardly asked for it."""
    hosts = ["first", *(f"dead{number}" for number in range(298)), "last"]
    write_index(tmp_path, [url_of(server, host, number) for number, host in enumerate(hosts)])
    before = server.requests.total()
    assert run_shard("project")[0] == 0
    reasons = list(remembered(tmp_path / "project").values())
    assert (reasons.count(Reason.UNRESOLVED), reasons.count(None)) == (298, 2)
    assert server.requests.total() - before < 2 + 20


def test_what_an_answer_confirms_costs_no_request(server: HostileServer, internet: Internet, run_shard: Run, tmp_path: Path) -> None:
    write_index(tmp_path, many_hosts(server, 400))
    before = server.requests.total()
    assert run_shard("project")[0] == 0
    alive = sum(reason is None for reason in remembered(tmp_path / "project").values())
    assert server.requests.total() - before <= alive + 10, "at most a few, at the ends of two shards"
