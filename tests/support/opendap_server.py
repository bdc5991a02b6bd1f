"""A real OPeNDAP server on loopback: pydap's for DAP2, and a small one for DAP4, which pydap does not serve."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterable
from email.utils import formatdate
from pathlib import Path
from threading import Thread
from typing import Any, Literal
from urllib.parse import unquote

import netCDF4
import numpy as np
from pydap.handlers.lib import BaseHandler
from pydap.model import BaseType, DatasetType, GridType
from werkzeug.serving import WSGIRequestHandler, make_server

Fault = Callable[[dict[str, Any]], tuple[str, list[tuple[str, str]], bytes] | None]
"""A request's WSGI environment -> status, headers and body to answer with, or None to serve it."""


class OpendapServer:
    """Serves the NetCDF files of a folder at /dodsC/, without their ends `.nc`, with variables as grids."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.protocols = {"dap2", "dap4"}
        self.modified: Literal["file", "answer", ""] = "file"
        """Whether answers say when a file was changed, or the time of the answer in place of it, or nothing."""
        self.fault: Fault | None = None
        self.requests: list[str] = []
        self.largest = 0
        """Bytes of the largest answer."""
        self.server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=QuietRequestHandler)
        self.thread = Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    def url(self, name: str) -> str:
        """The URL of a file."""
        return f"http://{self.host}/dodsC/{name}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path, query = environ["PATH_INFO"], unquote(environ["QUERY_STRING"])
        self.requests.append(f"{path.rpartition('/')[2]}?{query}".rstrip("?"))
        if (answer := self.fault(environ) if self.fault else None) is not None:
            status, headers, body = answer
            start_response(status, headers)
            return [body]
        name, _, ending = path.removeprefix("/dodsC/").rpartition(".")
        file = self.folder / f"{name}.nc"
        protocol = "dap4" if ending in ("dmr", "dap") else "dap2"
        if not file.exists() or ending not in ("dds", "das", "dods", "dmr", "dap") or protocol not in self.protocols:
            start_response("404 Not Found", [("Content-Length", "0")])
            return []
        date = formatdate(file.stat().st_mtime if self.modified == "file" else None, usegmt=True)
        modified = [("Last-Modified", date)] if self.modified else []
        with netCDF4.Dataset(file) as opened:
            opened.set_auto_maskandscale(False)
            if protocol == "dap4":
                body = description(opened) if ending == "dmr" else chunks(opened, query.partition("=")[2].split("&")[0])
            else:
                handler = BaseHandler(grids(opened))
                collected: list[Any] = []
                body = b"".join(handler(environ, lambda *arguments: collected.append(arguments)))
                if not collected[0][0].startswith("200"):
                    start_response(*collected[0][:2])
                    return [body]
        self.largest = max(self.largest, len(body))
        start_response("200 OK", [("Content-Length", str(len(body))), *modified])
        return [body]


class QuietRequestHandler(WSGIRequestHandler):
    """Without a line on stderr for each request."""

    def log(self, type: str, message: str, *args: Any) -> None:
        """Nothing."""


def grids(file: netCDF4.Dataset) -> DatasetType:
    """A file as THREDDS and Hyrax describe it by DAP2."""
    dataset = DatasetType("served")
    arrays = {name: (values_of(variable), attributes(variable)) for name, variable in file.variables.items()}

    def base(name: str, owner: str = "") -> BaseType:
        values, of_variable = arrays[name]
        return BaseType(
            name, values, dims=list(file[name].dimensions)[: values.ndim], attributes={} if owner else of_variable
        )

    for name, variable in file.variables.items():
        if name in variable.dimensions or not arrays[name][0].ndim:
            dataset[name] = base(name)
            continue
        dataset[name] = GridType(name, arrays[name][1])
        for part in (name, *(dim for dim in variable.dimensions if dim in arrays)):
            dataset[name][part] = base(part, owner=name)
    return dataset


def values_of(variable: netCDF4.Variable) -> np.ndarray:
    """The values of a variable; characters are text, as of THREDDS."""
    values = np.asarray(variable[...])
    return values.view(f"S{values.shape[-1]}")[..., 0] if values.dtype == "S1" else values


def attributes(variable: netCDF4.Variable) -> dict[str, Any]:
    return {key: variable.getncattr(key) for key in variable.ncattrs()}


TYPES = {"f4": "Float32", "f8": "Float64", "i1": "Int8", "i2": "Int16", "i4": "Int32", "i8": "Int64"}


def description(file: netCDF4.Dataset, slices: dict[str, tuple[slice, ...]] | None = None) -> bytes:
    """A file, or parts of some of its variables, as DAP4 describes it."""
    lines = ['<Dataset xmlns="http://xml.opendap.org/ns/DAP/4.0#" dapVersion="4.0" dmrVersion="1.0" name="served">']
    if slices is None:
        lines += [f'<Dimension name="{name}" size="{dim.size}"/>' for name, dim in file.dimensions.items()]
    for name in file.variables if slices is None else slices:
        variable = file[name]
        kind = TYPES[variable.dtype.str[1:]]
        lines.append(f'<{kind} name="{name}">')
        if slices is None:
            lines += [f'<Dim name="/{dim}"/>' for dim in variable.dimensions]
        else:
            lines += [f'<Dim size="{length}"/>' for length in variable[slices[name]].shape]
        for key, value in attributes(variable).items():
            of_type = "String" if isinstance(value, str) else TYPES[np.asarray(value).dtype.str[1:]]
            lines.append(f'<Attribute name="{key}" type="{of_type}"><Value>{value}</Value></Attribute>')
        lines.append(f"</{kind}>")
    return "\r\n".join(['<?xml version="1.0" encoding="UTF-8"?>', *lines, "</Dataset>", ""]).encode()


def chunks(file: netCDF4.Dataset, constraint: str) -> bytes:
    """Parts of variables as DAP4 sends them: description and values in chunks, with a checksum after each variable."""
    slices = {}
    for part in constraint.split(";"):
        name, bounds = part.partition("[")[0].lstrip("/"), re.findall(r"\[(\d+):(\d+):(\d+)\]", part)
        slices[name] = tuple(slice(int(first), int(last) + 1, int(step)) for first, step, last in bounds)
    values = [np.ascontiguousarray(file[name][part]).tobytes() for name, part in slices.items()]
    data = b"".join(content + struct.pack("<I", zlib.crc32(content)) for content in values)
    of_file = description(file, slices)
    parts = [of_file, *(data[i : i + 5000] for i in range(0, len(data), 5000))]
    flags = [4] * (len(parts) - 1) + [5]  # little-endian; the last chunk is marked
    return b"".join(struct.pack(">I", flag << 24 | len(part)) + part for flag, part in zip(flags, parts, strict=True))
