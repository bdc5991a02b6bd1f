"""Memory and time of the evaluation of a test split that is larger than memory.

    python -m benchmarks.large_evaluation [--gigabytes 20] [--windows 64] [--workers 1]

A store of periodic 64 x 64 samples of 51 frames on local disk, of which 20 are given and 30 forecast. First all of the
test split is evaluated, by a small network, because a large one would take hours: printed is the largest resident
memory of the process, with `--workers` that of this process and of all workers on Ray together. Then the time of an
evaluation by the paper's ConvLSTM (25 channels, 4 layers), of a store with fewer samples, over that of reading the same
windows and running the same network on them. Processes have two threads, workers on Ray one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from data_prep.builder import build
from data_prep.plan import Shard, SplitPlan, StorePlan
from mcrnn.config.sections import Configuration
from mcrnn.data.description import FieldDescription
from mcrnn.data.store import FieldStore
from mcrnn.evaluation.evaluation_set import EvaluationSet
from mcrnn.evaluation.parts import PartScorer, score_here
from mcrnn.evaluation.result import evaluate_model
from mcrnn.models import trained_model
from mcrnn.models.forecaster import build_model
from mcrnn.models.trained_model import TrainedModel
from mcrnn.runners.evaluation_workers import part_scorer
from mcrnn.storage.local import LocalFolder
from mcrnn.storage.root import Storage

SIDE, FRAMES, WARM_UP, HORIZON = 64, 51, 20, 30
SAMPLE_BYTES = 4 * FRAMES * SIDE * SIDE
ROUNDS = 3
STORE = "data/large.zarr"


@dataclass
class Waves:
    """Samples of one random pattern that moves, at a speed of its own in each sample."""

    shards_at_once: int = 1
    sources: tuple[()] = ()

    def compute(self, shards: Sequence[Shard]) -> list[dict[str, np.ndarray]]:
        """Return the samples of the shards."""
        pattern = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32)
        found = []
        for shard in shards:
            values = np.empty((shard.stop - shard.start, FRAMES, 1, SIDE, SIDE), np.float32)
            for number, sample in enumerate(range(shard.start, shard.stop)):
                for frame in range(FRAMES):
                    values[number, frame, 0] = np.roll(pattern, (sample % SIDE, frame * (1 + sample % 5)), (0, 1))
            found.append({"field": values})
        return found


def make_store(root: Path, samples: int) -> None:
    """Build a store with so many test samples."""

    def split(count: int) -> SplitPlan:
        coordinates: dict[str, Any] = {
            "sample": (("sample",), np.arange(count), {}),
            "time": (("time",), np.arange(float(FRAMES)), {}),
            "height": (("height",), np.arange(float(SIDE)), {}),
            "width": (("width",), np.arange(float(SIDE)), {}),
        }
        return SplitPlan(count, FRAMES, coordinates)

    plan = StorePlan(
        splits={"train": split(8), "val": split(4), "test": split(samples)},
        channels=["w"],
        height=SIDE,
        width=SIDE,
        layout="samples",
        chunk=1,
        shard=20,
        attributes={"variable": "w", "units": "1", "boundary": "periodic", "time_step": "1"},
        recipe={"samples": samples},
    )
    build(LocalFolder(root / STORE), plan, Waves(), overwrite=True)


def make_model(root: Path, hidden_size: int, layers: int) -> TrainedModel:
    """Return a network with random weights."""
    config = Configuration.model_validate(
        {
            "name": "large",
            "data": {"store": STORE},
            "model": {"architecture": "convlstm", "hidden_size": hidden_size, "layers": layers},
            "validation": {"warm_up": WARM_UP, "horizon": HORIZON},
        }
    )
    field = FieldDescription.of(FieldStore.open(LocalFolder(root / STORE)), config.data)
    torch.manual_seed(0)
    network = build_model(config.model, field.frame_shape, field.padding)
    folder = LocalFolder(root / "model")
    trained_model.save(folder, config, field, network.state_dict())
    return trained_model.load(folder)


def evaluate(root: Path, model: TrainedModel, score_parts: PartScorer = score_here) -> float:
    """Evaluate a model on the test split, and return the seconds that it took."""
    started = time.perf_counter()
    evaluate_model("large", model, Storage.open(str(root)), score_parts=score_parts)
    return time.perf_counter() - started


@torch.no_grad()
def read_and_infer(root: Path, model: TrainedModel) -> float:
    """Read the same windows, run the network on them and drop what it says; return the seconds that this took."""
    store = FieldStore.open(LocalFolder(root / STORE))
    started = time.perf_counter()
    evaluation_set = EvaluationSet.of(store, model.config.data, warm_up=WARM_UP, horizon=HORIZON)
    for batch in evaluation_set.batches(evaluation_set.batch_size(model.network)):
        model.network(batch.frames_BTCHW[:, :WARM_UP], WARM_UP, WARM_UP + HORIZON)
    return time.perf_counter() - started


def in_a_process(work: Callable[..., None], root: Path, *arguments: Any) -> Any:
    """Run something in a process of its own, and return what it puts into its queue."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=work, args=(root, queue, *arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the process has ended with {process.exitcode}")
    return queue.get()


def peak_gigabytes(process: int | str = "self") -> float:
    """Return the largest resident memory that a process has had; that of `getrusage` includes its parent's."""
    (line,) = (line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def _of_all(root: Path, queue: Any, workers: int) -> None:
    torch.set_num_threads(2)
    with part_scorer(workers, "cpu", LocalFolder(root)) as score_parts:
        seconds = evaluate(root, make_model(root, 4, 1), score_parts)
        below = psutil.Process().children(recursive=True)
        of_workers = [peak_gigabytes(each.pid) for each in below if each.cmdline()[0].startswith("ray::")]
        queue.put((seconds, peak_gigabytes() + sum(of_workers)))


def _ratio(root: Path, queue: Any) -> None:
    torch.set_num_threads(2)
    model = make_model(root, 25, 4)
    read_and_infer(root, model)  # to warm up
    queue.put(statistics.median(evaluate(root, model) / read_and_infer(root, model) for _ in range(ROUNDS)))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20.0, help="size of the test split")
    parser.add_argument("--windows", type=int, default=64, help="samples that the paper's network is timed on")
    parser.add_argument("--workers", type=int, default=1, help="processes that evaluate the test split")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mcrnn-") as folder:
        root = Path(folder)
        samples = max(1, int(options.gigabytes * 1e9 / SAMPLE_BYTES))
        make_store(root, samples)
        seconds, gigabytes = in_a_process(_of_all, root, options.workers)
        print(
            f"a test split of {samples * SAMPLE_BYTES / 1e9:.1f} GB: {seconds:.0f} s, at most {gigabytes:.2f} GB of "
            "memory (promised to one process: 4)",
            flush=True,
        )
        make_store(root, options.windows)
        print(
            f"evaluation of {options.windows} samples by the paper's ConvLSTM: {in_a_process(_ratio, root):.2f} of the "
            "time of reading and bare inference (promised: 1.15)"
        )


if __name__ == "__main__":
    main()
