#!/usr/bin/env python3
"""`make bench`: Pointsman beside nginx and HAProxy, interleaved, on this machine. Needs Python 3.10 and no packages.

Settings by environment:
  BENCH_ROUNDS=3      rounds; a figure is their median
  BENCH_SECONDS=3     seconds of load for each proxy, load and round
  BENCH_WORKERS=1,2   numbers of workers
  BENCH_ONLY=         comma-separated loads; empty = all (the names are printed with an unknown one)
  BENCH_PROXIES=ours,nginx,haproxy,haproxy-splice,relay
  BENCH_IDLE=5000     idle connections for the memory figure; 0 leaves it out
  BENCH_CURVES=1      cost by number of connections and of routes; 0 leaves it out
  BENCH_WRITE=        1 or 0: write docs/benchmarks.md and README.md, or not; empty = only when nothing was left out
"""

import contextlib
import datetime
import os
import platform
import re
import shutil
import signal
import sys
import tempfile

import curves
import measure
import report
from measure import LOADS, Cell
from processes import BenchError, Service, exit_status, free_ports, proxy_command, run, start_backend

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SYSCALL_SECONDS = 1
PROXIES = ["ours", "nginx", "haproxy", "haproxy-splice", "relay"]
# The second HAProxy differs from the first in TCP mode only.
TCP_ONLY = ["haproxy-splice"]
# The floor is one process without workers, and stands beside these loads only.
FLOOR = "relay"
FLOOR_LOADS = ["keepalive", "single", "10k", "tcp-small"]


class Settings:
    """The environment, checked."""

    def __init__(self, env):
        self.rounds = number(env, "BENCH_ROUNDS", 3, 1, 100)
        self.seconds = number(env, "BENCH_SECONDS", 3, 1, 600)
        self.idle = number(env, "BENCH_IDLE", 5000, 0, 25000)
        self.curves = number(env, "BENCH_CURVES", 1, 0, 1) == 1
        self.workers = [int(text) for text in choice(env, "BENCH_WORKERS", ["1", "2"], ["1", "2", "4", "8"])]
        self.proxies = choice(env, "BENCH_PROXIES", PROXIES, PROXIES)
        names = [load.name for load in LOADS]
        only = choice(env, "BENCH_ONLY", names, names)
        self.loads = [load for load in LOADS if load.name in only]
        target = env.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")
        self.master = os.path.join(target, "release", "master")
        self.backend = os.path.join(target, "release", "examples", "bench_backend")
        self.relay = os.path.join(target, "release", "examples", "bench_relay")
        whole = (self.proxies == PROXIES and len(only) == len(LOADS) and self.workers == [1, 2] and self.idle > 0
                 and self.curves)
        self.write = whole if not env.get("BENCH_WRITE") else env["BENCH_WRITE"] == "1"


def number(env, name, default, low, high):
    text = env.get(name) or str(default)
    if not text.isdigit() or not low <= int(text) <= high:
        raise BenchError(f"{name}={text}: give a whole number from {low} to {high}")
    return int(text)


def choice(env, name, default, known):
    chosen = [text.strip() for text in env[name].split(",")] if env.get(name) else default
    for text in chosen:
        if text not in known:
            raise BenchError(f"{name}: there is no {text!r}; choose from {', '.join(known)}")
    return chosen


def cpu_sets(workers):
    """Cores for (the proxy, wrk and the backend): apart where the machine has enough of them, else shared."""
    cpus = sorted(os.sched_getaffinity(0))
    return (cpus[:workers], cpus[workers:]) if len(cpus) > workers else (cpus, cpus)


def first_line(command):
    """The first line a program prints about itself, shortened to its name and version."""
    lines = run(command, 10).splitlines()
    return lines[0].strip() if lines else "unknown"


def facts(settings, how):
    """What a reader needs to judge the figures."""
    model = "unknown"
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.M)
        model = found.group(1) if found else model
    congestion = "unknown"
    # It paces what is sent, or does not, on loopback too.
    with contextlib.suppress(OSError), open("/proc/sys/net/ipv4/tcp_congestion_control") as file:
        congestion = file.read().strip()
    pinned = []
    for workers in settings.workers:
        proxy, load = cpu_sets(workers)
        pinned.append(f"{workers} worker{'s' * (workers > 1)}: proxy on {list_text(proxy)}, wrk and backend on "
                      f"{list_text(load)}")
    known = {
        "Date": datetime.date.today().isoformat(),
        "Kernel": f"{platform.system()} {platform.release()}, TCP congestion control {congestion}",
        "CPU": f"{model}, {len(os.sched_getaffinity(0))} cores",
        "Pinned (cores)": "; ".join(pinned),
        "Length": f"{settings.rounds} rounds of {settings.seconds} s for each cell",
        "System calls counted with": how or "nothing (neither perf nor strace works here)",
    }
    if "ours" in settings.proxies:
        describe = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
        commit = run(describe, 10).strip() if shutil.which("git") else "commit unknown"
        known["Pointsman"] = f"{first_line([settings.master, '--version'])} ({commit})"
    if "nginx" in settings.proxies:
        known["nginx"] = first_line(["nginx", "-v"]).removeprefix("nginx version: ")
    if any(proxy.startswith("haproxy") for proxy in settings.proxies):
        known["HAProxy"] = re.sub(r" \d{4}/.*", "", first_line(["haproxy", "-v"]))
    known["wrk"] = first_line(["wrk", "-v"]).partition(" Copyright")[0]
    return known


