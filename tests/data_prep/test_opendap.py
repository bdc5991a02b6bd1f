"""OPeNDAP data sets become the store that their file becomes, and what a server does wrong is one sentence."""

from __future__ import annotations

import itertools
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr

from data_prep import append as append_command
from data_prep import field_source, opendap, opendap_requests
from data_prep.inspect import inspect
from data_prep.machines import OTHER, Needs, find_problems
from data_prep.opendap_answers import decode_dap2, decode_dap4, parse_dap2, parse_dap4
from data_prep.opendap_endpoints import find_endpoint
from data_prep.opendap_requests import Answer
from data_prep.source_identity import glance, identify
from data_prep.sources import open_source
from mcrnn.data.missing_values import without_invalid
from mcrnn.data.store import FieldStore
from mcrnn.errors import UserError
from mcrnn.storage.local import LocalFolder
from tests.data_prep.test_convert import folder as folder
from tests.data_prep.test_convert import interrupt_after, run, stored
from tests.data_prep.test_odd_inputs import OTHER as COLD
from tests.data_prep.test_odd_inputs import VALUES, dataset, packed, two_levels, with_t
from tests.support.opendap_server import OpendapServer, chunks

BODY = b'Error {\n    code = 403;\n    message = "Request too big=900.0 Mbytes, max=500.0";\n};\n'
START = b"Dataset {\n    Float32 z[lat = 2];\n} a;\nData:\n"


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpendapServer]:
    """A server of the files in the current folder, which is asked again without a pause."""
    monkeypatch.setattr(opendap_requests, "SECONDS_BEFORE_TRIES", (0.0, 0.0, 0.0))
    server = OpendapServer(folder)
    yield server
    server.stop()


def written(part: xr.Dataset, name: str = "a") -> None:
    """Write a file of types that DAP2 has, of a time that is not that of the test."""
    part.to_netcdf(f"{name}.nc")
    os.utime(f"{name}.nc", (1e9, 1e9))


def objects(folder: Path, name: str) -> dict[str, Any]:
    """Size and checksum of each object of a store but the root, which has the names of its sources."""
    return FieldStore.open(LocalFolder(folder / name)).manifest.objects


PACKED = packed(scale_factor=np.float32(0.1), add_offset=np.float32(53_999.7))(dataset())


SCALARS = dataset().assign_coords(height=((), 2.0, {"units": "m", "axis": "Z"}))
"""As CMIP6 has it near the ground."""

JOINED = [dataset(VALUES[:24]), dataset(VALUES[24:], 24)]


@pytest.mark.parametrize(
    ("protocol", "parts", "options"),
    [
        ("dap2", [PACKED], {"every": "3h"}),
        ("dap2", [two_levels(dataset())], {"variable": ["z@850", "z@500"], "every": "6h"}),
        ("dap2", [with_t(dataset())], {"variable": ["t", "z"], "area": "50/-50/-20/60", "boundary": "zeros"}),
        ("dap2", JOINED, {"coarsen": 2}),
        ("dap2", [SCALARS.assign_coords(name=b"Amon")], {"variable": ["z"]}),
        ("dap4", [SCALARS], {}),
        ("dap4", [PACKED], {}),
        (
            "dap4",
            [two_levels(dataset())],
            {"variable": ["z@850", "z@500"], "area": "50/-50/-20/60", "boundary": "zeros"},
        ),
    ],
    ids=["packed", "levels", "area", "joined", "scalars", "dap4 scalars", "dap4 packed", "dap4 levels"],
)
def test_store_is_that_of_the_file_to_the_bit(
    folder: Path, server: OpendapServer, protocol: str, parts: list[xr.Dataset], options: dict[str, Any]
) -> None:
    server.protocols = {protocol}
    names = [f"part{number}" for number in range(len(parts))]
    for part, name in zip(parts, names, strict=True):
        written(part, name)
    run(*(f"{name}.nc" for name in names), store="file.zarr", **options)
    run(*map(server.url, reversed(names)), store="remote.zarr", **options)
    assert objects(folder, "remote.zarr") == objects(folder, "file.zarr")
    assert not list(folder.glob("mcrnn-*"))
    run(*map(server.url, names), store="remote.zarr", **options)  # complete already


