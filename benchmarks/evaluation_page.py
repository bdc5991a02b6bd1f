"""The page of an evaluation in a browser, on a phone and on a desk, with one channel and with twelve.

    python -m benchmarks.evaluation_page [--channels 1 12] [--screenshots FOLDER]

For each number of channels a globe of 32 x 64 daily fields is converted from NetCDF, two networks with random weights
are evaluated on it with two regions, and report.html is opened in Chromium in frames as wide as a phone and a desk.
Printed are the size of the page, how many pixels it is wider than the frame (which scrolls sideways where this is not
0; wide tables and pictures scroll within themselves), and which of its elements stand out of the frame.
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from data_prep.convert import convert
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.evaluation.regions import named_regions
from mcrnn.evaluation.side_by_side import Windows
from mcrnn.models import trained_model
from mcrnn.models.forecaster import build_model
from mcrnn.reports import evaluation_report
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage

WIDTHS = {"phone": 390, "desk": 1280}
HEIGHT = {"phone": 9000, "desk": 14000}
VARIABLES = {
    "z500": "m**2 s**-2", "t850": "K", "t2m": "K", "u10": "m s**-1", "v10": "m s**-1", "msl": "Pa", "q700": "kg kg**-1",
    "tcc": "1", "tp6h": "m", "sst": "K", "specific_rain_water_content": "kg kg**-1", "tisr": "J m**-2",
}  # fmt: skip
"""Names and units of the channels, as in the field, the longest one among them."""
REGIONS = ["europe=75/-15/30/42.5", "tropics=20/-180/-20/180"]
CHROMIUM = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files")
MEASURE = """
<body style="margin:0"><iframe src="{page}" style="border:0;width:{width}px;height:{height}px"></iframe>
<script>
document.querySelector("iframe").onload = (event) => {{
  const page = event.target.contentDocument.documentElement;
  const scrolls = (element) => element.closest(".scroll, .picture, details") !== null;
  const out = [...page.querySelectorAll("body *")].filter(
    (element) => !scrolls(element) && element.getBoundingClientRect().right > page.clientWidth + 1);
  document.body.dataset.wider = page.scrollWidth - page.clientWidth;
  document.body.dataset.out = out.map((element) => element.tagName.toLowerCase()).join(" ");
}};
</script></body>
"""


def make_store(root: Path, names: list[str]) -> None:
    """Convert three years of daily fields: a mean by latitude, a season, and waves that travel."""
    latitude, longitude = np.linspace(-87.1875, 87.1875, 32), np.arange(64) * 5.625
    days = np.arange(3 * 365)
    rows, columns = np.radians(latitude)[:, None], np.radians(longitude)
    variables = {}
    for number, name in enumerate(names):
        wave = np.stack([np.sin((1 + number % 5) * columns - 0.3 * day) * np.cos(rows) for day in days])
        season = np.cos(2 * np.pi * days / 365)[:, None, None] * np.sin(rows)
        values = 10.0 ** (number % 4) * (5 + wave + season)
        variables[name] = (("time", "lat", "lon"), values.astype(np.float32), {"units": VARIABLES[name]})
    coordinates = {"time": ("time", days, {"units": "days since 2001-01-01"}), "lat": latitude, "lon": longitude}
    file = root / "fields.nc"
    xr.Dataset(variables, coordinates).to_netcdf(file)
    convert(
        [str(file)],
        "data/fields.zarr",
        train="2001",
        val="2002",
        test="2003",
        variable=names,
        boundary="cylinder",
        workers=1,
        storage=str(root),
    )


def make_models(root: Path) -> None:
    """Save networks with random weights of two architectures."""
    for architecture in ("convgru", "minconvexplstm"):
        config = Configuration.model_validate(
            {
                "name": architecture,
                "data": {"store": "data/fields.zarr"},
                "model": {"architecture": architecture, "hidden_size": 4, "layers": 1},
                "validation": {"warm_up": 4, "horizon": 10},
            }
        )
        field = FieldDescription.of(FieldStore.open(LocalFolder(root / "data/fields.zarr")), config.data)
        torch.manual_seed(0)
        network = build_model(config.model, field.frame_shape, field.padding)
        trained_model.save(LocalFolder(root / "models" / architecture), config, field, network.state_dict())


def show(chromium: str, page: Path, name: str, screenshots: Path | None) -> tuple[int, str]:
    """Open a page in a frame as wide as a screen.

    Returns:
        By how many pixels it is wider than the frame, and the tags of what stands out of it.
    """
    around = page.with_name(f"{name}.html")
    around.write_text(MEASURE.format(page=page.name, width=WIDTHS[name], height=HEIGHT[name]))
    size = f"--window-size={max(500, WIDTHS[name])},{HEIGHT[name]}"
    run = [chromium, *CHROMIUM, size, "--virtual-time-budget=8000"]
    shown = subprocess.run(
        [*run, "--dump-dom", around.as_uri()], capture_output=True, text=True, check=True, timeout=180
    ).stdout
    wider, out = (re.search(f'data-{each}="([^"]*)"', shown) for each in ("wider", "out"))
    if wider is None or out is None:
        raise SystemExit(f"{page} was not drawn")
    if screenshots is not None:
        file = screenshots / f"{page.parent.name}-{name}.png"
        subprocess.run([*run, f"--screenshot={file}", around.as_uri()], capture_output=True, check=True, timeout=180)
    return int(wider.group(1)), html.unescape(out.group(1))


def main() -> None:
    """Print a line for each page and width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", nargs="+", type=int, default=[1, 12], help=f"up to {len(VARIABLES)}")
    parser.add_argument("--screenshots", type=Path, help="folder for pictures of the pages")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("install Chromium, for example by: apt install chromium")
    if options.screenshots:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    lines = []
    for count in options.channels:
        with tempfile.TemporaryDirectory(prefix="mcrnn-") as folder:
            root = Path(folder)
            make_store(root, list(VARIABLES)[:count])
            make_models(root)
            storage, out = Storage.open(str(root)), root / f"channels-{count}"
            windows = Windows(regions=named_regions(REGIONS))
            if failures := evaluation_report.make(["models/*"], storage, windows, out=str(out)):
                raise SystemExit("\n".join(failures))
            page = out / "report.html"
            size = page.stat().st_size / 1000
            for name in WIDTHS:
                wider, stands_out = show(chromium, page, name, options.screenshots)
                lines.append(f"{count:8d} {size:9.0f}   {name:5s} {WIDTHS[name]:6d} {wider:12d}   {stands_out or '-'}")
    print("channels size [kB]   screen  [px]   wider [px]   stands out")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
