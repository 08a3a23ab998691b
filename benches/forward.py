#!/usr/bin/env python3
"""What a forward listener costs beside the others of Pointsman: a CONNECT tunnel beside the TCP relay, requests in
absolute-form beside the reverse proxy. Part of `make bench`; fills its part of docs/benchmarks.md.

All three run at the same time with one worker each, one of them under load at a time, in an order that changes from
round to round: what else the machine does hits both sides of a ratio.

Settings by environment:
  FORWARD_ROUNDS=5    rounds; a figure is the median of their ratios
  FORWARD_SECONDS=3   seconds of load for each side and round
  FORWARD_WRITE=      1 or 0: write docs/benchmarks.md, or only print; empty = not when BENCH_ONLY, BENCH_PROXIES or
                      BENCH_WRITE=0 say that the run is a part
"""

import contextlib
import datetime
import json
import os
import signal
import statistics
import sys
import tempfile
from dataclasses import dataclass

from compare import ROOT, cpu_sets, interrupted, number
from measure import WRK_SLACK_SECONDS, wrk_result
from processes import HERE, BenchError, Service, exit_status, free_ports, run, start_backend

BEGIN = "<!-- forward:begin (written by make bench; do not edit by hand) -->"
END = "<!-- forward:end -->"


@dataclass(frozen=True)
class Pair:
    """Two ways to have the same bytes carried: `forward` by a forward listener, else as the reverse proxy or relay."""
    title: str
    tunnel: bool
    connections: int
    size: int


PAIRS = [
    Pair("CONNECT tunnel / TCP relay, 16 connections, 1 MiB", True, 16, 1 << 20),
    Pair("CONNECT tunnel / TCP relay, 16 connections, 64 KiB", True, 16, 64 << 10),
    Pair("CONNECT tunnel / TCP relay, 64 connections, 128 B", True, 64, 128),
    Pair("absolute-form / reverse proxy, 64 connections, 128 B", False, 64, 128),
    Pair("absolute-form / reverse proxy, 64 connections, 10 KiB", False, 64, 10 << 10),
    Pair("absolute-form / reverse proxy, 16 connections, 1 MiB", False, 16, 1 << 20),
]


def configuration(directory, ports, backend):
    """One file for each of the three."""
    group = f'[backends.b]\nservers = ["{backend}"]\n'
    texts = {
        "http": f'[[listen]]\nbind = "127.0.0.1:{ports[0]}"\nto = "b"\n{group}',
        "tcp": f'[[listen]]\nbind = "127.0.0.1:{ports[1]}"\nmode = "tcp"\nto = "b"\n{group}',
        "forward": f'[[listen]]\nbind = "127.0.0.1:{ports[2]}"\nmode = "forward"\nrules = "r"\n[rules.r]\n'
                   'list = [{ action = "allow", networks = ["127.0.0.0/8"], ports = ["1-65535"] }]\n',
    }
    paths = {}
    for name, text in texts.items():
        paths[name] = os.path.join(directory, f"{name}.toml")
        with open(paths[name], "w") as file:
            file.write("workers = 1\ncontrol = \"off\"\n" + text)
    return paths


def load_command(pair, forward, address, backend, seconds, cpus):
    pinned = ["taskset", "-c", ",".join(map(str, cpus))]
    if pair.tunnel:
        command = [sys.executable, os.path.join(HERE, "stream_client.py"), address, str(pair.size),
                   str(pair.connections), str(seconds)]
        return pinned + command + ([backend] if forward else [])
    script = "absolute.lua" if forward else "wrk.lua"
    command = ["wrk", "-t1", f"-c{pair.connections}", f"-d{seconds}s", "-s", os.path.join(HERE, script),
               f"http://{address}/{pair.size}"]
    return pinned + command + (["--", backend] if forward else [])


