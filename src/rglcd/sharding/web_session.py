"""Sessions of aiohttp that make requests as a polite robot does, to public addresses only."""

from types import SimpleNamespace
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver

from rglcd.sharding.addresses import AddressPolicy

_HEADER_BYTES: Final = 64 << 10
_NUM_HEADERS: Final = 512


def open_session(*, user_agent: str, connections_per_host: int, resolver: AbstractResolver, policy: AddressPolicy) -> aiohttp.ClientSession:
    """A session whose requests may give a list as ``trace_request_ctx``, to which something is added when they open a connection."""
    connector = aiohttp.TCPConnector(
        limit=0,  # counted by whoever asks, before a fetch's clock starts
        limit_per_host=connections_per_host,
        resolver=resolver,
        use_dns_cache=False,  # aiohttp's keeps every host it ever met
        socket_factory=policy.open_socket,
    )
    tracing = aiohttp.TraceConfig()
    tracing.on_connection_create_end.append(_note_new_connection)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
        auto_decompress=False,  # no image needs it, and a bomb does
        timeout=aiohttp.ClientTimeout(total=None),
        trust_env=False,
        trace_configs=[tracing],
        max_line_size=_HEADER_BYTES,  # policies and redirects of real hosts are longer than aiohttp's 8 KiB
        max_field_size=_HEADER_BYTES,
        max_headers=_NUM_HEADERS,
    )


async def _note_new_connection(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.append(None)
