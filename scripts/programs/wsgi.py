"""A WSGI application."""

import os


def app(environ, start_response):
    body = b"Handled by PID %d\n" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
