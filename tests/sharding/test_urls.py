"""Whatever a url or a redirect holds becomes a request that is one, or its row's reason."""

import re
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from rglcd.sharding.accounting import RowRejectedError
from rglcd.sharding.urls import redirected, requested

TEXT = st.text(max_size=40) | st.binary(max_size=40).map(lambda data: data.decode("utf-8", "surrogateescape"))
PARTS = st.sampled_from(["http://", "https://", "//", "host", ":80", "[::1]", "[", "@", "/", "?", "#", "%2F", "%", "..", "\\", " ", "\r\n"])
HOSTILE = TEXT | st.lists(PARTS | TEXT, max_size=8).map("".join)


@given(st.sampled_from(["", "http://host/"]), HOSTILE)
def test_any_text_is_a_request_of_one_line_or_has_a_reason(before: str, text: str) -> None:
    with suppress(RowRejectedError):
        url = requested(before + text)
        assert url.scheme in ("http", "https")
        assert url.host
        assert re.fullmatch(r"/[!-~]*", url.raw_path_qs)


@given(HOSTILE)
def test_any_location_leads_to_a_url_or_has_a_reason(location: str) -> None:
    with suppress(RowRejectedError):
        assert redirected(URL("http://host/a/b?c"), location).isascii()


@given(st.text(alphabet="abc%2F:~/()é ", max_size=20))
def test_a_path_never_changes_the_host(path: str) -> None:
    assert requested(f"http://host:81/{path}").authority == "host:81"
