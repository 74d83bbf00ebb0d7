"""Tests a server with HTTP/2 frames that a client must not send (RFC 9113), and with floods of frames.

usage: http2.py COMMAND..., with ADDRESS where the server is to listen. Raw frames, standard library only.
"""

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

from servers import free_port

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, ACK = 0x1, 0x4, 0x8, 0x1
NO_ERROR, PROTOCOL, INTERNAL, FLOW_CONTROL, _, STREAM_CLOSED, FRAME_SIZE, REFUSED, CANCEL, COMPRESSION, _, CALM = range(12)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"x")]
POST = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/echo"), (b":authority", b"x")]
STATUS_BY_INDEX = {8: 200, 9: 204, 10: 206, 11: 304, 12: 400, 13: 404, 14: 500}
# The Huffman codes of the digits (RFC 7541, appendix B).
HUFFMAN_DIGITS = {"00000": "0", "00001": "1", "00010": "2"} | {f"{25 + i:06b}": str(3 + i) for i in range(7)}
TIMEOUT = 10


def frame(kind, flags=0, stream=0, payload=b"", length=None):
    return struct.pack(">I", len(payload) if length is None else length)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def integer(n, bits, first):
    if n < (1 << bits) - 1:
        return bytes([first | n])
    out, n = bytes([first | ((1 << bits) - 1)]), n - ((1 << bits) - 1)
    while n >= 128:
        out, n = out + bytes([n % 128 + 128]), n // 128
    return out + bytes([n])


def block(fields):
    """Returns a header block of literals without indexing."""
    return b"".join(b"\x00" + integer(len(n), 7, 0) + n + integer(len(v), 7, 0) + v for n, v in fields)


def headers(stream, fields, flags=END_STREAM | END_HEADERS):
    return frame(HEADERS, flags, stream, block(fields))


def status_of(payload):
    """Decodes `:status`, the first field of a response's header block."""
    at = 0
    while payload[at] & 0xE0 == 0x20:
        at += 1
    if payload[at] & 0x80:
        return STATUS_BY_INDEX.get(payload[at] & 0x7F)
    length = payload[at + 1]
    value = payload[at + 2 : at + 2 + (length & 0x7F)]
    if not length & 0x80:
        return int(value)
    bits, text, code = "".join(f"{b:08b}" for b in value), "", ""
    for bit in bits:
        code += bit
        if code in HUFFMAN_DIGITS:
            text, code = text + HUFFMAN_DIGITS[code], ""
    return int(text)


