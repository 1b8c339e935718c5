"""Model folders from wherever they are: text and safetensors come along, everything else stays, and a failure is one line."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import boto3
import fsspec
import pytest

from rglcd.errors import InputError
from rglcd.store.model_folders import MODEL_FILES, fetch_model_folder, fetch_named_files
from tests.object_store import CREDENTIALS

BUCKET = "models"
CONTENT = {
    "model_index.json": b"{}",
    "unet/config.json": b"[1]",
    "unet/diffusion_pytorch_model.safetensors": bytes(range(256)) * 40,
    "tokenizer/merges.txt": b"a b",
}
PICKLES = ("unet/diffusion_pytorch_model.bin", "model.ckpt", "weights.pt", "text_encoder/run.py")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(uri: str, tmp_path: Path, *, revision: str | None = None) -> str:
    with pytest.raises(InputError) as refused:
        fetch_model_folder(uri, tmp_path / "fetched", revision=revision)
    message = str(refused.value)
    assert "\n" not in message
    return message


# --- a folder of this machine --------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "local"
    for name, content in CONTENT.items() | {(name, b"\x80\x04.") for name in PICKLES}:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_a_local_folder_is_copied_without_its_pickles(folder: Path, tmp_path: Path) -> None:
    fetch_model_folder(str(folder), tmp_path / "fetched", revision=None)
    assert files_of(tmp_path / "fetched") == CONTENT
    assert {".bin", ".pt", ".ckpt", ".pkl", ".py", ".npz"}.isdisjoint(MODEL_FILES)


def test_a_relative_model_folder_is_relative_to_the_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fetch_model_folder("./local", tmp_path / "fetched", revision=None)
    assert files_of(tmp_path / "fetched") == CONTENT
    assert f"looked in {tmp_path}" in refusal("./nowhere", tmp_path)


@pytest.mark.parametrize("target", ["file", "folder"])
def test_a_local_folder_with_a_link_is_refused(folder: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("secret")
    (folder / "notes.txt").symlink_to(tmp_path / "secret" / ("key.txt" if target == "file" else ""))
    assert "notes.txt is a link" in refusal(str(folder), tmp_path)
    assert b"secret" not in files_of(tmp_path / "fetched").values()


# --- an object store -----------------------------------------------------------------------------


@pytest.fixture
def store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket with the folder ``sd``, its pickles, and a neighbour whose name begins alike; the environment says where."""
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": s3_endpoint}).items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    for name, content in CONTENT.items():
        client.put_object(Bucket=BUCKET, Key=f"teachers/sd/{name}", Body=content)
    for name in PICKLES:
        client.put_object(Bucket=BUCKET, Key=f"teachers/sd/{name}", Body=b"\x80\x04.")
    client.put_object(Bucket=BUCKET, Key="teachers/sd-other/model_index.json", Body=b"other")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("uri", [f"s3://{BUCKET}/teachers/sd", f"s3://{BUCKET}/teachers/sd/"])
def test_a_store_folder_is_fetched_without_pickles_and_sibling_folders(uri: str, tmp_path: Path) -> None:
    fetch_model_folder(uri, tmp_path / "fetched", revision=None)
    assert files_of(tmp_path / "fetched") == CONTENT


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("uri", ["s3://no-such-bucket/teachers/sd", f"s3://{BUCKET}/teachers/none"])
def test_a_missing_bucket_or_prefix_is_refused_by_its_url(uri: str, tmp_path: Path) -> None:
    assert refusal(uri, tmp_path).startswith(uri)


@pytest.mark.usefixtures("store")
def test_a_key_that_climbs_out_of_the_folder_writes_nothing_outside(tmp_path: Path) -> None:
    boto3.client("s3").put_object(Bucket=BUCKET, Key="evil/a/../../../escaped.json", Body=b"{}")
    assert "climbs out" in refusal(f"s3://{BUCKET}/evil", tmp_path)
    assert not list(tmp_path.rglob("escaped.json"))


NAMED = ("weights.pt", "unet/config.json", "not_there.json")


def test_named_files_of_a_local_folder_are_copied_whatever_their_suffix(folder: Path, tmp_path: Path) -> None:
    fetch_named_files(str(folder), NAMED, tmp_path / "fetched", revision=None)
    assert files_of(tmp_path / "fetched") == {"weights.pt": b"\x80\x04.", "unet/config.json": b"[1]"}


@pytest.mark.usefixtures("store")
def test_only_the_named_files_of_an_object_store_are_fetched(tmp_path: Path) -> None:
    fetch_named_files(f"s3://{BUCKET}/teachers/sd/", NAMED, tmp_path / "fetched", revision=None)
    assert files_of(tmp_path / "fetched") == {"weights.pt": b"\x80\x04.", "unet/config.json": b"[1]"}


def test_named_files_are_fetched_over_http(folder: Path, tmp_path: Path) -> None:
    (folder / "sac+logos.pth").write_bytes(b"head")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fetch_named_files(f"http://127.0.0.1:{server.server_port}", ("sac+logos.pth", "none.pt"), tmp_path / "fetched", revision=None)
        server.shutdown()
    assert files_of(tmp_path / "fetched") == {"sac+logos.pth": b"head"}


