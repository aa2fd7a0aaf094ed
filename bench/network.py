"""A network of the benchmarks' own, and a look at what its connections really use."""

import ctypes
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from servers import Server

CONGESTION = "cubic"


def enter_network() -> bool:
    """Move to a network of our own, where every loopback connection uses CONGESTION at both ends.

    Nothing outside is changed. Where that isn't permitted (False), the system's own default must be CONGESTION;
    `check_congestion` sees to it.
    """
    new_net, new_user = 0x40000000, 0x10000000
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(new_net) != 0:
        if libc.unshare(new_net | new_user) != 0:
            print(f"no network namespace of our own: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    ip = shutil.which("ip", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if ip is None:
        raise SystemExit("ip is not installed (Debian: iproute2): needed to choose the congestion control")
    subprocess.run([ip, "link", "set", "lo", "up"], check=True)
    subprocess.run(
        [ip, "route", "replace", "local", "127.0.0.1", "dev", "lo", "table", "local", "congctl", CONGESTION], check=True
    )
    return True


def set_network(name: str, value: str) -> None:
    """Set one of the kernel's values for the network that we have entered, and see that it took it."""
    path = Path("/proc/sys/net") / name
    path.write_text(value)
    if path.read_text().split() != value.split():
        raise SystemExit(f"{path} is {path.read_text()!r}, not {value!r}")


def check_congestion(server: Server) -> None:
    """End the run unless both ends of a connection to the server use CONGESTION, asked with getsockopt."""
    libc = ctypes.CDLL(None, use_errno=True)
    sys_pidfd_getfd = 438
    with socket.create_connection(("127.0.0.1", server.port)) as ours:
        ours.sendall(b"HEAD /1k.bin HTTP/1.1\r\nHost: a\r\n\r\n")
        ours.recv(4096)  # now it is accepted
        found = {"client": ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)}
        for pid in server.pids:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    if not os.readlink(link).startswith("socket:"):
                        continue
                except FileNotFoundError:
                    continue
                pidfd = os.pidfd_open(pid)
                fd = libc.syscall(sys_pidfd_getfd, pidfd, int(link.name), 0)
                os.close(pidfd)
                if fd < 0:
                    raise SystemExit(f"{server.name}: can't look at its sockets: {os.strerror(ctypes.get_errno())}")
                with socket.socket(fileno=fd) as theirs:
                    try:
                        if theirs.getpeername() == ours.getsockname():
                            found["server"] = theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
                    except OSError:
                        pass  # listening, or not a TCP socket
    names = {end: value.rstrip(b"\0").decode() for end, value in found.items()}
    if names != {"client": CONGESTION, "server": CONGESTION}:
        raise SystemExit(f"{server.name}: congestion control is {names}, not {CONGESTION} at both ends")
