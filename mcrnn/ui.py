"""Start the MLflow UI on the runs and models under the storage root.

python -m mcrnn.ui
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from mcrnn.cli import StorageOption, main
from mcrnn.storage.root import Storage


def ui(
    port: Annotated[int, typer.Option(help="Port of 127.0.0.1, so that only this machine can see the UI.")] = 5000,
    storage: StorageOption = None,
) -> None:
    """Show runs, their comparison and the model registry in a browser.

    Runs that are recorded as running although their process was killed are first marked as killed; the command that
    started them continues them.
    """
    root = Storage.open(storage)

    from mcrnn.passwords import mask_passwords
    from mcrnn.tracking.experiment import end_abandoned, view_addresses
    from mcrnn.tracking.mlflow_client import artifact_root, tracking_uri

    uri = tracking_uri(root)
    if uri.startswith("http"):
        server = mask_passwords(uri).rstrip("/")
        print(f"the runs are on a tracking server: open {server} in a browser")
        _print_views(view_addresses(uri, server))
        return

    end_abandoned(uri)
    server = f"http://127.0.0.1:{port}"
    print(f"the MLflow UI is at {server} until Ctrl-C")
    _print_views(view_addresses(uri, server))
    arguments = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # no argument, because every user of the machine sees arguments
    if artifacts := artifact_root(root):
        arguments += ["--default-artifact-root", artifacts]
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # eight processes for jobs that nobody sends
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])


def _print_views(addresses: dict[str, str]) -> None:
    """Print where the runs of each experiment are shown with the columns that matter."""
    width = max(map(len, addresses), default=0)
    print("\n".join(f"  {name:{width}}  {address}" for name, address in addresses.items()), flush=True)


if __name__ == "__main__":
    main(ui)
