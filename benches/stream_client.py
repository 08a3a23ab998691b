"""Load through a byte relay: requests on connections that stay, in one thread. Prints one line of JSON.

`stream_client.py ADDRESS SIZE CONNECTIONS SECONDS [TARGET]`: each connection asks for SIZE bytes again and again; with
TARGET it first asks ADDRESS for a tunnel there. What it costs itself does not matter: what is measured is what lies
between it and the backend.
"""

import json
import selectors
import socket
import sys
import time

CONNECT_SECONDS = 5


def opened(address, target):
    """A connection over which the backend answers."""
    host, port = address.rsplit(":", 1)
    client = socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if target:
        client.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            part = client.recv(1024)
            if not part:
                sys.exit(f"no tunnel to {target}: {head!r}")
            head += part
        if not head.startswith(b"HTTP/1.1 200"):
            sys.exit(f"no tunnel to {target}: {head!r}")
    return client


def answer_length(client, request, size):
    """How many bytes one answer has, its head included."""
    client.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(4096)
    total = data.index(b"\r\n\r\n") + 4 + size
    left = total - len(data)
    while left > 0:
        left -= len(client.recv(min(left, 1 << 20)))
    return total


def main():
    address, size, count, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    target = sys.argv[5] if len(sys.argv) > 5 else None
    request = f"GET /{size} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
    clients = [opened(address, target) for _ in range(count)]
    total = [answer_length(client, request, size) for client in clients][0]
    watch = selectors.DefaultSelector()
    left = {}
    for client in clients:
        client.setblocking(False)
        watch.register(client, selectors.EVENT_READ)
        client.send(request)
        left[client] = total
    buffer = bytearray(1 << 20)
    requests, begun = 0, time.monotonic()
    end = begun + seconds
    while time.monotonic() < end:
        for key, _ in watch.select(0.1):
            client = key.fileobj
            got = client.recv_into(buffer)
            if got == 0 or got > left[client]:
                sys.exit("a connection ended, or an answer was too long")
            left[client] -= got
            if left[client] == 0:
                requests += 1
                left[client] = total
                client.send(request)
    print(json.dumps({"requests": requests, "bytes": requests * total, "seconds": time.monotonic() - begun}))


if __name__ == "__main__":
    main()
