#!/usr/bin/env python3
"""Runs each query of a Grafana dashboard against a Prometheus. Fails if one is refused, has no data, or a negative rate.

Usage: prometheus-queries.py PROMETHEUS_URL DASHBOARD.json
"""

import json
import sys
import time
import urllib.parse
import urllib.request

VARIABLES = {"$job": ".*", "$instance": ".*", "$__rate_interval": "10s"}
# Panels of what only some applications use say so in their title.
OPTIONAL = "if the application uses them"


def query(base, expression):
    parameters = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"{base}/api/v1/query?{parameters}", timeout=10) as answer:
        return json.load(answer)["data"]["result"]


def problem_of(base, expression):
    values = [float(series["value"][1]) for series in query(base, expression)]
    if not values:
        return "no data"
    negative = [value for value in values if value < 0]
    return f"negative: {negative}" if negative else None


def main(base, path):
    with open(path, encoding="utf-8") as file:
        panels = json.load(file)["panels"]
    problems = []
    for panel in panels:
        if OPTIONAL in panel["title"]:
            continue
        for target in panel["targets"]:
            expression = target["expr"]
            for name, text in VARIABLES.items():
                expression = expression.replace(name, text)
            deadline = time.monotonic() + 15
            while (problem := problem_of(base, expression)) and time.monotonic() < deadline:
                time.sleep(0.5)
            if problem:
                problems.append(f"{panel['title']}: {problem}: {expression}")
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