class Connection:
    def __init__(self, port, settings=b""):
        self.sock = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self.sock.settimeout(TIMEOUT)
        self.buffer = b""
        self.statuses, self.resets, self.goaway, self.closed, self.pongs = {}, {}, None, False, []
        self.send(PREFACE + frame(SETTINGS, payload=settings))

    def send(self, data):
        """Returns whether the server still accepted the data."""
        try:
            self.sock.sendall(data)
            return True
        except (OSError, TimeoutError):
            return False

    def read(self, until, seconds=TIMEOUT):
        """Reads frames until a condition holds; returns False after the time limit."""
        deadline = time.monotonic() + seconds
        while not until():
            if self.closed or time.monotonic() > deadline:
                return bool(until())
            self.sock.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                return bool(until())
            except OSError:
                data = b""
            self.closed = not data
            self.buffer += data
            while len(self.buffer) >= 9 and len(self.buffer) >= 9 + int.from_bytes(self.buffer[:3], "big"):
                self.take()
        return True

    def take(self):
        length = int.from_bytes(self.buffer[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", self.buffer[3:9])
        payload, self.buffer = self.buffer[9 : 9 + length], self.buffer[9 + length :]
        if kind == HEADERS and stream not in self.statuses:
            self.statuses[stream] = status_of(payload)
        elif kind == RST_STREAM:
            self.resets[stream] = int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            self.goaway = int.from_bytes(payload[4:8], "big")
        elif kind == SETTINGS and not flags & ACK:
            self.send(frame(SETTINGS, ACK))
        elif kind == PING and flags & ACK:
            self.pongs.append(payload)

    def outcome(self, stream=1, seconds=TIMEOUT):
        """Returns the first event: ("status", n), ("reset", code), ("goaway", code), ("closed", None), ("silence", None)."""
        ends = lambda: stream in self.statuses or stream in self.resets or self.goaway
        self.read(ends, seconds)
        if self.goaway:
            return "goaway", self.goaway
        if stream in self.resets:
            return "reset", self.resets[stream]
        if stream in self.statuses:
            return "status", self.statuses[stream]
        return ("closed", None) if self.closed else ("silence", None)


failures = 0


def check(name, found, wanted):
    global failures
    good = found in wanted
    failures += not good
    print(f"{'ok' if good else 'FAILED'} {name}: {found[0]} {found[1]}" + ("" if good else f", not {wanted}"), flush=True)


def goaway(*codes):
    """The outcomes of a connection error. A server may also close without GOAWAY, and the h2 crate sends PROTOCOL_ERROR
    where a more specific code exists."""
    return [("goaway", code) for code in (*codes, PROTOCOL)] + [("closed", None)]


def malformed(*statuses):
    """The outcomes of a malformed request: a stream error, or a status (RFC 9113, section 8.1.1)."""
    return [("reset", PROTOCOL), ("goaway", PROTOCOL), *(("status", s) for s in (400, *statuses))]


def connection_errors(port):
    def sends(name, data, wanted, stream=1):
        connection = Connection(port)
        connection.send(data)
        check(name, connection.outcome(stream), wanted)

    open_stream = headers(1, POST, END_HEADERS)
    sends("frame larger than SETTINGS_MAX_FRAME_SIZE", open_stream + frame(DATA, 0, 1, b"x" * 16385), goaway(FRAME_SIZE) + [("reset", FRAME_SIZE)])
    sends("HEADERS larger than SETTINGS_MAX_FRAME_SIZE", frame(HEADERS, 5, 1, block(GET) + b"\x00" * 17000), goaway(FRAME_SIZE))
    sends("SETTINGS of 5 bytes", frame(SETTINGS, payload=b"\x00" * 5), goaway(FRAME_SIZE))
    sends("SETTINGS acknowledgement with a payload", frame(SETTINGS, ACK, payload=b"\x00" * 6), goaway(FRAME_SIZE))
    sends("SETTINGS on a stream", frame(SETTINGS, stream=1), goaway(PROTOCOL))
    for name, key, value, code in (
        ("ENABLE_PUSH of 2", 2, 2, PROTOCOL),
        ("INITIAL_WINDOW_SIZE of 2^31", 4, 1 << 31, FLOW_CONTROL),
        ("MAX_FRAME_SIZE of 16383", 5, 16383, PROTOCOL),
        ("MAX_FRAME_SIZE of 2^24", 5, 1 << 24, PROTOCOL),
    ):
        sends("SETTINGS with " + name, frame(SETTINGS, payload=struct.pack(">HI", key, value)), goaway(code))
    sends("HEADERS on stream 0", headers(0, GET), goaway(PROTOCOL))
    sends("HEADERS on an even stream", headers(2, GET), goaway(PROTOCOL), 2)
    sends("DATA on an idle stream", frame(DATA, END_STREAM, 1, b"x"), goaway(PROTOCOL, STREAM_CLOSED))
    sends("RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, b"\x00" * 4), goaway(PROTOCOL))
    sends("WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 1, b"\x00\x00\x00\x01"), goaway(PROTOCOL))
    sends("DATA on stream 0", frame(DATA, 0, 0, b"x"), goaway(PROTOCOL))
    sends("RST_STREAM of 3 bytes", open_stream + frame(RST_STREAM, 0, 1, b"\x00" * 3), goaway(FRAME_SIZE))
    sends("WINDOW_UPDATE of 0 for the connection", frame(WINDOW_UPDATE, payload=b"\x00" * 4), goaway(PROTOCOL))
    sends("WINDOW_UPDATE beyond 2^31 - 1", frame(WINDOW_UPDATE, payload=b"\x7f\xff\xff\xff") * 2, goaway(FLOW_CONTROL))
    sends("WINDOW_UPDATE of 0 for a stream", open_stream + frame(WINDOW_UPDATE, 0, 1, b"\x00" * 4), goaway(PROTOCOL) + [("reset", PROTOCOL)])
    sends("PING of 7 bytes", frame(PING, payload=b"\x00" * 7), goaway(FRAME_SIZE))
    sends("PING on a stream", frame(PING, stream=1, payload=b"\x00" * 8), goaway(PROTOCOL))
    sends("CONTINUATION without HEADERS", frame(CONTINUATION, END_HEADERS, 1, block(GET)), goaway(PROTOCOL))
    sends("PING between HEADERS and CONTINUATION", frame(HEADERS, END_STREAM, 1, block(GET)) + frame(PING, payload=b"\x00" * 8), goaway(PROTOCOL))
    sends("CONTINUATION of another stream", frame(HEADERS, END_STREAM, 1, block(GET)) + frame(CONTINUATION, END_HEADERS, 3, b""), goaway(PROTOCOL))
    sends("PUSH_PROMISE from a client", headers(1, GET, END_HEADERS) + frame(PUSH_PROMISE, END_HEADERS, 1, b"\x00\x00\x00\x02" + block(GET)), goaway(PROTOCOL))
    sends("padding longer than the frame", open_stream + frame(DATA, PADDED, 1, b"\x09abc"), goaway(PROTOCOL))
    sends("GOAWAY on a stream", frame(GOAWAY, stream=1, payload=b"\x00" * 8), goaway(PROTOCOL))
    sends("an index beyond the tables", frame(HEADERS, 5, 1, b"\xff\xff\x7f"), goaway(COMPRESSION))
    sends("an index of 0", frame(HEADERS, 5, 1, b"\x80"), goaway(COMPRESSION))
    sends("a table larger than allowed", frame(HEADERS, 5, 1, b"\x3f\xe1\xff\x7f" + block(GET)), goaway(COMPRESSION))
    sends("a header block that is cut", frame(HEADERS, 5, 1, block(GET)[:-3]), goaway(COMPRESSION))
    sends("a stream that depends on itself", frame(PRIORITY, 0, 1, b"\x00\x00\x00\x01\x10"), goaway(PROTOCOL) + [("reset", PROTOCOL), ("silence", None)])
    sends("a frame of an unknown kind", frame(0x77, 0xFF, 0, b"x") + headers(1, GET), [("status", 200)])

    closed = Connection(port)
    closed.send(headers(1, GET))
    closed.read(lambda: 1 in closed.statuses)
    closed.statuses.clear()
    closed.send(headers(1, GET))
    check("HEADERS on a closed stream", closed.outcome(), goaway(STREAM_CLOSED, PROTOCOL) + [("reset", STREAM_CLOSED)])
    lower = Connection(port)
    lower.send(headers(5, GET))
    lower.read(lambda: 5 in lower.statuses)
    lower.send(headers(3, GET))
    check("HEADERS on a lower stream", lower.outcome(3), goaway(PROTOCOL, STREAM_CLOSED) + [("reset", STREAM_CLOSED)])
    half = Connection(port)
    half.send(headers(1, POST) + frame(DATA, END_STREAM, 1, b"x"))
    check("DATA after END_STREAM", half.outcome(), goaway(STREAM_CLOSED) + [("reset", STREAM_CLOSED), ("status", 200)])
    for name, data in (("a wrong preface", b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n"), ("HTTP/1 after the preface", PREFACE + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")):
        with socket.create_connection(("127.0.0.1", port), TIMEOUT) as sock:
            sock.settimeout(TIMEOUT)
            sock.sendall(data)
            try:
                while sock.recv(65536):
                    pass
                end = "closed"
            except TimeoutError:
                end = "silence"
            except OSError:
                end = "closed"
            check(name, (end, None), [("closed", None)])


def requests(port):
    def asks(name, fields, wanted, body=None):
        connection = Connection(port)
        connection.send(headers(1, fields, END_HEADERS | (END_STREAM if body is None else 0)))
        if body is not None:
            connection.send(frame(DATA, END_STREAM, 1, body))
        check(name, connection.outcome(), wanted)

    def without(name):
        return [f for f in GET if f[0] != name]

    def replaced(name, value):
        return [(n, value if n == name else v) for n, v in GET]

    asks("a request", GET, [("status", 200)])
    asks("a body", POST, [("status", 200)], b"hello")
    asks("a body of the declared length", POST + [(b"content-length", b"5")], [("status", 200)], b"hello")
    asks("a body longer than declared", POST + [(b"content-length", b"4")], malformed(), b"hello")
    asks("a body shorter than declared", POST + [(b"content-length", b"6")], malformed(), b"hello")
    asks("no body for a declared length", POST + [(b"content-length", b"6")], malformed())
    asks("a length that is not a number", POST + [(b"content-length", b"x")], malformed(), b"hello")
    asks("two lengths", POST + [(b"content-length", b"5"), (b"content-length", b"6")], malformed(), b"hello")
    asks("a name in capital letters", GET + [(b"X-A", b"b")], malformed())
    for name, value in ((b"connection", b"close"), (b"connection", b"keep-alive"), (b"transfer-encoding", b"chunked"), (b"keep-alive", b"1"), (b"proxy-connection", b"close"), (b"upgrade", b"h2c"), (b"te", b"gzip")):
        asks(f"the field {name.decode()}: {value.decode()}", GET + [(name, value)], malformed())
    asks("te: trailers", GET + [(b"te", b"trailers")], [("status", 200)])
    for name in (b":method", b":scheme", b":path"):
        asks(f"no {name.decode()}", without(name), malformed())
        if name != b":scheme":
            asks(f"an empty {name.decode()}", replaced(name, b""), malformed())
        asks(f"{name.decode()} twice", GET + [(name, b"/")], malformed())
    asks("an unknown pseudo-header", GET + [(b":unknown", b"x")], malformed())
    asks(":status in a request", GET + [(b":status", b"200")], malformed())
    asks("a pseudo-header after a field", [GET[0], (b"x-a", b"b"), *GET[1:]], malformed())
    asks("no :authority and no host", without(b":authority"), malformed())
    asks("host instead of :authority", without(b":authority") + [(b"host", b"x")], [("status", 200)])
    asks("host beside the same :authority", GET + [(b"host", b"x")], [("status", 200)])
    asks("host beside another :authority", GET + [(b"host", b"y")], malformed())
    asks("two hosts", without(b":authority") + [(b"host", b"x"), (b"host", b"y")], malformed())
    for authority in (b"[::1", b"[]", b"u@x", b"a b", b"a/b", b"x:80:80", b"x:99999", b"::1", b"a,b", b"a?b"):
        asks(f":authority {authority.decode()}", replaced(b":authority", authority), malformed())
        asks(f"host {authority.decode()}", without(b":authority") + [(b"host", authority)], malformed())
    for path in (b"x", b"*", b"http://x/", b"/a b", b"/\x00", b"/\r\n"):
        asks(f":path {ascii(path)[2:-1]}", replaced(b":path", path), malformed())
    asks(":path * of OPTIONS", [(b":method", b"OPTIONS"), *replaced(b":path", b"*")[1:]], [("status", 405)])
    asks("an unknown path", replaced(b":path", b"/nowhere"), [("status", 404)])
    for method in (b"G T", b"GET\x00", b"G\xff", b"PRI"):
        asks(f":method {ascii(method)[2:-1]}", replaced(b":method", method), malformed())
    for scheme in (b"ftp", b"1http", b"h ttp", b""):
        asks(f":scheme {scheme.decode()}", replaced(b":scheme", scheme), malformed())
    asks("CONNECT with a path", [(b":method", b"CONNECT"), *GET[1:]], malformed())
    asks("CONNECT", [(b":method", b"CONNECT"), (b":authority", b"x:443")], [("status", 405)])
    for value in (b"a\x00b", b"a\rb", b"a\nb", b"\x7f"):
        asks(f"a value of {ascii(value)[2:-1]}", GET + [(b"x-a", value)], malformed())
    for name in (b"", b"a b", b"a:b", b"a\x00", b"\xff"):
        asks(f"the name {ascii(name)[2:-1]}", GET + [(name, b"x")], malformed())
    many = Connection(port)
    data = block(GET + [(b"x-a", b"v" * 8000)] * 8)
    many.send(frame(HEADERS, END_STREAM, 1, data[:16384]))
    pieces = [data[at : at + 16384] for at in range(16384, len(data), 16384)]
    for i, piece in enumerate(pieces):
        many.send(frame(CONTINUATION, END_HEADERS if i == len(pieces) - 1 else 0, 1, piece))
    check("more header bytes than allowed", many.outcome(), malformed(431) + goaway(CALM, COMPRESSION, PROTOCOL) + [("reset", REFUSED)])
    trailers = Connection(port)
    trailers.send(headers(1, POST, END_HEADERS) + frame(DATA, 0, 1, b"hello") + headers(1, [(b"x-t", b"a")]))
    check("trailers", trailers.outcome(), [("status", 200)])
    trailers = Connection(port)
    trailers.send(headers(1, POST, END_HEADERS) + frame(DATA, 0, 1, b"hello") + headers(1, [(b":path", b"/")]))
    # The h2 crate drops it.
    check("a pseudo-header in trailers", trailers.outcome(), malformed(200))
    trailers = Connection(port)
    trailers.send(headers(1, POST, END_HEADERS) + frame(DATA, 0, 1, b"hello") + headers(1, [(b"x-t", b"a")], END_HEADERS))
    check("trailers without END_STREAM", trailers.outcome(), malformed())
    ping = Connection(port)
    ping.send(frame(PING, payload=b"12345678"))
    ping.read(lambda: ping.pongs)
    check("PING is answered", ("pong", ping.pongs[:1]), [("pong", [b"12345678"])])


def floods(port, pid):
    """During each flood, memory must stay bounded and other clients must be served."""

    def flood(name, make, rounds, reads=False, wants_end=False):
        before = memory(pid)
        connection = Connection(port)
        connection.sock.settimeout(2)
        taken = 0
        for i in range(rounds):
            if not connection.send(make(i)):
                break
            taken += 1
            if reads:
                connection.read(lambda: True)
        other = Connection(port)
        other.send(headers(1, GET))
        served = other.outcome()
        grown = (memory(pid) - before) / 1024
        ended = taken < rounds or connection.read(lambda: connection.goaway is not None, 5) or connection.closed
        check(f"others are served beside {name}", served, [("status", 200)])
        check(f"memory grown by {grown:.0f} MiB beside {name}", ("bounded", grown < 64), [("bounded", True)])
        if wants_end:
            check(f"{name} is ended", ("ended", bool(ended)), [("ended", True)])

    odd = lambda i, k: 2 * (200 * i + k) + 1
    flood("CONTINUATION without an end", lambda i: (frame(HEADERS, END_STREAM, 1, block(GET)) if i == 0 else b"") + frame(CONTINUATION, 0, 1, b"") * 1000, 200, wants_end=True)
    flood("CONTINUATION of large fields", lambda i: (frame(HEADERS, END_STREAM, 1, block(GET)) if i == 0 else b"") + frame(CONTINUATION, 0, 1, block([(b"x", b"v" * 8000)])) * 10, 400, wants_end=True)
    flood("rapid resets", lambda i: b"".join(headers(odd(i, k), GET) + frame(RST_STREAM, 0, odd(i, k), b"\x00\x00\x00\x08") for k in range(200)), 200, wants_end=True)
    flood("PINGs whose answers are not read", lambda i: frame(PING, payload=b"12345678") * 5000, 100)
    flood("SETTINGS whose answers are not read", lambda i: frame(SETTINGS, payload=b"\x00\x03\x00\x00\x00\x64") * 5000, 100)
    flood("empty DATA frames", lambda i: (headers(1, POST, END_HEADERS) if i == 0 else b"") + frame(DATA, 0, 1, b"") * 5000, 100)
    flood("PRIORITY frames", lambda i: b"".join(frame(PRIORITY, 0, odd(i, k), b"\x00\x00\x00\x00\x10") for k in range(200)), 300)
    flood("malformed requests", lambda i: b"".join(headers(odd(i, k), GET + [(b"X", b"y")]) for k in range(200)), 200)


def memory(pid):
    """Returns the resident memory of a process and its children in KiB."""
    total = 0
    for each in [pid, *children(pid)]:
        with open(f"/proc/{each}/status") as f:
            total += sum(int(line.split()[1]) for line in f if line.startswith("VmRSS:"))
    return total


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(child) for child in f.read().split()]


def main():
    port = free_port()
    command = [word.replace("ADDRESS", f"127.0.0.1:{port}") for word in sys.argv[1:]]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFORK_")}
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            deadline = time.monotonic() + TIMEOUT
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if time.monotonic() > deadline or server.poll() is not None:
                        raise SystemExit("the server does not listen")
                    time.sleep(0.02)
            connection_errors(port)
            requests(port)
            workers = children(server.pid)
            floods(port, server.pid)
            check("no worker has died", ("alive", children(server.pid) == workers), [("alive", True)])
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
