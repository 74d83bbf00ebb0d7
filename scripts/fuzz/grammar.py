"""Generates requests from a grammar: mostly valid, with one or two errors, and some with random byte changes."""

METHODS = [b"GET", b"POST", b"POST", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE"]
ODD_METHODS = [
    b"get", b"Post", b"FOO", b"PRI", b"CONNECT", b"TRACE", b"M-SEARCH", b"G_T", b"G!T", b"GET1", b"", b"G\tT", b"G(T",
    b"GET\x00", b"G\xc3\x84T", b"A" * 300, b"-", b"GET:", b"\"GET\"",
]
TARGETS = [b"/echo", b"/echo", b"/echo", b"/", b"/a/b?c=d&e", b"/echo?x=1", b"/%41%2f", b"/a//b/"]
ODD_TARGETS = [
    b"*", b"x", b"x:80", b"a:443", b"ftp://x/", b"http://u@x/", b"http://u:p@x/echo", b"http://x/echo", b"http://x",
    b"http://x?q", b"HTTP://X/echo", b"https://x/echo", b"http://[::1]/echo", b"http://[::1/echo", b"http:///echo",
    b"http://x:80/echo", b"http://x:80x/echo", b"http://:80/echo", b"http://x:99999/echo", b"http://x:/echo", b"http:x",
    b"http:/x", b"http://x#f", b"/echo#a", b"/echo?#", b"//x/echo", b"/%zz", b"/%", b"/\x80\xff", b"/a\x00b", b"/a\tb",
    b"/a\x7fb", b"/\x01", b"/\"q\"", b"/<>", b"/a\\b", b"/{}|^`", b"/../..", b"/./a/../b", b"/a b", b"", b"?q", b"#f",
    b"[::1]:80", b"/" + b"l" * 4000, b"/[x]", b"http://a b/", b"http://x\\y/", b"http://%41/echo", b"ws://x/echo",
    b"http://x/echo#f", b"http://*/", b"http://x_y/echo", b"/%00", b"/echo/%2e%2e/", b"urn:x:y", b"http//x/", b"://x/",
]
VERSIONS = [b"HTTP/1.1"] * 20 + [b"HTTP/1.0"]
ODD_VERSIONS = [
    b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.", b"HTTP/1", b"http/1.1", b"HTTP/1.1 ", b"HTTP/1.10", b"HTTP/11",
    b"HTTP/01.1", b"HTTP/ 1.1", b"HTTP/1 .1", b"HTTP/3.0", b"HTTP/1.9", b"HTTQ/1.1", b"HTTP/1.1x", b"FTP/1.1", b"",
    b"HTTP/1,1", b"HTTP/+1.1", b"HTTP/1.1\t", b"ICY/1.1", b"HTTP/9.9",
]
HOSTS = [b"x", b"x", b"example.org:80", b"[::1]:80", b"", b"127.0.0.1", b"X.EXAMPLE"]
ODD_HOSTS = [
    b"[::1", b"[]", b"::1", b"a b", b"a/b", b"u@x", b"a,b", b"a?b", b"a#b", b"x:", b"x:80:80", b"x:8a", b":80", b"x:99999",
    b"[::1]x", b"[::1]:", b"[::g]", b"[v1.x]", b"[v1.]", b"x\x00", b"x\xff", b"%41", b"%zz", b"%", b"x.", b".", b"..",
    b"a..b", b"a_b", b"<x>", b"\"x\"", b"x\\y", b"x\ty", b"[1:2:3:4:5:6:7:8:9]", b"[::1%25eth0]", b"[127.0.0.1]", b"a;b",
    b"x|y", b"{x}", b"x^", b"`x`", b"a[b]", b"[[::1]]", b"x:+80", b"x: 80", b"http://x", b"x" * 300,
]
LENGTH_NAMES = [b"Content-Length"] * 6 + [b"content-length", b"CONTENT-LENGTH"]
ODD_LENGTHS = [
    b"+N", b"-N", b"0N", b"00000000000N", b"N,N", b"N, N", b"N,", b",N", b"N M", b"0xN", b"N.0", b"Ne0", b"", b" ", b"NN",
    b"18446744073709551616", b"9223372036854775807", b"9223372036854775808", b"99999999999999999999", b"N\x00", b"N;q=1",
    b"N_0", b"\"N\"", b"N\t", b"\tN", b"N\x0b", b"\xa0N", b"N\r", b"x", b"-0", b"+0", b"N-1", b"N, 7",
]
CODINGS = [
    b"chunked", b"Chunked", b"CHUNKED", b" chunked ", b"\tchunked\t", b"chunked, chunked", b"identity", b"gzip",
    b"gzip, chunked", b"identity, chunked", b"chunked, identity", b"chunked, gzip", b"foo", b"foo, chunked", b"chunked;q=1",
    b"\"chunked\"", b"chunke", b"chunkedd", b"xchunked", b"", b",chunked", b"chunked,", b", chunked ,", b"\x0bchunked",
    b"chunked\x00", b"chu\tnked", b"chunked\x0c", b"chunked\xa0", b"trailers", b"compress, chunked", b"c\x00hunked",
    b"chunked chunked", b"cow, chunked", b"chunked ; x",
]
CONNECTIONS = [
    b"close", b"keep-alive", b"Close", b"KEEP-ALIVE", b"close, keep-alive", b"keep-alive, close", b"x, close", b"upgrade",
    b"closed", b"close;x", b"", b",", b"close,", b"Transfer-Encoding", b"Content-Length", b"host, close", b"TE, trailers",
    b"\tclose", b"foo", b"keep-alive, foo", b"clo se", b"x-close",
]
OTHER_FIELDS = [
    b"Accept: */*", b"X-A: b", b"Expect: 100-continue", b"Expect: 200-ok", b"Expect: 100-Continue",
    b"Upgrade: websocket", b"Upgrade: h2c", b"TE: trailers", b"Trailer: X-T", b"Cookie: a=b; c=d", b"Range: bytes=0-1",
    b"X-Empty:", b"X-Space: a  b\t", b"X-High: \xc3\xa4\xff", b"X:y", b"X-Colon: a:b::c", b"HTTP2-Settings: AAMAAABkAAQAAP__",
    b"User-Agent: fuzz", b"Content-Type: text/plain", b"Proxy-Connection: close", b"Keep-Alive: timeout=5",
    b"X.Custom|Pipe: ok", b"_x: y", b"1: 2", b"If-Modified-Since: x", b"Date: x", b"Content-Encoding: gzip",
    b"Authorization: Basic eDp5", b"Via: 1.1 x", b"X-Forwarded-For: 1.2.3.4", b"Max-Forwards: 0", b"Warning: x",
]
ODD_FIELDS = [
    b"X : y", b"X\t: y", b" X: y", b"\tX: y", b": y", b"X", b"X y: z", b"X\x00: y", b"X: \x00", b"X: \x01", b"X: \x7f",
    b"X: a\rb", b"X: a\nb", b"X\xff: y", b"X(: y", b"X[]: y", b"X/: y", b"X\": y", b"X: a\r\n b", b"X: a\r\n\tb", b"X:\r\n y",
    b"X: \x0b", b"X: \x1b[0m", b"\x00: y", b"Transfer_Encoding: chunked", b"Content_Length: 5", b"Transfer-Encoding\x00: chunked",
    b"Content-Length : 5", b"Transfer-Encoding : chunked", b"Transfer-Encoding:\r\n chunked", b"Content-Length:\r\n 5",
    b"Transfer-Encodin\xc4\x9f: chunked", b"Content-Length\x0b: 5", b"Host : y", b"X-Long: " + b"v" * 3000,
    b"N" * 900 + b": v", b"\xef\xbb\xbfX: y", b"X;: y", b"X=: y", b"X@: y", b"{X}: y", b"X,: y", b"X\\: y", b"X?: y",
]
BODIES = [b"", b"a", b"hello", b"0\r\n\r\n", b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n", b"x" * 100, b"\r\n", b"\x00\xff\r\n\r\n",
          b"POST /s HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"]
CHUNK_EXTENSIONS = [b";a", b";a=b", b";a=\"b c\"", b"; a = b", b" ;a", b";a;b=c", b"\t;\ta", b";a=\"\\\"\"", b";a=\"x;y\""]
ODD_CHUNK_EXTENSIONS = [
    b" ", b"\t", b";", b";\x00", b";a\x00", b";a=", b";=b", b";a b", b";a=\"b", b"; ", b";a\r", b";a\rb", b";a\n", b"\n",
    b";\xff", b";a=\x7f", b";a==b", b"x", b",a", b";a;", b"  ", b"\x0b", b";a=b ", b";\"a\"", b";a=\"\x00\"", b"\r", b"\x00",
    b";" + b"e" * 5000,
]
ODD_SIZES = [
    b"", b"0x%s", b"+%s", b"-%s", b" %s", b"\t%s", b"%s_0", b"g", b"%s.0", b"0%s", b"000000000000000000000%s", b"%sg",
    b"fffffffffffffffff", b"ffffffffffffffff", b"7fffffffffffffff", b"8000000000000000", b"1000000000000000%s", b"\x00%s",
    b"\"%s\"", b"\r\n%s", b"\n%s", b"%s\x00", b"\xef\xbc\x95", b"-0", b"+0",
]
TRAILERS = [b"X-T: a\r\n", b"X-T: a\r\nX-U: b\r\n", b"X-T:\r\n", b"Expires: x\r\n"]
ODD_TRAILERS = [
    b"X-T: a\n", b"X-T\r\n", b"X T: a\r\n", b"X-T : a\r\n", b" X-T: a\r\n", b": a\r\n", b"X-T: a\r\n b\r\n", b"X-T: \x00\r\n",
    b"X-T: a\rb\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: y\r\n", b"X-T: \x01\r\n", b"\n",
    b"X-T\xff: a\r\n", b"GET / HTTP/1.1\r\n", b"Connection: close\r\n", b"X-T: a\r\r\n", b"X-T\x00: a\r\n", b"\r", b"x" * 5000 + b": y\r\n",
]
LINE_ENDINGS = [b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b" \r\n", b"\x00\r\n", b"\r\n ", b"\x0b", b"\x0c\r\n", b"\xc2\x85"]
BYTES = [b"\x00", b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b";", b",", b"0", b"1", b"/", b"\x7f", b"\x80", b"\xff", b"\x0b", b"\x1f", b"a", b"\"", b"_", b"+", b"-"]


class Grammar:
    """Generates messages from a random source; the same source gives the same messages."""

    def __init__(self, random):
        self.random = random
        # How much more often than usual a part has errors. An error in the head hides those of the body.
        self.head_oddness, self.body_oddness = 1, 1

    def odd(self, probability=0.06):
        return self.random.random() < probability

    def odd_head(self, probability=0.06):
        return self.odd(probability * self.head_oddness)

    def odd_body(self, probability):
        return self.odd(probability * self.body_oddness)

    def message(self):
        """Returns one or two requests, sometimes with random changes."""
        self.head_oddness, self.body_oddness = self.random.choice([(1, 1), (0.05, 3), (0.4, 1)])
        message = self.request()
        if self.odd(0.15):
            message += self.request()
        if self.odd(0.08):
            message = self.random.choice([b"\r\n", b"\n", b"\r", b" ", b"\r\n\r\n", b"\x00", b"\r\n\n", b"X", b"\xef\xbb\xbf"]) + message
        if self.odd_head(0.35):
            for _ in range(self.random.choice([1, 1, 1, 2, 3])):
                message = self.mutated(message)
        return message

    def mutated(self, message):
        choice, at = self.random.choice, self.random.randrange(len(message) + 1)
        match self.random.randrange(8):
            case 0 | 1:
                return message[:at] + choice(BYTES) + message[at:]
            case 2 | 3:
                return message[:at] + choice(BYTES) + message[at + 1 :]
            case 4:
                return message[:at] + message[at + self.random.choice([1, 1, 2, 5]) :]
            case 5:
                piece = message[at : at + self.random.randrange(1, 30)]
                to = self.random.randrange(len(message) + 1)
                return message[:to] + piece + message[to:]
            case 6:
                return message[:at] + bytes([self.random.randrange(256)]) + message[at + 1 :]
            case _:
                # Replaces a line ending by another.
                lines = message.split(b"\r\n")
                if len(lines) < 2:
                    return message
                cut = self.random.randrange(1, len(lines))
                return b"\r\n".join(lines[:cut]) + choice(LINE_ENDINGS) + b"\r\n".join(lines[cut:])

    def request(self):
        choice = self.random.choice
        method = choice(ODD_METHODS if self.odd_head() else METHODS)
        target = choice(ODD_TARGETS if self.odd_head(0.12) else TARGETS)
        version = choice(ODD_VERSIONS if self.odd_head(0.05) else VERSIONS)
        if method == b"CONNECT" and self.odd(0.7):
            target = choice([b"x:443", b"x", b"/", b"[::1]:443", b"x:", b":443", b"http://x/"])
        line = b" ".join([method, target, version])
        if self.odd_head(0.03):
            line = choice([b"  ".join([method, target, version]), b"\t".join([method, target, version]), b" " + line,
                           line + b" ", method + b" " + target, method, b" ".join([method, target, b"x", version])])
        fields = self.hosts()
        framing, body = self.framing(method)
        fields += framing
        if self.odd(0.2):
            fields.append(b"Connection: " + choice(CONNECTIONS))
            if self.odd(0.1):
                fields.append(b"Connection: " + choice(CONNECTIONS))
        while self.odd(0.35):
            fields.append(choice(OTHER_FIELDS))
        if self.odd_head(0.12):
            fields.append(choice(ODD_FIELDS))
        if self.odd(0.005):
            fields += [b"X-%d: y" % i for i in range(choice([90, 101, 130]))]
        if self.odd(0.5):
            self.random.shuffle(fields)
        return b"\r\n".join([line, *fields, b"", b""]) + body

    def hosts(self):
        if self.odd_head(0.03):
            return []
        hosts = [b"Host: " + self.random.choice(ODD_HOSTS if self.odd_head(0.08) else HOSTS)]
        if self.odd_head(0.02):
            hosts.append(b"Host: " + self.random.choice(HOSTS))
        return hosts

    def framing(self, method):
        bodiless = method in (b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"CONNECT")
        if self.odd(0.75 if bodiless else 0.1):
            return [], b""
        body = self.random.choice(BODIES)
        if self.odd(0.45 if self.head_oddness == 1 else 0.2):
            return self.sized(body)
        return self.coded(body)

    def sized(self, body):
        name, length = self.random.choice(LENGTH_NAMES), b"%d" % len(body)
        fields = [name + b": " + length]
        if self.odd_head(0.15):
            value = self.random.choice(ODD_LENGTHS).replace(b"N", length).replace(b"M", b"7")
            fields = [name + b": " + value]
        if self.odd(0.06):
            fields.append(self.random.choice([name + b": " + length, name + b": 7", name + b": +" + length]))
        if self.odd_head(0.05):
            fields.append(b"Transfer-Encoding: " + self.random.choice(CODINGS))
        if self.odd(0.03):
            body = self.random.choice([body[:-1], body + b"x", body + b"\r\n"])
        return fields, body

    def coded(self, body):
        coding = self.random.choice(CODINGS) if self.odd_head(0.15) else b"chunked"
        fields = [b"Transfer-Encoding: " + coding]
        if self.odd_head(0.05):
            fields.append(b"Transfer-Encoding: " + self.random.choice(CODINGS))
        if self.odd_head(0.04):
            fields.append(b"Content-Length: " + self.random.choice([b"%d" % len(body), b"0", b"5", b"x"]))
        return fields, self.chunks(body)

    def chunks(self, body):
        choice, out = self.random.choice, b""
        at = 0
        while at < len(body):
            size = self.random.randrange(1, min(20, len(body) - at) + 1) if self.odd(0.5) else len(body) - at
            data = body[at : at + size]
            out += self.chunk_line(size) + data + (choice([b"", b"\n", b"\r", b"x\r\n", b"\r\n\r\n", b"\n\n", b"\r\r"]) if self.odd_body(0.02) else b"\r\n")
            at += size
        out += self.chunk_line(0)
        if self.odd(0.15):
            out += choice(TRAILERS)
        if self.odd_body(0.08):
            out += choice(ODD_TRAILERS)
        return out + (choice([b"", b"\n", b"\r", b"\r\n\r\n", b" \r\n", b"\n\r\n"]) if self.odd_body(0.02) else b"\r\n")

    def chunk_line(self, size):
        digits = b"%x" % size if self.odd(0.8) else b"%X" % size
        if self.odd_body(0.04):
            digits = self.random.choice(ODD_SIZES).replace(b"%s", digits)
        line = digits
        if self.odd(0.10):
            line += self.random.choice(CHUNK_EXTENSIONS)
        if self.odd_body(0.05):
            line += self.random.choice(ODD_CHUNK_EXTENSIONS)
        return line + (self.random.choice([b"\n", b"\r", b"\r\r\n", b"\n\n"]) if self.odd_body(0.01) else b"\r\n")