@pytest.mark.usefixtures("store")
def test_a_folder_without_any_of_the_named_files_is_refused(folder: Path, tmp_path: Path) -> None:
    for uri in (str(folder), f"s3://{BUCKET}/teachers/sd"):
        with pytest.raises(InputError, match=r"has no a\.pt and no b\.pt$"):
            fetch_named_files(uri, ("a.pt", "b.pt"), tmp_path / "fetched", revision=None)
    (folder / "link.pt").symlink_to(folder / "weights.pt")
    with pytest.raises(InputError, match=r"link\.pt is a link"):
        fetch_named_files(str(folder), ("link.pt",), tmp_path / "fetched", revision=None)


FETCH = "import sys; from pathlib import Path; from rglcd.store.model_folders import fetch_model_folder as f; "
FETCH += "from rglcd.launch.boundary import process_boundary\nwith process_boundary(): f(sys.argv[1], Path(sys.argv[2]), revision='0' * 40)"


@pytest.mark.parametrize(
    ("environment", "uri"),
    [
        # No credentials, and nobody to ask for them.
        ({"AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://bucket/prefix"),
        # A model hub that cannot be reached.
        ({"HF_HUB_OFFLINE": "1"}, "org/model"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "org/model"),
        ({}, "gopher://bucket/prefix"),
    ],
)
def test_an_unreachable_model_is_one_line_with_exit_code_2(environment: dict[str, str], uri: str, tmp_path: Path) -> None:
    code, line = fetched_apart(uri, tmp_path, environment)
    assert code == 2, line
    assert line.startswith(f"rglcd: {uri}")
    if uri == "org/model":
        for alternative in ("a mirror", "s3:// folder", "local diffusers folder"):
            assert alternative in line


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_one_line_with_exit_code_75(tmp_path: Path) -> None:
    """It was 2, bad input, where every other stage asks to try again; the requests are repeated for half a minute."""
    environment = CREDENTIALS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    code, line = fetched_apart("s3://bucket/prefix", tmp_path, environment)
    assert code == 75, line
    assert line.startswith("rglcd: s3://bucket/prefix cannot be reached")
    assert line.endswith("run the same command again")


def fetched_apart(uri: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """The exit code and the one line of a fetch in a process of its own, for the libraries read their environment once."""
    plain = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FETCH, uri, str(folder / "fetched")]
    ran = subprocess.run(command, env=plain | environment, capture_output=True, text=True, check=False, timeout=100)
    (line,) = ran.stderr.splitlines()
    return ran.returncode, line


# --- local folders as people have them -----------------------------------------------------------


def write_all(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def fetched(folder: Path, destination: Path) -> dict[str, str]:
    fetch_model_folder(str(folder), destination, revision=None)
    return {path.relative_to(destination).as_posix(): path.read_text() for path in destination.rglob("*") if path.is_file()}


def test_of_a_clone_of_stable_diffusion_only_what_is_read_is_copied(tmp_path: Path) -> None:
    used = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    unused = [
        "v1-5-pruned.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.bin",
    ]
    write_all(tmp_path / "clone", *used, *unused)
    assert fetched(tmp_path / "clone", tmp_path / "copy") == {name: name for name in used}


def test_weights_that_come_in_half_precision_alone_are_taken_by_their_usual_name(tmp_path: Path) -> None:
    write_all(
        tmp_path / "half", "unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors", "vae/a.safetensors"
    )
    assert fetched(tmp_path / "half", tmp_path / "copy") == {
        "unet/diffusion_pytorch_model.safetensors": "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.safetensors": "text_encoder/model.fp16.safetensors",
        "vae/a.safetensors": "vae/a.safetensors",
    }


def test_weights_in_several_files_of_half_precision_keep_the_names_that_their_index_has(tmp_path: Path) -> None:
    shards = [f"text_encoder/model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
    write_all(
        tmp_path / "half", *shards, "text_encoder/model.safetensors.index.fp16.json", "unet/a.bf16.safetensors", "unet/a.fp16.safetensors"
    )
    assert fetched(tmp_path / "half", tmp_path / "copy") == {name: name for name in shards} | {
        "text_encoder/model.safetensors.index.json": "text_encoder/model.safetensors.index.fp16.json",
        "unet/a.safetensors": "unet/a.fp16.safetensors",
    }


def test_a_folder_of_the_hubs_own_cache_is_copied_through_its_links(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    write_all(repository / "blobs", "abc", "def")
    snapshot = repository / "snapshots" / ("0" * 40)
    (snapshot / "unet").mkdir(parents=True)
    (snapshot / "model_index.json").symlink_to("../../blobs/abc")
    (snapshot / "unet" / "config.json").symlink_to("../../../blobs/def")
    assert fetched(snapshot, tmp_path / "copy") == {"model_index.json": "abc", "unet/config.json": "def"}
    (snapshot / "notes.txt").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match=r"notes\.txt is a link; .*cp -rL"):
        fetched(snapshot, tmp_path / "again")


@pytest.mark.parametrize("target", ["../secret.txt", "/etc/hostname", "nowhere"])
def test_a_link_of_any_other_folder_is_refused(tmp_path: Path, target: str) -> None:
    write_all(tmp_path, "secret.txt", "model/config.json")
    (tmp_path / "model" / "linked.txt").symlink_to(target)
    with pytest.raises(InputError, match=r"linked\.txt is a link"):
        fetched(tmp_path / "model", tmp_path / "copy")
