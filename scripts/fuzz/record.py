"""Records the verdicts of nginx and Node for the corpus, and the required ones of the grammar for new cases.

usage: record.py CORPUS

CORPUS is `tests/it/data/http1.corpus`, in which a case is

    == SOURCE: NAME
    send BYTES          several lines are joined; \\r, \\n, \\t, \\0, \\xNN and \\\\ as in C
    alone               nothing is sent after it (otherwise a GET of /bytes/7 that closes the connection)
    fin                 the client then closes its sending side
    ours VERDICT        the required verdict of prefork
    nginx VERDICT       the verdicts of nginx and Node when the case was recorded
    node VERDICT

A verdict is the status of each response in order, with the body if /echo returned one, then `close`, or `open` if the
server waited for more. In a required verdict, `400|501` allows both, and ` / ` separates alternative verdicts. Existing
required verdicts are kept.
"""

import os
import re
import sys
import tempfile
from dataclasses import dataclass, field

import reference
from client import Client, Exchange, read_responses
from servers import Servers

FOLLOWING = b"GET /bytes/7 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@dataclass
class Case:
    name: str
    message: bytes = b""
    flags: list = field(default_factory=list)
    verdicts: dict = field(default_factory=dict)

    def data(self):
        return self.message if "alone" in self.flags else self.message + FOLLOWING


def escape(data):
    text = "".join(
        {10: "\\n", 13: "\\r", 9: "\\t", 0: "\\0", 92: "\\\\"}.get(b, chr(b) if 32 <= b < 127 else f"\\x{b:02x}") for b in data
    )
    # Trailing white space would be invisible.
    return re.sub(r" +\Z", lambda m: "\\x20" * len(m.group()), text)


def unescape(text):
    named = {"n": b"\n", "r": b"\r", "t": b"\t", "0": b"\0", "\\": b"\\"}
    out, at = b"", 0
    while at < len(text):
        if text[at] != "\\":
            out, at = out + text[at].encode("latin-1"), at + 1
        elif text[at + 1] == "x":
            out, at = out + bytes([int(text[at + 2 : at + 4], 16)]), at + 4
        else:
            out, at = out + named[text[at + 1]], at + 2
    return out


def read(path):
    comments, cases = [], []
    for line in open(path, encoding="ascii"):
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "==":
            cases.append(Case(rest))
        elif not cases:
            comments.append(line)
        elif word == "send":
            cases[-1].message += unescape(rest)
        elif word in ("alone", "fin"):
            cases[-1].flags.append(word)
        elif word in ("ours", "nginx", "node"):
            cases[-1].verdicts[word] = rest
        elif word:
            raise SystemExit(f"unknown line {line!r}")
    return comments, cases


def lines(message, width=120):
    """Returns the message as escaped text, divided at its line ends, or anywhere in long lines."""
    out = [""]
    for piece in re.findall(rb"[^\n]{0,60}\n|[^\n]{1,60}", message):
        text = escape(piece)
        if out[-1] and len(out[-1]) + len(text) > width:
            out.append("")
        out[-1] += text
    return out


def write(path, comments, cases):
    with open(path, "w", encoding="ascii") as f:
        f.writelines(comments)
        for case in cases:
            f.write(f"\n== {case.name}\n".removeprefix("" if case is not cases[0] else "\n"))
            for line in lines(case.message):
                f.write(f"send {line}\n")
            for flag in case.flags:
                f.write(flag + "\n")
            for server in ("ours", "nginx", "node"):
                f.write(f"{server} {case.verdicts[server]}\n")


def verdict(responses, end):
    items = []
    for status, seen, body in responses:
        echoed = status == 200 and re.search(rb"\A\S+ (?:https?://[^/]*)?/echo[?# ]", seen or b"", re.I)
        items.append(f"{status}:{shown(body)}" if echoed else str(status))
    return " ".join([*items, end])


def shown(body):
    return f"#{len(body)}" if len(body) > 40 else escape(body).replace(" ", "\\x20")


def required(case):
    """Returns the verdict that the grammar and the built-in application require."""
    known_statuses = statuses()
    outcome = reference.parse(case.data())
    items = []
    for r in outcome.requests:
        path = r.target.partition(b"?")[0]
        if path == b"/echo":
            ok = r.method in (b"POST", b"PUT")
            items.append("200:" + shown(r.body) if ok else "405")
        elif r.method not in (b"GET", b"HEAD"):
            items.append("405")
        else:
            items.append("200" if path in (b"/", b"/bytes/7") else "404")
    if outcome.end == "refused":
        items.append("|".join(map(str, known_statuses[outcome.why])))
    return " ".join([*items, "close" if outcome.end != "waits" or "fin" in case.flags else "open"])


def statuses():
    from fuzz import known_differences

    return {kind: entry["status"] for kind, entry in known_differences()["refused"].items()}


def record(case, ports):
    outcome = reference.parse(case.data())
    for name in ("nginx", "node"):
        exchange = Exchange(ports[name], [case.data()], 1.0 if outcome.end == "waits" else 3.0, half_close="fin" in case.flags)
        (exchange,) = Client(1).run([exchange])
        responses, _ = read_responses(exchange.received)
        case.verdicts[name] = verdict(responses, "open" if exchange.end == "waits" else "close")


def main():
    path = sys.argv[1]
    comments, cases = read(path)
    with tempfile.TemporaryDirectory(prefix="record-") as directory:
        os.chmod(directory, 0o755)
        servers = Servers(directory, None)
        try:
            for case in cases:
                record(case, servers.ports)
                case.verdicts.setdefault("ours", required(case))
        finally:
            servers.stop()
    write(path, comments, cases)


if __name__ == "__main__":
    main()
