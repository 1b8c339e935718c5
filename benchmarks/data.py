"""Our sharding and img2dataset's side by side, on the same images from the same server; decoding; memory by rows.

    python -m benchmarks.data --img2dataset PYTHON    (an interpreter whose environment has img2dataset 1.47)

The images are noise with the spectrum of photographs, JPEG quality 90, in three sizes: about as many bytes a pixel as photographs
have. Server, our run and theirs are processes of their own. CPU seconds are the kernel's, children included; peak memory is the largest
sum of what a run's processes hold at a moment, what several share counted once (PSS), looked at five times a second.
"""

import argparse
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((640, 480), (1024, 768), (2048, 1536))
RESOLUTION = 512
ROWS = (100_000, 1_000_000)
ADDRESS = "127.0.0.2"

THEIRS = """
import sys, img2dataset
if __name__ == "__main__":  # it spawns
    img2dataset.download(url_list=sys.argv[1], output_folder=sys.argv[2], input_format="tsv", url_col="url", caption_col="caption",
        image_size=512, resize_mode="center_crop", encode_quality=95, output_format="webdataset", processes_count=1, thread_count=32,
        number_sample_per_shard=1000, enable_wandb=False)
"""


@dataclass(frozen=True)
class Cost:
    """Of one run in a process of its own."""

    samples: int
    wall_seconds: float
    cpu_seconds: float
    peak_mib: float

    @property
    def row(self) -> str:
        per_thousand = 1000 * self.cpu_seconds / self.samples
        return f"{self.samples} | {self.samples / self.wall_seconds:.0f} | {per_thousand:.1f} | {self.peak_mib:.0f}"


def photograph(width: int, height: int, seed: int) -> bytes:
    """A JPEG whose power falls with frequency as that of photographs does, its channels akin."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    shape = (4, *frequency.shape)
    spectra = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / frequency**1.35
    planes = [np.fft.irfft2(0.8 * spectra[3] + 0.2 * spectra[channel], s=(height, width)) for channel in range(3)]
    pixels = np.clip([plane / plane.std() * 50 + 128 for plane in planes], 0, 255).astype(np.uint8).transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def serve(pictures: list[bytes], ready: Connection) -> None:
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        # A comment after the picture makes each url's bytes its own, so that nothing is found in a store twice.
        number = int(request.match_info["number"])
        return web.Response(body=pictures[number % len(pictures)] + b"%d" % number, content_type="image/jpeg")

    async def started(app: web.Application) -> None:
        ready.send("ready")

    app = web.Application()
    app.router.add_get("/{number}.jpg", answer)
    app.on_startup.append(started)
    web.run_app(app, host=ADDRESS, port=8765, print=None)


# A small process between: what it waits for is what was run, and a session holds all processes of that.
MEASURE = """
import json, os, resource, subprocess, sys, time

def memory_mib(session):
    total = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if int(stat.read().rsplit(")", 1)[1].split()[3]) != session:
                    continue
            with open(f"/proc/{pid}/smaps_rollup") as rollup:
                total += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        except (OSError, IndexError):
            continue
    return total / 1024

ran, peak = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, start_new_session=True), 0
while ran.poll() is None:
    peak = max(peak, memory_mib(ran.pid))
    time.sleep(0.2)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([ran.returncode, usage.ru_utime + usage.ru_stime, peak]))
"""


def measured(command: list[str], samples: int) -> Cost:
    """Run ``command``: its own and its children's costs."""
    started = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    ran = subprocess.run([sys.executable, "-S", "-c", MEASURE, *command], capture_output=True, text=True, env=environment, check=True)
    code, cpu_seconds, peak_mib = json.loads(ran.stdout)
    if code:
        raise SystemExit(f"{command[:3]} ended with {code}: {ran.stderr[-2000:]}")
    return Cost(samples, time.perf_counter() - started, cpu_seconds, peak_mib)


def ours(source: Path, folder: Path, samples: int, **sharding: object) -> Cost:
    sections = json.dumps({"sharding": sharding})
    artifacts = ["--artifact", f"source={source}", "--artifact", f"shards={folder / 'shards'}"]
    return measured([sys.executable, "-m", "rglcd", "run", "shard", "--sections", sections, *artifacts], samples)


