"""A better version becomes the champion; every change is recorded, and other data is refused."""

from __future__ import annotations

import functools
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mcrnn.errors import UserError
from mcrnn.evaluation import promotion
from mcrnn.evaluation.selection import expand
from mcrnn.storage.root import Storage
from mcrnn.tracking import registry
from mcrnn.tracking.mlflow_client import all_pages, client_of, tracking_uri
from mcrnn.tracking.model_loading import load_model
from tests.conftest import CommandRunner
from tests.support.registered_models import describe, register, save

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("database")]


WRONG = {"architecture": "minconvgru", "hidden_size": 4, "layers": 1, "prediction": "increment"}
"""an increment of 0 is persistence; the larger the decoder's weights are, the larger the error is"""


def versions(root: Path, storage: Storage, *scales: float) -> None:
    """Versions of the model `m`, the first of which is the champion."""
    for number, scale in enumerate(scales, start=1):
        config, field = describe(root, model=WRONG)
        found = register(storage, "m", save(root / f"models/{number}", config, field, scale))
        assert found == (number, "champion" if number == 1 else "candidate")


def test_candidate_wins_only_where_it_is_better_and_every_move_is_recorded(
    command: CommandRunner, root: Path, storage: Storage
) -> None:
    versions(root, storage, 3.0, 0.0, 1.0)
    client = client_of(tracking_uri(storage))

    worse = command("mcrnn.promote", "m", "--version", "1", "--alias", "other", "--reason", "for a test")
    assert worse.returncode == 0, worse.stderr
    won = command("mcrnn.promote", "m", "--version=2", "--channel=vorticity", "--lead-times=1-2")
    assert won.returncode == 0, won.stderr
    assert "m: RMSE over the standard deviation, of vorticity, lead times 1-2, test split: candidate" in won.stdout
    assert "version 2 is the champion" in won.stdout
    assert registry.aliases(client, "m") == {"champion": 2, "previous": 1, "candidate": 3, "other": 1}
    lost = command("mcrnn.promote", "m")
    assert lost.returncode == 1
    assert "the champion stays" in lost.stdout
    assert registry.champion(client, "m") == 2
    # not better by so much
    assert command("mcrnn.promote", "m", "--version=3", "--margin=0.5").returncode == 1
    back = command("mcrnn.promote", "m", "--rollback", "--reason", "it drifts")
    assert back.returncode == 0
    assert registry.aliases(client, "m")["champion"] == 1
    assert registry.aliases(client, "m")["previous"] == 2
    by_hand = command("mcrnn.promote", "m", "--version=3", "--alias=champion", "--reason", "asked for")
    assert by_hand.returncode == 0
    assert "candidate" not in registry.aliases(client, "m")
    assert "is the champion already" in command("mcrnn.promote", "m").stdout
    record = registry.champion_history(client, "m")
    assert [(move["from"], move["to"]) for move in record] == [(None, 1), (1, 2), (2, 1), (1, 3)]
    assert [move["why"] for move in record][2:] == ["it drifts", "asked for"]
    assert record[1]["rmse_candidate"] < record[1]["rmse_champion"]
    assert record[1]["why"] == "better than version 1 in the test, of vorticity, lead times 1-2"
    kept = {"starts": "every sample from its first frame", "channels": ["vorticity"], "lead_times": "1-2"}
    assert kept.items() <= record[1].items()
    assert all(move["who"] and move["when"] for move in record)
    history = command("mcrnn.promote", "m", "--history")
    assert "it drifts" in history.stdout


def test_only_an_evaluation_as_configured_is_recorded_in_the_run_of_the_training(
    command: CommandRunner, root: Path, storage: Storage
) -> None:
    versions(root, storage, 1.0)
    client = client_of(tracking_uri(storage))
    run_id = client.get_model_version_by_alias("m", "champion").run_id
    name = "test_rmse_closed_loop_normalized"
    assert command("mcrnn.evaluate", "models:/m@champion", "--horizon=1").returncode == 0
    assert name not in client.get_run(run_id).data.metrics
    assert command("mcrnn.evaluate", "models:/m@champion").returncode == 0
    assert client.get_run(run_id).data.metrics[name] > 0


