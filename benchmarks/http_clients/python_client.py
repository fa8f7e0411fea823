"""POST the file named by each line of the standard input; print the status or the exception.

python python_client.py LIBRARY URL
"""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

HEADERS = {"Content-Type": "image/jpeg"}


def requests(url: str) -> None:
    import requests

    with requests.Session() as session:
        answer(lambda body: session.post(url, data=body, headers=HEADERS).status_code)


def httpx(url: str) -> None:
    import httpx

    with httpx.Client(timeout=30) as client:
        answer(lambda body: client.post(url, content=body, headers=HEADERS).status_code)


def aiohttp(url: str) -> None:
    import aiohttp

    async def run() -> None:
        async with aiohttp.ClientSession(headers=HEADERS) as session:
            # In a thread, so that the event loop notices connections that are closed meanwhile.
            while line := await asyncio.to_thread(sys.stdin.readline):
                try:
                    async with session.post(url, data=read(line)) as response:
                        await response.read()
                        print(response.status, flush=True)
                except Exception as error:
                    print(repr(error), flush=True)

    asyncio.run(run())


def answer(post: Callable[[bytes], int]) -> None:
    for line in sys.stdin:
        try:
            print(post(read(line)), flush=True)
        except Exception as error:
            print(repr(error), flush=True)


def read(line: str) -> bytes:
    return Path(line.rstrip("\n")).read_bytes()


if __name__ == "__main__":
    {"requests": requests, "httpx": httpx, "aiohttp": aiohttp}[sys.argv[1]](sys.argv[2])
