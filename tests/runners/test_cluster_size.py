"""What a cluster may become, as its autoscaler's configuration says it, and what a search makes of that."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config

from mcrnn.config.sections import TrainConfig
from mcrnn.errors import UserError
from mcrnn.runners.autoscaler import AutoscalerLimits, Machines
from mcrnn.runners.cluster_size import MAX_GPUS, NO_MACHINE, Cluster, gpus_for
from tests.conftest import PROJECT
from tests.support.commands import said_by

GPU_MACHINES = AutoscalerLimits((Machines(8, 8, 1),), 8)


def empty(limits: AutoscalerLimits = GPU_MACHINES, **more: Any) -> Cluster:
    """A cluster with a head that trains nothing."""
    return Cluster((NO_MACHINE,), NO_MACHINE, limits, **more)


def of_file(name: str) -> AutoscalerLimits:
    content = yaml.safe_load((PROJECT / "cluster" / name).read_text())
    return AutoscalerLimits.of_configuration(prepare_config(content))


def test_limits_of_the_cluster_on_aws() -> None:
    limits = of_file("gpu.yaml")
    assert limits == AutoscalerLimits((Machines(8, 8, 1),), 8)
    assert limits.grows
    assert limits.are_known


def test_limits_of_machines_of_ones_own_are_not_known() -> None:
    limits = of_file("local.yaml")
    assert limits.grows
    assert not limits.are_known


def test_a_cluster_without_workers_does_not_grow() -> None:
    none = {"head_node_type": "head", "available_node_types": {"head": {"resources": {"CPU": 4, "GPU": 1}}}}
    assert not AutoscalerLimits.of_configuration(none).grows
    assert not AutoscalerLimits.of_configuration({}).grows
    gpu = {"gpu": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 3}}
    assert not AutoscalerLimits.of_configuration({"available_node_types": gpu, "max_workers": 0}).grows
    assert AutoscalerLimits.of_configuration({"available_node_types": gpu}).max_workers == 3


def test_the_limit_of_all_workers_goes_to_those_with_most_room() -> None:
    cluster = empty(AutoscalerLimits((Machines(4, 64, 0), Machines(3, 8, 4), Machines(5, 8, 1)), 6))
    assert cluster.gpus == 3 * 4 + 3 * 1
    assert cluster.room(1) == 15
    assert cluster.room(0) == 4 * 64 + 2 * 8


@pytest.mark.parametrize(
    ("machine", "gpus", "room"),
    [
        (Machines(1, 8, 1), 1, 1),
        (Machines(1, 8, 1), 0.25, 4),
        (Machines(1, 2, 1), 0.25, 2),  # each also takes a CPU
        (Machines(1, 8, 2), 0.4, 4),  # no worker gets parts of two GPUs
        (Machines(1, 8, 4), 3, 1),
        (Machines(1, 8, 0), 1, 0),
        (Machines(1, 8, 1), 0, 8),
        (Machines(1, 8, 1), 0.1, 8),
        (Machines(1, None, 8), 0.25, 32),
        (Machines(1, None, 8), 0, 8),
    ],
)
def test_workers_of_a_machine(machine: Machines, gpus: float, room: int) -> None:
    assert machine.room(gpus) == room


def test_what_is_there_counts_where_it_is_more_than_the_autoscaler_may_start() -> None:
    machines = (NO_MACHINE, *[Machines(1, 8, 1)] * 12)
    assert Cluster(machines, NO_MACHINE, GPU_MACHINES).room(1) == 12
    with_gpu = Machines(1, 4, 2)
    assert Cluster((with_gpu,), with_gpu, GPU_MACHINES).room(1) == 10


def test_trials_of_several_workers_need_room_on_the_head() -> None:
    assert empty().trials(2, 1) == 4
    assert empty(head_memory=2.5e9).trials(2, 1) == 2
    assert empty(head_memory=2.5e9).trials(1, 1) == 8
    assert empty(head_memory=1e8).trials(2, 1) == 1
    assert empty(head_memory=1e8).coordinator_resources["memory"] == 1e8  # one always finds room
    assert empty(head_memory=2.5e9).describe(2, 1, 2) == (
        "cluster: 0 GPUs now, may grow to 8; 2 workers of 1 GPU per trial, up to 2 trials at a time, for which the "
        "head has memory"
    )


def test_one_line_says_what_was_found_and_what_is_used() -> None:
    assert empty().describe(1, 1, 8) == (
        "cluster: 0 GPUs now, may grow to 8; 1 GPU per trial, up to 8 trials at a time"
    )
    assert empty().describe(1, 0.25, 32) == (
        "cluster: 0 GPUs now, may grow to 8; 0.25 GPU per trial, up to 32 trials at a time"
    )
    assert empty(source=MAX_GPUS).describe(1, 2, 4) == (
        "cluster: 0 GPUs now, may grow to 8 (MCRNN_MAX_GPUS); 2 GPUs per trial, up to 4 trials at a time"
    )
    assert Cluster((Machines(1, 2, 0),)).describe(1, 0, 2) == (
        "cluster: 2 CPUs and no GPU; 1 CPU per trial, up to 2 trials at a time"
    )
    assert Cluster((Machines(1, 8, 1),)).describe(1, 1, 1) == "cluster: 1 GPU; 1 GPU per trial, up to 1 trial at a time"
    assert "its autoscaler may start more, but REASON: set MCRNN_MAX_GPUS" in Cluster(
        (Machines(1, 8, 1),), problem="but REASON"
    ).describe(1, 1, 1)


def test_gpus_that_no_machine_may_have_are_refused() -> None:
    assert gpus_for(TrainConfig(workers=2), empty()) == 1
    assert gpus_for(TrainConfig(workers=9), empty()) == 0
    assert gpus_for(TrainConfig(device="cpu"), empty()) == 0
    assert gpus_for(TrainConfig(), empty(), 0.25) == 0.25
    with pytest.raises(UserError, match="9 workers need 9 GPUs, the cluster may have at most 8"):
        gpus_for(TrainConfig(workers=9, device="cuda"), empty())
    with pytest.raises(UserError, match="need 2 GPUs on machines with room for 2 each, the cluster may have at most 8"):
        gpus_for(TrainConfig(), empty(), 2)
    with pytest.raises(UserError, match="1 workers need 1 GPUs, the cluster has 0"):
        gpus_for(TrainConfig(), Cluster((Machines(1, 2, 0),)), 1)


SIZE = """
import ray