def test_protocol_may_be_named_and_static_fields_are_read(folder: Path, server: OpendapServer) -> None:
    written(dataset().assign(height=(("lat", "lon"), COLD[0])))
    server.fault = lambda environ: (
        ("404 Not Found", [], b"") if environ["PATH_INFO"].endswith((".dds", ".das", ".dods")) else None
    )
    url = f"dap4://{server.host}/dodsC/a"
    run(url, variable=["z"], static=[f"{url}:height"])
    assert np.array_equal(stored(folder)[:, 1], np.broadcast_to(COLD[0], VALUES.shape))
    with pytest.raises(UserError, match=f"there is no DAP2 data set at 'dap2://{server.host}/dodsC/a'"):
        run(url.replace("dap4", "dap2"), variable=["z"], store="b.zarr")


def test_requests_are_few_and_none_is_larger_than_a_server_takes(
    folder: Path, server: OpendapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(two_levels(dataset()))
    url = server.url("a")
    monkeypatch.setattr(opendap, "BLOCK_BYTES", 24 * 192)
    run(url, variable=["z@850"])
    asked = [name.replace(" ", "") for name in server.requests if "z.z[" in name]
    assert asked == [f"a.dods?z.z[{first}:1:{first + 23}][1:1:1][0:1:5][0:1:7]" for first in (0, 24, 48)]
    assert server.largest < 24 * 192 + 500
    whole = open_source(url)["z"].variable
    for index in ({"time": [0, 5, 6, 7, 40], "lat": slice(None, None, -2)}, {"time": -1, "lon": [6, 1, 2]}):
        expected = two_levels(dataset())["z"].variable.isel(index)
        assert np.array_equal(whole.isel(index).values, expected.values)


def test_each_data_set_of_a_field_is_described_once(folder: Path, server: OpendapServer) -> None:
    names = [f"part{number}" for number in range(9)]
    for number, name in enumerate(names):
        written(dataset(VALUES[:24], 24 * number), name)
    identify(server.url(names[0]), ["z", "time"])
    for name in names * 2:
        open_source(server.url(name))
    asked = [name for name in server.requests if name.endswith(".das") or "dods?" in name]
    assert len(asked) == len(set(asked)) == 18


@pytest.mark.parametrize("modified", ["file", "answer", ""])
def test_build_does_not_go_on_with_a_source_that_has_changed(
    folder: Path, server: OpendapServer, monkeypatch: pytest.MonkeyPatch, modified: Any
) -> None:
    server.modified = modified
    monkeypatch.setattr(field_source, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(field_source, "SHARD_BYTES", 8 * 192)
    written(dataset())
    url = server.url("a")
    interrupt_after(4, monkeypatch, source=url)
    run(url, boundary="zeros")
    assert np.array_equal(stored(folder)[:, 0], VALUES)
    written(dataset(COLD))
    if modified == "file":
        os.utime("a.nc", (1e9, 1e9 + 1))
    with pytest.raises(UserError, match="sources is"):
        run(url, boundary="zeros")


def test_source_is_known_by_the_arrays_that_are_read_and_not_by_attributes_of_the_data_set(
    folder: Path, server: OpendapServer
) -> None:
    server.modified = ""
    written(dataset())
    requests = itertools.count()
    units = "m2 s-2"

    def described(environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes] | None:
        if not environ["PATH_INFO"].endswith(".das"):
            return None
        number = next(requests)
        lines = [
            f'NC_GLOBAL {{ String history "request {number}"; }}',
            f"lat {{ Int32 number {number}; }}",
            'time { String units "hours since 1979-01-01"; }',
            f'z {{ String units "{units}"; }}',
        ]
        return "200 OK", [("ETag", f'"{number}"')], "\n".join(["Attributes {", *lines, "}"]).encode()

    server.fault = described
    source = identify(server.url("a"), ["z", "time"])
    source.check()
    units = "m"
    assert identify(server.url("a"), ["z", "time"]).checksum != source.checksum


def test_answer_of_dap2_with_an_error_in_place_of_values_is_refused() -> None:
    content = START + b"\0\0\0\2\0\0\0\2" + np.array([1.5, 2.5], ">f4").tobytes()
    assert decode_dap2(Answer(content), "URL")["z"].tolist() == [1.5, 2.5]
    with pytest.raises(UserError, match="the server of 'URL' does not answer in full"):
        decode_dap2(Answer(content[:-6] + BODY), "URL")


def test_answer_of_dap4_that_is_cut_off_or_damaged_is_refused(folder: Path, server: OpendapServer) -> None:
    written(dataset())
    with netCDF4.Dataset("a.nc") as file:
        content = chunks(file, "/z[0:1:1][0:1:5][0:1:7];/lat[0:1:5]")
    found = decode_dap4(Answer(content), "URL")
    assert np.array_equal(found["z"], VALUES[:2])
    damaged = bytearray(content)
    damaged[-60] ^= 1
    for answer in (content[:-100], bytes(damaged), BODY):
        with pytest.raises(UserError, match="the server of 'URL' does not answer in full"):
            decode_dap4(Answer(answer), "URL")


DDS = "Dataset {\n    Byte z[time = 2];\n} a;\n"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("Byte _FillValue -127;", {"_FillValue": np.int8(-127)}),
        ('Byte _FillValue -1; String _Unsigned "true";', {"_FillValue": np.uint8(255), "_Unsigned": "true"}),
        ('Byte missing_value 129; String _Unsigned "false";', {"missing_value": np.int8(-127)}),
        (
            "Byte _FillValue -1; Byte add_offset -2; Int16 valid_range 0, 254;",
            {"_FillValue": np.uint8(255), "add_offset": np.int8(-2), "valid_range": np.int16([0, 254])},
        ),
        ("Float32 a 1.0f; Float64 b Infinity, -NaN;", {"a": np.float32(1), "b": np.array([np.inf, np.nan])}),
        ("UInt16 a -1; Byte b 255; Int32 c 0x7f;", {"a": np.int16(-1), "b": np.uint8(255), "c": np.int32(127)}),
        ('Int16 a 40000; String s "b; c", ""; Int16 d x; Odd e 1;', {"a": np.int16(-25536), "s": ["b; c", ""]}),
    ],
    ids=[
        "byte with sign",
        "byte without",
        "byte of a server that says so",
        "byte by range",
        "floats",
        "integers",
        "left out",
    ],
)
def test_odd_attributes_of_dap2_are_read_or_left_out(lines: str, expected: dict[str, Any]) -> None:
    found = parse_dap2(DDS, f"Attributes {{\n    z {{\n        {lines}\n    }}\n}}\n")["z"].attributes
    np.testing.assert_equal(found, expected)
    assert {key: getattr(value, "dtype", None) for key, value in found.items()} == {
        key: getattr(value, "dtype", None) for key, value in expected.items()
    }


