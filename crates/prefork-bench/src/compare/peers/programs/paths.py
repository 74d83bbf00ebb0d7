"""The paths of `prefork serve` that workloads use."""

import os


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def answer(path):
    """Returns status and body, and how many seconds to wait before."""
    if path == "/":
        # Not computed once: a server may load the application before it forks.
        return 200, b"Handled by PID %d\n" % os.getpid(), 0
    _, name, number = (*path.split("/", 2), "", "")[:3]
    if not number.isdigit():
        return 404, b"not found\n", 0
    n = int(number)
    if name == "bytes":
        return 200, bytes(n), 0
    if name == "fib" and n <= 50:
        # Threads would not compute at once: Python's global lock is one for all.
        return 200, b"fib(%d) = %d\n" % (n, fib(n)), 0
    if name == "sleep":
        return 200, b"slept for %d ms\n" % n, n / 1000
    return 404, b"not found\n", 0
