"""A built page shows nothing of another host: no font, script, picture or style sheet is fetched from elsewhere."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

_FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
_LINKS_NOT_FETCHED = {"canonical", "next", "prev", "alternate"}


class _Fetches(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        address = given.get(_FETCHED.get(tag, ""), "")
        if tag == "link" and not _LINKS_NOT_FETCHED.intersection(given.get("rel", "").split()):
            address = given.get("href", "")
        if address.startswith(("http:", "https:", "//")):
            self.found.append(address)


def on_post_build(config: Any) -> None:
    """Read every page that was written."""
    for page in sorted(Path(config["site_dir"]).rglob("*.html")):
        reader = _Fetches()
        reader.feed(page.read_text(encoding="utf-8"))
        if reader.found:
            raise PluginError(f"{page} fetches {reader.found[0]} from another host")
