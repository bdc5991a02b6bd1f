"""Stands for Python where Ray starts a worker or a job's command: asks the server of `fork_server` to fork it.

Ray starts a worker by `python default_worker.py OPTIONS...`, or with setup_worker.py before it, which sets the
environment. A command is `python -m mcrnn.NAME`. All other programs are run by Python itself. This one needs nothing
but the standard library, and starts in a few hundredths of a second.
"""

import json
import os
import socket
import sys

ADDRESS, PYTHON, WORDS = sys.argv[1], sys.argv[2], sys.argv[3:]


def forked() -> tuple[list[str], dict[str, str]] | None:
    """Return the worker or command that is to be started and its environment, None for any other program."""
    if WORDS[:1] == ["-m"] and WORDS[1].startswith("mcrnn."):
        return WORDS, dict(os.environ)
    words = WORDS[1:] if WORDS and WORDS[0].endswith("/setup_worker.py") else WORDS
    if not words or not words[0].endswith("/default_worker.py"):
        return None
    command, environment = [], dict(os.environ)
    for word in words:
        name, _, value = word.partition("=")
        if name == "--serialized-runtime-env-context":
            context = json.loads(value or "{}")
            if context.get("command_prefix") or context.get("override_worker_entrypoint"):
                return None
            environment |= context.get("env_vars", {})
        elif name != "--language":
            command.append(word)
    return command, environment


def main() -> None:
    """Have the worker forked and end as it ends, or become Python."""
    found = forked()
    if found is None:
        os.execv(PYTHON, [PYTHON, *WORDS])
    command, environment = found
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(ADDRESS)
    request = {"command": command, "folder": os.getcwd(), "environment": environment}
    content = json.dumps(request).encode()
    socket.send_fds(connection, [len(content).to_bytes(8, "little")], [0, 1, 2])
    connection.sendall(content)
    connection.recv(8)  # This is its process id.
    status = int.from_bytes(connection.recv(8), "little")
    os._exit(status & 0x7F)


if __name__ == "__main__":
    main()
