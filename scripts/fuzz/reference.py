"""An independent parser for the grammar of RFC 9112, as a strict server applies it to a stream of bytes.

`parse` returns the handled requests in order, and how the connection ends. It shares no code with the server, so that an
error of one is found by the other. Where the RFC leaves a choice, it makes the choice of the server, whose reason is in
`known_differences.toml` under the same kind.
"""

import re
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
# The octets of RFC 3986, and others that browsers send unescaped and nginx accepts.
TARGET = re.compile(rb"[!\"$-;=@-_a-~\x80-\xff]*(?:[?#][!#-;=?-~\x80-\xff]*)?\Z")
FIELD_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*\Z")
# Without the comma, which would join two hosts in one field.
REG_NAME = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})*\Z")
IPV_FUTURE = re.compile(rb"[vV][0-9A-Fa-f]+\.[A-Za-z0-9\-._~!$&'()*+,;=:]+\Z")
CHUNK_EXTENSIONS = re.compile(
    rb"(?:[ \t]*;[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    rb"(?:[ \t]*=[ \t]*(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    rb'|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"))?)*\Z'
)
MAX_LENGTH = (1 << 63) - 1
MAX_FIELDS = 100
MAX_HEAD = 16 * 1024
MAX_TARGET = 65_534
MAX_SIZE_DIGITS = 16
MAX_EXTENSION = 4 * 1024


@dataclass
class Request:
    method: bytes
    target: bytes
    body: bytes = b""
    # Its end in the stream.
    end: int = 0

    def seen(self):
        return b"%s %s %d %08x" % (self.method, self.target, len(self.body), checksum(self.body))


@dataclass
class Outcome:
    requests: list = field(default_factory=list)
    # "refused", "closed", "waits"
    end: str = ""
    # The kind of refusal or close, or the part of the message that needs more bytes.
    why: str = ""
    # Kinds of accepted input that a stricter server may refuse: (index of the request, kind).
    notes: list = field(default_factory=list)


def checksum(data):
    """Computes a 32-bit FNV-1a checksum, as the servers do."""
    value = 0x811C9DC5
    for byte in data:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


class Refused(Exception):
    pass


class NeedsMore(Exception):
    pass


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def line(self, kind, note=None):
        """Returns the bytes before the next line ending. A bare CR is refused as `kind`, and so is a bare LF, unless a
        note is allowed."""
        end = self.data.find(b"\n", self.at)
        line = self.data[self.at : end if end >= 0 else len(self.data)]
        cr = line.find(b"\r")
        if 0 <= cr < len(line) - 1:
            raise Refused("bare-cr-in-" + kind)
        if end < 0:
            if kind == "request-line":
                check_partial_request_line(line)
            raise NeedsMore(kind)
        self.at = end + 1
        if cr >= 0:
            return line[:-1]
        if note is None:
            raise Refused("bare-lf-in-" + kind)
        note("bare-lf-in-" + kind)
        return line

    def take(self, n):
        if len(self.data) - self.at < n:
            raise NeedsMore("body")
        self.at += n
        return self.data[self.at - n : self.at]


def parse(data):
    outcome, reader = Outcome(), Reader(data)
    try:
        while True:
            if reader.at == len(data):
                outcome.end, outcome.why = "waits", "idle"
                return outcome
            request, close = one(reader, lambda kind: outcome.notes.append((len(outcome.requests), kind)))
            outcome.requests.append(request)
            if close:
                outcome.end, outcome.why = "closed", close
                return outcome
    except Refused as e:
        outcome.end, outcome.why = "refused", str(e)
    except NeedsMore as e:
        outcome.end, outcome.why = "waits", str(e)
    return outcome


def one(reader, note):
    """Parses one request: (Request, the reason why the connection ends after it, or None)."""
    head_at = reader.at
    line = reader.line("request-line", note)
    while not line:
        note("empty-line-before-request")
        if reader.at == len(reader.data):
            raise NeedsMore("idle")
        line = reader.line("request-line", note)
    if reader.at - head_at > MAX_HEAD:
        raise Refused("too-large")
    method, target, version = request_line(line, note)
    fields = Fields(version)
    while line := reader.line("header", note):
        if reader.at - head_at > MAX_HEAD:
            raise Refused("too-large")
        fields.add(*field_line(line))
    fields.check()
    close = fields.close(note)
    if method == b"CONNECT":
        close = close or "refused-tunnel"
    body = chunked(reader, note) if fields.chunked else reader.take(fields.length or 0)
    return Request(method, target, body, reader.at), close


def check_partial_request_line(line):
    """Refuses incomplete data that cannot become a request."""
    method, space, rest = line.removesuffix(b"\r").partition(b" ")
    if line not in (b"", b"\r") and not TOKEN.match(method):
        raise Refused("method-is-no-token")
    if space and not re.match(rb"[ -~\x80-\xff]*\Z", rest):
        raise Refused("octet-in-target")


def request_line(line, note):
    parts = line.split(b" ")
    if not TOKEN.match(parts[0]) or parts[0] == b"PRI":
        raise Refused("preface-method" if parts[0] == b"PRI" else "method-is-no-token")
    if len(parts) != 3:
        # HTTP/0.9 has no version.
        raise Refused("no-version" if len(parts) == 2 else "spaces-in-request-line")
    method, target, version = parts
    if not re.match(rb"HTTP/\d\.\d\Z", version):
        raise Refused("malformed-version")
    if version not in (b"HTTP/1.0", b"HTTP/1.1"):
        raise Refused("unknown-version")
    if len(target) > MAX_TARGET:
        raise Refused("too-large")
    target = check_target(method, target, note)
    if not re.match(rb"[A-Z_-]+\Z", method):
        note("method-not-of-capital-letters")
    elif method not in KNOWN_METHODS:
        note("unknown-method")
    return method, target, version


KNOWN_METHODS = {b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT"}


def field_line(line):
    if line[:1] in (b" ", b"\t"):
        raise Refused("line-folding")
    name, colon, value = line.partition(b":")
    if not colon:
        raise Refused("field-without-colon")
    if not TOKEN.match(name):
        spaced = TOKEN.match(name.rstrip(b" \t"))
        raise Refused("space-before-colon" if spaced else "field-name-is-no-token")
    if not FIELD_VALUE.match(value):
        raise Refused("control-in-field-value")
    name = name.lower()
    if name in (b"content-length", b"transfer-encoding") and b"\t" in value:
        # The grammar allows it, but many servers read it as part of the value; refused where it decides on framing.
        raise Refused("tab-beside-length-or-coding")
    return name, value.strip(b" \t")


class Fields:
    """The fields of a head that affect framing and the connection."""

    def __init__(self, version):
        self.old = version == b"HTTP/1.0"
        self.expects = self.odd_expectation = self.proxy_connection = False
        self.count, self.host, self.length, self.chunked, self.options = 0, None, None, False, []

    def add(self, name, value):
        self.count += 1
        if self.count > MAX_FIELDS:
            raise Refused("too-large")
        if name == b"host":
            if self.host is not None:
                raise Refused("hosts")
            if not authority(value):
                raise Refused("malformed-host")
            self.host = value
        elif name == b"content-length":
            if self.length is not None:
                raise Refused("lengths")
            if not re.match(rb"\d+\Z", value) or int(value) > MAX_LENGTH:
                raise Refused("malformed-length")
            self.length = int(value)
        elif name == b"transfer-encoding":
            if self.chunked:
                raise Refused("chunked-twice")
            if value.lower() != b"chunked":
                known = all(c.strip().lower() == b"chunked" for c in value.split(b","))
                raise Refused("chunked-twice" if known else "unknown-coding")
            self.chunked = True
        elif name == b"proxy-connection":
            self.proxy_connection = True
        elif name == b"expect":
            self.odd_expectation |= self.expects or value.lower() != b"100-continue"
            self.expects = True
        elif name == b"connection":
            self.options += [option.strip(b" \t").lower() for option in value.split(b",")]

    def check(self):
        if self.host is None and not self.old:
            raise Refused("no-host")
        if self.chunked and self.length is not None:
            raise Refused("both-lengths")
        if self.chunked and self.old:
            raise Refused("coding-in-http-1.0")

    def close(self, note):
        if self.host == b"":
            note("empty-host")
        elif b".." in (self.host or b""):
            note("empty-label-in-host")
        if self.proxy_connection:
            note("proxy-connection")
        if self.odd_expectation:
            note("unknown-expectation")
        if b"close" in self.options:
            return "connection-close"
        if any(b"close" in o for o in self.options):
            note("option-that-contains-close")
        if self.old and b"keep-alive" not in self.options:
            return "http-1.0"
        return None


def check_target(method, target, note):
    """Returns the target as handlers receive it: path and query, `*`, or the authority of CONNECT."""
    if method == b"CONNECT":
        if b"%" in target or not authority(target, complete=True):
            raise Refused("connect-without-authority")
        note("connect")
        return target
    if target == b"*" and method == b"OPTIONS":
        return target
    if target.startswith(b"/"):
        path = checked_path(target)
        if leads_above_root(path):
            note("path-above-root")
        return path
    if target == b"*":
        raise Refused("asterisk-form")
    scheme, colon, rest = target.partition(b"://")
    if not colon or scheme.lower() not in (b"http", b"https"):
        raise Refused("target-form")
    end = min([at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0], default=len(rest))
    host, path = rest[:end], rest[end:]
    if b"@" in host:
        raise Refused("user-information")
    if not host or b"%" in host or not authority(host):
        raise Refused("target-authority")
    if b"_" in host:
        note("underscore-in-target")
    path = checked_path(path)
    return path if path.startswith(b"/") else b"/" + path


def checked_path(path):
    if not TARGET.match(path):
        raise Refused("octet-in-target")
    try:
        path.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("octet-in-target")
    return path.partition(b"#")[0]


def leads_above_root(target):
    depth = 0
    for segment in re.split(b"/+", unquote_to_bytes(target.partition(b"?")[0]))[1:]:
        depth += -1 if segment == b".." else segment not in (b"", b".")
        if depth < 0:
            return True
    return False


def authority(text, complete=False):
    """Checks uri-host [":" port] (RFC 9112, section 3.2.3; RFC 9110, section 7.2). With `complete`, both are required."""
    if text.startswith(b"["):
        host, bracket, rest = text[1:].partition(b"]")
        if not bracket or not (ipv6(host) or IPV_FUTURE.match(host)):
            return False
        if rest and not rest.startswith(b":"):
            return False
        digits = rest[1:]
    else:
        host, rest, digits = text.partition(b":")
        if not REG_NAME.match(host) or (rest and not host):
            return False
    if complete and not digits:
        return False
    # At most five digits: a port is a 16-bit number.
    return not digits or bool(re.match(rb"\d{1,5}\Z", digits) and int(digits) <= 65535)


def ipv6(text):
    import ipaddress

    try:
        ipaddress.IPv6Address(text.decode("ascii"))
        return b"%" not in text
    except ValueError:
        return False


def chunked(reader, note):
    body = b""
    while True:
        line = reader.line("chunk-line")
        digits = re.match(rb"[0-9A-Fa-f]*", line).group()
        if not digits:
            raise Refused("malformed-chunk-size")
        if len(digits) > MAX_SIZE_DIGITS or int(digits, 16) > MAX_LENGTH:
            raise Refused("malformed-chunk-size")
        if len(line) > MAX_EXTENSION or not CHUNK_EXTENSIONS.match(line[len(digits) :]):
            raise Refused("malformed-chunk-extension")
        if re.search(rb"[ \t]", line):
            note("white-space-in-chunk-extension")
        size = int(digits, 16)
        if size == 0:
            break
        body += reader.take(size)
        ending = reader.data[reader.at : reader.at + 2]
        if not b"\r\n".startswith(ending):
            raise Refused("chunk-longer-than-its-size")
        reader.take(2)
    while True:
        line = reader.line("trailer")
        if not line:
            return body
        name, colon, value = line.partition(b":")
        if not colon or not TOKEN.match(name) or not FIELD_VALUE.match(value):
            raise Refused("malformed-trailer")
