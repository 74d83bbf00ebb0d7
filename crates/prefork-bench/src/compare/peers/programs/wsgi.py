"""A WSGI application that answers the paths of `prefork serve` that workloads use."""

import os
import time

STATUS = {200: "200 OK", 404: "404 Not Found"}


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def answer(path):
    """Returns status and body."""
    if path == "/":
        # Not computed once: gunicorn may load the application before it forks.
        return 200, b"Handled by PID %d\n" % os.getpid()
    _, name, number = (*path.split("/", 2), "", "")[:3]
    if not number.isdigit():
        return 404, b"not found\n"
    n = int(number)
    if name == "bytes":
        return 200, bytes(n)
    if name == "fib" and n <= 50:
        return 200, b"fib(%d) = %d\n" % (n, fib(n))
    if name == "sleep":
        time.sleep(n / 1000)
        return 200, b"slept for %d ms\n" % n
    return 404, b"not found\n"


def app(environ, start_response):
    status, body = answer(environ["PATH_INFO"])
    head = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(STATUS[status], head)
    return [body]
