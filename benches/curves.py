"""Cost by size: the same load with more and more connections open, and with more and more routes configured."""

import os

import measure
from measure import Load
from processes import HERE

# HAProxy counts every connection twice against its limit of descriptors, which 15,000 would need raised.
PROXIES = ["ours", "nginx"]
CONNECTIONS = [64, 1000, 5000, 15000]
ROUTES = [2, 100, 1000, 10000]
BUSY = Load("curve", "", "http", 64, 128)


def measure_connections(cell, service, address, count, seconds, cpus):
    """The load on 64 connections while others are idle, `count` in all."""
    with measure.idle_clients(service, address, count - BUSY.connections):
        measure.measure_speed(cell, BUSY, service, address, seconds, cpus)


def measure_routes(cell, service, address, count, seconds, cpus):
    """The load for the host that half of the routes belong to; its path is none of theirs."""
    load = Load("curve", "", "http", 64, 128, host=busy_host(count))
    measure.measure_speed(cell, load, service, address, seconds, cpus)


def busy_host(count):
    return f"host{count // 2}.example.com"


def routes(count):
    """Pairs of host and path, `count` of them: as many hosts as paths of the last host."""
    hosts = [(f"host{number}.example.com", "/") for number in range(1, count // 2 + 1)]
    return hosts + [(busy_host(count), f"/path{number}/") for number in range(count - len(hosts))]


def routes_command(proxy, count, port, backend, directory, master):
    """The command line of a proxy with `count` routes and one worker."""
    if proxy == "nginx":
        path = os.path.join(directory, "routes.conf")
        text = nginx_routes(count, port, backend, directory)
        command = ["nginx", "-p", directory, "-e", f"{directory}/nginx-early.log", "-c", path]
    else:
        path = os.path.join(directory, "routes.toml")
        text = our_routes(count, port, backend)
        command = [master, "--config", path, "--log-level", "warn"]
    with open(path, "w") as file:
        file.write(text)
    return command


def our_routes(count, port, backend):
    parts = [f'workers = 1\n[access_log]\nto = "off"\n[[listen]]\nbind = "127.0.0.1:{port}"\n',
             f'[backends.web]\nservers = ["{backend}"]\n[[route]]\nto = "web"\n']
    parts += [f'[[route]]\nhost = "{host}"\npath = "{path}"\nto = "web"\n' for host, path in routes(count)]
    return "".join(parts)


def nginx_routes(count, port, backend, directory):
    """The usual configuration with other servers and locations in place of its one."""
    with open(os.path.join(HERE, "nginx-http.conf")) as file:
        text = file.read()
    for key, value in {"WORKERS": 1, "PORT": port, "BACKEND": backend, "DIR": directory}.items():
        text = text.replace(f"@{key}@", str(value))
    before, _, after = text.partition("location / {")
    body, _, end = after.partition("}")
    before = before.replace("http {", "http {\n    server_names_hash_max_size 65536;", 1)
    by_host = {}
    for host, path in routes(count):
        by_host.setdefault(host, []).append(path)
    servers = "".join(
        f"server {{ listen 127.0.0.1:{port}; server_name {host};\n"
        + "".join(f"location {path} {{{body}}}\n" for path in paths) + "}\n" for host, paths in by_host.items())
    head, brace, tail = end.rpartition("}")
    return before + "location / {" + body + "}" + head + servers + brace + tail
