"""Says what a cluster does: a line of JSON, four times a second, with what each living node has and what of it is used.

It asks the cluster's control store only, so that it depends on no node:

    python -m tests.support.cluster_watch ADDRESS
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.support import shared
from tests.support.commands import ForkedProcess


def main() -> None:
    """Watch until the process is killed."""
    from ray._raylet import GcsClient
    from ray.autoscaler.v2.sdk import get_cluster_resource_state
    from ray.core.generated.autoscaler_pb2 import NodeStatus

    client = GcsClient(address=sys.argv[1])
    while True:
        nodes = {}
        for node in get_cluster_resource_state(client).node_states:
            total, free = dict(node.total_resources), dict(node.available_resources)
            if node.status != NodeStatus.DEAD and "node:__internal_head__" not in total:
                has = {kind: total.get(kind, 0) for kind in ("CPU", "GPU")}
                used = {kind: has[kind] - free.get(kind, 0) for kind in has}
                nodes[node.node_id.hex()] = {"type": node.ray_node_type_name, "has": has, "used": used}
        print(json.dumps({"time": time.time(), "nodes": nodes}), flush=True)
        time.sleep(0.25)


class ClusterWatch(threading.Thread):
    """Notes what the nodes of a cluster do.

    Args:
        address: the cluster's.
        folder: any folder.
        environment: with the token.
    """

    def __init__(self, address: str, folder: Path, environment: dict[str, str]) -> None:
        super().__init__(daemon=True)
        words = ["-m", "tests.support.cluster_watch", address]
        python_path = {"PYTHONPATH": str(shared.PROJECT)}
        self.process = ForkedProcess(shared.command_server(), words, folder, environment | python_path)
        self.seen: list[tuple[float, dict[str, Any]]] = []

    def run(self) -> None:
        for line in self.process.stdout:
            content = json.loads(line)
            self.seen.append((content["time"], content["nodes"]))

    def __enter__(self) -> ClusterWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.join()
        self.process.close()

    @property
    def nodes(self) -> dict[str, Any]:
        """The nodes beside the head that live now."""
        return self.seen[-1][1] if self.seen else {}

    def busy(self) -> int:
        """How many nodes have a GPU of which something is used now."""
        return sum(node["used"]["GPU"] > 0 for node in self.nodes.values())


if __name__ == "__main__":
    main()
