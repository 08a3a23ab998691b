"""Turns the measurements into Markdown: docs/benchmarks.md, and the short table of README.md."""

import os
import re

BEGIN = "<!-- bench:begin (written by make bench; do not edit by hand) -->"
END = "<!-- bench:end -->"
NAMES = {"ours": "Pointsman", "nginx": "nginx", "haproxy": "HAProxy", "haproxy-splice": "HAProxy, splice", "relay": "relay (floor)", "direct": "no proxy"}


def count(value):
    return "n/a" if value is None else f"{value:,.0f}"


def decimal(value, digits=1, missing="n/a"):
    return missing if value is None else f"{value:.{digits}f}"


def micros(value):
    if value is None:
        return "n/a"
    return f"{value / 1000:.1f} ms" if value >= 10_000 else f"{value:.0f} µs"


def ratio(ours, others, more_is_better):
    """Ours over the best of the others, or n/a."""
    others = [value for value in others if value]
    if not ours or not others:
        return "n/a"
    return f"{ours / (max(others) if more_is_better else min(others)):.2f}"


def table(header, rows):
    """A Markdown table whose first column is text and whose other columns are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def value(cells, key, name):
    """The median of a valid cell; None for one that is missing or saw errors."""
    cell = cells.get(key)
    return cell.median(name) if cell and cell.valid else None


def load_table(cells, load, proxies, workers_list):
    rows = []
    for workers in workers_list:
        for proxy in proxies + ["direct"]:
            cell = cells.get((load.name, workers, proxy))
            if not cell or not cell.rps:
                continue
            rows.append([
                f"{NAMES[proxy]}", "–" if proxy == "direct" else str(workers), count(cell.median("rps")),
                f"± {cell.spread():.0%}", micros(cell.median("p50_us")), micros(cell.median("p99_us")),
                decimal(cell.median("cpu_us")), decimal(cell.median("busy"), 2), decimal(cell.syscalls, 2),
                "none" if cell.valid else "INVALID: " + ", ".join(sorted(cell.notes)),
            ])
    header = ["", "workers", "requests/s", "spread", "p50", "p99", "CPU µs/request", "cores used",
              "system calls/request", "errors"]
    return table(header, rows)


def ratio_table(cells, loads, proxies, workers_list):
    """Ours against the best of the others, quantity by quantity."""
    others = [proxy for proxy in proxies if proxy not in ("ours", "relay")]
    rows = []
    for load in loads:
        for workers in workers_list:
            row = [load.title, str(workers)]
            for name, more in [("rps", True), ("p50_us", False), ("p99_us", False), ("cpu_us", False)]:
                mine = value(cells, (load.name, workers, "ours"), name)
                row.append(ratio(mine, [value(cells, (load.name, workers, other), name) for other in others], more))
            floor = value(cells, (load.name, workers, "relay"), "cpu_us")
            row.append(ratio(value(cells, (load.name, workers, "ours"), "cpu_us"), [floor], False) if floor else "–")
            rows.append(row)
    return table(["", "workers", "requests/s", "p50", "p99", "CPU/request", "CPU/request over the floor"], rows)


def idle_table(idle, proxies):
    rows = [[NAMES[proxy], decimal(sum(idle[proxy].kib), 2), decimal(idle[proxy].kib[0], 2),
             decimal(idle[proxy].kib[1], 2), decimal(idle[proxy].uneven, 2, "–")]
            for proxy in proxies if proxy in idle]
    return table(["", "KiB/connection", "of it the first process (master)", "of it the workers",
                  "most of a worker over the mean"], rows)


def curve_table(cells, what):
    """CPU µs for each request by the number of connections or routes, with what it is over the first point."""
    counts = list(dict.fromkeys(number for number, _ in cells))
    proxies = list(dict.fromkeys(proxy for _, proxy in cells))
    rows = []
    for number in counts:
        row = [f"{number:,}"]
        for proxy in proxies:
            cost, first = (value(cells, (one, proxy), "cpu_us") for one in (number, counts[0]))
            row.append("INVALID" if cost is None else f"{cost:.1f} ({ratio(cost, [first], False)})")
        rows.append(row)
    return table([what] + [NAMES[proxy] for proxy in proxies], rows)


def uneven_table(cells, loads, proxies):
    rows = []
    proxies = [proxy for proxy in proxies if proxy != "relay"]
    for load in [load for load in loads if load.connections > 1]:
        row = [load.title]
        for proxy in proxies:
            row.append(decimal(value(cells, (load.name, 2, proxy), "uneven"), 2, "–"))
        rows.append(row)
    return table([""] + [NAMES[proxy] for proxy in proxies], rows)


def short_table(cells, loads, proxies, workers):
    """README's table: requests per second and CPU time, ours beside the others."""
    rows = []
    proxies = [proxy for proxy in proxies if proxy != "relay"]
    for load in loads:
        row = [load.title]
        for proxy in proxies:
            key = (load.name, workers, proxy)
            figures = f"{count(value(cells, key, 'rps'))} · {decimal(value(cells, key, 'cpu_us'))}"
            row.append(figures if key in cells else "–")
        rows.append(row)
    return table(["requests/s · CPU µs/request"] + [NAMES[proxy] for proxy in proxies], rows)


