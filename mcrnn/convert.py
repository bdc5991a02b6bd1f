"""Convert a checkpoint of the paper's own code into a model of this project.

    python -m mcrnn.convert outputs/NAME/checkpoints/NAME_best.ckpt runs/NAME/model \\
        --config outputs/NAME/.hydra/config.yaml --store data/ns.zarr
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml

from mcrnn.cli import StorageOption, main
from mcrnn.config.architectures import ARCHITECTURES
from mcrnn.config.sections import Configuration
from mcrnn.errors import UserError, did_you_mean
from mcrnn.models.convolution import PADDINGS
from mcrnn.models.paper_checkpoint import load_checkpoint

# what the paper's data sets are, where the configuration names them
DATASETS: dict[str, dict[str, Any]] = {
    "NavierStokesDataset": {"variable": "vorticity", "units": "1"},
    "GeopotentialDataset": {"variable": "z", "units": "m**2 s**-2", "mean": 54107.863, "std": 3349.0322},
}
WARM_UP, HORIZON = 20, 30
"""the paper's evaluation on Navier-Stokes"""


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A .ckpt of the paper's code.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder of the model, relative to the storage root.")],
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The run's outputs/NAME/.hydra/config.yaml; else give the options below."),
    ] = None,
    architecture: Annotated[str | None, typer.Option(help=", ".join(ARCHITECTURES))] = None,
    padding: Annotated[str | None, typer.Option(help="circular, cylinder or zeros")] = None,
    tanh_encoder: Annotated[bool | None, typer.Option(help="Whether a tanh follows the encoder.")] = None,
    mean: Annotated[float | None, typer.Option(help="Mean that the data were normalised with, if they were.")] = None,
    std: Annotated[float | None, typer.Option(help="Standard deviation, likewise.")] = None,
    variable: Annotated[str | None, typer.Option(help="Name of the field.")] = None,
    coarsen: Annotated[int | None, typer.Option(min=1, help="Mean over blocks of n x n grid points.")] = None,
    store: Annotated[
        str | None, typer.Option(help="Field store that the model is to be evaluated on, such as data/ns.zarr.")
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Convert a checkpoint of the paper's code to a model that evaluation and the registry take."""
    from mcrnn.data.description import FieldDescription
    from mcrnn.data.store import FieldStore
    from mcrnn.models import trained_model
    from mcrnn.storage.root import Storage

    run = _run_configuration(config) if config else {"model": {}, "data": {}, "training": {}}
    dataset = DATASETS.get(str(run["data"].get("_target_", "")).rsplit(".", 1)[-1], {})
    named = architecture or str(run["model"].get("_target_", "")).rsplit(".", 1)[-1].lower()
    if named not in ARCHITECTURES:
        what = f"'{named}' is no architecture{did_you_mean(named, ARCHITECTURES)}" if named else "which architecture?"
        raise UserError(f"{what}: give --architecture ({', '.join(ARCHITECTURES)}) or --config")
    pads = padding or run["model"].get("padding_mode")
    if pads not in PADDINGS:
        raise UserError(f"which padding? Give --padding ({', '.join(PADDINGS)}) or --config (there: {pads})")
    tanh = bool(run["model"].get("tanh_encoder", False)) if tanh_encoder is None else tanh_encoder
    norm = run["model"].get("norm") or {}
    groups = int(norm.get("num_groups") or 1)
    sides = (run["data"].get("height"), run["data"].get("width"))
    grid = (int(sides[0]), int(sides[1])) if "GroupNorm" in str(norm.get("_target_")) and all(sides) else None
    network = load_checkpoint(
        checkpoint, architecture=named, padding=pads, tanh_encoder=tanh, grid=grid, norm_groups=groups
    )
    if (mean is None) != (std is None):
        raise UserError("--mean and --std go together")
    normalize = mean is not None or bool(run["data"].get("normalize", False))
    if mean is None:
        mean, std = dataset.get("mean"), dataset.get("std")
    if normalize and (mean is None or std is None):
        raise UserError("the data of this run were normalised: give --mean and --std, which are not in its files")
    root = Storage.open(storage)
    channels, height, width = network.frame_shape
    block = coarsen or int(run["data"].get("downscale_factor") or 1)
    configuration = Configuration.model_validate(
        {
            "name": re.sub(r"[^A-Za-z0-9._-]+", "-", checkpoint.stem).strip("-._") or "converted",
            "data": {
                "store": store or "data/unknown.zarr",
                "coarsen": block,
                "normalize": normalize,
                "sequence_length": int(run["data"].get("sequence_length") or 20),
            },
            "model": {
                "architecture": named,
                "hidden_size": [cell.hidden_size for cell in network._cells()],
                "padding": pads,
                "decode": network.decode,
                "norm": "layer" if isinstance(network.norms[0], torch.nn.LayerNorm) else "group",
                "norm_groups": groups,
                "tanh_encoder": tanh,
            },
            "train": {"teacher_forcing_steps": 1},
            "validation": {"warm_up": WARM_UP, "horizon": HORIZON},
        }
    )
    if store is not None:
        opened = FieldStore.open(root.location(store))
        field = FieldDescription.of(opened, configuration.data)
        if field.frame_shape != network.frame_shape:
            raise UserError(
                f"'{store}' coarsened by {block} has frames of {field.frame_shape} (channels, height, width), the "
                f"model takes {network.frame_shape}; --coarsen sets the blocks"
            )
        of_store = dict(vars(field))
    else:
        name = variable or dataset.get("variable", "field")
        of_store = {
            "variable": name,
            "units": dataset.get("units", "1"),
            "time_step": "1",
            "channels": (name,) * channels,
            "frame_shape": (channels, height, width),
            "padding": pads,
            "mean": (0.0,) * channels,
            "std": (1.0,) * channels,
            "store_digest": "",
        }
    if normalize:
        of_store |= {"mean": (mean,) * channels, "std": (std,) * channels}
    folder = root.location(out)
    trained_model.save(folder, configuration, FieldDescription(**of_store), network.state_dict())
    count = sum(p.numel() for p in network.parameters())
    print(f"{named}, {count:,} parameters, {height} x {width}, {pads} padding -> {root.show(folder)}")
    if store is not None:
        print(f"evaluate it: python -m mcrnn.evaluate {out}")


def _run_configuration(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"'{path}' is not a YAML file") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"'{path}' is not a configuration of the paper's code: it has no 'model'")
    return {section: content.get(section) or {} for section in ("model", "data", "training")}


if __name__ == "__main__":
    main(convert)
