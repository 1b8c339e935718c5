"""Stage ``shard``: pack the source's images and captions into verified webdataset tars."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

from rglcd import progress
from rglcd.config import NoDownload, Sharding, WebDownload
from rglcd.errors import InputError
from rglcd.sharding.accounting import Reason, RowRejectedError, Tally, total_of
from rglcd.sharding.addresses import AddressPolicy
from rglcd.sharding.content_store import ContentStore
from rglcd.sharding.decoding import EXTENSIONS, Fit, Fitting, encode, open_picture
from rglcd.sharding.download import Downloader, DownloadLimits
from rglcd.sharding.duplicates import Seen, difference_hash, digest_hash
from rglcd.sharding.index_layout import check_layout
from rglcd.sharding.refusal_log import RefusalLog
from rglcd.sharding.shards import Refusal, Sample, finished_shard, sample_key, shard_lock, shard_record, write_shard
from rglcd.sharding.source import IMAGES, INDEX, Candidate, IndexSource, split_rows
from rglcd.sharding.survival import previews_per_shard, render, survival_of
from rglcd.sharding.third_party_tars import LISTING, ReadyShards
from rglcd.stages.run import Output
from rglcd.store.shard_tasks import WHOLE
from rglcd.store.staging import remove_stale_staging, write_text

SURVIVAL = "survival.json"
PAGE = "index.html"

_TASK = "pack shards"
_ROWS_BETWEEN_REPORTS = 64

Source = IndexSource | ReadyShards


def shard(sharding: Sharding, *, source: Path, shards: Output) -> Mapping[str, Any]:
    """Shard k holds what became samples of rows [k S, (k + 1) S) of the index, S = ``samples_per_shard``, or of ready-made tar k.

    So each is a pure function of its rows and of what the network gave for them, which is kept: a finished one that a
    killed run left is taken over, and ``sharding.parts``, which says how many workers may share the shards out, cannot
    change a byte. Raises :class:`InputError` when no row becomes a sample, with the reasons.
    """
    folder = shards.folder
    remove_stale_staging(folder)
    with ExitStack() as stack:
        opened = _open(sharding, source, stack)
        packer = _Packer(sharding, opened, folder)
        tallies = packer.pack_all(shards.part.of(range(opened.num_shards)))
    total = total_of(tallies)
    if shards.part != WHOLE:
        return {"rows": total.rows, "samples": total.samples}
    if not total.samples:
        hint = f"; pictures of an index lie in {IMAGES}/ beside it" if Reason.FORBIDDEN_PATH in total.reasons else ""
        raise InputError(f"{source}: no row became a sample ({total}){hint}")
    survival = survival_of(shard_record(folder, number) for number in range(opened.num_shards))
    write_text(folder / SURVIVAL, json.dumps(survival, indent=1))
    write_text(folder / PAGE, render(survival))
    remove_stale_staging(folder)  # of a worker that was killed beside this one
    packer.report(total.rows)
    return {"rows": total.rows, "samples": total.samples, "shards": opened.num_shards, "reasons": dict(total.reasons)}


def _open(sharding: Sharding, source: Path, stack: ExitStack) -> Source:
    """The source in ``source``, whichever kind it is, with what it needs to reach beyond its folder."""
    download = sharding.download
    store = None if isinstance(download, NoDownload) else ContentStore(Path(download.store))
    if store is not None:
        store.sweep()
    if (source / LISTING).is_file():
        if sharding.max_rows is not None:
            raise InputError("sharding.max_rows reads the first rows of an index; ready-made shards are read whole: set it to null")
        return ReadyShards.open(source / LISTING, store, sharding.caption_encoding)
    check_layout(source / INDEX, called=str(source / INDEX))
    ranges = split_rows(source / INDEX, sharding.samples_per_shard, max_rows=sharding.max_rows)
    if isinstance(download, NoDownload) or store is None:
        return IndexSource(source / INDEX, ranges, None, sharding.caption_encoding)
    policy = AddressPolicy.parse(download.allowed_networks)
    downloader = Downloader(store, limits_of(download), policy, round=download.round)
    return IndexSource(source / INDEX, ranges, stack.enter_context(downloader), sharding.caption_encoding)


def limits_of(download: WebDownload) -> DownloadLimits:
    """What the configuration allows a fetch to take."""
    return DownloadLimits(
        user_agent=download.user_agent,
        max_bytes=download.max_bytes,
        total_seconds=download.total_seconds,
        min_bytes_per_second=download.min_bytes_per_second,
        num_connections=download.num_connections,
        connections_per_host=download.connections_per_host,
        num_retries=download.num_retries,
    )


class _Packer:
    """Packs shard after shard, and says how far it is."""

    def __init__(self, sharding: Sharding, source: Source, folder: Path) -> None:
        self.sharding, self.source, self.folder = sharding, source, folder
        self.fitting = Fitting(
            resolution=sharding.resolution, fit=Fit(sharding.resize), min_side=sharding.min_side, max_aspect=sharding.max_aspect
        )
        self.seen = None if sharding.deduplication == "none" else Seen()
        self.rows_done, self.shards_done, self.log = 0, 0, RefusalLog()

    def pack_all(self, numbers: Sequence[int]) -> list[Tally]:
        """Make the shards ``numbers``. Those that another worker is at come last, and are then made only if it was killed."""
        in_order = self.seen is not None  # what is a duplicate depends on what came before
        tallies = {number: self.pack(number, wait=in_order) for number in numbers}
        whole = [self._packed(number) if tally is None else tally for number, tally in tallies.items()]
        self.log.close()
        return whole

    def pack(self, number: int, *, wait: bool) -> Tally | None:
        """Make shard ``number``, unless it stands. None if another worker is at it."""
        self.report(self.rows_done)
        with shard_lock(self.folder, number, wait=wait) as is_mine:
            if not is_mine:
                return None
            tally = finished_shard(self.folder, number)
            if tally is None:
                previews = previews_per_shard(self.source.num_shards)
                extension = EXTENSIONS[self.sharding.image_format]
                tally = write_shard(self.folder, number, self._outcomes(number), extension=extension, num_previews=previews, seen=self.seen)
            elif self.seen is not None:
                self.seen.recall(shard_record(self.folder, number))
        self.rows_done += tally.rows
        self.shards_done += 1
        return tally

    def _packed(self, number: int) -> Tally:
        tally = self.pack(number, wait=True)
        assert tally is not None, "whoever waits gets the lock"
        return tally

    def report(self, rows: int) -> None:
        if self.source.num_rows is None:
            progress.report(_TASK, done=self.shards_done, total=self.source.num_shards, unit="shards", rows=rows)
        else:
            progress.report(_TASK, done=rows, total=self.source.num_rows, unit="rows", shards=self.shards_done)

    def _outcomes(self, number: int) -> Iterator[Sample | Refusal]:
        for place, candidate in enumerate(self.source.candidates(number)):
            if place % _ROWS_BETWEEN_REPORTS == 0:
                self.report(self.rows_done + place)
            key = sample_key(number, place, rows_per_shard=self.sharding.samples_per_shard)
            try:
                yield self._sample(key, candidate)
            except RowRejectedError as rejected:
                fault = rejected.fault or candidate.fault
                if fault is not None:
                    self.log.add(f"{key} {candidate.url or ''}", rejected.reason, fault)
                yield Refusal(key, rejected.reason, candidate.url, candidate.caption, fault)

    def _sample(self, key: str, candidate: Candidate) -> Sample:
        if candidate.image is None:
            assert candidate.reason is not None, candidate
            raise RowRejectedError(candidate.reason)
        assert candidate.caption is not None, candidate
        picture = open_picture(candidate.image, self.fitting)
        if self.seen is not None:
            is_exact = self.sharding.deduplication == "exact"
            if not self.seen.is_first(digest_hash(candidate.image) if is_exact else difference_hash(picture.pixels)):
                raise RowRejectedError(Reason.DUPLICATE)
        height, width = picture.pixels.shape[:2]
        original_width, original_height = picture.original_size
        # img2dataset's field names, so that what reads its shards reads ours.
        facts = {"key": key, "url": candidate.url, "caption": candidate.caption, "status": "success", "error_message": None}
        sizes = {"width": width, "height": height, "original_width": original_width, "original_height": original_height}
        image = encode(picture.pixels, self.sharding.image_format)
        return Sample(key, image, candidate.caption, facts | sizes | {"sha256": sha256(candidate.image).hexdigest()})
