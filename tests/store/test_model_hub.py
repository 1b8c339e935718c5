"""The model hub, a stand-in on loopback: of a repository what is read is fetched, whatever else its authors keep there."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0" * 40
FETCH = "import json, sys; from pathlib import Path; from rglcd.launch.boundary import process_boundary; "
FETCH += "from rglcd.store.model_folders import fetch_model_folder, fetch_named_files\n"
FETCH += "to, names = Path(sys.argv[1]), json.loads(sys.argv[2])\n"
FETCH += "with process_boundary():\n    fetch_model_folder('org/name', to, revision='0' * 40) if not names else "
FETCH += "fetch_named_files('org/name', names, to, revision='0' * 40)"

# As in the repositories of SD 3.5 Medium and FLUX.1: a pipeline for diffusers, and beside it whole models for other programs.
PARTS = [
    "README.md",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_3/config.json",
    "text_encoder_3/model-00001-of-00002.safetensors",
    "text_encoder_3/model-00002-of-00002.safetensors",
    "text_encoder_3/model.safetensors.index.json",
    "tokenizer/merges.txt",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
]
BESIDE = [
    "ae.safetensors",
    "flux1-dev.safetensors",
    "sd3.5_medium.safetensors",
    "v1-5-pruned-emaonly.safetensors",
    "v1-5-pruned.ckpt",
    "text_encoders/t5xxl_fp8_e4m3fn.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder_3/model.fp16-00001-of-00002.safetensors",
    "text_encoder_3/model.fp16-00002-of-00002.safetensors",
    "text_encoder_3/model.safetensors.index.fp16.json",
    "transformer/diffusion_pytorch_model.bf16.safetensors",
    "transformer/diffusion_pytorch_model.bin",
    "transformer/diffusion_pytorch_model.non_ema.safetensors",
    "transformer/model.onnx",
    "safety_checker/model.safetensors",
    "vae_decoder/openvino_model.xml",
]


class Hub:
    """What of the hub's API a fetch uses; a file's content is its name. Of a gated repository everybody may read the listing alone.

    ``busy`` is a part of the paths that it answers with 503.
    """

    def __init__(self, names: Sequence[str], *, gated: bool = False, busy: str | None = None) -> None:
        self.names, self.gated, self.busy = list(names), gated, busy
        self.sent: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body, headers = hub.answer(unquote(urlsplit(self.path).path))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 (http.server's names)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        if self.busy is not None and self.busy in path:
            return 503, b"", {}
        if path == f"/api/models/org/name/revision/{COMMIT}":
            return self._json({"id": "org/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.names]})
        if path.startswith(f"/api/models/org/name/tree/{COMMIT}"):
            return self._json(
                [{"type": "file", "path": name, "size": len(name), "oid": f"{number:040x}"} for number, name in enumerate(self.names)]
            )
        name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
        if self.gated:
            return 403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model org/name is restricted"}
        if name not in self.names:
            return 404, b"", {"X-Error-Code": "EntryNotFound"}
        self.sent.append(name)
        return 200, name.encode(), {"X-Repo-Commit": COMMIT, "ETag": f'"{self.names.index(name):040x}"'}

    def _json(self, value: Any) -> tuple[int, bytes, dict[str, str]]:
        return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


@pytest.fixture
def hub() -> Iterator[Callable[..., Hub]]:
    hubs: list[Hub] = []

    def begin(names: Sequence[str], *, gated: bool = False, busy: str | None = None) -> Hub:
        hubs.append(Hub(names, gated=gated, busy=busy))
        return hubs[-1]

    yield begin
    for each in hubs:
        each.http.shutdown()


def fetch(hub: Hub, to: Path, *names: str) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, for the hub's library reads its environment once."""
    here = {"PATH": "/usr/bin:/bin", "HOME": str(to.parent), "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"}
    environment = here | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", FETCH, str(to), json.dumps(names)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)


def fetched(hub: Hub, to: Path, *names: str) -> dict[str, str]:
    ran = fetch(hub, to, *names)
    assert ran.returncode == 0, ran.stderr
    return {path.relative_to(to).as_posix(): path.read_text() for path in to.rglob("*") if path.is_file()}


def test_only_the_parts_of_a_hub_pipeline_are_fetched(hub: Callable[..., Hub], tmp_path: Path) -> None:
    repository = hub([*PARTS, *BESIDE])
    assert fetched(repository, tmp_path / "to") == {name: name for name in PARTS}
    assert set(repository.sent) == set(PARTS)


def test_a_hub_model_that_comes_in_half_precision_alone_is_fetched_by_its_usual_name(hub: Callable[..., Hub], tmp_path: Path) -> None:
    repository = hub(["unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"])
    assert fetched(repository, tmp_path / "to") == {
        "unet/config.json": "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors": "unet/diffusion_pytorch_model.fp16.safetensors",
    }


def test_of_named_files_those_that_the_hub_has_are_fetched(hub: Callable[..., Hub], tmp_path: Path) -> None:
    repository = hub(["vocab.json", "merges.txt", "model.fp16.safetensors", "model.safetensors"])
    wanted = ("vocab.json", "tokenizer.json", "model.fp16.safetensors")
    assert fetched(repository, tmp_path / "to", *wanted) == {name: name for name in ("vocab.json", "model.fp16.safetensors")}


def test_a_gated_hub_model_says_where_to_agree_and_which_variable_holds_the_token(hub: Callable[..., Hub], tmp_path: Path) -> None:
    ran = fetch(hub(PARTS, gated=True), tmp_path / "to")
    assert ran.returncode == 2, ran.stderr
    line = ran.stderr.splitlines()[-1]
    assert "GatedRepoError" in line
    assert "Agree to its terms on its page there, and set HF_TOKEN" in line


@pytest.mark.parametrize("busy", ["/revision/", pytest.param("/resolve/", marks=pytest.mark.slow)])
def test_a_hub_that_cannot_for_the_moment_may_be_asked_again(busy: str, hub: Callable[..., Hub], tmp_path: Path) -> None:
    """It was 2, bad input. A file is asked for again by the hub's own library, for three quarters of a minute."""
    ran = fetch(hub(PARTS, busy=busy), tmp_path / "to")
    assert ran.returncode == 75, ran.stderr
    assert "it answers 503 for the moment; run the same command again" in ran.stderr.splitlines()[-1]
