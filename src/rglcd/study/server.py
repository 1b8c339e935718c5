"""The study's server: a page, the pictures, and votes that are on disk before they are acknowledged.

A rater's link holds a random token; whatever lies behind it is served to nobody else. What is served is a page, two files for it, the
rater's tasks, and pictures that are looked up by name among the study's own: no path is built from a request. Arms are in the key, which
this module does not open.
"""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from rglcd.errors import InputError
from rglcd.rendering import html_environment
from rglcd.study.assignment import Task, tasks_of
from rglcd.study.ballots import LONGEST_ENTRY, EntryError, RefusedError, Vote, parse_entry
from rglcd.study.raters import Rater, rater_with
from rglcd.study.records import PICTURES, WORDING, Study, picture_names, verify_pictures
from rglcd.study.vote_log import VoteLog, now, open_log

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "study",
}
"""Of every response."""

ENTRIES_PER_TASK: Final = 50
"""A rater may answer and undo this often for each task; more is a program gone wrong, and the log stays small."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class StudyServer:
    """The pages and the votes of one study. ``log`` is open for this server alone."""

    def __init__(self, folder: Path, study: Study, raters: Sequence[Rater], log: VoteLog) -> None:
        self._pictures = {name: folder / PICTURES / name for name in picture_names(study)}
        self._raters, self._log = raters, log
        self._tasks = {rater.number: tasks_of(study, rater.number) for rater in raters}
        self._page = html_environment("rglcd.study").get_template("page.html").render(static=None).encode()
        templates = files("rglcd.study") / "templates"
        self._assets = {name: ((templates / name).read_bytes(), kind) for name, kind in ASSETS.items()}

    def app(self) -> web.Application:
        """What answers requests."""
        app = web.Application(client_max_size=LONGEST_ENTRY, middlewares=[_with_headers])
        app.router.add_get("/r/{token}/", self._get_page)
        app.router.add_get("/r/{token}/tasks", self._get_tasks)
        app.router.add_get("/r/{token}/{asset:page\\.(?:css|js)}", self._get_asset)
        app.router.add_get("/r/{token}/pictures/{name}", self._get_picture)
        app.router.add_post("/r/{token}/votes", self._post_vote)
        return app

    async def _get_page(self, request: web.Request) -> web.Response:
        self._rater(request)
        return web.Response(body=self._page, content_type="text/html", charset="utf-8")

    async def _get_asset(self, request: web.Request) -> web.Response:
        self._rater(request)
        body, kind = self._assets[request.match_info["asset"]]
        return web.Response(body=body, content_type=kind, charset="utf-8")

    async def _get_tasks(self, request: web.Request) -> web.Response:
        rater = self._rater(request)
        votes = self._log.ballots.in_force(rater.number)
        return web.json_response({**tasks_fields(self._tasks[rater.number]), "answered": [[vote.task, vote.id] for vote in votes]})

    async def _get_picture(self, request: web.Request) -> web.Response:
        self._rater(request)
        path = self._pictures.get(request.match_info["name"])
        if path is None:
            raise web.HTTPNotFound
        return web.Response(body=await asyncio.to_thread(path.read_bytes), content_type="image/png")

    async def _post_vote(self, request: web.Request) -> web.Response:
        rater = self._rater(request)
        if request.content_type != "application/json":  # what a form of another site cannot send
            return _refusal(415, "votes are application/json")
        tasks = self._tasks[rater.number]
        try:
            entry = parse_entry(json.loads(await request.text()), rater=rater.number, at=now())
        except EntryError as error:
            return _refusal(400, str(error))
        except (ValueError, RecursionError, LookupError):  # the last: an encoding that Python does not know
            return _refusal(400, "this is no JSON")
        if isinstance(entry, Vote) and entry.task not in {task.id for task in tasks}:
            return _refusal(400, "there is no such task for this rater")
        if self._log.ballots.num_entries(rater.number) >= ENTRIES_PER_TASK * len(tasks):
            return _refusal(429, "too many answers were sent through this link")
        try:
            is_new = await asyncio.to_thread(self._log.append, entry, simulated=rater.simulated)
        except RefusedError as error:
            return _refusal(409, str(error))
        except OSError as error:
            print(f"a vote could not be written, and its rater's page will send it again: {error}", flush=True)
            return _refusal(503, "the answer could not be stored; it will be sent again")
        return web.json_response({"recorded": entry.id, "new": is_new})

    def _rater(self, request: web.Request) -> Rater:
        rater = rater_with(request.match_info["token"], self._raters)
        if rater is None:
            raise web.HTTPNotFound
        return rater


ASSETS: Final = {"page.css": "text/css", "page.js": "text/javascript"}


def tasks_fields(tasks: Sequence[Task]) -> dict[str, Any]:
    """What a page is given of its rater's tasks."""
    return {
        "tasks": [
            {"id": task.id, "prompt": task.pair.prompt, "question": WORDING[task.question], "left": task.left, "right": task.right}
            for task in tasks
        ]
    }


def listen(host: str, port: int) -> socket.socket:
    """A socket on ``host`` and ``port`` (0: any that is free). Raises :class:`InputError` if it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host} port {port}: {error}; name another with --host and --port") from None


def serve(folder: Path, study: Study, raters: Sequence[Rater], sock: socket.socket, *, on_ready: Callable[[], None]) -> None:
    """Answer requests on ``sock`` until SIGINT or SIGTERM. ``raters`` are all of the study's.

    Raises :class:`InputError` if another server has the study's votes, or if its files are not what the manifest says.
    """
    verify_pictures(folder, study)
    with open_log(folder, raters) as log:
        app = StudyServer(folder, study, raters, log).app()

        async def ready(_: web.Application) -> None:
            on_ready()

        app.on_startup.append(ready)
        web.run_app(app, sock=sock, print=None, access_log=None)


def _refusal(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)


@web.middleware
async def _with_headers(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as refused:
        response = _refusal(refused.status, refused.reason)
    response.headers.update(HEADERS)
    return response
