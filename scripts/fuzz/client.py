"""An HTTP client that sends arbitrary bytes on many connections at once and reads the responses."""

import errno
import heapq
import itertools
import re
import select
import socket
import struct
import time
from dataclasses import dataclass, field

# SO_LINGER for a close without TIME_WAIT: a run opens hundreds of thousands of connections.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d\d\d)")


@dataclass
class Exchange:
    """One message on one connection to one server."""

    port: int
    pieces: list
    # Seconds of silence after which the server is considered to wait for more bytes.
    patience: float
    # Whether the sending side is closed after the last piece.
    half_close: bool = False
    received: bytearray = field(default_factory=bytearray)
    # "closed", "reset" or "waits"
    end: str = ""
    sock: object = None
    next_piece: int = 0
    sent: int = 0
    deadline: float = 0.0
    finished: bool = False


@dataclass
class Verdict:
    """The outcome of a message at a server: (status, X-Seen or None, body) of each response, and how the connection ended."""

    responses: list
    end: str
    interim: int = 0

    def text(self):
        items = []
        for status, seen, _ in self.responses:
            items.append(str(status) if seen is None else f"{status} [{seen.decode('latin-1')}]")
        return ", ".join([*items, self.end])


def read_responses(data):
    """Parses all responses in `data`: (responses, number of 1xx)."""
    data, responses, interim = bytes(data), [], 0
    at = 0
    while at < len(data):
        match = STATUS_LINE.match(data, at)
        end = data.find(b"\r\n\r\n", at)
        if not match or end < 0:
            # HTTP/0.9, or an incomplete response.
            responses.append((0, None, data[at:]))
            break
        head = data[at : end + 2]
        at = end + 4
        status = int(match.group(1))
        if status < 200 and status != 101:
            interim += 1
            continue
        body = b""
        length = re.search(rb"\r\ncontent-length: *(\d+)\r\n", head, re.I)
        if re.search(rb"\r\ntransfer-encoding: *chunked\r\n", head, re.I):
            end = data.find(b"0\r\n\r\n", at)
            body, at = (data[at:], len(data)) if end < 0 else (data[at:end], end + 5)
        elif length and status not in (204, 304) and not STATUS_LINE.match(data, at):
            # What follows a response to HEAD is the next response.
            body = data[at : at + int(length.group(1))]
            at += len(body)
        elif not length and status not in (204, 304):
            body, at = data[at:], len(data)
        seen = re.search(rb"\r\nx-seen: ([^\r\n]*)\r\n", head, re.I)
        responses.append((status, seen.group(1) if seen else None, body))
    return responses, interim


class Client:
    def __init__(self, limit=256):
        self.epoll = select.epoll()
        self.limit = limit
        self.active = {}
        self.timers = []
        self.tie = itertools.count()
        self.ready = []

    def run(self, exchanges):
        """Yields each exchange of the iterable when it is complete."""
        source = iter(exchanges)
        exhausted = False
        while True:
            while not exhausted and len(self.active) < self.limit:
                exchange = next(source, None)
                if exchange is None:
                    exhausted = True
                else:
                    self.begin(exchange)
            yield from self.take_ready()
            if not self.active:
                if exhausted:
                    return
                continue
            self.turn()
            yield from self.take_ready()

    def take_ready(self):
        ready, self.ready = self.ready, []
        return ready

    def begin(self, exchange):
        exchange.sock = sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.connect(("127.0.0.1", exchange.port))
        except BlockingIOError:
            pass
        except OSError as e:
            raise SystemExit(f"cannot connect to port {exchange.port}: {e}")
        self.active[sock.fileno()] = exchange
        self.epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP)
        self.arm(exchange, exchange.patience)

    def arm(self, exchange, seconds):
        exchange.deadline = time.monotonic() + seconds
        heapq.heappush(self.timers, (exchange.deadline, next(self.tie), exchange))

    def turn(self):
        now = time.monotonic()
        timeout = max(0.0, self.timers[0][0] - now) if self.timers else 1.0
        for fd, events in self.epoll.poll(timeout):
            exchange = self.active.get(fd)
            if exchange is None:
                continue
            if events & select.EPOLLOUT:
                self.send(exchange)
            if events & ~select.EPOLLOUT and not exchange.finished:
                self.receive(exchange)
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            deadline, _, exchange = heapq.heappop(self.timers)
            if exchange.finished or exchange.deadline > deadline:
                continue
            if exchange.next_piece < len(exchange.pieces):
                self.epoll.modify(exchange.sock.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP)
                self.arm(exchange, exchange.patience)
            else:
                self.finish(exchange, "waits")

    def send(self, exchange):
        piece = exchange.pieces[exchange.next_piece]
        try:
            exchange.sent += exchange.sock.send(piece[exchange.sent :])
        except BlockingIOError:
            return
        except OSError as e:
            if e.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            # The server may have answered before it closed.
            exchange.next_piece, exchange.sent = len(exchange.pieces), 0
            self.receive(exchange)
            if not exchange.finished:
                self.epoll.modify(exchange.sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
            return
        if exchange.sent == len(piece):
            exchange.next_piece += 1
            exchange.sent = 0
            self.epoll.modify(exchange.sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
            more = exchange.next_piece < len(exchange.pieces)
            if exchange.half_close and not more:
                exchange.sock.shutdown(socket.SHUT_WR)
            # A pause, so that the server usually reads the pieces separately.
            self.arm(exchange, 0.001 if more else exchange.patience)

    def receive(self, exchange):
        try:
            while True:
                data = exchange.sock.recv(65536)
                if not data:
                    return self.finish(exchange, "closed")
                exchange.received += data
        except BlockingIOError:
            if exchange.next_piece >= len(exchange.pieces):
                self.arm(exchange, exchange.patience)
        except ConnectionResetError:
            self.finish(exchange, "reset")

    def finish(self, exchange, end):
        exchange.end, exchange.finished = end, True
        fd = exchange.sock.fileno()
        self.epoll.unregister(fd)
        del self.active[fd]
        exchange.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        exchange.sock.close()
        exchange.sock = None
        self.ready.append(exchange)


def verdict(exchange):
    responses, interim = read_responses(exchange.received)
    return Verdict(responses, exchange.end, interim)