def test_odd_attributes_of_dap4_are_read_or_left_out_and_those_that_are_needed_are_named() -> None:
    def parsed(attributes: str) -> dict[str, Any]:
        return parse_dap4(
            '<?xml version="1.0"?>\n<Dataset xmlns="http://xml.opendap.org/ns/DAP/4.0#" name="s"><Dimension name="t" '
            f'size="2"/><Byte name="z"><Dim name="/t"/>{attributes}</Byte><Attribute name="g" type="Odd"/></Dataset>'
        )["z"].attributes

    found = parsed(
        '<Attribute name="_FillValue" type="Byte"><Value>255</Value></Attribute>'
        '<Attribute name="a" type="Char"><Value>a</Value></Attribute>'
        '<Attribute name="b" type="Container"><Attribute name="k" type="Int16"><Value>1</Value></Attribute></Attribute>'
        '<Attribute name="c" type="URI"><Value>http://a</Value></Attribute>'
        '<Attribute name="units" type="string"><Value value="m"/></Attribute>'
        '<Attribute name="e" type="String"><Value/></Attribute>'
        '<Attribute name="f" type="UInt8" value="1"><Value>200</Value></Attribute>'
    )
    assert found.pop("f").tolist() == [1, 200]
    assert found == {"_FillValue": 255, "c": "http://a", "units": "m", "e": ""}
    assert found["_FillValue"].dtype == np.uint8
    with pytest.raises(ValueError, match="the attribute scale_factor of z cannot be read: Float32 one, 2"):
        parsed('<Attribute name="scale_factor" type="Float32"><Value>one</Value><Value>2</Value></Attribute>')


