"""The loads, and one measurement of each kind: speed with CPU time, system calls, memory of idle connections."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import time
from dataclasses import dataclass, field

from processes import HERE, BenchError, run

WRK_SLACK_SECONDS = 20


@dataclass(frozen=True)
class Load:
    """What wrk does: `connections` at a time, answers of `size` bytes, a new connection for each request or not."""
    name: str
    title: str
    mode: str
    connections: int
    size: int
    close: bool = False
    host: str = ""


LOADS = [
    Load("keepalive", "HTTP keep-alive, 64 connections, 128 B", "http", 64, 128),
    Load("single", "HTTP keep-alive, one connection, 128 B", "http", 1, 128),
    Load("close", "HTTP, a connection per request, 64 at a time, 128 B", "http", 64, 128, close=True),
    Load("10k", "HTTP keep-alive, 64 connections, 10 KiB", "http", 64, 10 << 10),
    Load("1m", "HTTP keep-alive, 16 connections, 1 MiB", "http", 16, 1 << 20),
    Load("tcp-small", "TCP relay, 64 connections, 128 B", "tcp", 64, 128),
    Load("tcp-close", "TCP relay, a connection per request, 64 at a time, 128 B", "tcp", 64, 128, close=True),
    Load("tcp-1m", "TCP relay, 16 connections, 1 MiB", "tcp", 16, 1 << 20),
]


@dataclass
class Cell:
    """Everything measured of one proxy with one number of workers under one load; one list item a round."""
    rps: list = field(default_factory=list)
    p50_us: list = field(default_factory=list)
    p99_us: list = field(default_factory=list)
    cpu_us: list = field(default_factory=list)
    busy: list = field(default_factory=list)
    uneven: list = field(default_factory=list)
    syscalls: float | None = None
    errors: int = 0
    notes: set = field(default_factory=set)

    @property
    def valid(self):
        return bool(self.rps) and self.errors == 0 and not self.notes

    def median(self, name):
        values = getattr(self, name)
        return statistics.median(values) if values else None

    def spread(self):
        """Half the distance between the best and the worst round, as a share of the median."""
        return (max(self.rps) - min(self.rps)) / 2 / statistics.median(self.rps)


def wrk_command(load, address, seconds, cpus):
    command = ["taskset", "-c", ",".join(map(str, cpus)), "wrk", "-t1", f"-c{load.connections}", f"-d{seconds}s",
               "-s", os.path.join(HERE, "wrk.lua")]
    if load.close:
        command += ["-H", "Connection: close"]
    if load.host:
        command += ["-H", f"Host: {load.host}"]
    return command + [f"http://{address}/{load.size}"]


def wrk_result(text):
    found = re.search(r"^@@(\{.*\})$", text, re.M)
    if not found:
        raise BenchError(f"wrk gave no result:\n{text}")
    return json.loads(found.group(1))


def note_errors(cell, load, result):
    """Errors, and answers of the wrong size, make the cell invalid."""
    cell.errors += sum(result["errors"].values())
    cell.notes |= {f"{count} {kind}" for kind, count in result["errors"].items() if count}
    if result["requests"] == 0:
        cell.notes.add("no request was answered")
    elif result["bytes"] < result["requests"] * load.size:
        cell.notes.add("short answers")


def busiest_share(before, after):
    """CPU time of the busiest worker over that of the idlest; None when there is only one."""
    used = [after[task] - before[task] for task in after if task in before]
    return max(used) / max(min(used), 1) if len(used) > 1 else None


def measure_speed(cell, load, service, address, seconds, cpus):
    """One round: wrk's figures, and the CPU time all processes of the proxy used meanwhile. No service: no proxy."""
    before = service.cpu_ns() if service else {}
    workers_before = service.worker_cpu_ns() if service else {}
    started = time.monotonic()
    result = wrk_result(run(wrk_command(load, address, seconds, cpus), seconds + WRK_SLACK_SECONDS))
    elapsed = time.monotonic() - started
    after = service.cpu_ns() if service else {}
    note_errors(cell, load, result)
    if before.keys() != after.keys():
        cell.notes.add("a process ended or started during the load")
    cell.rps.append(result["requests"] * 1e6 / result["duration_us"])
    cell.p50_us.append(result["p50_us"])
    cell.p99_us.append(result["p99_us"])
    if service and result["requests"]:
        used = sum(after.values()) - sum(before.values())
        cell.cpu_us.append(used / 1000 / result["requests"])
        cell.busy.append(used / 1e9 / elapsed)
        share = busiest_share(workers_before, service.worker_cpu_ns())
        if share is not None:
            cell.uneven.append(share)


