"""An ASGI application that answers the paths of `prefork serve` that workloads use."""

import asyncio

from paths import answer

TEXT = (b"content-type", b"text/plain; charset=utf-8")


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    status, body, delay = answer(scope["path"])
    if delay:
        await asyncio.sleep(delay)
    head = [TEXT, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
