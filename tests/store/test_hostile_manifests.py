"""A manifest that somebody else sealed names only files that lie in its folder, or nothing is fetched at all."""

import hashlib
import json
from pathlib import Path

import pytest

from rglcd.cli import main
from rglcd.config import dump
from rglcd.errors import InputError
from rglcd.store.file_names import check_names, check_plain_names
from rglcd.store.manifest import FileEntry, Manifest, manifest_text, parse_manifest, results_digest
from rglcd.store.shard_tasks import finished_task, is_record, record_elsewhere
from tests.publishing import publish
from tests.tiny_line import tiny_config

EVIL = b"evil"
SHA = hashlib.sha256(EVIL).hexdigest()

HOSTILE = {
    "../evil.txt": "leads out of the folder",
    "../../../evil.txt": "leads out of the folder",
    "teacher/../../evil.txt": "leads out of the folder",
    "..": "leads out of the folder",
    "/tmp/evil.txt": "leads out of the folder",
    "//server/evil.txt": "leads out of the folder",
    "..\\..\\evil.txt": "is another system's path",
    "C:evil.txt": "is another system's path",
    "": "is not in its shortest form",
    ".": "is not in its shortest form",
    "./evil.txt": "is not in its shortest form",
    "teacher//evil.txt": "is not in its shortest form",
    "teacher/./evil.txt": "is not in its shortest form",
    "teacher/": "is not in its shortest form",
    "evil\x00.txt": "holds a control character",
    "evil\n.txt": "holds a control character",
    "evil\ud800.txt": "is no UTF-8",
    "e" * 256: "is too long",
    "/".join(["e" * 200] * 6): "is too long",
    "manifest.json": "is that of another file's place",
}


def sealed(*names: str, **changed: object) -> str:
    """A manifest with a true seal that names ``names``."""
    files = {name: FileEntry(SHA, len(EVIL)) for name in names}
    fields = {"artifact": "pretrained", "stage": "prepare", "version": 1, "key": "key", "digest": results_digest(files)}
    return manifest_text(Manifest(**fields | {"inputs": {}, "sections": {}, "files": files} | changed))


def refusal(text: str) -> str:
    with pytest.raises(InputError) as refused:
        parse_manifest(text, where="s3://theirs/manifest.json", made_by="prepare")
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_that_names_a_hostile_file_is_refused_with_the_name(name: str) -> None:
    message = refusal(sealed("teacher/model.safetensors", name))
    assert message.startswith("s3://theirs/manifest.json cannot be read as a manifest (the file name ")
    assert repr(name) in message
    assert HOSTILE[name] in message


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["caf\u00e9.txt", "cafe\u0301.txt"], "is there twice"),
        (["teacher", "teacher/model.safetensors"], "lies below another file"),
        (["a/b", "a/b/c/d"], "lies below another file"),
    ],
)
def test_names_that_one_disk_cannot_hold_together_are_refused(names: list[str], fault: str) -> None:
    assert fault in refusal(sealed(*names))


@pytest.mark.parametrize(
    "changed",
    [
        {"artifact": "../pretrained"},
        {"artifact": "a/b"},
        {"files": {"a": FileEntry("../../etc", 4)}},
        {"files": {"a": FileEntry(SHA, -1)}},
        {"files": {"a": FileEntry(SHA, "4")}},  # type: ignore[arg-type]
        {"files": {"a": FileEntry(SHA.upper(), 4)}},
        {"files": {"a": FileEntry(None, 4)}},  # type: ignore[arg-type]
    ],
)
def test_what_else_of_a_manifest_becomes_part_of_a_path_is_checked_too(changed: dict[str, object]) -> None:
    assert "cannot be read as a manifest" in refusal(sealed(**changed))


def test_ordinary_names_are_taken() -> None:
    names = [
        "00000.tar",
        "rg/unet/config.json",
        "scorers/my reward/model.safetensors",
        "日本/é.json",
        ".gitattributes",
        "...",
        "a..b",
        "a:b",
    ]
    check_names(names[:-1])
    assert set(parse_manifest(sealed(*names[:-1]), where="here", made_by="prepare").files) == set(names[:-1])
    with pytest.raises(InputError, match="another system"):
        check_names(names)


@pytest.mark.parametrize("name", ["../../../evil.txt", "teacher/../../../../evil.txt", "ABSOLUTE", "..\\evil.txt", "evil\x00.txt"])
def test_a_stage_that_reads_a_hostile_store_writes_nothing_outside_and_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    work, theirs = tmp_path / "deep" / "er" / "work", tmp_path / "theirs"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    name = str(tmp_path / "absolute" / "evil.txt") if name == "ABSOLUTE" else name
    address = theirs / "files" / SHA / "evil.txt"
    address.parent.mkdir(parents=True)
    address.write_bytes(EVIL)
    (theirs / "manifest.json").write_text(sealed(name, store=theirs.as_uri()))
    Path("params.yaml").write_text(dump(tiny_config()))
    Path("artifacts/shards").mkdir(parents=True)
    publish(Path("artifacts/shards"), stage="shard")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}

    with pytest.raises(SystemExit) as ended:
        main(["run", "cache", "--artifact", f"pretrained={theirs.as_uri()}"])

    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert "the file name" in line
    assert {path for path in tmp_path.rglob("*") if path.is_file() and path.suffix == ".txt"} <= before


# --- records of shard tasks ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [*sorted(set(HOSTILE) - {"manifest.json", "evil\ud800.txt"}), "deeper/evil.txt"])
def test_a_record_in_a_store_that_names_a_file_elsewhere_removes_nothing(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a" / "b" / "c"
    (folder / "deeper").mkdir(parents=True)
    victims = [tmp_path / "evil.txt", tmp_path / "a" / "b" / "evil.txt", folder / "deeper" / "evil.txt"]
    for victim in victims:
        victim.write_bytes(EVIL)
    content = json.dumps({"files": {name: {"sha256": SHA, "bytes": len(EVIL)}}}).encode()
    assert not is_record(content)
    with pytest.raises(InputError):
        record_elsewhere(folder / "00000_stats.json", content)
    (folder / "00000_stats.json").write_bytes(content)
    assert finished_task(folder / "00000_stats.json") is None
    assert all(victim.read_bytes() == EVIL for victim in victims)


def test_plain_names_have_no_folder() -> None:
    check_plain_names(["00000.tar", "00000.parquet"])
    with pytest.raises(InputError, match="folder of its own"):
        check_plain_names(["a/b.tar"])
