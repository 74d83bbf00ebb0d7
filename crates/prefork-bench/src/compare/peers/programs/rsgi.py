"""An RSGI application, Granian's own interface, that answers the paths of `prefork serve` that workloads use."""

import asyncio

from paths import answer

HEAD = [("content-type", "text/plain; charset=utf-8")]


class App:
    async def __rsgi__(self, scope, protocol):
        status, body, delay = answer(scope.path)
        if delay:
            await asyncio.sleep(delay)
        protocol.response_bytes(status, HEAD, body)


app = App()
