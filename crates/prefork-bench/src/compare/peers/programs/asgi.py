"""An ASGI application that answers the paths of `prefork serve` that workloads use."""

import asyncio
import os

TEXT = (b"content-type", b"text/plain; charset=utf-8")
PID = b"Handled by PID %d\n" % os.getpid()


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


async def answer(path):
    """Returns status and body."""
    if path == "/":
        return 200, PID
    _, name, number = (*path.split("/", 2), "", "")[:3]
    if not number.isdigit():
        return 404, b"not found\n"
    n = int(number)
    if name == "bytes":
        return 200, bytes(n)
    if name == "fib" and n <= 50:
        # Threads would not compute at once: Python's global lock is one for all.
        return 200, b"fib(%d) = %d\n" % (n, fib(n))
    if name == "sleep":
        await asyncio.sleep(n / 1000)
        return 200, b"slept for %d ms\n" % n
    return 404, b"not found\n"


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    status, body = await answer(scope["path"])
    head = [TEXT, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