def tracer():
    """How system calls can be counted here: perf (exact, cheap), strace (exact, slow), or None."""
    event = "raw_syscalls:sys_enter"
    if shutil.which("perf") and f",{event}," in run(["perf", "stat", "-x,", "-e", event, "--", "true"], 20):
        return "perf"
    return "strace" if shutil.which("strace") else None


def measure_syscalls(cell, load, service, address, seconds, cpus, how):
    """A run of its own, because counting slows the proxy down: system calls of all its processes for each request."""
    command = wrk_command(load, address, seconds, cpus)
    if how == "perf":
        pids = ",".join(map(str, service.pids()))
        text = run(["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", pids, "--"] + command,
                   seconds + WRK_SLACK_SECONDS)
        found = re.search(r"^(\d+),,raw_syscalls:sys_enter", text, re.M)
        calls = int(found.group(1)) if found else None
    elif how == "strace":
        calls, text = strace_calls(service, command, seconds)
    else:
        return
    result = wrk_result(text)
    note_errors(cell, load, result)
    if calls is not None and result["requests"]:
        cell.syscalls = calls / result["requests"]


def strace_calls(service, command, seconds):
    """Counts with `strace -c` attached to all processes while the command runs."""
    out = service.log_path + ".strace"
    pids = [part for pid in service.pids() for part in ("-p", str(pid))]
    trace = subprocess.Popen(["strace", "-f", "-q", "-c", "-U", "calls,name", "-o", out] + pids, stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 5
        while not all(traced(pid) for pid in service.pids()) and time.monotonic() < deadline:
            time.sleep(0.02)
        text = run(command, seconds + WRK_SLACK_SECONDS)
    finally:
        trace.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            trace.wait(5)
        trace.kill()
        trace.wait()
    with open(out) as file:
        found = re.search(r"^\s*(\d+)\s+total$", file.read(), re.M)
    return (int(found.group(1)) if found else None), text


def traced(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as status:
        return not re.search(r"^TracerPid:\s+0$", status.read(), re.M)
    return False


@dataclass
class Idle:
    """What idle connections take: KiB for each in (the first process, all the others); how evenly workers have them."""
    kib: tuple
    uneven: float | None


@contextlib.contextmanager
def idle_clients(service, address, count):
    """Keep-alive connections after one request on each; at the end none of them may have been closed meanwhile."""
    host, port = address.split(":")
    request = b"GET /128 HTTP/1.1\r\nHost: bench\r\n\r\n"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if count + 200 > hard:
        raise BenchError(f"{count} idle connections need a descriptor limit above {hard} (ulimit -n)")
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
            client.sendall(request)
            read_answer(client, service)
            clients.append(client)
        yield
        closed = sum(is_closed(client) for client in clients)
        if closed:
            raise BenchError(f"{service.name} closed {closed} of {count} idle connections")


def measure_idle(service, address, count):
    """What idle connections take, and how evenly the workers have them: the most of one over the mean."""
    before, sockets_before = service.memory_kib(), service.worker_sockets()
    with idle_clients(service, address, count):
        after, sockets = service.memory_kib(), service.worker_sockets()
    each = [new - old for new, old in zip(sockets, sockets_before)]
    uneven = max(each) * len(each) / sum(each) if len(each) > 1 and sum(each) > 0 else None
    return Idle(tuple((new - old) / count for new, old in zip(after, before)), uneven)


def read_answer(client, service):
    """Reads one answer of 128 bytes in full."""
    data = b""
    while True:
        part = client.recv(4096)
        if not part:
            raise BenchError(f"{service.name} closed a connection instead of answering; it sent {data[:80]!r}")
        data += part
        head, end, body = data.partition(b"\r\n\r\n")
        if end and len(body) >= 128:
            if not head.startswith(b"HTTP/1.1 200"):
                raise BenchError(f"{service.name} answered {head.splitlines()[0]!r}")
            return


def is_closed(client):
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
