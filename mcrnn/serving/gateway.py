"""The HTTP server: it checks and reads requests, has the replicas compute them, and writes the answers.

Every answer that is not a forecast is JSON. An error is `{"error": SENTENCE}`, with status 400 for input that does not
fit the model, 401 without the token, 413 for a body that is too large, 415 for one of an unknown kind, and 503 where
no replica answers.
"""

from __future__ import annotations

import hmac
import time
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from mcrnn.errors import UserError
from mcrnn.serving import bodies
from mcrnn.serving.bodies import ARROW, JSON, NETCDF, Limits
from mcrnn.serving.compute import NoReplicaError, Replicas
from mcrnn.serving.measures import Measures
from mcrnn.serving.openapi_page import FORECAST_DOCUMENTATION, page
from mcrnn.serving.served_model import FollowedModel
from mcrnn.tracking.provenance import code_version

OTHER_NAMES = {"application/netcdf": NETCDF, "application/x-netcdf4": NETCDF, "application/vnd.apache.arrow": ARROW}
"""Media types that are in use for the same."""


class Gateway:
    """Answers requests.

    Args:
        followed: the model.
        replicas: what computes.
        measures: takes what is measured of each request.
        token: what callers have to know; None where everybody may call.
        limits: what a request may ask for.
    """

    def __init__(
        self,
        followed: FollowedModel,
        replicas: Replicas,
        measures: Measures,
        *,
        token: str | None,
        limits: Limits,
    ) -> None:
        self.followed, self.replicas, self.measures = followed, replicas, measures
        self.token, self.limits = token, limits

    def app(self) -> FastAPI:
        """Return the application for a server."""
        description = "Forecasts of a field by a model of mcrnn. Units, grid and channels are those of `/model`."
        app = FastAPI(
            title="mcrnn",
            version=code_version(),
            description=description,
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
        )
        known = [Depends(self._check_token)]
        app.post("/forecast", dependencies=known, summary="Continue frames", openapi_extra=FORECAST_DOCUMENTATION)(
            self.forecast
        )
        app.get("/model", dependencies=known, summary="Which model is served, and what it takes")(self.model)
        app.get("/metrics", dependencies=known, summary="Figures for Prometheus")(self.metrics)
        app.get("/health", summary="Whether a replica answers; needs no token")(self.health)

        def openapi() -> JSONResponse:
            return JSONResponse(app.openapi())

        def documentation() -> HTMLResponse:
            return HTMLResponse(page(app.openapi()))

        app.get("/openapi.json", dependencies=known, include_in_schema=False)(openapi)
        app.get("/", dependencies=known, include_in_schema=False)(documentation)
        app.add_exception_handler(StarletteHTTPException, _explained)
        return app

    async def _check_token(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.token is not None and not hmac.compare_digest(given.encode(), self.token.encode()):
            raise HTTPException(401, "the header 'Authorization: Bearer TOKEN' with the server's token is needed")

    async def forecast(self, request: Request) -> Response:
        """Continue the given frames; the answer has the kind of the body of the request."""
        started = time.perf_counter()
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        kind = OTHER_NAMES.get(kind, kind)
        status = 500
        try:
            if kind not in (JSON, NETCDF, ARROW):
                raise HTTPException(415, f"the header Content-Type is {JSON}, {NETCDF} or {ARROW}, not '{kind}'")
            body = await self._body(request)
            query = request.query_params
            question: dict[str, Any] = {key: query[key] for key in query if key != "start"}
            question["start"] = query.getlist("start")
            served = self.followed.current  # this request keeps it, also if the alias moves meanwhile
            reading = await run_in_threadpool(bodies.read, kind, body, question, served, self.limits)
            forecasts_BTCHW = await self.replicas.forecast(
                served, reading.frames_BTCHW, reading.steps, reading.inputs_BTIHW
            )
            answer = await run_in_threadpool(reading.answer, forecasts_BTCHW)
            status = 200
            self.measures.count_frames(len(reading.frames_BTCHW) * reading.steps)
            version = served.identity.get("model_version", "")
            headers = {"X-Model-Version": version, "X-Model-Digest": served.identity["model_digest"]}
            return Response(answer, media_type=kind, headers=headers)
        except UserError as error:
            status = 400
            return JSONResponse({"error": str(error)}, status)
        except NoReplicaError:
            status = 503
            return JSONResponse({"error": "no replica answers; try again"}, status, {"Retry-After": "5"})
        except StarletteHTTPException as error:
            status = error.status_code
            raise
        finally:
            self.measures.count_request(kind if status < 400 else "", status, time.perf_counter() - started)

    async def _body(self, request: Request) -> bytes:
        """Return the body of a request, which is not read beyond its largest size."""
        too_large = HTTPException(413, f"the body has more than {self.limits.most_bytes / 1e6:g} MB (--max-mb)")
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self.limits.most_bytes:
            raise too_large
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.limits.most_bytes:
                raise too_large
        return bytes(body)

    async def model(self) -> dict[str, Any]:
        """Return which model is served, and what it takes."""
        served = self.followed.current
        field, validation = served.model.field, served.model.config.validation
        _, height, width = field.frame_shape
        return {
            **served.identity,
            "architecture": served.model.architecture,
            "variable": field.variable,
            "units": field.units,
            "time_step": field.time_step,
            "channels": list(field.channels),
            "predicted_channels": served.model.network.channels_out,
            "inputs": field.inputs,
            "grid": None if served.model.network.takes_any_grid else [height, width],
            "coarsen": served.model.config.data.coarsen,
            "warm_up": validation.warm_up,
            "steps": validation.horizon + 1,
        }

    async def metrics(self) -> Response:
        """Return figures for Prometheus."""
        return Response(self.measures.exposition(), media_type="text/plain; version=0.0.4")

    async def health(self) -> JSONResponse:
        """Return status 200 if a replica answers, else 503."""
        if await self.replicas.are_ready():
            return JSONResponse({"status": "ok", "model_version": self.followed.current.identity.get("model_version")})
        return JSONResponse({"error": "no replica answers; try again"}, 503)


async def _explained(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    sentences = {
        404: f"there is no {request.url.path} here; / says what there is",
        405: f"{request.method} is not for {request.url.path}; / says what is",
    }
    sentence = error.detail if isinstance(error, HTTPException) else sentences.get(error.status_code, error.detail)
    return JSONResponse({"error": sentence}, error.status_code, error.headers)