def test_text_is_read_in_full(folder: Path, server: OpendapServer) -> None:
    written(SCALARS.assign(name=("lat", np.array([b"alpha", b"b", b"c", b"d", b"e", b"f"])), one=b"table Amon"))
    found = open_source(server.url("a"))
    assert found["one"].values.item() == b"table Amon"
    assert found["name"].values.tolist() == [b"alpha", b"b", b"c", b"d", b"e", b"f"]


@pytest.mark.parametrize(
    ("lines", "is_valid"),
    [
        ("Byte _FillValue -127;", lambda values: values != -127),
        ("Byte missing_value -1; Float32 scale_factor 0.5;", lambda values: values != -1),
        ("Byte valid_range -100, 100;", lambda values: (values >= -100) & (values <= 100)),
        ("Byte valid_max -1;", lambda values: values < 0),
        ('String _Unsigned "false"; Byte missing_value 255;', lambda values: values != -1),
    ],
    ids=["fill value", "missing value", "range", "maximum", "said"],
)
def test_bytes_with_a_sign_are_read_by_dap2(
    folder: Path, server: OpendapServer, lines: str, is_valid: Callable[[np.ndarray], np.ndarray]
) -> None:
    values = np.random.default_rng(0).integers(-128, 128, (72, 6, 8)).astype(np.int8)
    written(dataset().assign(z=(("time", "lat", "lon"), values.view(np.uint8))))
    attributes = f'Attributes {{ z {{ {lines} }} time {{ String units "hours since 1979-01-01"; }} }}'.encode()
    server.fault = lambda environ: ("200 OK", [], attributes) if environ["PATH_INFO"].endswith(".das") else None
    variable = open_source(server.url("a"))["z"].variable
    scale = 0.5 if "scale_factor" in lines else 1.0
    expected = np.where(is_valid(values), values * scale, np.nan)
    assert np.isnan(expected).any()
    found = without_invalid(variable, np.asarray(variable.values), is_netcdf=True)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_source_that_changes_while_it_is_read_is_refused(
    folder: Path, server: OpendapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opendap, "BLOCK_BYTES", 24 * 192)
    written(dataset())

    def changed(environ: dict[str, Any]) -> None:
        if "24" in environ["QUERY_STRING"]:
            os.utime("a.nc", (1e9, 1e9 + 60))

    server.fault = changed
    with pytest.raises(UserError, match=r"'http.*a' has changed since the build was planned; run the command again"):
        run(server.url("a"))


