"""Simulated raters: a program that answers a study as people do, through the same links. No person is asked, and every vote says so."""

import asyncio
import io
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from PIL import Image

from rglcd.errors import InputError
from rglcd.study.raters import Rater
from rglcd.study.records import WORDING, Answer, Question, Study, verify_pictures
from rglcd.study.server import StudyServer, listen
from rglcd.study.vote_log import open_log

_QUESTIONS = {text: question for question, text in WORDING.items()}


@dataclass(frozen=True)
class Shown:
    """What a simulated rater sees: which rater, the prompt, two pictures and the question."""

    rater: int
    prompt: str
    left: Image.Image
    right: Image.Image
    question: Question


Judge = Callable[[Shown], Answer]


def simulate(folder: Path, study: Study, raters: Sequence[Rater], *, voters: Sequence[Rater], judge: Judge) -> int:
    """Let ``voters``, of the study's ``raters``, answer all they are asked, as ``judge`` does; returns how many answers were new.

    The study's own server runs for it on loopback.
    Raises :class:`InputError` for a voter who is not simulated, and if another server has the study's votes.
    """
    if any(not rater.simulated for rater in voters):
        raise InputError("a program may not vote through a person's link")
    verify_pictures(folder, study)
    with open_log(folder, raters) as log:
        return asyncio.run(_simulate(StudyServer(folder, study, raters, log), voters, judge))


async def _simulate(server: StudyServer, voters: Sequence[Rater], judge: Judge) -> int:
    sock = listen("127.0.0.1", 0)
    runner = web.AppRunner(server.app(), access_log=None)
    await runner.setup()
    await web.SockSite(runner, sock).start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{sock.getsockname()[1]}", trust_env=False) as session:
            return sum([await _vote(session, rater, number, judge) for number, rater in enumerate(voters)])
    finally:
        await runner.cleanup()


async def _vote(session: aiohttp.ClientSession, rater: Rater, number: int, judge: Judge) -> int:
    given = json.loads(await _get(session, f"/r/{rater.token}/tasks"))
    answered = {task for task, _ in given["answered"]}
    num_new = 0
    for task in given["tasks"]:
        if task["id"] not in answered:
            left, right = [await _picture(session, rater, task[side]) for side in ("left", "right")]
            answer = judge(Shown(number, task["prompt"], left, right, _QUESTIONS[task["question"]]))
            entry = {"kind": "vote", "id": secrets.token_hex(16), "task": task["id"], "answer": answer.value, "milliseconds": None}
            num_new += await _post(session, rater, entry)
    return num_new


async def _picture(session: aiohttp.ClientSession, rater: Rater, name: str) -> Image.Image:
    with Image.open(io.BytesIO(await _get(session, f"/r/{rater.token}/pictures/{name}")), formats=("PNG",)) as opened:
        return opened.convert("RGB")


async def _get(session: aiohttp.ClientSession, path: str) -> bytes:
    async with session.get(path) as response:
        response.raise_for_status()
        return await response.read()


async def _post(session: aiohttp.ClientSession, rater: Rater, entry: dict[str, Any]) -> bool:
    async with session.post(f"/r/{rater.token}/votes", json=entry) as response:
        response.raise_for_status()
        return bool((await response.json())["new"])
