"""Says what is running while the tests run: a line that is kept up to date, or one now and then in a file."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest

SECONDS_BETWEEN_LINES = {True: 1.0, False: 20.0}
"""Time between two lines in a terminal, and where the output is none."""


class LiveReport:
    """Follows the tests of all test processes, in the process that controls them."""

    def __init__(self, capture: Any) -> None:
        self.running: dict[str, float] = {}
        self.done = self.failed = 0
        self.total: int | None = None
        self.started = time.monotonic()
        self.ended = threading.Event()
        self.capture = capture
        self.in_terminal = sys.stdout.isatty()

    def pytest_sessionstart(self) -> None:
        """Begin to say it."""
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while not self.ended.wait(SECONDS_BETWEEN_LINES[self.in_terminal]):
            if self.running:
                self._say()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Without test processes beside this one, the tests are those that were collected here."""
        self.total = len(session.items) or self.total

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """Each test process collects all of them."""
        self.total = len(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self.running[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test has ended."""
        self.running.pop(nodeid, None)
        self.done += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count failures, and say at once what failed."""
        if report.failed:
            self.failed += 1
            self._write(f"FAILED {report.nodeid} ({report.when})", stays=True)

    def pytest_sessionfinish(self) -> None:
        """Leave an empty line behind."""
        self.ended.set()
        if self.in_terminal:
            self._write("")

    def _say(self) -> None:
        now = time.monotonic()
        minutes, seconds = divmod(int(now - self.started), 60)
        failed = f", {self.failed} failed" if self.failed else ""
        names = [f"{_short(name)} ({now - since:.0f} s)" for name, since in list(self.running.items())]
        self._write(f"{minutes}:{seconds:02d} {self.done}/{self.total or '?'}{failed}: {', '.join(names)}")

    def _write(self, line: str, *, stays: bool = False) -> None:
        with self.capture.global_and_fixture_disabled():
            if self.in_terminal:
                sys.stdout.write(f"\r\x1b[K{line if stays else line[:118]}" + ("\n" if stays else ""))
            else:
                sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


def _short(name: str) -> str:
    file, _, test = name.partition("::")
    return f"{file.removeprefix('tests/')}::{test.partition('[')[0]}"


def pytest_configure(config: pytest.Config) -> None:
    """Where this is the controlling process, and the usual letters are not asked for."""
    if not hasattr(config, "workerinput") and config.option.verbose < 0:
        config.pluginmanager.register(LiveReport(config.pluginmanager.getplugin("capturemanager")))


def pytest_report_teststatus(report: pytest.TestReport, config: pytest.Config) -> tuple[str, str, str] | None:
    """No letter for each test: the line takes its place."""
    if config.option.verbose >= 0 or report.skipped:
        return None
    if report.passed:
        return ("passed" if report.when == "call" else ""), "", ""
    return ("failed" if report.when == "call" else "error"), "", ""