@pytest.mark.parametrize(
    ("ending", "answer", "said"),
    [
        (".dods", ("404 Not Found", [], b""), r"there is no 'http://.*a' on 127.0.0.1:\d+ \(404\)$"),
        (
            ".dods",
            ("403 Forbidden", [], BODY),
            r"refuses 'http://.*a' \(403: Request too big=900.0 Mbytes, max=500.0\)",
        ),
        (".dods", ("400 Bad Request", [], b""), r"refuses a request for 'http://.*a' \(400: Bad Request\)$"),
        (
            ".dods",
            ("500 Internal", [], BODY),
            r"fails for 'http://.*a' \(500: Request too big=.*\); the same command goes on when it works again$",
        ),
        (".dods", ("200 OK", [], BODY), r"the server of 'http://.*a' does not answer in full \(Request too big="),
        (".dods", ("200 OK", [("Content-Length", "99999")], START), "closed in the middle of an answer for 'http://"),
        (".dods", ("200 OK", [], START + b"\0\0\0\2\0\0\0\2\0\0\0\0"), "does not answer in full;"),
        (".das", ("200 OK", [], BODY), r"is not described as OPeNDAP has it \(Request too big="),
        (".das", ("200 OK", [], b"Attributes {\n  z {\n"), "is not described as OPeNDAP has it"),
    ],
    ids=["404", "403", "400", "500", "error", "closed", "cut off", "no attributes", "half of them"],
)
def test_errors_of_a_server_are_one_sentence(
    folder: Path, server: OpendapServer, ending: str, answer: tuple[str, list[tuple[str, str]], bytes], said: str
) -> None:
    written(dataset())
    server.fault = lambda environ: answer if environ["PATH_INFO"].endswith(ending) else None
    with pytest.raises(UserError) as refusal:
        run(server.url("a"))
    assert re.search(said, str(refusal.value)), refusal.value
    assert "\n" not in str(refusal.value)


def test_what_is_temporary_is_asked_for_again(folder: Path, server: OpendapServer) -> None:
    written(dataset())
    failures = [("503 Service Unavailable", [], b""), ("200 OK", [("Content-Length", "99999")], b"Dataset {")] * 6
    answers = iter([None if number % 3 == 2 else failures.pop() for number in range(15)])
    server.fault = lambda environ: next(answers, None)
    run(server.url("a"))
    assert next(answers, "used up") == "used up"
    assert np.array_equal(stored(folder)[:, 0], VALUES)


def test_server_that_is_away_or_has_no_such_data_set_is_one_sentence(folder: Path, server: OpendapServer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for scheme in ("http", "dap2"):
        with pytest.raises(UserError) as refusal:
            run(f"{scheme}://127.0.0.1:{port}/dodsC/a.nc")
        address = f"'{scheme}://127.0.0.1:{port}/dodsC/a.nc'"
        assert str(refusal.value) == (
            f"cannot reach 127.0.0.1:{port} for {address}: check the address and the network (Connection refused)"
        )
    with pytest.raises(UserError, match=r"nothing\.nc'"):
        run(server.url("nothing.nc"))
    written(dataset())
    with pytest.raises(UserError, match="leave out what follows"):
        run(server.url("a") + "?z[0:1:3]")
    with pytest.raises(UserError, match="no file has a variable 'group/z'"):
        run(server.url("a"), variable=["z"], group="group")


def test_times_are_appended_and_shown(folder: Path, server: OpendapServer, capsys: pytest.CaptureFixture[str]) -> None:
    written(dataset())
    written(dataset(COLD[:24], 72), "later")
    run(server.url("a"))
    for _ in range(2):
        append_command.append([server.url("later")], "out.zarr", storage=".", workers=1)
    assert np.array_equal(stored(folder)[:, 0], np.concatenate([VALUES, COLD[:24]]))
    inspect("out.zarr", storage=".")
    shown = capsys.readouterr().out
    assert "later" in shown
    assert "nothing to do" in shown


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Service Unavailable", "403 Forbidden"])
def test_file_is_read_whatever_its_server_says_of_what_it_does_not_have(
    folder: Path, server: OpendapServer, status: str
) -> None:
    written(dataset())
    content = Path("a.nc").read_bytes()

    def answer(environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        if not environ["PATH_INFO"].endswith(".nc"):
            return status, [("Content-Length", "0")], b""
        body = b"" if environ["REQUEST_METHOD"] == "HEAD" else content
        return "200 OK", [("Content-Length", str(len(content)))], body

    server.fault = answer
    run(server.url("a.nc"))
    assert np.array_equal(stored(folder)[:, 0], VALUES)
    assert len(server.requests) < 9
    asked = len(server.requests)
    assert find_endpoint(server.url("a.nc") + "?file=a.nc") is None
    assert len(server.requests) == asked


def test_description_is_looked_for_without_reading_a_file(folder: Path, server: OpendapServer) -> None:
    size = 2**31
    server.fault = lambda environ: ("200 OK", [("Content-Length", str(size))], bytes(2**20))
    assert find_endpoint(server.url("large")) is None  # else an answer that ends too early


PAGE = b"<!DOCTYPE html><html><form>login</form></html>"


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("a", ("401 Unauthorized", [], b""), r"asks for a login for 'http://.*/a' \(401\): write it to ~/.netrc$"),
        (
            "a.nc",
            ("401 Unauthorized", [], b""),
            r"asks for a login for 'http://.*/a.nc' \(401\): write it to ~/.netrc$",
        ),
        ("a", ("403 Forbidden", [], b""), r"refuses 'http://.*/a' \(403: Forbidden\): a login is taken from ~/.netrc$"),
        ("a", ("200 OK", [], PAGE), r"answers by a web page: where that asks for a login, write it to ~/.netrc$"),
        ("a.html", ("404 Not Found", [], b""), r"a server's page about a data set, leave out '.html'$"),
    ],
    ids=["401", "401 file", "403", "page", "html"],
)
def test_login_and_pages_of_a_server_are_named(
    folder: Path, server: OpendapServer, name: str, answer: tuple[str, list[tuple[str, str]], bytes], said: str
) -> None:
    server.fault = lambda environ: answer
    with pytest.raises(UserError) as refusal:
        run(server.url(name))
    assert re.search(said, str(refusal.value)), refusal.value


