"""The files of cluster/, as far as they can be checked without a cloud."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import PROJECT

CLUSTER = PROJECT / "cluster"
SECRETS = {"MLFLOW_TRACKING_PASSWORD", "MCRNN_MLFLOW_DATABASE", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"}


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


@pytest.mark.parametrize("name", ["gpu.yaml", "local.yaml"])
def test_ray_up_takes_the_file(name: str) -> None:
    validate_config(prepare_config(read(name)))


def test_gpu_machines_come_and_go_and_the_head_stays_small() -> None:
    config = read("gpu.yaml")
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "IamInstanceProfile" not in head["node_config"]  # the one that Ray makes, which may start machines
    assert {kind["min_workers"] for kind in types.values()} == {0}
    assert {kind["resources"]["GPU"] for kind in types.values()} == {1}
    assert {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in types.values()} == {"mcrnn-worker"}
    spot = ["InstanceMarketOptions" in kind["node_config"] for kind in types.values()]
    assert sorted(spot) == [False, True]
    assert config["idle_timeout_minutes"] <= 10
    assert "security_group" not in config["provider"]  # Ray's own: the cluster among itself, and ssh


def test_commands_name_files_that_are_there() -> None:
    for name in ("gpu.yaml", "local.yaml"):
        config = read(name)
        for key in ("setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
            for command in config.get(key, []):
                for word in command.split():
                    if word.startswith("~/mcrnn/"):
                        assert (PROJECT / word.removeprefix("~/mcrnn/")).exists(), command


@pytest.mark.parametrize("script", sorted(path.name for path in CLUSTER.glob("*.sh")))
def test_scripts_are_well_formed(script: str) -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / script)], check=True)


@pytest.mark.parametrize("script", ["start_head.sh", "start_worker.sh"])
def test_ray_is_started_with_a_token_and_without_the_password_of_the_database(script: str, tmp_path: Path) -> None:
    """In place of Ray, a program prints the environment that it gets."""
    for name, content in (("ray", "env"), ("python", "echo 127.0.0.1")):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{content}\n")
        program.chmod(0o755)
    database = "MCRNN_MLFLOW_DATABASE=postgresql://mcrnn:geheim@127.0.0.1/mcrnn\n"
    tracking = "MLFLOW_TRACKING_URI=http://127.0.0.1:5000\nMLFLOW_TRACKING_PASSWORD=offen\n"
    (tmp_path / ".mcrnn.env").write_text(f"MCRNN_STORAGE=s3://lab/mcrnn\n{tracking}{database}RAY_AUTH_MODE=disabled\n")
    (tmp_path / ".mcrnn-postgres.env").write_text(database)
    started = subprocess.run(
        ["bash", str(CLUSTER / script)],
        env={"HOME": str(tmp_path), "MCRNN_ENVIRONMENT": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    environment = dict(line.split("=", 1) for line in started.stdout.splitlines() if "=" in line)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["MCRNN_STORAGE"] == "s3://lab/mcrnn"
    assert "geheim" not in started.stdout
    assert ("offen" in started.stdout) == (script == "start_head.sh")  # jobs run on the head, and send runs


@pytest.mark.parametrize("path", sorted(path for path in CLUSTER.iterdir() if path.suffix in (".yaml", ".sh")))
def test_no_file_holds_a_secret(path: Path) -> None:
    for line in path.read_text().splitlines():
        for name in SECRETS:
            value = line.partition(f"{name}=")[2].split("#")[0].strip(" '\"")
            assert not value or "$" in value, line


@pytest.mark.soak
def test_aws_provider_launches_the_machines_of_gpu_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto import mock_aws

    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-west-2"),
        ("MOTO_IAM_LOAD_MANAGED_POLICIES", "true"),
        ("HOME", str(tmp_path)),  # for the key that Ray makes
    ):
        monkeypatch.setenv(name, value)
    (tmp_path / ".ssh").mkdir()
    with mock_aws():
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        boto3.client("iam").create_instance_profile(InstanceProfileName="mcrnn-worker")
        config = bootstrap_aws(prepare_config(read("gpu.yaml")))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for kind, spec in config["available_node_types"].items():
            provider.create_node(spec["node_config"], {"ray-user-node-type": kind}, 1)
        ec2 = boto3.client("ec2")

        def machines() -> list[Any]:
            return [each for made in ec2.describe_instances()["Reservations"] for each in made["Instances"]]

        tags = [{tag["Key"]: tag["Value"] for tag in each["Tags"]} for each in machines()]
        assert sorted(each["ray-user-node-type"] for each in tags) == ["gpu_on_demand", "gpu_spot", "head"]
        assert [each.get("InstanceLifecycle") for each in machines()].count("spot") == 1
        (group,) = {each["GroupId"] for machine in machines() for each in machine["SecurityGroups"]}
        (described,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
        for rule in described["IpPermissions"]:  # from outside ssh alone
            assert not rule["IpRanges"] or (rule["FromPort"], rule["ToPort"]) == (22, 22)
        provider.terminate_nodes(provider.non_terminated_nodes({}))
        assert {each["State"]["Name"] for each in machines()} == {"terminated"}
