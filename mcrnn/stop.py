"""Stop a search, one of its trials, or a run, from any terminal.

    python -m mcrnn.stop demo               # the search saves and ends; its command continues it
    python -m mcrnn.stop demo --trial 7     # trial 7 ends with the error that it has, and the search goes on

The request is a small file in the folder of the search or run, locally or on S3, that its process finds within seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mcrnn.cli import StorageOption, main
from mcrnn.errors import UserError
from mcrnn.storage.root import Storage

if TYPE_CHECKING:
    from mcrnn.search.overview import WatchedSearch


def stop(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Search or run.")],
    trial: Annotated[
        int | None, typer.Option("--trial", min=0, help="Number of a trial; the search goes on without it.")
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Ask a search or run to save and end, as the first Ctrl-C in its terminal does, or end one trial of a search.

    The command returns when the request is written; `python -m mcrnn.status NAME` shows when it is fulfilled. A trial
    that is stopped counts as stopped, with the smallest error that it has reached. What does not run is refused, with
    exit code 2; a search that is silent may still run, and is asked with a warning. A request never ends a later start
    of the search.
    """
    root = Storage.open(storage, read_only=True)

    from mcrnn.runners.stop_requests import FINISHES, SAVES
    from mcrnn.search.attributes import REGISTRATION
    from mcrnn.search.overview import FOLDERS, SEARCH, WatchedSearch, find
    from mcrnn.storage.presence import request_stop, see
    from mcrnn.storage.retry import print_warning

    kind, found = find(root, name)
    location = root.location(f"{FOLDERS[kind]}/{found}")
    seen = see(location)
    if seen is None or seen.is_gone:
        state = "" if seen is None else f": it is {seen.state}"
        raise UserError(f"the {kind} '{found}' does not run{state}; there is nothing to stop")
    if trial is not None:
        if kind != SEARCH:
            raise UserError(f"'{found}' is a run and has no trials; leave --trial out to stop it")
        _check_trial(WatchedSearch(root, found), trial)
    request_stop(location, seen, trial)
    what = f"the {kind} '{found}'" if trial is None else f"trial {trial} of '{found}'"
    effect = SAVES if trial is None else "it ends with the error that it has"
    if seen.progress.get("phase") == REGISTRATION:
        effect = FINISHES
    if not seen.is_running:
        print_warning(
            f"the {kind} '{found}' has given no sign of life for {seen.age:.0f} s: its process is gone, or it is cut "
            "off from its folder and finds the request later"
        )
    print(f"{what} on {seen.place} has been asked to stop: {effect}")


def _check_trial(watched: WatchedSearch, trial: int) -> None:
    """Check that a trial can be stopped.

    Raises:
        UserError: there is no such trial, it has not been started, or it has ended.
    """
    from mcrnn.search.attributes import END, TrialEnd
    from mcrnn.search.study_reader import Phase

    watched.refresh()
    trials = {each.number: each for each in watched.trials}
    if trial not in trials:
        last = f"its trials are 0 to {max(trials)}" if trials else "it has no trials yet"
        raise UserError(f"the search '{watched.name}' has no trial {trial}; {last}")
    if trials[trial].phase == Phase.ENDED:
        end = trials[trial].attributes.get(END, TrialEnd.FAILED)
        raise UserError(f"trial {trial} of '{watched.name}' has ended already ({end})")
    if trials[trial].phase == Phase.WAITING:
        raise UserError(f"trial {trial} of '{watched.name}' has not been started")


if __name__ == "__main__":
    main(stop)