def test_login_of_netrc_opens_files_and_data_sets(
    folder: Path, server: OpendapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(dataset())
    content = Path("a.nc").read_bytes()
    Path("netrc").write_text("machine 127.0.0.1 login researcher password secret\n")
    monkeypatch.setenv("NETRC", str(folder / "netrc"))

    def answer(environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes] | None:
        if not environ.get("HTTP_AUTHORIZATION", "").startswith("Basic "):
            return "401 Unauthorized", [("Content-Length", "0")], b""
        if not environ["PATH_INFO"].endswith(".nc"):
            return None
        body = b"" if environ["REQUEST_METHOD"] == "HEAD" else content
        return "200 OK", [("Content-Length", str(len(content)))], body

    server.fault = answer
    for name in ("a.nc", "a"):
        run(server.url(name), store=f"{name}.zarr")


def test_data_set_that_was_changed_just_now_is_the_same_later(
    folder: Path, server: OpendapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opendap, "RECENT", 1.0)
    dataset().to_netcdf("a.nc")
    first = identify(server.url("a"), ["z", "time"])
    time.sleep(2.1)
    assert identify(server.url("a"), ["z", "time"]) == first


@pytest.mark.parametrize("modified", ["file", ""])
def test_machines_compare_what_the_server_tells_them(folder: Path, server: OpendapServer, modified: Any) -> None:
    server.modified = modified
    written(dataset())
    location = LocalFolder(folder / "store")
    location.write("witness", b"mcrnn")
    source = identify(server.url("a"), ["z", "time"])
    planned = Needs(location, ((source, glance(source)),))
    assert find_problems(planned, "witness") == []
    written(dataset(COLD))
    os.utime("a.nc", (1e9, 1e9 + 1))
    assert find_problems(planned, "witness") == [(OTHER, server.url("a"))]
    server.fault = lambda environ: ("503 Service Unavailable", [], b"")
    ((reason, url),) = find_problems(planned, "witness")
    assert url == server.url("a")
    assert "fails for {} (503: Service Unavailable)" in reason


def test_package_that_is_missing_is_named(folder: Path, server: OpendapServer, monkeypatch: pytest.MonkeyPatch) -> None:
    written(dataset())
    for name in [name for name in sys.modules if name.startswith("pydap")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pydap", None)
    with pytest.raises(
        UserError, match=r"is read by OPeNDAP, which needs one more package: pip install 'mcrnn\[opendap\]'"
    ):
        run(server.url("a"))
