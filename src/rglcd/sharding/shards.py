"""Shards: webdataset tars in img2dataset's layout, whose bytes are a pure function of their rows, and their verified reading.

    00000.tar         members KEY.jpg (or .png, .webp), KEY.txt, KEY.json of each sample, by key
    00000.parquet     a line for every row, sample or not: img2dataset's columns
    00000_stats.json  img2dataset's counts, a survey, the digests of both; written last, so a tar without it is unfinished

A tar alone cannot say that it was cut: webdataset reads one that ends at a sample's border without an error. So a
shard is read only after its digest and its number of samples are found to be those that the manifest names.
"""

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from webdataset.writer import TarWriter

from rglcd.errors import InputError
from rglcd.sharding.accounting import Fault, Reason, Tally
from rglcd.sharding.duplicates import Seen
from rglcd.sharding.survey import Survey
from rglcd.store.manifest import FileEntry, altered_files, read_manifest, verify_file
from rglcd.store.shard_tasks import finish_task, finished_task, read_record, task_lock
from rglcd.store.staging import staging_file

MAX_MEMBER_BYTES: Final = 32 << 20
IMAGE_EXTENSIONS: Final = frozenset({"jpg", "png", "webp"})

_MEMBER = re.compile(r"([0-9a-f_-]{1,64})\.([a-z]{3,4})")
_COLUMNS: Final = pa.schema(
    [(name, pa.string()) for name in ("key", "status", "error_message", "url", "caption", "sha256")]
    + [(name, pa.int32()) for name in ("width", "height", "original_width", "original_height")]
)
_PARTS: Final = 3  # image, txt, json
_MAX_HEADER_BYTES: Final = 1 << 20
_MAKE_AGAIN: Final = "make it again: rglcd run shard"


@dataclass(frozen=True)
class Sample:
    """One member of a shard: an encoded square image, its caption, and where it came from."""

    key: str
    image: bytes
    caption: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Refusal:
    """A row that became no sample: why, and what it said, as far as it could be read."""

    key: str
    reason: Reason
    url: str | None = None
    caption: str | None = None
    fault: Fault | None = None


@dataclass(frozen=True)
class ShardEntry:
    """What a published shard must be: its file's digest and size, and its number of samples."""

    name: str
    file: FileEntry
    num_samples: int


def shard_name(number: int) -> str:
    """``00000`` for the first shard."""
    return f"{number:05d}"


def sample_key(shard: int, place: int, *, rows_per_shard: int) -> str:
    """img2dataset's key: the shard's five digits, then the row's place in it in as many as the shard needs."""
    return f"{shard_name(shard)}{place:0{len(str(rows_per_shard - 1))}d}"


def write_shard(
    folder: Path, number: int, outcomes: Iterable[Sample | Refusal], *, extension: str, num_previews: int = 0, seen: Seen | None = None
) -> Tally:
    """Write shard ``number`` to ``folder`` from what became of each of its rows; image members are ``KEY.extension``.

    Members have fixed owner, mode and time, so equal samples make equal bytes. The tar grows in a staging file and gets its
    name when it is whole; its stats are written after it, with so many previews, and with what the rows added to ``seen``.
    """
    path, refused, survey, rows = folder / f"{shard_name(number)}.tar", Counter[str](), Survey(num_previews), _Rows()
    with (
        staging_file(path) as staging,
        staging.open("wb") as stream,
        # An integer time keeps tarfile from PAX headers; encoder=False takes bytes as they are.
        TarWriter(stream, user="", group="", mode=0o444, encoder=False, mtime=0) as tar,
    ):
        for outcome in outcomes:
            rows.add(outcome)
            if isinstance(outcome, Sample):
                tar.write({"__key__": outcome.key} | _members(outcome, extension))
                survey.add_sample(outcome.key, outcome.image, outcome.caption, outcome.facts)
            else:
                refused[outcome.reason.value] += 1
                survey.add_refusal(outcome.url)
    rows.write(path.with_suffix(".parquet"))
    tally = Tally(survey.num_samples + refused.total(), survey.num_samples, dict(sorted(refused.items())))
    finish_task(
        _record(folder, number),
        [path.name, f"{path.stem}.parquet"],
        **_stats(tally),
        survey=survey.record(),
        **({} if seen is None else seen.record()),
    )
    return tally


