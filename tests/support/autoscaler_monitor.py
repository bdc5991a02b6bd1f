"""Ray's autoscaler on one machine: runs the monitor of `ray start` with what Ray's provider `fake_multinode` lacks.

The arguments are the program that starts the workers of nodes, a file with default settings, and the words after
`python` by which `ray start` starts the monitor. The provider reads default settings that the wheel does not have. Its
nodes get the address of a machine of their own, and fewer processes of Ray: eight nodes on a machine of two processors
would start them for a minute. Nodes whose `node_config` says `unavailable` cannot be had.
"""

from __future__ import annotations

import functools
import runpy
import sys
from typing import Any

NODES = "127.0.0.3"
"""Address of all nodes but the head."""


def main() -> None:
    """Become the monitor."""
    python, defaults, *words = sys.argv[1:]
    words = words[next(place for place, word in enumerate(words) if word.endswith(".py")) :]
    sys.executable = python

    from ray._private import parameter, utils
    from ray.autoscaler._private import providers
    from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    parameter.RayParams = functools.partial(  # type: ignore[misc]
        parameter.RayParams, node_ip_address=NODES, include_log_monitor=False
    )
    utils.get_dashboard_dependency_error = lambda: ImportError("left out")
    providers._DEFAULT_CONFIGS["fake_multinode"] = lambda: defaults
    create = FakeMultiNodeProvider.create_node_with_resources_and_labels

    def create_if_available(self: Any, node_config: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        if node_config.get("unavailable"):
            raise NodeLaunchException("InsufficientInstanceCapacity", "there are no such machines now", None)
        return create(self, node_config, *arguments, **options)

    FakeMultiNodeProvider.create_node_with_resources_and_labels = create_if_available
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
