"""The page of a search: what is in it, and that it is one file that fetches nothing."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from mcrnn.reports.search_page import MOST_POINTS, Group, PageContent, PageTrial, render

HOSTILE = "</script><img src=x onerror=alert(1)>"


def trial(number: int, state: str = "finished", best: float | None = 0.5, **changes: Any) -> PageTrial:
    values = {"model.architecture": ["convgru", "minconvlstm"][number % 2], "train.learning_rate": 1e-3 * (number + 1)}
    known: dict[str, Any] = {"curve": [0.9, None, 0.5], "why": "", "epoch": 3, "epochs": 3, "values": values}
    known |= {"parameters": 1e4, "frames_per_second": 100.0, "seconds": 9.0}
    return PageTrial(number=number, state=state, best=best, **(known | changes))


def content(trials: list[PageTrial], **changes: Any) -> PageContent:
    overview = {"done": 3, "budget": 6, "best": 0.5, "hours": 1.0, "state": "running", "where": None, "message": None}
    known: dict[str, Any] = {
        "name": "s", "state": "running", "overview": overview | {"process": {}}, "written": 0.0,
        "fields": ["model.architecture", "train.learning_rate"], "choices": ["model.architecture"], "missing_curves": 0,
        "importance": {"train.learning_rate": 0.8, "model.architecture": 0.2}, "summary": {}, "confirmation": [],
        "yaml": "name: s\n", "data": {"steps in closed loop": 30}, "continued": True, "option": "",
    }  # fmt: skip
    return PageContent(trials=trials, **(known | changes))


def data(page: str) -> dict[str, Any]:
    """What the figures are drawn from."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def test_page_fetches_nothing_and_no_message_breaks_out_of_it() -> None:
    failed = trial(2, "failed", None, why=f"RuntimeError: {HOSTILE} (see a/error.txt)", curve=[], epoch=None)
    page = render(content([trial(0), trial(1, "stopped", why="stopped after epoch 3"), failed]))
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert "<link" not in page
    assert HOSTILE not in page
    assert data(page)["trials"][2]["w"].startswith(f"RuntimeError: {HOSTILE}")
    assert "&lt;/script&gt;" in page  # among the failures


def test_page_says_what_is_known_before_the_end_and_after_it() -> None:
    trials = [trial(0), trial(1, best=0.4), trial(2, "diverged", None, why="diverged in epoch 2")]
    page = render(content(trials, confirmation=[Group(1, [0.41, None, 0.43], unfinished=1)]))
    assert "0.4200" in page  # mean of the seeds so far
    assert "3 and 1 unfinished" in page
    assert "python -m mcrnn.tune s.yaml --new" in page
    assert "Use the champion" not in page
    row = {"architecture": "minconvlstm", "trial": 1, "seeds": 5, "failed": 0, "mean": 0.42, "std": 0.01, "best": 0.4}
    summary = {
        "confirmed": [row | {"interval": [0.41, 0.43]}], "best_trial": 1, "model": "mcrnn-s", "alias": "champion",
        "version": 2,
        "test": {"rmse_closed_loop": 0.3, "rmse_closed_loop_normalized": 0.44, "rmse_teacher_forced": 0.1},
        "confirmation": {"statement": "mean error 0.4200", "unfinished": None},
    }  # fmt: skip
    page = render(content(trials, summary=summary))
    assert 'load_model("models:/mcrnn-s@champion")' in page
    assert page.count("0.4100 to 0.4300") == 2  # of the architecture, and of the confirmation
    assert "<b>0.4400</b>" in page
    assert data(page)["winner"] == 1


def test_page_of_a_search_without_a_trial_or_without_architectures() -> None:
    assert "No trial has a result yet" in render(content([], importance={}))
    assert data(render(content([trial(0)], fields=["train.learning_rate"])))["architecture"] == -1


def test_curves_of_many_trials_are_thinned_and_keep_their_ends() -> None:
    curve: list[float | None] = [1 / (epoch + 1) for epoch in range(1001)]
    trials = [trial(number, curve=curve) for number in range(500)]
    shown = data(render(content(trials)))
    stride = shown["stride"]
    assert stride == math.ceil(500_500 / MOST_POINTS)
    for each in shown["trials"]:
        assert each["l"] == 1001
        assert each["c"][-1] == 0.000999
    assert sum(len(each["c"]) for each in shown["trials"]) <= MOST_POINTS