def document(bench, settings, facts):
    """The whole of docs/benchmarks.md as a list of lines."""
    cells, idle = bench.cells, bench.idle
    loads, proxies, workers_list = settings.loads, settings.proxies, settings.workers
    lines = ["# Benchmarks", "", "Written by `make bench` as it came out; do not edit by hand.", ""]
    lines += table(["", "this run"], [[name, text] for name, text in facts.items()])
    lines[-len(facts) - 1] = "|---|---|"
    lines += ["", "## Method", "",
              "All proxies run at the same time on one machine, one of them under load at a time. In every round each "
              "proxy is started afresh and each load is given to all of them one after another, in an order that "
              "changes from round to round. A figure is the median of the rounds; the spread is half the distance "
              "between the best and the worst round. The backend (`examples/bench_backend.rs`) is one thread that "
              "shares its cores with wrk, so where a proxy uses less than its number of cores, wrk and the backend were "
              "the limit: compare CPU time there, not requests per second. The row `no proxy` is "
              "wrk against the backend alone, pinned as for the first number of workers.", "",
              "CPU time is what the kernel counts for all processes and threads of a proxy, master included, during the "
              "load (`/proc/PID/task/*/schedstat`), divided by wrk's number of requests. System calls are counted in a "
              "shorter run of their own. TCP relays carry the same HTTP bytes without reading them. A row with an "
              "error (connection, status, timeout, short answer, a process that ended) is INVALID and takes part in no "
              "comparison. The configurations of nginx and HAProxy are in `benches/`. `relay (floor)` is "
              "`examples/bench_relay.rs`: one epoll loop that copies bytes without looking at them, and survives "
              "nothing.", ""]
    if "ours" in proxies:
        lines += ["## Pointsman against the better of nginx and HAProxy", "",
                  "Requests/s: above 1.00 is better. The others: below 1.00 is better.", ""]
        lines += ratio_table(cells, loads, proxies, workers_list) + [""]
    for load in loads:
        lines += [f"## {load.title}", ""] + load_table(cells, load, proxies, workers_list) + [""]
    if idle:
        lines += ["## Memory of an idle connection", "",
                  f"{settings.idle:,} keep-alive connections after one request on each, two workers: growth of the "
                  "proportional set size (PSS) for each. Socket memory inside the kernel is not in it.", ""]
        lines += idle_table(idle, proxies) + [""]
    if bench.connections:
        lines += ["## Cost by the number of connections", "",
                  "CPU µs for each request of 128 bytes with 64 connections in use, beside them so many idle ones that "
                  "the number is reached; one worker. In brackets the ratio to the first line.", ""]
        lines += curve_table(bench.connections, "connections") + [""]
    if bench.routes:
        lines += ["## Cost by the number of routes", "",
                  "CPU µs for each request of 128 bytes, 64 connections, one worker. Half of the routes are for other "
                  "hosts, half for other paths of the host that is asked for. In brackets the ratio to the first line.",
                  ""]
        lines += curve_table(bench.routes, "routes") + [""]
    if 2 in workers_list:
        lines += ["## How evenly two workers share the load", "",
                  "CPU time of the busier worker over that of the other, median of the rounds; 1.00 is even.", ""]
        lines += uneven_table(cells, loads, proxies) + [""]
    return lines


def fill_readme(path, lines):
    """Replaces what stands between the two markers of README.md; False when it has none."""
    if not os.path.exists(path):
        return False
    with open(path) as file:
        text = file.read()
    found = re.search(re.escape(BEGIN) + r".*?" + re.escape(END), text, re.S)
    if not found:
        return False
    with open(path, "w") as file:
        file.write(text[:found.start()] + "\n".join([BEGIN] + lines + [END]) + text[found.end():])
    return True
