"""An RSGI application, Granian's own interface, that answers the paths of `prefork serve` that workloads use."""

import os

from asgi import answer

HEAD = [("content-type", "text/plain; charset=utf-8")]


class App:
    async def __rsgi__(self, scope, protocol):
        status, body = await answer(scope.path)
        protocol.response_bytes(status, HEAD, body)


app = App()
