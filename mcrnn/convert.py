"""Convert a checkpoint of the paper's own code into a model of this project.

    python -m mcrnn.convert outputs/NAME/checkpoints/NAME_best.ckpt runs/NAME/model \\
        --config outputs/NAME/.hydra/config.yaml --store data/ns.zarr
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml

from mcrnn.cli import StorageOption, main
from mcrnn.config.architectures import ARCHITECTURES
from mcrnn.config.sections import Configuration
from mcrnn.errors import UserError, did_you_mean
from mcrnn.models import Forecaster
from mcrnn.models.boundary import PADDINGS
from mcrnn.models.paper_checkpoint import load_checkpoint

DATASETS: dict[str, dict[str, Any]] = {
    "NavierStokesDataset": {"variable": "vorticity", "units": "1"},
    "GeopotentialDataset": {"variable": "z", "units": "m**2 s**-2", "mean": 54107.863, "std": 3349.0322},
}
"""Variable, units and statistics of the paper's data sets, by the class that a run's configuration names."""
WARM_UP, HORIZON = 20, 30
"""Steps of the paper's evaluation on Navier-Stokes."""


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A .ckpt file of the paper's code.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder of the model, relative to the storage root.")],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The run's outputs/NAME/.hydra/config.yaml; without it, give the options below."
        ),
    ] = None,
    architecture: Annotated[str | None, typer.Option(help=f"One of {', '.join(ARCHITECTURES)}.")] = None,
    padding: Annotated[str | None, typer.Option(help="Padding of the grid: circular, cylinder or zeros.")] = None,
    tanh_encoder: Annotated[bool | None, typer.Option(help="Whether a tanh follows the encoder.")] = None,
    mean: Annotated[float | None, typer.Option(help="Mean that the data were normalised with, if they were.")] = None,
    std: Annotated[float | None, typer.Option(help="Standard deviation that the data were normalised with.")] = None,
    variable: Annotated[str | None, typer.Option(help="Name of the field.")] = None,
    coarsen: Annotated[
        int | None, typer.Option(min=1, help="Blocks of n x n grid points were averaged over: give n.")
    ] = None,
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

    run = _read_run_configuration(config) if config else {"model": {}, "data": {}, "training": {}}
    dataset = DATASETS.get(_class_name(run["data"]), {})
    network, model = _load_network(checkpoint, run, architecture, padding, tanh_encoder)
    statistics = _statistics(run, dataset, mean, std)
    root = Storage.open(storage)
    block = coarsen or int(run["data"].get("downscale_factor") or 1)
    configuration = Configuration.model_validate(
        {
            "name": re.sub(r"[^A-Za-z0-9._-]+", "-", checkpoint.stem).strip("-._") or "converted",
            "data": {
                "store": store or "data/unknown.zarr",
                "coarsen": block,
                "normalize": statistics is not None,
                "sequence_length": int(run["data"].get("sequence_length") or 20),
            },
            "model": model,
            "train": {"teacher_forcing_steps": 1},
            "validation": {"warm_up": WARM_UP, "horizon": HORIZON},
        }
    )
    channels, height, width = network.frame_shape
    if store is not None:
        field = FieldDescription.of(FieldStore.open(root.location(store)), configuration.data)
        if field.frame_shape != network.frame_shape:
            raise UserError(
                f"'{store}' coarsened by {block} has frames of {field.frame_shape} (channels, height, width), the "
                f"model takes {network.frame_shape}; --coarsen sets the blocks"
            )
    else:
        name = variable or dataset.get("variable", "field")
        field = FieldDescription(
            variable=name,
            units=dataset.get("units", "1"),
            time_step="1",
            channels=(name,) * channels,
            frame_shape=network.frame_shape,
            padding=model["padding"],
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            store_digest="",
        )
    if statistics is not None:  # those that the network was trained with, whatever the store's are
        field = replace(field, mean=(statistics[0],) * channels, std=(statistics[1],) * channels)
    folder = root.location(out)
    trained_model.save(folder, configuration, field, network.state_dict())
    count = sum(p.numel() for p in network.parameters())
    print(
        f"{model['architecture']}, {count:,} parameters, {height} x {width}, {model['padding']} padding -> "
        f"{root.show(folder)}"
    )
    if store is not None:
        print(f"evaluate it: python -m mcrnn.evaluate {out}")


def _load_network(
    checkpoint: Path,
    run: dict[str, Any],
    architecture: str | None,
    padding: str | None,
    tanh_encoder: bool | None,
) -> tuple[Forecaster, dict[str, Any]]:
    """Build the network of a checkpoint.

    Args:
        checkpoint: the .ckpt file.
        run: the run's configuration.
        architecture: the option of that name; None for the run's own.
        padding: likewise.
        tanh_encoder: likewise.

    Returns:
        The network, and the section `model` of its configuration.

    Raises:
        UserError: the options and the run's configuration leave something open, or the checkpoint is another one.
    """
    named = architecture or _class_name(run["model"]).lower()
    if named not in ARCHITECTURES:
        what = f"'{named}' is no architecture{did_you_mean(named, ARCHITECTURES)}" if named else "which architecture?"
        raise UserError(f"{what}: give --architecture ({', '.join(ARCHITECTURES)}) or --config")
    padding = padding or run["model"].get("padding_mode")
    if padding not in PADDINGS:
        raise UserError(f"which padding? Give --padding ({', '.join(PADDINGS)}) or --config (there: {padding})")
    if tanh_encoder is None:
        tanh_encoder = bool(run["model"].get("tanh_encoder", False))
    norm = run["model"].get("norm") or {}
    norm_groups = int(norm.get("num_groups") or 1)
    sides = (run["data"].get("height"), run["data"].get("width"))
    grid = (int(sides[0]), int(sides[1])) if "GroupNorm" in str(norm.get("_target_")) and all(sides) else None
    network = load_checkpoint(
        checkpoint, architecture=named, padding=padding, tanh_encoder=tanh_encoder, grid=grid, norm_groups=norm_groups
    )
    return network, {
        "architecture": named,
        "hidden_size": [cell.hidden_size for cell in network._cells()],
        "padding": padding,
        "decode": network.decode,
        "norm": "layer" if isinstance(network.norms[0], torch.nn.LayerNorm) else "group",
        "norm_groups": norm_groups,
        "tanh_encoder": tanh_encoder,
    }


def _statistics(
    run: dict[str, Any], dataset: dict[str, Any], mean: float | None, std: float | None
) -> tuple[float, float] | None:
    """Return mean and standard deviation that the data were normalised with, None if they were not.

    Args:
        run: the run's configuration.
        dataset: the entry of `DATASETS`.
        mean: the option of that name, which says that the data were normalised; None for the data set's own.
        std: likewise.

    Raises:
        UserError: only one of the two is given, or neither is known.
    """
    if (mean is None) != (std is None):
        raise UserError("--mean and --std go together")
    if mean is None and not run["data"].get("normalize", False):
        return None
    if mean is None:
        mean, std = dataset.get("mean"), dataset.get("std")
    if mean is None or std is None:
        raise UserError("the data of this run were normalised: give --mean and --std, which are not in its files")
    return mean, std


def _class_name(section: dict[str, Any]) -> str:
    """Return the class that a section of the run's configuration names, without its module; empty if none."""
    return str(section.get("_target_", "")).rsplit(".", 1)[-1]


def _read_run_configuration(path: Path) -> dict[str, Any]:
    """Read the sections `model`, `data` and `training` of a run's configuration; those that are missing are empty."""
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