from mcrnn.errors import UserError
from mcrnn.runners.ray_cluster import connected
try:
    with connected() as cluster:
        print(cluster.may_get_machines, cluster.describe(1, 1, 8))
except UserError as error:
    print(error)
"""


@pytest.mark.integration
def test_the_variable_says_what_a_cluster_may_get(shared_ray: str, tmp_path: Path) -> None:
    assert said_by(SIZE, tmp_path).startswith("False cluster: ")
    assert said_by(SIZE, tmp_path, MCRNN_MAX_GPUS="8").startswith(
        "True cluster: 0 GPUs now, may grow to 8 (MCRNN_MAX_GPUS); "
    )
    assert said_by(SIZE, tmp_path, MCRNN_MAX_GPUS="0").startswith("False cluster: ")
    for wrong in ("many", "-1", "nan", "inf"):
        said = said_by(SIZE, tmp_path, MCRNN_MAX_GPUS=wrong)
        assert said == f"MCRNN_MAX_GPUS is to be the number of GPUs that the cluster may have, such as 8, not '{wrong}'"


KUBERAY = """
import json, sys
from ray.autoscaler._private.kuberay import node_provider
node_provider.IN_CLUSTER_TOKEN_PATH = sys.argv[1]
from mcrnn.runners.autoscaler import read_configuration
try:
    print(json.dumps(read_configuration("127.0.0.1:1")))
except Exception as error:
    print(error)
"""


class Kubernetes(BaseHTTPRequestHandler):
    """Answers as the API of Kubernetes, which has the RayCluster of cluster/kuberay.yaml."""

    autoscaling = True

    def do_GET(self) -> None:
        known = self.path == "/apis/ray.io/v1/namespaces/lab/rayclusters/mcrnn"
        allowed = self.headers["Authorization"] == "Bearer secret"
        documents = yaml.safe_load_all((PROJECT / "cluster" / "kuberay.yaml").read_text())
        cluster = next(each for each in documents if each["kind"] == "RayCluster")
        cluster["metadata"]["namespace"] = "lab"
        cluster["spec"]["enableInTreeAutoscaling"] = self.autoscaling
        self.send_response(403 if not allowed else 200 if known else 404)
        self.end_headers()
        self.wfile.write(json.dumps(cluster).encode() if known and allowed else b"")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a head's pod, whose token is in the folder, and an API of Kubernetes."""
    key, certificate = tmp_path / "key.pem", tmp_path / "ca.crt"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", "/CN=kubernetes", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    (tmp_path / "token").write_text("secret")
    (tmp_path / "namespace").write_text("lab")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Kubernetes)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT_HTTPS": str(server.server_port),
        "RAY_KUBERAY_CA_CERT_PATH": str(certificate),
        "RAY_CLUSTER_NAME": "mcrnn",
    }
    server.shutdown()
    server.server_close()


def test_limits_of_the_cluster_on_kubernetes(
    pod: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = str(tmp_path / "token")
    limits = AutoscalerLimits.of_configuration(json.loads(said_by(KUBERAY, tmp_path, token, **pod)))
    assert limits == AutoscalerLimits((Machines(8, 8, 1),), 8)
    monkeypatch.setattr(Kubernetes, "autoscaling", False)
    assert not AutoscalerLimits.of_configuration(json.loads(said_by(KUBERAY, tmp_path, token, **pod))).grows
    (tmp_path / "token").write_text("of another")
    assert "403 Client Error" in said_by(KUBERAY, tmp_path, token, **pod)
    no_pod = json.loads(said_by(KUBERAY, tmp_path, str(tmp_path / "none"), **pod))
    assert not AutoscalerLimits.of_configuration(no_pod).grows
