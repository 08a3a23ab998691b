"""Starts and ends every process of the benchmark, and reads what the kernel counts for them.

A process started here is ended here, by its pid, also when the run is interrupted. No other process is touched.
"""

import contextlib
import glob
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

READY_SECONDS = 10
STOP_SECONDS = 5
HERE = os.path.dirname(os.path.abspath(__file__))


class BenchError(Exception):
    """A message for the person who runs the benchmark: what failed, where, what to do."""


def exit_status(bench):
    """Runs a whole benchmark; what goes wrong is said, and ends with another status than 0."""
    try:
        bench()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; everything it started has been ended", file=sys.stderr)
        return 130
    return 0


def free_ports(count):
    """`count` TCP ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def read_file(path):
    """The file's text, or an empty string when the process has gone."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def run(command, seconds):
    """Runs a command to its end, or at most `seconds`, and returns its output; ended with us when we are interrupted."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True, start_new_session=True)
    try:
        return child.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        raise BenchError(f"{command[0]} did not end within {seconds} s: {' '.join(command)}") from None
    finally:
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(2)
        if child.poll() is None:
            child.kill()
        child.wait()


class Service:
    """A running program, the processes it started included."""

    def __init__(self, name, command, cpus, log_path):
        pinned = ["taskset", "-c", ",".join(map(str, cpus))] + command
        self.name = name
        self.log_path = log_path
        self.log = open(log_path, "w")
        self.child = subprocess.Popen(pinned, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                      start_new_session=True)
        self.pid = self.child.pid

    def fail(self, what):
        tail = "\n".join(read_file(self.log_path).splitlines()[-10:])
        raise BenchError(f"{self.name}: {what}; its last output:\n{tail or '(none)'}")

    def pids(self):
        """The program's own pid first, then all its descendants."""
        found = [self.pid]
        for pid in found:
            for path in glob.glob(f"/proc/{pid}/task/*/children"):
                found += [int(child) for child in read_file(path).split()]
        return found

    def wait_ready(self, url, size, workers):
        """Until a request is answered in full and as many workers (processes or threads) exist as were asked for."""
        deadline = time.monotonic() + READY_SECONDS
        last = "no answer"
        while time.monotonic() < deadline:
            if self.child.poll() is not None:
                self.fail(f"ended at once with status {self.child.returncode}")
            try:
                with urllib.request.urlopen(url, timeout=2) as answer:
                    last = f"wrong answer: status {answer.status}"
                    if len(answer.read()) == size and len(self.worker_cpu_ns()) >= workers:
                        return
            except OSError as error:
                last = str(error)
            time.sleep(0.02)
        self.fail(f"not ready within {READY_SECONDS} s ({last})")

    def cpu_ns(self):
        """Nanoseconds of CPU used so far by all processes and threads: {(pid, tid): ns}."""
        used = {}
        for pid in self.pids():
            for task in glob.glob(f"/proc/{pid}/task/*"):
                used[(pid, int(os.path.basename(task)))] = task_cpu_ns(task)
        return used

    def worker_cpu_ns(self):
        """The same for what carries traffic: the children where there are any, else the threads of the one process."""
        used = self.cpu_ns()
        children = {task: ns for task, ns in used.items() if task[0] != self.pid}
        return children or used

    def worker_sockets(self):
        """How many sockets each of the processes that carry traffic has open."""
        counts = []
        for pid in self.pids()[1:]:
            with contextlib.suppress(OSError):
                links = [os.readlink(path) for path in glob.glob(f"/proc/{pid}/fd/*") if os.path.islink(path)]
                counts.append(sum(link.startswith("socket:") for link in links))
        return counts

    def memory_kib(self):
        """KiB of proportional set size: (the first process, all the others together)."""
        each = [pss_kib(pid) for pid in self.pids()]
        return each[0], sum(each[1:])

    def stop(self):
        """SIGTERM, then SIGKILL for what is left after a few seconds."""
        pids = self.pids()
        started = {pid: start_time(pid) for pid in pids}
        if self.child.poll() is None:
            self.child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(STOP_SECONDS)
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        deadline = time.monotonic() + STOP_SECONDS
        while any(alive(pid, started[pid]) for pid in pids[1:]) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in pids[1:]:
            if alive(pid, started[pid]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.log.close()


def stat_fields(pid):
    """/proc/PID/stat from the third field on, or an empty list when the process has gone."""
    return read_file(f"/proc/{pid}/stat").rpartition(")")[2].split()


def start_time(pid):
    """Clock ticks after boot at which the process started; with the pid it names one process for ever."""
    fields = stat_fields(pid)
    return fields[19] if fields else None


def alive(pid, started):
    fields = stat_fields(pid)
    return bool(fields) and fields[19] == started and fields[0] not in "ZX"


def task_cpu_ns(task):
    """schedstat counts nanoseconds; where the kernel lacks it, user and system ticks (10 ms each) have to do."""
    text = read_file(f"{task}/schedstat").split()
    if text:
        return int(text[0])
    fields = read_file(f"{task}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1_000_000_000 // os.sysconf("SC_CLK_TCK") if fields else 0


def pss_kib(pid):
    found = re.search(r"^Pss:\s+(\d+) kB", read_file(f"/proc/{pid}/smaps_rollup"), re.M)
    found = found or re.search(r"^VmRSS:\s+(\d+) kB", read_file(f"/proc/{pid}/status"), re.M)
    return int(found.group(1)) if found else 0


def start_backend(binary, cpus, directory):
    """The backend, and the address it says it listens on."""
    service = Service("backend", [binary, "127.0.0.1:0"], cpus, f"{directory}/backend.log")
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        found = re.search(r"listening on (\S+)\n", read_file(service.log_path))
        if found:
            return service, found.group(1)
        if service.child.poll() is not None:
            break
        time.sleep(0.01)
    service.stop()
    service.fail("did not start")


def render(template, directory, values):
    """Fills a configuration of this directory in and returns the path of the result."""
    with open(os.path.join(HERE, template)) as file:
        text = file.read()
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    path = os.path.join(directory, template)
    with open(path, "w") as file:
        file.write(text)
    return path


def stream_module():
    """Debian and Ubuntu build nginx's TCP proxy as a module to be loaded; elsewhere it may be built in."""
    path = "/usr/lib/nginx/modules/ngx_stream_module.so"
    return f"load_module {path};" if os.path.exists(path) else ""


def proxy_command(proxy, mode, workers, port, backend, directory, programs):
    """The command line of one proxy; `mode` is http or tcp, `directory` is this process's own, `programs` are ours."""
    values = {"WORKERS": workers, "PORT": port, "BACKEND": backend, "DIR": directory, "LOAD_STREAM": stream_module()}
    if proxy == "nginx":
        return ["nginx", "-p", directory, "-e", f"{directory}/nginx-early.log", "-c",
                render(f"nginx-{mode}.conf", directory, values)]
    if proxy.startswith("haproxy"):
        return ["haproxy", "-db", "-f", render(f"{proxy}-{mode}.cfg", directory, values)]
    if proxy == "relay":
        return [programs[proxy], f"127.0.0.1:{port}", backend]
    return [programs[proxy], "--workers", str(workers), "--listen", f"127.0.0.1:{port}", "--backend", backend,
            "--mode", mode, "--log-level", "warn"]