def test_versions_of_other_data_are_refused_with_all_reasons(
    command: CommandRunner, root: Path, storage: Storage
) -> None:
    versions(root, storage, 1.0)
    config, field = describe(root, model=WRONG)
    other = replace(field, store_digest="f" * 64, units="1 s-1", frame_shape=(1, 4, 4))
    register(storage, "m", save(root / "other", config, other))
    refused = command("mcrnn.promote", "m")
    assert refused.returncode == 2
    for reason in ("digest ffffffffffff", "units 1 s-1 instead of 1", "a grid of 4 x 4 instead of 8 x 8"):
        assert reason in refused.stderr
    for arguments, message in (
        (["n"], "there is no model 'n'"),
        (["m", "--version=9"], "has no version 9; it has 1, 2"),
        (["m", "--rollback"], "has no previous champion"),
        (["m", "--alias=champion"], "--alias needs --version"),
        (["m", "--version=1", "--alias=v7", "--reason=x"], "--alias v7 cannot be used"),
    ):
        wrong = command("mcrnn.promote", *arguments)
        assert wrong.returncode == 2
        assert message in wrong.stderr


@pytest.mark.parametrize("count", [101, 1001])
def test_last_of_many_registered_models_is_found_and_promoted(
    command: CommandRunner, root: Path, storage: Storage, count: int
) -> None:
    client = client_of(tracking_uri(storage))
    names = [(f"a-{number:04d}",) for number in range(count - 1)]  # MLflow lists the models by their names
    with closing(sqlite3.connect(root / "mlflow.db")) as models, models:  # all at once: MLflow takes long for each
        models.executemany(
            "INSERT INTO registered_models (name, creation_time, last_updated_time) VALUES (?, 0, 0)", names
        )
    versions(root, storage, 3.0, 0.0)
    assert expand("models:/[m]*@champion", storage) == ["models:/m@champion"]
    with pytest.raises(UserError, match="there is no model 'mm' in the registry; did you mean 'm'"):
        promotion.open_registry(storage, "mm")
    with pytest.raises(UserError, match=f"known: a-0000, .* and {count - 50} more"):
        promotion.open_registry(storage, "unknown")
    with pytest.raises(UserError, match="the model 'm' has no such version or alias"):
        load_model("models:/m@other", storage)
    promoted = command("mcrnn.promote", "m")
    assert promoted.returncode == 0, promoted.stderr
    assert registry.champion(client, "m") == 2


def test_all_pages_of_runs_and_versions_are_read(storage: Storage) -> None:
    client = client_of(tracking_uri(storage))
    experiment = client.create_experiment("many")
    for _ in range(7):
        client.create_run(experiment)
    two_a_page = functools.partial(client.search_runs, max_results=2)
    assert len(two_a_page([experiment])) == 2
    assert len({run.info.run_id for run in all_pages(two_a_page, [experiment])}) == 7
    assert all_pages(two_a_page, [experiment], "attributes.status = 'FAILED'") == []


def test_model_without_versions_is_refused_in_one_sentence(command: CommandRunner, storage: Storage) -> None:
    client_of(tracking_uri(storage)).create_registered_model("empty")
    for arguments in ([], ["--version=1"]):
        refused = command("mcrnn.promote", "empty", *arguments)
        assert refused.returncode == 2
        assert refused.stderr == (
            "error: the model 'empty' has no version yet: a search registers its best model as the first one\n"
        )
    assert command("mcrnn.promote", "empty", "--rollback").returncode == 2
    assert command("mcrnn.promote", "empty", "--history").returncode == 0
    loaded = command("mcrnn.evaluate", "models:/empty@champion")
    assert loaded.returncode == 2
    assert "has no such version or alias" in loaded.stderr


def test_two_promotions_at_once_leave_the_better_champion_and_a_full_record(
    command: CommandRunner, root: Path, storage: Storage
) -> None:
    versions(root, storage, 3.0, 0.0, 1.0)
    with ThreadPoolExecutor(2) as both:
        second, third = both.map(lambda number: command("mcrnn.promote", "m", f"--version={number}"), (2, 3))
    assert second.returncode == 0, second.stderr
    assert third.returncode in (0, 1), third.stderr
    client = client_of(tracking_uri(storage))
    assert registry.champion(client, "m") == 2
    record = registry.champion_history(client, "m")
    chain = [(move["from"], move["to"]) for move in record]
    assert chain in ([(None, 1), (1, 2)], [(None, 1), (1, 3), (3, 2)])
    assert registry.aliases(client, "m")["previous"] == chain[-1][0]
    assert [m.name for m in client.search_registered_models()] == ["m"]  # the lock is gone
