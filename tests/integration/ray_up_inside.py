"""What `test_ray_up` runs in namespaces of its own: a machine that is reached by ssh, and a laptop that uses it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
PROJECT = Path(__file__).parent.parent.parent


def loopback_up() -> None:
    with socket.socket() as opened:
        name = struct.pack("16sh", b"lo", 0)
        (flags,) = struct.unpack("16xh", fcntl.ioctl(opened, SIOCGIFFLAGS, name))
        fcntl.ioctl(opened, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))


def user_with_home(root: Path) -> None:
    """A user `machine` of this namespace, with a home of its own."""
    accounts = Path("/etc/passwd").read_text() + f"machine:x:0:0::{root}/machine:/bin/bash\n"
    (root / "passwd").write_text(accounts)
    subprocess.run(["mount", "--bind", str(root / "passwd"), "/etc/passwd"], check=True)


def serve_ssh(root: Path) -> None:
    for name, file in (("host", root / "host_key"), ("user", root / "laptop/.ssh/id")):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(file)], check=True)
    (root / "sshd_config").write_text(
        f"Port 22\nListenAddress 127.0.0.1\nHostKey {root}/host_key\nPermitRootLogin yes\nStrictModes no\n"
        f"AuthorizedKeysFile {root}/laptop/.ssh/id.pub\nUsePAM no\nPidFile none\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", str(root / "sshd_config"), "-E", str(root / "sshd.log")])


def environment_of(machine: Path) -> None:
    """The environment that setup_node.sh would make, which has been made."""
    place = machine / ".mcrnn-environment"
    place.mkdir()
    for path in Path(sys.prefix).iterdir():
        (place / path.name).symlink_to(path)
    content = (PROJECT / "pyproject.toml").read_bytes() + (PROJECT / "constraints.txt").read_bytes()
    (place / ".mcrnn").write_text(f"{hashlib.sha256(content).hexdigest()}  -\n")


def configuration(root: Path) -> str:
    config = yaml.safe_load((PROJECT / "cluster/local.yaml").read_text())
    config |= {"cluster_name": f"mcrnn-{os.getpid()}-{root.name}"[:40], "min_workers": 0, "max_workers": 0}
    config["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
    config["auth"] = {"ssh_user": "machine", "ssh_private_key": str(root / "laptop/.ssh/id")}
    file = root / "local.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


def of_ray() -> list[psutil.Process]:
    names = ("raylet", "gcs_server", "dashboard.py", "ray::")
    lines = {each: " ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])}
    return [each for each, line in lines.items() if any(name in line for name in names)]


def main(root: Path) -> None:
    loopback_up()
    user_with_home(root)
    serve_ssh(root)
    environment_of(root / "machine")
    file = configuration(root)
    ray = str(Path(sys.executable).with_name("ray"))
    os.environ["RAY_AUTH_MODE"] = "token"
    started = time.monotonic()
    subprocess.run([ray, "up", "--yes", "--no-config-cache", file], check=True)
    print(f"ray up: {time.monotonic() - started:.0f} s", flush=True)
    address = ("--address", "http://127.0.0.1:8265")
    shipped = str(root / "shipped")
    search = ("python", "-m", "mcrnn.tune", "up.yaml")
    subprocess.run([ray, "job", "submit", *address, "--working-dir", shipped, "--", *search], check=True)
    subprocess.run([ray, "down", "--yes", file], check=True)
    deadline = time.monotonic() + 30
    while of_ray() and time.monotonic() < deadline:
        time.sleep(0.5)
    print(f"processes of Ray left: {len(of_ray())}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
