#!/usr/bin/env python3
"""`make continuity`: what clients lose when a worker is killed or the configuration is reloaded, beside nginx and
HAProxy. Needs Python 3.10 and no packages.

Each proxy has two workers (HAProxy: one process with two threads under its master) in front of a backend that takes up
to 40 ms for an answer, and 64 clients that send requests on connections that stay open, with pauses of up to 20 ms. A
request that is not answered in full with 200 is a failed one; nothing is repeated by the clients, but one that sees its
connection ended before it sends, or is told so in the answer, opens another. Over TCP the same requests go through the
proxy's byte relay.

Settings by environment:
  CONTINUITY_ROUNDS=3          each proxy is started afresh for every round
  CONTINUITY_PROXIES=ours,nginx,haproxy
  CONTINUITY_WRITE=1           0 leaves docs/continuity.md as it is
"""

import asyncio
import contextlib
import datetime
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from processes import BenchError, Service, free_ports, proxy_command, render, run

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CLIENTS = 64
WORKERS = 2
BODY = 128
BACKEND_MS = 40
PAUSE_MS = 20
RELOADS = 5
RELOAD_SECONDS = 10
KILL_SECONDS = 3
REQUEST_SECONDS = 10
NAMES = {"ours": "Pointsman", "nginx": "nginx", "haproxy": "HAProxy"}
BEGIN = "<!-- continuity:begin (written by make continuity; do not edit by hand) -->"
END = "<!-- continuity:end -->"


