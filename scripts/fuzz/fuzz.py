"""Differential fuzzing of HTTP/1: sends messages, each followed by a second request, to prefork, nginx and Node.

usage: fuzz.py [--seed N] [--count N] [--replay TEXT] [--keep-going] COMMAND...

COMMAND starts prefork; ADDRESS in it is replaced by the address to listen on. Its application reports in `X-Seen` how it
parsed the request. A message that prefork frames differently from nginx, accepts where both refuse, or does not treat as
the grammar in `reference.py` requires, fails the run, unless its kind is listed in `known_differences.toml`.
"""

import argparse
import os
import random
import re
import sys
import tempfile
import time
import tomllib
from collections import Counter
from dataclasses import dataclass

import reference
from client import Client, Exchange, verdict
from grammar import Grammar
from servers import Servers

MARKER = b"GET /marker HTTP/1.1\r\nHost: marker\r\nConnection: close\r\n\r\n"
# Seconds of silence after which a server is considered to wait: if the grammar expects it, and if it does not.
WAIT_EXPECTED, WAIT_UNEXPECTED = 0.4, 6.0
# Messages that leave a server waiting are slow and rarely find anything: one of this many is sent.
WAITING_KEPT = 12
MAX_FAILURES = 12
MINIMISE_STEPS = 120


@dataclass
class Case:
    message: bytes
    cuts: list
    expected: object

    @staticmethod
    def of(message, cuts=()):
        return Case(message, list(cuts), reference.parse(message + MARKER))

    def pieces(self):
        data = self.message + MARKER
        edges = [0, *self.cuts, len(data)]
        return [data[a:b] for a, b in zip(edges, edges[1:]) if a < b]

    def exchange(self, port, patient=1.0):
        waits = self.expected.end == "waits"
        return Exchange(port, self.pieces(), patient * (WAIT_EXPECTED if waits else WAIT_UNEXPECTED))


@dataclass
class Difference:
    rule: str
    kind: str
    detail: str
    # The index of the request on its connection.
    index: int = 0


def known_differences():
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "known_differences.toml")
    with open(path, "rb") as f:
        entries = tomllib.load(f)
    return {section: {e["kind"]: e for e in entries[section]} for section in ("refused", "accepted", "closed")}


def same_target(seen):
    """Normalizes the target in a value of X-Seen to path and query."""
    method, _, rest = seen.partition(b" ")
    target, length, checksum = rest.rsplit(b" ", 2)
    target = target.partition(b"#")[0]
    if method != b"CONNECT":
        target = re.sub(rb"\Ahttps?://[^/?]*", b"", target, flags=re.I)
        if not target.startswith((b"/", b"*")):
            target = b"/" + target
    return b" ".join([method, target, length, checksum])


def steps(side):
    """Lists the steps of a connection, such as ("handled", X-Seen); the last one is its end."""
    out = []
    for status, seen, _ in side.responses:
        out.append(("handled", same_target(seen)) if seen is not None else ("refused", status))
    out.append(("waits" if side.end == "waits" else "closed", None))
    return out


def compare(case, sides, known):
    """Returns (unexpected differences, kinds of the known ones)."""
    ours, nginx, node = (steps(sides[name]) for name in ("ours", "nginx", "node"))
    expected = case.expected
    problem = against_grammar(expected, ours, known)
    if problem:
        return [problem], []
    notes = lambda i: [kind for at, kind in expected.notes if at <= i]
    for i, (step, at_nginx) in enumerate(zip(ours, nginx)):
        at_node = node[i] if i < len(node) else node[-1]
        if step[0] == at_nginx[0] == "refused":
            # nginx continues after some refusals, which is not required.
            return [], []
        if step == at_nginx:
            continue
        kinds = (step[0], at_nginx[0])
        if kinds == ("handled", "handled"):
            return [Difference("framed differently from nginx", "", f"request {i}: {step[1]!r}, nginx {at_nginx[1]!r}")], []
        if kinds == ("refused", "handled"):
            if expected.why in known["refused"]:
                return [], ["refused: " + expected.why]
            return [Difference("refused where nginx accepts", expected.why, f"request {i}")], []
        if kinds == ("closed", "handled"):
            if expected.why in known["closed"]:
                return [], ["closed: " + expected.why]
            return [Difference("closed where nginx continues", expected.why, f"request {i}")], []
        if step[0] == "handled":
            if at_nginx[0] == "refused" and at_node == step:
                return [], ["accepted as by Node"]
            if at_nginx[0] == "refused" and expected.end == "closed" and i == len(expected.requests) - 1:
                # Node refuses data after a last request before it answers the request, so it gives no evidence.
                return [], ["accepted, with no evidence from Node"]
            noted = [kind for kind in notes(i) if kind in known["accepted"]]
            if noted:
                return [], ["accepted: " + noted[-1]]
            # If Node handles the same request, only nginx is stricter; otherwise both differ from prefork.
            rule = "accepted where both refuse" if at_nginx[0] == "refused" else f"handled where nginx {at_nginx[0]}"
            return [Difference(rule, ",".join(notes(i)), f"request {i}: {step[1]!r}", i)], []
        if kinds == ("waits", "handled"):
            return [Difference("waits where nginx handles", expected.why, f"request {i}: {at_nginx[1]!r}")], []
        # Both refuse, or one of them earlier than the other one.
        return [], []
    return [], []