def measured(proxy, mode):
    return mode == "tcp" or proxy not in TCP_ONLY


def takes(proxy, load, workers):
    """Whether a proxy is put under a load."""
    if proxy == FLOOR:
        return load.name in FLOOR_LOADS and workers == 1
    return measured(proxy, load.mode)


def list_text(cpus):
    return ", ".join(map(str, cpus))


class Bench:
    """The state of one run: settings, the directory for logs and configurations, the results so far."""

    def __init__(self, settings, directory, how):
        self.settings = settings
        self.directory = directory
        self.how = how
        self.cells = {}
        self.idle = {}
        self.connections = {}
        self.routes = {}

    def cell(self, load, workers, proxy):
        return self.cells.setdefault((load.name, workers, proxy), Cell())

    def start(self, stack, proxy, mode, workers, backend, cpus):
        """Starts one proxy, ready for work; the stack ends it."""
        directory = tempfile.mkdtemp(prefix=f"{proxy}-{mode}-{workers}-", dir=self.directory)
        port = free_ports(1)[0]
        programs = {"ours": self.settings.master, FLOOR: self.settings.relay}
        command = proxy_command(proxy, mode, workers, port, backend, directory, programs)
        service = Service(report.NAMES[proxy], command, cpus, f"{directory}/output.log")
        stack.callback(service.stop)
        service.wait_ready(f"http://127.0.0.1:{port}/128", 128, workers)
        return service, f"127.0.0.1:{port}"

    def start_with_routes(self, stack, proxy, count, backend, cpus):
        """As `start`, with one worker and a configuration of so many routes."""
        directory = tempfile.mkdtemp(prefix=f"{proxy}-routes-{count}-", dir=self.directory)
        port = free_ports(1)[0]
        command = curves.routes_command(proxy, count, port, backend, directory, self.settings.master)
        service = Service(report.NAMES[proxy], command, cpus, f"{directory}/output.log")
        stack.callback(service.stop)
        service.wait_ready(f"http://127.0.0.1:{port}/128", 128, 1)
        return service, f"127.0.0.1:{port}"

    def round(self, number, workers):
        """Every load on every proxy once; the proxies start afresh and take turns at being first."""
        proxies, loads = self.settings.proxies, self.settings.loads
        turn = number % len(proxies)
        order = proxies[turn:] + proxies[:turn]
        proxy_cpus, load_cpus = cpu_sets(workers)
        with contextlib.ExitStack() as stack:
            backend, address = start_backend(self.settings.backend, load_cpus, self.directory)
            stack.callback(backend.stop)
            running = {(proxy, mode): self.start(stack, proxy, mode, workers, address, proxy_cpus)
                       for mode in dict.fromkeys(load.mode for load in loads)
                       for proxy in order if measured(proxy, mode) and (proxy != FLOOR or workers == 1)}
            for load in loads:
                for proxy in [proxy for proxy in order if takes(proxy, load, workers)]:
                    service, proxy_address = running[(proxy, load.mode)]
                    cell = self.cell(load, workers, proxy)
                    measure.measure_speed(cell, load, service, proxy_address, self.settings.seconds, load_cpus)
                    if number == 0:
                        measure.measure_syscalls(cell, load, service, proxy_address, SYSCALL_SECONDS, load_cpus,
                                                 self.how)
                if workers == self.settings.workers[0]:
                    measure.measure_speed(self.cell(load, workers, "direct"), load, None, address,
                                          self.settings.seconds, load_cpus)
                self.show(number, load, workers)

    def show(self, number, load, workers):
        """One line as it comes, so that a long run can be watched."""
        parts = []
        for proxy in self.settings.proxies + ["direct"]:
            cell = self.cells.get((load.name, workers, proxy))
            if cell and cell.rps:
                cpu = f" ({cell.cpu_us[-1]:.1f} µs)" if cell.cpu_us else ""
                parts.append(f"{report.NAMES[proxy]} {cell.rps[-1]:,.0f}{cpu}{'' if cell.valid else ' INVALID'}")
        print(f"round {number + 1}/{self.settings.rounds} · workers {workers} · {load.name}: {' · '.join(parts)}",
              flush=True)

    def memory(self):
        """KiB of each idle connection, two workers, each proxy on its own."""
        proxy_cpus, load_cpus = cpu_sets(1)
        for proxy in [proxy for proxy in self.settings.proxies if measured(proxy, "http") and proxy != FLOOR]:
            with contextlib.ExitStack() as stack:
                backend, address = start_backend(self.settings.backend, load_cpus, self.directory)
                stack.callback(backend.stop)
                service, proxy_address = self.start(stack, proxy, "http", 2, address, proxy_cpus)
                self.idle[proxy] = measure.measure_idle(service, proxy_address, self.settings.idle)
                print(f"idle connections · {report.NAMES[proxy]}: {sum(self.idle[proxy].kib):.2f} KiB each", flush=True)

    def curves(self):
        """Cost by the number of connections and of routes: one worker, every point for each proxy in turn."""
        proxy_cpus, load_cpus = cpu_sets(1)
        proxies = [proxy for proxy in self.settings.proxies if proxy in curves.PROXIES]
        points = [(self.connections, curves.CONNECTIONS, "connections"), (self.routes, curves.ROUTES, "routes")]
        for number in range(self.settings.rounds):
            for cells, counts, what in points:
                for count in counts:
                    for proxy in proxies:
                        cell = cells.setdefault((count, proxy), Cell())
                        with contextlib.ExitStack() as stack:
                            backend, address = start_backend(self.settings.backend, load_cpus, self.directory)
                            stack.callback(backend.stop)
                            if what == "routes":
                                running = self.start_with_routes(stack, proxy, count, address, proxy_cpus)
                                curves.measure_routes(cell, *running, count, self.settings.seconds, load_cpus)
                            else:
                                running = self.start(stack, proxy, "http", 1, address, proxy_cpus)
                                curves.measure_connections(cell, *running, count, self.settings.seconds, load_cpus)
                        print(f"round {number + 1}/{self.settings.rounds} · {count} {what} · {report.NAMES[proxy]}: "
                              f"{cell.cpu_us[-1]:.1f} µs", flush=True)

    def finish(self, known):
        """Prints the tables, and writes them where that was asked for."""
        settings = self.settings
        lines = report.document(self, settings, known)
        print("\n" + "\n".join(lines))
        if not settings.write:
            print("Not written to docs/benchmarks.md: something was left out or BENCH_WRITE=0.")
            return
        with open(os.path.join(ROOT, "docs", "benchmarks.md"), "w") as file:
            file.write("\n".join(lines).rstrip() + "\n")
        print("Written to docs/benchmarks.md.")
        if "ours" in settings.proxies:
            short = report.short_table(self.cells, settings.loads, settings.proxies, settings.workers[0])
            versions = ", ".join(known[name] for name in ("Pointsman", "nginx", "HAProxy") if name in known)
            where = f"Workers: {settings.workers[0]}. {known['Date']}, {known['CPU']}; {versions}."
            if report.fill_readme(os.path.join(ROOT, "README.md"), short + ["", where]):
                print("The short table is in README.md.")