def cost(pair, forward, service, address, backend, seconds, cpus):
    """CPU µs of the proxy for each request."""
    before = service.cpu_ns()
    text = run(load_command(pair, forward, address, backend, seconds, cpus), seconds + WRK_SLACK_SECONDS)
    after = service.cpu_ns()
    if pair.tunnel:
        try:
            requests = json.loads(text)["requests"]
        except ValueError:
            raise BenchError(f"{pair.title}: {text.strip()}") from None
    else:
        result = wrk_result(text)
        if sum(result["errors"].values()) or result["bytes"] < result["requests"] * pair.size:
            raise BenchError(f"{pair.title}: wrk saw errors or short answers: {result}")
        requests = result["requests"]
    if before.keys() != after.keys() or not requests:
        raise BenchError(f"{pair.title}: a process ended or started, or nothing was answered")
    return (sum(after.values()) - sum(before.values())) / 1000 / requests


def measure(master, backend_program, rounds, seconds):
    """For each pair the costs of both sides, one of each a round."""
    proxy_cpus, load_cpus = cpu_sets(1)
    costs = {pair: ([], []) for pair in PAIRS}
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pointsman-bench-"))
        backend, address = start_backend(backend_program, load_cpus, directory)
        stack.callback(backend.stop)
        ports = free_ports(3)
        running = {}
        for name, path in configuration(directory, ports, address).items():
            service = Service(name, [master, "--config", path, "--log-level", "warn"], proxy_cpus,
                              f"{directory}/{name}.log")
            stack.callback(service.stop)
            running[name] = service
        at = {name: f"127.0.0.1:{port}" for name, port in zip(running, ports)}
        for name in ("http", "tcp"):
            running[name].wait_ready(f"http://{at[name]}/128", 128, 1)
        for turn in range(rounds):
            for pair in PAIRS:
                sides = [False, True] if turn % 2 == 0 else [True, False]
                for forward in sides:
                    name = "forward" if forward else "tcp" if pair.tunnel else "http"
                    used = cost(pair, forward, running[name], at[name], address, seconds, load_cpus)
                    costs[pair][forward].append(used)
                ours, other = costs[pair][True][-1], costs[pair][False][-1]
                print(f"round {turn + 1}/{rounds} · {pair.title}: {ours:.1f} / {other:.1f} µs = {ours / other:.2f}",
                      flush=True)
    return costs


def section(costs, rounds, seconds):
    lines = [
        BEGIN, "", "## A forward listener beside the others", "",
        f"CPU µs for each request, one worker, {rounds} rounds of {seconds} s for each side, both sides of a ratio one "
        "after the other in each round. The ratio is the median of the rounds', in brackets the least and the most; "
        f"{datetime.date.today().isoformat()}. Tunnels and relays carry the same bytes from a client in Python "
        "(`benches/stream_client.py`), requests are wrk's.", "",
        "| forward / the other | CPU, forward | CPU, the other | ratio |", "|---|---:|---:|---:|",
    ]
    for pair, (other, forward) in costs.items():
        ratios = sorted(one / two for one, two in zip(forward, other))
        lines.append(f"| {pair.title} | {statistics.median(forward):.1f} | {statistics.median(other):.1f} | "
                     f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) |")
    return "\n".join(lines + ["", END])


def write(text):
    """Puts it in the place of the former one, or at the end."""
    path = os.path.join(ROOT, "docs", "benchmarks.md")
    with open(path) as file:
        whole = file.read()
    before, begin, rest = whole.partition(BEGIN)
    after = rest.partition(END)[2] if begin else ""
    with open(path, "w") as file:
        file.write(before.rstrip() + "\n\n" + text + "\n" + after.lstrip("\n"))


def forward():
    rounds = number(os.environ, "FORWARD_ROUNDS", 5, 1, 100)
    seconds = number(os.environ, "FORWARD_SECONDS", 3, 1, 600)
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")
    programs = [os.path.join(target, "release", name) for name in ("master", "examples/bench_backend")]
    for program in programs:
        if not os.path.exists(program):
            raise BenchError(f"{program} is missing: run `make bench`, which builds it")
    text = section(measure(*programs, rounds, seconds), rounds, seconds)
    print("\n" + text)
    part = any(os.environ.get(name) for name in ("BENCH_ONLY", "BENCH_PROXIES")) or os.environ.get("BENCH_WRITE") == "0"
    if (os.environ.get("FORWARD_WRITE") or ("0" if part else "1")) == "1":
        write(text)
        print("Written to docs/benchmarks.md.")


def main():
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    return exit_status(forward)


if __name__ == "__main__":
    sys.exit(main())