def compare_sharding(folder: Path, theirs: str, *, num_images: int, pictures: list[bytes]) -> None:
    at_child, ready = multiprocessing.Pipe()
    server = multiprocessing.get_context("fork").Process(target=serve, args=(pictures, at_child), daemon=True)
    server.start()
    ready.recv()
    time.sleep(0.5)
    (folder / "source").mkdir()
    rows = [f"http://{ADDRESS}:8765/{number}.jpg\tcaption {number}\n" for number in range(num_images)]
    (folder / "source" / "index.tsv").write_text("".join(rows))
    (folder / "list.tsv").write_text("url\tcaption\n" + "".join(rows))
    download = {"kind": "web", "allowed_networks": [f"{ADDRESS}/32"], "num_connections": 32, "connections_per_host": 32}
    options = {"resolution": RESOLUTION, "samples_per_shard": 1000, "image_format": "jpeg"}
    print("\n| sharding | images | images/s | CPU s per 1,000 | peak MiB |\n|---|---|---|---|---|")
    for run in range(2):
        mine = ours(
            folder / "source", folder / f"ours{run}", num_images, **options, download=download | {"store": str(folder / f"store{run}")}
        )
        print(f"| ours, run {run + 1} | {mine.row} |", flush=True)
        (folder / "theirs.py").write_text(THEIRS)
        peer = measured([theirs, str(folder / "theirs.py"), str(folder / "list.tsv"), str(folder / f"theirs{run}")], num_images)
        print(f"| img2dataset, run {run + 1} | {peer.row} |", flush=True)
    again = ours(folder / "source", folder / "again", num_images, **options, download=download | {"store": str(folder / "store0")})
    print(f"| ours again, from the store | {again.row} |", flush=True)
    server.terminate()


def compare_decoding(pictures: dict[tuple[int, int], list[bytes]]) -> None:
    import torch

    from rglcd.sharding.decoding import Fitting, open_picture

    torch.set_num_threads(1)

    def ours_(data: bytes) -> np.ndarray:
        return open_picture(data, Fitting(resolution=RESOLUTION)).pixels

    def pillow(data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return np.asarray(image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)))

    print("\n| decode and resize, one core | KiB | Pillow, images/CPU s | ours | ratio (median of 7 pairs) | PSNR to Pillow's, dB |")
    print("|---|---|---|---|---|---|")
    for size, datas in pictures.items():
        pairs = [(_rate(pillow, datas), _rate(ours_, datas)) for _ in range(7)]
        ratio = float(np.median([mine / theirs for theirs, mine in pairs]))
        error = max(float(np.mean((ours_(data).astype(float) - pillow(data)) ** 2)) for data in datas)
        rates = " | ".join(f"{float(np.median(rates)):.0f}" for rates in zip(*pairs, strict=True))
        kib = sum(map(len, datas)) / len(datas) / 1024
        print(f"| {size[0]} x {size[1]} | {kib:.0f} | {rates} | {ratio:.2f} | {10 * np.log10(255**2 / error):.0f} |", flush=True)


def _rate(decode: object, datas: list[bytes]) -> float:
    assert callable(decode)
    decode(datas[0])
    started, count = time.process_time(), 0
    while time.process_time() - started < 0.5:
        decode(datas[count % len(datas)])
        count += 1
    return count / (time.process_time() - started)


def write_many_rows(source: Path, num_rows: int) -> Path:
    """An index of so many rows: of 500 one is a picture, one has no tab, and the others lie on hosts that nobody asks."""
    (source / "images").mkdir(parents=True)
    (source / "images" / "picture.jpg").write_bytes(photograph(256, 256, 0))
    with (source / "index.tsv").open("w") as index:
        for number in range(num_rows):
            kind = number % 500
            url = "images/picture.jpg" if kind == 0 else f"https://host-{number % 70_001}.example/{number}.jpg"
            index.write("no tab in this row\n" if kind == 1 else f"{url}\ta caption of the usual length, number {number}\n")
    return source


def memory_by_rows(folder: Path) -> None:
    print("\n| rows of a synthetic index | rows/s | CPU s | peak MiB |\n|---|---|---|---|")
    for num_rows in ROWS:
        source = write_many_rows(folder / f"source-{num_rows}", num_rows)
        cost = ours(source, folder / f"rows-{num_rows}", num_rows, resolution=64, samples_per_shard=10_000, image_format="jpeg")
        print(f"| {num_rows:,} | {num_rows / cost.wall_seconds:.0f} | {cost.cpu_seconds:.1f} | {cost.peak_mib:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--img2dataset", metavar="PYTHON", help="interpreter of an environment with img2dataset; without it that part is left out"
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--without-rows", action="store_true", help="leave out memory by rows, which takes minutes")
    options = parser.parse_args()
    pictures = {size: [photograph(*size, seed) for seed in range(8)] for size in SIZES}
    compare_decoding(pictures)
    with tempfile.TemporaryDirectory() as scratch:
        if options.img2dataset:
            # As many of each size; the largest are rare on the web, and would be all that is measured.
            compare_sharding(
                Path(scratch), options.img2dataset, num_images=options.images, pictures=pictures[SIZES[0]] + pictures[SIZES[1]]
            )
        if not options.without_rows:
            memory_by_rows(Path(scratch))


if __name__ == "__main__":
    main()
