"""A WSGI application that answers the paths of `prefork serve` that workloads use."""

import time

from paths import answer

STATUS = {200: "200 OK", 404: "404 Not Found"}


def app(environ, start_response):
    status, body, delay = answer(environ["PATH_INFO"])
    if delay:
        time.sleep(delay)
    head = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(STATUS[status], head)
    return [body]