@contextmanager
def shard_lock(folder: Path, number: int, *, wait: bool) -> Iterator[bool]:
    """Whether shard ``number`` is this worker's to make; ``wait`` until no other is at it."""
    with task_lock(_record(folder, number), wait=wait) as is_mine:
        yield is_mine


def finished_shard(folder: Path, number: int) -> Tally | None:
    """The tally of shard ``number`` if it stands in ``folder``, whole."""
    stats = finished_task(_record(folder, number))
    return None if stats is None else _tally(stats)


def shard_record(folder: Path, number: int) -> Mapping[str, Any]:
    """What was recorded of shard ``number``, which is finished."""
    return read_record(_record(folder, number))


def shard_entries(folder: Path) -> list[ShardEntry]:
    """The shards that ``folder``'s manifest names, in order, those without a sample left out.

    Only the small stats files are read and verified here. Raises :class:`InputError`.
    """
    manifest = read_manifest(folder, made_by="shard")
    records = sorted(name for name in manifest.files if name.endswith("_stats.json"))
    problems = altered_files(folder, manifest, names=records)
    if problems:
        raise InputError(f"{folder}: {problems[0]}; {_MAKE_AGAIN}")
    entries = []
    for record in records:
        name = record.replace("_stats.json", ".tar")
        if name not in manifest.files:
            raise InputError(f"{folder}: {record} is there and {name} is not; {_MAKE_AGAIN}")
        num_samples = _tally(json.loads((folder / record).read_text(encoding="utf-8"))).samples
        entries.append(ShardEntry(name, manifest.files[name], num_samples))
    return [entry for entry in entries if entry.num_samples]


def read_shard(path: Path, entry: ShardEntry) -> Iterator[Sample]:
    """The samples of a shard, by key, once it is known to be whole and what ``entry`` says.

    Digest, member names and number of samples are checked here, before the first sample is returned.
    Raises :class:`InputError` naming the shard, what was expected and the stage that makes it.
    """
    problem = verify_file(path, entry.file)
    if problem is not None:
        raise InputError(f"shard {path} {problem}; {_MAKE_AGAIN}")
    members = _indexed(path, entry.num_samples)
    if len(members) != entry.num_samples:
        raise InputError(f"shard {path} holds {len(members)} samples, not {entry.num_samples}; {_MAKE_AGAIN}")
    return _samples(path, members)


class _Rows:
    """The columns of a shard's parquet file."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS.names}

    def add(self, outcome: Sample | Refusal) -> None:
        if isinstance(outcome, Sample):
            row = dict(outcome.facts) | {"key": outcome.key, "caption": outcome.caption, "status": "success", "error_message": None}
        else:
            status = "failed_to_resize" if outcome.reason.is_of_the_image else "failed_to_download"
            row = {
                "key": outcome.key,
                "url": outcome.url,
                "caption": outcome.caption,
                "status": status,
                "error_message": outcome.reason.value + ("" if outcome.fault is None else f": {outcome.fault.name}"),
            }
        for name, column in self.columns.items():
            column.append(row.get(name))

    def write(self, path: Path) -> None:
        with staging_file(path) as staging:
            pq.write_table(pa.table(self.columns, schema=_COLUMNS), staging)


def _record(folder: Path, number: int) -> Path:
    return folder / f"{shard_name(number)}_stats.json"


def _members(sample: Sample, extension: str) -> dict[str, bytes]:
    facts = json.dumps(dict(sample.facts), sort_keys=True, ensure_ascii=True)
    return {extension: sample.image, "txt": sample.caption.encode(), "json": facts.encode()}


class BoundedHeader(tarfile.TarInfo):
    """A member's header that is safe to follow: tarfile reads the long names and PAX records of others whole, and goes where they say."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "BoundedHeader":
        """The header in ``buf``. Raises ``tarfile.ReadError`` for one that leads back, or is larger than any name can be."""
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type not in tarfile.REGULAR_TYPES and header.size > _MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"member {header.name[:80]!r} says that it has {header.size} bytes")
        return header


