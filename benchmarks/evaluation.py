"""Cost of an evaluation beside bare inference, and that its memory does not grow with the number of samples.

    python -m benchmarks.evaluation [--samples 200] [--rounds 3]

The largest network of the paper on 16 x 16 (ConvLSTM, 25 channels, 4 layers, 182,524 parameters), samples of 51 frames,
20 given and 30 in closed loop, on two cores: frames a second of the evaluation (windows, scores and spectra) over those
of the network alone on the same batches. Memory is what the evaluation adds to the peak of a process that has the
split in memory, for the given number of samples and for five times as many. Then, what the scores of a batch of large
frames on a globe (0.7 degrees, 16 windows of 31 frames) add to the memory of forecasts, truths and climatology.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.navier_stokes import generate
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.sphere import latitude_weights
from mcrnn.data.store import FieldStore
from mcrnn.evaluation.evaluation_set import BATCH_SIZE, EvaluationSet
from mcrnn.evaluation.measures import Measures
from mcrnn.evaluation.metrics import Scores
from mcrnn.evaluation.scoring import score
from mcrnn.models import trained_model
from mcrnn.models.forecaster import build_model
from mcrnn.models.trained_model import TrainedModel
from mcrnn.storage.local import LocalFolder

WARM_UP, HORIZON = 20, 30


def prepare(root: Path, samples: int) -> tuple[TrainedModel, FieldStore]:
    """Make a store with a number of test samples, and the network with random weights."""
    name = f"{samples}.zarr"
    generate(name, train=2, val=1, test=samples, seed=0, workers=2, storage=str(root))
    store = FieldStore.open(LocalFolder(root / name))
    config = Configuration.model_validate(
        {
            "name": "largest",
            "data": {"store": name, "coarsen": 4},
            "model": {"architecture": "convlstm", "hidden_size": 25, "layers": 4},
        }
    )
    field = FieldDescription.of(store, config.data)
    torch.manual_seed(0)
    network = build_model(config.model, field.frame_shape, field.padding)
    trained_model.save(LocalFolder(root / "model"), config, field, network.state_dict())
    return trained_model.load(LocalFolder(root / "model")), store


def evaluation_set_of(model: TrainedModel, store: FieldStore) -> EvaluationSet:
    """Return the paper's evaluation set: 20 given frames, 30 steps in closed loop."""
    return EvaluationSet.of(store, model.config.data, warm_up=WARM_UP, horizon=HORIZON)


@torch.no_grad()
def seconds_of_inference(model: TrainedModel, evaluation_set: EvaluationSet) -> float:
    """Return how many seconds the network alone takes for all windows."""
    batches = [batch.frames_BTCHW for batch in evaluation_set.batches(BATCH_SIZE)]
    started = time.perf_counter()
    for frames_BTCHW in batches:
        model.network(frames_BTCHW[:, :WARM_UP], WARM_UP, WARM_UP + HORIZON)
    return time.perf_counter() - started


def _peak(root: str, samples: int, peaks: Any) -> None:
    torch.set_num_threads(2)
    model = trained_model.load(LocalFolder(Path(root) / "model"))
    store = FieldStore.open(LocalFolder(Path(root) / f"{samples}.zarr"))
    evaluation_set = evaluation_set_of(model, store)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    score(model, evaluation_set)
    peaks.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def peak(root: Path, samples: int) -> int:
    """Return how many bytes the evaluation adds to the peak of a process that has the split in memory."""
    context = multiprocessing.get_context("spawn")
    peaks = context.Queue()
    process = context.Process(target=_peak, args=(str(root), samples, peaks))
    process.start()
    found = peaks.get()
    process.join()
    return found


def _peak_of_scores(peaks: Any) -> None:
    torch.set_num_threads(2)
    frames = torch.rand(16, 31, 1, 256, 512)
    measures = Measures(latitude_weights(np.linspace(-89.65, 89.65, 256)))
    scores = Scores.empty(16, 31, 1, measures, (256, 512))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores.update(frames, frames, measures, frames)
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    peaks.put(added / (frames.numel() * 4))


def peak_of_scores() -> float:
    """Return the memory that the scores of a batch need, over the size of the batch."""
    context = multiprocessing.get_context("spawn")
    peaks = context.Queue()
    process = context.Process(target=_peak_of_scores, args=(peaks,))
    process.start()
    found = peaks.get()
    process.join()
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(2)
    print(f"memory of the scores of large frames: {peak_of_scores():.2f} of the batch", flush=True)
    with tempfile.TemporaryDirectory(prefix="mcrnn-", dir="/tmp") as folder:
        root = Path(folder)
        few, many = options.samples, 5 * options.samples
        model, store = prepare(root, few)
        evaluation_set = evaluation_set_of(model, store)
        seconds_of_inference(model, evaluation_set)  # to warm up
        shares, rates = [], []
        for _ in range(options.rounds):
            alone = seconds_of_inference(model, evaluation_set)
            started = time.perf_counter()
            score(model, evaluation_set)
            whole = time.perf_counter() - started
            shares.append(alone / whole)
            rates.append(len(evaluation_set) * evaluation_set.steps / whole)
        print(
            f"{few} samples of {evaluation_set.steps} steps: {statistics.median(rates):.0f} frames/s, "
            f"{100 * statistics.median(shares):.0f} % of the bare network (promised: at least 80 %)",
            flush=True,
        )
        prepare(root, many)
        a, b = peak(root, few), peak(root, many)
        print(f"memory that the evaluation adds: {a / 1e6:.0f} MB for {few} samples, {b / 1e6:.0f} MB for {many}")


if __name__ == "__main__":
    main()
