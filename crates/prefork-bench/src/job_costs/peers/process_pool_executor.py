"""Measures jobs in Python's ProcessPoolExecutor: `python3 process_pool_executor.py PLAN`. `PLAN` and the lines printed
are described in job_costs/program_plan.rs."""

import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool


def empty():
    pass


def echo(data):
    return data


def pause(seconds):
    time.sleep(seconds)


def abort():
    os.abort()


def sample(plan, job):
    """Repeats a job until the plan's number of samples or its time is reached. Returns the times in microseconds."""
    times = []
    end = time.perf_counter() + plan["budget_ms"] / 1000
    while len(times) < plan["samples"] and (len(times) < 3 or time.perf_counter() < end):
        begun = time.perf_counter()
        job()
        times.append((time.perf_counter() - begun) * 1e6)
    return times


def warm_up(pool, plan):
    """Starts all processes."""
    for future in [pool.submit(empty) for _ in range(plan["threads"] * 8)]:
        future.result()


def measure_costs(pool, plan):
    def batch():
        for future in [pool.submit(empty) for _ in range(plan["batch"])]:
            future.result()

    def transfer():
        assert len(pool.submit(echo, data).result()) == plan["bytes"]

    warm_up(pool, plan)
    data = b"x" * plan["bytes"]
    transfer()
    return {
        "one_by_one_us": sample(plan, lambda: pool.submit(empty).result()),
        "bulk_us": [time / plan["batch"] for time in sample(plan, batch)],
        "transfers": [{"how": "ProcessPoolExecutor, bytes", "samples_us": sample(plan, transfer)}],
    }


def submit_other(pool):
    """Returns None if the executor is broken already, which refuses the job."""
    try:
        return pool.submit(empty)
    except BrokenProcessPool:
        return None


def measure_crash(pool, plan):
    """One job runs and others wait when a job kills its process. The executor is broken then, and a new one is needed."""
    warm_up(pool, plan)
    running = pool.submit(pause, 0.2)
    print("crash", flush=True)
    begun = time.perf_counter()
    aborted = pool.submit(abort)
    others = [running] + [submit_other(pool) for _ in range(plan["other_jobs"] - 1)]
    assert aborted.exception() is not None
    verdict = time.perf_counter()
    with ProcessPoolExecutor(plan["threads"]) as new_pool:
        new_pool.submit(empty).result()
        ran_again = time.perf_counter()
    return {
        "verdict_us": (verdict - begun) * 1e6,
        "next_job_us": (ran_again - begun) * 1e6,
        "lost_jobs": sum(other is None or other.exception() is not None for other in others),
    }


def main():
    plan = json.loads(sys.argv[1])
    with ProcessPoolExecutor(plan["threads"]) as pool:
        if plan["measure"] == "costs":
            print(json.dumps(measure_costs(pool, plan)), flush=True)
        elif plan["measure"] == "crash":
            print(json.dumps(measure_crash(pool, plan)), flush=True)
        else:
            pool.submit(empty).result()
            print("done", flush=True)


if __name__ == "__main__":
    main()
