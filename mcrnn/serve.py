"""Serve a model over HTTP.

    python -m mcrnn.serve models:/mcrnn-ns@champion
    curl -o forecast.nc --data-binary @recent.nc -H 'Content-Type: application/x-netcdf' localhost:8000/forecast

When the champion changes, the server goes over to it; no request is lost.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
from typing import Annotated

import typer

from mcrnn.cli import StorageOption, main
from mcrnn.errors import UserError, first_line
from mcrnn.storage.root import Storage

TOKEN_VARIABLE = "MCRNN_SERVE_TOKEN"
SHORTEST_TOKEN = 16
"""Least number of characters of a token."""


def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Registry URI, run URI or a folder. An alias (models:/NAME@champion) is followed when it is moved.",
        ),
    ],
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. Other than on loopback, callers need the token of MCRNN_SERVE_TOKEN."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 8000,
    replicas: Annotated[
        int, typer.Option(min=1, help="Number of processes that compute, each on one core or GPU.")
    ] = 1,
    max_mb: Annotated[
        float,
        typer.Option(
            min=0.001, help="Largest size of a request, in MB: of its body, and of its frames, given and forecast."
        ),
    ] = 64.0,
    max_steps: Annotated[int, typer.Option(min=1, help="Largest number of frames that a request may ask for.")] = 1000,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at where the alias points.")] = 5.0,
    storage: StorageOption = None,
) -> None:
    """Serve forecasts over HTTP, in JSON, Arrow and NetCDF; GET / describes it.

    Replicas run on the Ray cluster of RAY_ADDRESS, else on a Ray of this machine. Requests that arrive together are
    computed together. If a replica is lost, another one computes its requests.
    """
    token = _token(host)
    root = Storage.open(storage)
    try:
        import ray.serve
    except ModuleNotFoundError as error:
        raise UserError(f"Ray Serve is not installed ({first_line(error)}): pip install 'mcrnn[serve]'") from None
    address = _reserved(host, port)

    import ray
    import uvicorn

    from mcrnn.runners.ray_cluster import connected
    from mcrnn.runners.signals import on_stop
    from mcrnn.serving.bodies import Limits
    from mcrnn.serving.compute import started
    from mcrnn.serving.gateway import Gateway
    from mcrnn.serving.measures import Measures
    from mcrnn.serving.served_model import FollowedModel, ServedModel

    measures = Measures()

    def changed(served: ServedModel) -> None:
        measures.show_model(served)
        version = served.identity.get("model_version")
        shown = f"{model}, {f'version {version}, ' if version else ''}digest {served.identity['model_digest'][:12]}"
        print(f"serving {shown}", flush=True)

    with address, connected() as cluster:
        followed = FollowedModel(model, root, ray.put, changed)
        with started(f"mcrnn-{secrets.token_hex(4)}", replicas, cluster) as computing:
            followed.follow(poll)
            gateway = Gateway(followed, computing, measures, token=token, limits=Limits(int(max_mb * 1e6), max_steps))
            print(f"listening on http://{host}:{port} until Ctrl-C", flush=True)
            server = uvicorn.Server(uvicorn.Config(gateway.app(), log_level="warning", access_log=False))
            with on_stop(lambda: None):  # the server has its own handlers, and raises the signal again at its end
                server.run(sockets=[address])
            followed.stop()


def _reserved(host: str, port: int) -> socket.socket:
    """Return a socket of the address, which does not listen yet: who calls too early is refused, and need not wait.

    Raises:
        UserError: the address cannot be used.
    """
    reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((host, port))
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return reserved


def _token(host: str) -> str | None:
    """Return the token that callers need, None if they need none.

    Raises:
        UserError: the address is not on loopback and there is no token, or it is too short.
    """
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise UserError(f"{TOKEN_VARIABLE} has {len(token)} characters, at least {SHORTEST_TOKEN} are needed")
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if token is None and not is_loopback:
        raise UserError(
            f"--host {host} can be reached from other machines: set {TOKEN_VARIABLE} to a token for callers"
        )
    return token


if __name__ == "__main__":
    main(serve)