def check_programs(settings):
    """Everything that must exist before the first load; a missing one is named with the way to get it."""
    wanted = [("wrk", "wrk"), ("taskset", "util-linux")]
    wanted += [(name, name) for name in ("nginx", "haproxy") if any(one.startswith(name) for one in settings.proxies)]
    for program, package in wanted:
        if not shutil.which(program):
            raise BenchError(f"{program} is missing: apt-get install {package}")
    for path in [settings.backend] + [settings.relay] * (FLOOR in settings.proxies):
        if not os.path.exists(path):
            raise BenchError(f"{path} is missing: run `make bench`, which builds it")
    if "ours" in settings.proxies and not os.path.exists(settings.master):
        print(f"{settings.master} is missing: measuring the others only", file=sys.stderr)
        settings.proxies = [proxy for proxy in settings.proxies if proxy != "ours"]
        settings.write = False


def interrupted(_signal, _frame):
    """Once only: a second Ctrl-C must not cut the clean-up short."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def compare():
    settings = Settings(os.environ)
    check_programs(settings)
    with tempfile.TemporaryDirectory(prefix="pointsman-bench-") as directory:
        # nginx's workers run as another user than root and must be able to reach their directories.
        os.chmod(directory, 0o755)
        how = measure.tracer()
        known = facts(settings, how)
        bench = Bench(settings, directory, how)
        for number in range(settings.rounds):
            for workers in settings.workers:
                bench.round(number, workers)
        if settings.idle:
            bench.memory()
        if settings.curves:
            bench.curves()
        bench.finish(known)


def main():
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    return exit_status(compare)


if __name__ == "__main__":
    sys.exit(main())
