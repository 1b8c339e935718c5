"""The section ``sharding``: from the source index to verified webdataset tars."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from rglcd.config.base import Section
from rglcd.config.encodings import known_encoding
from rglcd.recipe import Positive


class NoDownload(Section):
    """Nothing is fetched: rows and shards that lie elsewhere are counted or refused."""

    kind: Literal["none"] = "none"


class WebDownload(Section):
    """Images are fetched from the addresses that rows name, and ready-made shards from theirs."""

    kind: Literal["web"] = "web"
    store: str = "downloads"
    """Folder in which everything fetched is kept by its sha256; another run needs no network. In a cluster one on the claim that all pods
    mount, ``/store/downloads``: any other is a pod's own, and goes with it."""
    user_agent: str = "Mozilla/5.0 (compatible; rglcd/0.1; fetches images for training, honours X-Robots-Tag)"
    """The name that requests give servers (their User-Agent header)."""
    allowed_networks: tuple[str, ...] = ()
    """Networks that may be reached although they are not public (one's own mirrors), such as 10.1.2.0/24."""
    max_bytes: Positive = 20 << 20
    """Of one image; a longer answer is cut off and refused."""
    total_seconds: float = Field(default=15.0, gt=0)
    """For one url: resolving, connecting, redirects, retries and body together."""
    min_bytes_per_second: Positive = 4096
    """A url that is slower on average, after its first seconds, is given up."""
    num_connections: Positive = 64
    """In all, at once."""
    connections_per_host: Positive = 4
    """To one host, at once."""
    num_retries: int = Field(default=2, ge=0)
    """Of a url, after an answer that may pass."""
    round: Positive = 1
    """Raise it to ask again for what failed; what was fetched is kept."""


class Sharding(Section):
    """From the source to webdataset tars."""

    resolution: Positive = 512
    """Side of the training image, in pixels."""
    resize: Literal["center_crop", "border", "keep_ratio", "no"] = "center_crop"
    """img2dataset's modes. The first two make squares, which is what the later stages read."""
    min_side: Positive = 1
    """Images whose short side has fewer pixels are left out."""
    max_aspect: float | None = Field(default=None, ge=1)
    """Images with a longer side ratio are left out; null keeps all."""
    deduplication: Literal["none", "exact", "perceptual"] = "none"
    """Leave out an image that an earlier row gave: the same bytes, or the same 64-bit difference hash of its pixels."""
    image_format: Literal["png", "jpeg", "webp"] = "jpeg"
    """In which the samples of a shard are written."""
    samples_per_shard: Positive = 10_000
    """Rows of the index that make a shard; a ready-made shard stays one."""
    max_rows: Positive | None = None
    """Read only the first rows of the index; null reads all."""
    caption_encoding: Annotated[str, AfterValidator(known_encoding)] | None = Field(
        default=None, exclude_if=lambda encoding: encoding is None
    )
    """What captions are in that are not UTF-8 (latin-1, cp1252, gb18030, cp932 ...); left out: such rows are refused."""
    download: Annotated[NoDownload | WebDownload, Field(discriminator="kind")] = NoDownload()
    parts: Positive = 1
    """Independent parts that a cluster may run side by side."""

    @field_validator("resize", mode="before")
    @classmethod
    def _yaml_no(cls, value: Any) -> Any:
        """YAML reads the word ``no`` as false."""
        return "no" if value is False else value

    @model_validator(mode="after")
    def _sound(self) -> "Sharding":
        if self.deduplication != "none" and self.parts > 1:
            raise ValueError("deduplication compares with every earlier row, so it cannot be split: parts must be 1")
        return self