def against_grammar(expected, ours, known):
    wanted = [("handled", same_target(r.seen())) for r in expected.requests]
    kind = expected.why
    got, rest = ours[: len(wanted)], ours[len(wanted) :]
    if got != wanted:
        at = next(i for i in range(len(wanted)) if got[i : i + 1] != wanted[i : i + 1])
        return Difference("not as the grammar requires", kind, f"request {at} should be {wanted[at]}, is {ours[at:at+1]}")
    if expected.end == "refused":
        statuses = known["refused"].get(kind, {}).get("status", [400])
        if rest[0][0] != "refused" or rest[0][1] not in statuses or [r[0] for r in rest[1:]] != ["closed"]:
            return Difference("not refused as required", kind, f"should be {statuses} and closed, is {rest}")
    elif [r[0] for r in rest] != [expected.end]:
        return Difference("does not end as required", kind, f"should be {expected.end}, is {rest}")
    return None


class Fuzzer:
    def __init__(self, servers):
        self.servers, self.known = servers, known_differences()
        self.kinds, self.ends = Counter(), Counter()

    def run_all(self, cases, limit=96):
        """Yields (case, the verdicts of all three servers) as they complete."""
        open_cases = {}

        def exchanges():
            for case in cases:
                sides = {}
                for name, port in self.servers.ports.items():
                    exchange = case.exchange(port)
                    open_cases[id(exchange)] = (exchange, case, name, sides)
                    yield exchange

        for exchange in Client(limit).run(exchanges()):
            _, case, name, sides = open_cases.pop(id(exchange))
            sides[name] = verdict(exchange)
            if len(sides) == len(self.servers.ports):
                yield case, sides

    def one(self, case, patient=1.0):
        sides = {}
        for name, port in self.servers.ports.items():
            (exchange,) = Client(1).run([case.exchange(port, patient)])
            sides[name] = verdict(exchange)
        return sides

    def confirmed(self, case):
        """A difference that is there again each time when the case runs alone."""
        found, sides = None, None
        for _ in range(2):
            sides = self.one(case, patient=2.0)
            problems, kinds = compare(case, sides, self.known)
            if not problems:
                return None, sides
            found = problems[0]
        return (None if self.node_agrees_alone(case, found) else found), sides

    def node_agrees_alone(self, case, difference):
        """Node drops finished answers when what comes behind them is malformed: it is asked without that."""
        requests = case.expected.requests
        if difference.rule != "accepted where both refuse" or difference.index >= len(requests):
            return False
        alone = Case.of(case.message[: requests[difference.index].end])
        return alone.message != case.message and not compare(alone, self.one(alone), self.known)[0]

    def minimised(self, case, difference):
        """The shortest message, found by leaving bytes out, that differs in the same way."""
        same = lambda d: d and (d.rule, d.kind) == (difference.rule, difference.kind)
        steps_left = MINIMISE_STEPS

        def differs(candidate):
            nonlocal steps_left
            steps_left -= 1
            problems, _ = compare(candidate, self.one(candidate, 0.15), self.known)
            return any(same(d) and not self.node_agrees_alone(candidate, d) for d in problems)

        if case.cuts and differs(Case.of(case.message)):
            case = Case.of(case.message)
        size = max(1, len(case.message) // 2)
        while size and steps_left > 0:
            at = 0
            while at < len(case.message) and steps_left > 0:
                shorter = case.message[:at] + case.message[at + size :]
                candidate = Case.of(shorter, [c for c in case.cuts if c < len(shorter)])
                if differs(candidate):
                    case = candidate
                else:
                    at += size
            size //= 2
        return case


def text_of(message):
    """Returns the bytes in the form that --replay accepts."""
    return repr(message)[2:-1].replace("\\'", "'") if message else ""


def bytes_of(text):
    return text.encode("latin-1").decode("unicode_escape").encode("latin-1")


def cases(seed, count):
    source = random.Random(seed)
    grammar = Grammar(source)
    made = waiting = 0
    while made < count:
        message = grammar.message()
        length = len(message) + len(MARKER)
        match source.randrange(10):
            case 0:
                cuts = sorted(source.sample(range(1, length), min(length - 1, source.randrange(1, 4))))
            case 1:
                cuts = list(range(1, length)) if length < 300 else []
            case _:
                cuts = []
        case_ = Case.of(message, cuts)
        if case_.expected.end == "waits":
            waiting += 1
            if waiting % WAITING_KEPT:
                continue
        made += 1
        yield case_


def report(fuzzer, case, difference, sides):
    print(f"DIFFERENCE {difference.rule} ({difference.kind}): {difference.detail}")
    for name, side in sides.items():
        print(f"  {name:6} {side.text()[:300]}")
    expected = case.expected
    print(f"  expected {[r.seen() for r in expected.requests]} {expected.end} {expected.why}")
    if case.cuts:
        print(f"  cut at {case.cuts[:20]}")
    print(f"  replay with FUZZ_REPLAY=$'{text_of(case.message)}'", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--replay")
    parser.add_argument("--show-explained", action="store_true")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-http-") as directory:
        os.chmod(directory, 0o755)
        servers = Servers(directory, arguments.command)
        try:
            return replay(servers, arguments.replay) if arguments.replay is not None else fuzz(servers, arguments)
        finally:
            servers.stop()


def replay(servers, text):
    fuzzer = Fuzzer(servers)
    case = Case.of(bytes_of(text))
    sides = fuzzer.one(case)
    problems, kinds = compare(case, sides, fuzzer.known)
    for name, side in sides.items():
        print(f"{name:6} {side.text()}")
    print(f"expected {[r.seen() for r in case.expected.requests]} {case.expected.end} {case.expected.why}")
    for difference in problems:
        print(f"DIFFERENCE {difference.rule} ({difference.kind}): {difference.detail}")
    print("known differences:", kinds)
    return 1 if problems else 0


def fuzz(servers, arguments):
    fuzzer, begun = Fuzzer(servers), time.monotonic()
    suspects = []
    total = 0
    for case, sides in fuzzer.run_all(cases(arguments.seed, arguments.count)):
        total += 1
        fuzzer.ends[case.expected.end] += 1
        problems, kinds = compare(case, sides, fuzzer.known)
        fuzzer.kinds.update(kinds)
        if problems:
            suspects.append((case, problems[0]))
        if total % 10000 == 0:
            servers.check()
            print(f"{total} messages, {len(suspects)} to confirm, {time.monotonic() - begun:.0f} s", flush=True)
    groups, failures = {}, 0
    for case, _ in suspects:
        difference, sides = fuzzer.confirmed(case)
        if not difference:
            continue
        failures += 1
        groups.setdefault((difference.rule, difference.kind), []).append((case, difference))
    for (rule, kind), found in list(groups.items())[:MAX_FAILURES]:
        case, difference = min(found, key=lambda f: len(f[0].message))
        case = fuzzer.minimised(case, difference)
        problems, _ = compare(case, sides := fuzzer.one(case), fuzzer.known)
        report(fuzzer, case, problems[0] if problems else difference, sides)
        print(f"  and {len(found) - 1} similar ones")
    servers.check()
    for kind, n in sorted(fuzzer.kinds.items()):
        print(f"known {n:6} {kind}")
    seconds = time.monotonic() - begun
    print(
        f"{total} messages with seed {arguments.seed} in {seconds:.0f} s: {dict(fuzzer.ends)}, "
        f"{sum(fuzzer.kinds.values())} known differences, {failures} unexpected"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