@dataclass(frozen=True)
class _Extent:
    offset: int
    bytes: int


def _indexed(path: Path, num_samples: int) -> dict[str, dict[str, _Extent]]:
    """Where the parts of each sample lie. Nothing is extracted, so no name can lead anywhere."""
    members: dict[str, dict[str, _Extent]] = {}
    try:
        with tarfile.open(path, mode="r:", tarinfo=BoundedHeader) as tar:
            for count, member in enumerate(tar):
                if count >= _PARTS * num_samples:
                    raise InputError(f"shard {path} holds more than {num_samples} samples; {_MAKE_AGAIN}")
                key, part = _checked(member, path)
                if part in members.setdefault(key, {}):
                    raise InputError(f"shard {path}: {key} has two of {part}; {_MAKE_AGAIN}")
                members[key][part] = _Extent(member.offset_data, member.size)
    except tarfile.TarError as error:
        raise InputError(f"shard {path} is not a tar: {error}; {_MAKE_AGAIN}") from None
    for key, parts in members.items():
        if parts.keys() != {"image", "txt", "json"}:
            raise InputError(f"shard {path}: {key} is made of {', '.join(sorted(parts))}, not image, json and txt; {_MAKE_AGAIN}")
    return members


def _checked(member: tarfile.TarInfo, path: Path) -> tuple[str, str]:
    """Key and part (``image``, ``txt`` or ``json``) of a member that is safe to read."""
    name = _MEMBER.fullmatch(member.name)
    if name is None or not (name[2] in IMAGE_EXTENSIONS or name[2] in ("txt", "json")):
        raise InputError(f"shard {path}: member {member.name[:80]!r} is not a sample's image, txt or json; {_MAKE_AGAIN}")
    if member.type != tarfile.REGTYPE:
        raise InputError(f"shard {path}: member {member.name!r} is not a regular file; {_MAKE_AGAIN}")
    if member.size > MAX_MEMBER_BYTES:
        raise InputError(f"shard {path}: member {member.name!r} has {member.size} bytes, more than {MAX_MEMBER_BYTES}; {_MAKE_AGAIN}")
    return name[1], "image" if name[2] in IMAGE_EXTENSIONS else name[2]


def _samples(path: Path, members: Mapping[str, Mapping[str, _Extent]]) -> Iterator[Sample]:
    with path.open("rb") as stream:

        def part(extent: _Extent) -> bytes:
            stream.seek(extent.offset)
            return stream.read(extent.bytes)

        for key, parts in members.items():
            try:
                yield Sample(key, part(parts["image"]), part(parts["txt"]).decode(), json.loads(part(parts["json"])))
            except ValueError as error:
                raise InputError(f"shard {path}: caption or facts of {key} cannot be read ({error}); {_MAKE_AGAIN}") from None


def _stats(tally: Tally) -> dict[str, Any]:
    """img2dataset's counters, without its clock times: equal shards have equal stats."""
    of_the_image = sum(count for reason, count in tally.reasons.items() if Reason(reason).is_of_the_image)
    refused = tally.rows - tally.samples
    statuses = {"success": tally.samples} | {str(reason): count for reason, count in tally.reasons.items()}
    counts = {"count": tally.rows, "successes": tally.samples}
    return counts | {"failed_to_download": refused - of_the_image, "failed_to_resize": of_the_image, "status_dict": statuses}


def _tally(stats: Mapping[str, Any]) -> Tally:
    reasons = {reason: count for reason, count in stats["status_dict"].items() if reason != "success"}
    return Tally(stats["count"], stats["successes"], reasons)