async def backend():
    """Answers `GET /N` with N bytes after a random time."""
    async def serve(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(re.match(rb"GET /(\d+)", head).group(1))
                await asyncio.sleep(random.uniform(0, BACKEND_MS / 1000))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print("listening on 127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Load:
    """Clients that send requests until told to stop."""

    def __init__(self, port):
        self.port = port
        self.stopping = False
        self.requests = 0
        self.failed = 0
        self.ended = 0
        self.refused = 0
        self.hit = set()

    async def client(self, number):
        streams = None
        while not self.stopping:
            if streams is None:
                try:
                    streams = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    self.refused += 1
                    await asyncio.sleep(0.05)
                    continue
            self.requests += 1
            try:
                ends = await asyncio.wait_for(self.ask(*streams), REQUEST_SECONDS)
                await asyncio.sleep(random.uniform(0, PAUSE_MS / 1000))
                if ends or streams[0].at_eof():
                    self.ended += 1
                    self.hit.add(number)
                    streams[1].close()
                    streams = None
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError):
                self.failed += 1
                self.ended += 1
                self.hit.add(number)
                streams[1].transport.abort()
                streams = None
        if streams:
            streams[1].close()

    async def ask(self, reader, writer):
        """One request; whether the answer says that the connection ends with it, which is no failure."""
        writer.write(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % BODY)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ValueError(head)
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", head)
        if not length or len(await reader.readexactly(int(length.group(1)))) != BODY:
            raise ValueError(head)
        return bool(re.search(rb"(?i)\r\nconnection: close\r\n", head))

    async def run(self, during):
        clients = [asyncio.create_task(self.client(number)) for number in range(CLIENTS)]
        await during()
        self.stopping = True
        await asyncio.gather(*clients)


def command(proxy, mode, port, address, directory, master):
    """As for `make bench`, but so that a reload works."""
    if proxy == "ours":
        to = 'to = "web"' if mode == "tcp" else ""
        route = "" if mode == "tcp" else '[[route]]\nto = "web"'
        path = f"{directory}/pointsman.toml"
        with open(path, "w") as file:
            file.write(f'workers = {WORKERS}\ncontrol = "off"\n[[listen]]\nbind = "127.0.0.1:{port}"\nmode = "{mode}"\n'
                       f'{to}\n{route}\n[backends.web]\nservers = ["{address}"]\n')
        return [master, "--config", path]
    if proxy == "haproxy":
        values = {"WORKERS": WORKERS, "PORT": port, "BACKEND": address}
        return ["haproxy", "-W", "-f", render(f"haproxy-{mode}.cfg", directory, values)]
    return proxy_command(proxy, mode, WORKERS, port, address, directory, master)


def children(service):
    return service.pids()[1:]


async def kill_one(service):
    """In the middle of the load, one worker."""
    await asyncio.sleep(1)
    os.kill(children(service)[0], signal.SIGKILL)
    await asyncio.sleep(KILL_SECONDS)


async def reload_often(proxy, service):
    for _ in range(RELOADS):
        await asyncio.sleep(RELOAD_SECONDS / RELOADS)
        os.kill(service.pid, signal.SIGUSR2 if proxy == "haproxy" else signal.SIGHUP)
    await asyncio.sleep(2)


def measure(proxy, mode, what, address, directory, master):
    """One round of one scenario; a dictionary of figures."""
    directory = tempfile.mkdtemp(prefix=f"{proxy}-{mode}-{what}-", dir=directory)
    os.chmod(directory, 0o755)
    port = free_ports(1)[0]
    cpus = sorted(os.sched_getaffinity(0))
    service = Service(NAMES[proxy], command(proxy, mode, port, address, directory, master), cpus,
                      f"{directory}/output.log")
    try:
        service.wait_ready(f"http://127.0.0.1:{port}/{BODY}", BODY, WORKERS)
        before = len(children(service))
        load = Load(port)
        during = (lambda: kill_one(service)) if what == "kill" else (lambda: reload_often(proxy, service))
        left = [0]

        async def watched():
            await during()
            left[0] = len(children(service)) - before

        asyncio.run(load.run(watched))
        alive = service.child.poll() is None
        return {"requests": load.requests, "failed": load.failed, "hit": len(load.hit), "ended": load.ended,
                "refused": load.refused, "left": left[0], "alive": alive}
    finally:
        service.stop()


def spread(values):
    return str(values[0]) if min(values) == max(values) else f"{min(values)}–{max(values)}"


SCENARIOS = [
    ("http", "kill", f"`kill -9` of one of two workers: connections of {CLIENTS} that ended"),
    ("tcp", "kill", f"the same with {CLIENTS} TCP relays"),
    ("http", "reload", f"{RELOADS} reloads in {RELOAD_SECONDS} s: failed requests"),
    ("tcp", "reload", f"the same with {CLIENTS} TCP relays: failed requests"),
    ("http", "ended", "HTTP connections that the reloads ended, announced or not"),
    ("tcp", "left", "processes more than before, 2 s after the last reload, with the relays open"),
]


def table(results, proxies):
    lines = ["| | " + " | ".join(NAMES[proxy] for proxy in proxies) + " |", "|---|" + "---:|" * len(proxies)]
    for mode, what, title in SCENARIOS:
        row = [title]
        for proxy in proxies:
            rounds = results[(proxy, mode, "kill" if what == "kill" else "reload")]
            key = {"kill": "hit", "reload": "failed"}.get(what, what)
            note = "" if all(one["alive"] for one in rounds) else " (all processes ended)"
            row.append(spread([one[key] for one in rounds]) + note)
        lines.append("| " + " | ".join(row) + " |")
    row = ["requests in all, the failed ones included"]
    for proxy in proxies:
        row.append(f"{sum(one['requests'] for (name, _, _), rounds in results.items() if name == proxy for one in rounds):,}")
    return lines + ["| " + " | ".join(row) + " |"]


def write(lines):
    path = os.path.join(ROOT, "docs", "continuity.md")
    with open(path) as file:
        text = file.read()
    found = re.search(re.escape(BEGIN) + r".*?" + re.escape(END), text, re.S)
    if not found:
        raise BenchError(f"{path}: the marker {BEGIN!r} is missing")
    with open(path, "w") as file:
        file.write(text[:found.start()] + "\n".join([BEGIN] + lines + [END]) + text[found.end():])


def versions(master, proxies):
    said = [run([master, "--version"], 10).strip()] if "ours" in proxies else []
    said += [run(["nginx", "-v"], 10).strip().removeprefix("nginx version: ")] if "nginx" in proxies else []
    said += [re.sub(r" \d{4}/.*", "", run(["haproxy", "-v"], 10).splitlines()[0])] if "haproxy" in proxies else []
    return ", ".join(said)


def main():
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")
    master = os.path.join(target, "release", "master")
    try:
        rounds = int(os.environ.get("CONTINUITY_ROUNDS") or 3)
        proxies = [name.strip() for name in (os.environ.get("CONTINUITY_PROXIES") or ",".join(NAMES)).split(",")]
        for name in proxies:
            if name not in NAMES:
                raise BenchError(f"CONTINUITY_PROXIES: there is no {name!r}; choose from {', '.join(NAMES)}")
            if name != "ours" and not shutil.which(name):
                raise BenchError(f"{name} is missing: apt-get install {name}")
        if "ours" in proxies and not os.path.exists(master):
            raise BenchError(f"{master} is missing: run `make build`")
        server = subprocess.Popen([sys.executable, __file__, "backend"], stdout=subprocess.PIPE, text=True,
                                  start_new_session=True)
        try:
            address = server.stdout.readline().split()[-1]
            results = {}
            with tempfile.TemporaryDirectory(prefix="pointsman-continuity-") as directory:
                # nginx's workers run as another user than root and must be able to reach their directories.
                os.chmod(directory, 0o755)
                for number in range(rounds):
                    for mode, what, _ in SCENARIOS[:4]:
                        for proxy in proxies:
                            one = measure(proxy, mode, what, address, directory, master)
                            results.setdefault((proxy, mode, what), []).append(one)
                            print(f"round {number + 1}/{rounds} · {mode} · {what} · {NAMES[proxy]}: {one}", flush=True)
        finally:
            server.kill()
            server.wait()
        lines = ["", *table(results, proxies), "",
                 f"{datetime.date.today().isoformat()}, {len(os.sched_getaffinity(0))} cores, least and most of "
                 f"{rounds} rounds; {versions(master, proxies)}.", ""]
        print("\n".join(lines))
        if os.environ.get("CONTINUITY_WRITE") != "0":
            write(lines)
    except BenchError as error:
        print(f"continuity: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["backend"]:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(backend())
    else:
        sys.exit(main())
