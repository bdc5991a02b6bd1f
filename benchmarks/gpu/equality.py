"""Whether steps that are recorded as a CUDA graph give the bits of steps that run operation by operation."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.steps import Scale, configuration, random_batch, trainer, with_graph
from benchmarks.paper_models import SIZES
from mcrnn.config.sections import Configuration
from mcrnn.training.graphed_step import GraphedStep
from mcrnn.training.numerics import numeric_settings


def final_state(config: Configuration, scale: Scale, device: torch.device) -> dict[str, torch.Tensor]:
    """Take steps on windows of their own, the last ones with fewer teacher-forced steps; return the weights."""
    with numeric_settings(config.train, device):
        training = trainer(config, scale, device)
        for number in range(scale.compared_steps):
            training.epoch = 1 if number < scale.compared_steps // 2 else config.train.epochs
            training._step(random_batch(training, number))
            training.batch += 1
    if config.train.cuda_graph:
        assert isinstance(training.step, GraphedStep)
        assert training.step.can_record, "the graph could not be recorded"
    averaged = {} if training.average is None else training.average.state_dict()
    return {**training.model.state_dict(), **averaged, "sums": training.sums.tensor}


def equality(scale: Scale, device: torch.device) -> None:
    """Print whether two runs, and a run with graphs, give the same bits."""
    print(f"the same bits after {scale.compared_steps} steps with noise, dropout, clipping and averaged weights?")
    for architecture in SIZES:
        options: dict[str, Any] = {"deterministic": True, "ema": 0.99, "teacher_forcing_end": 1, "epochs": 2}
        config = configuration(scale, architecture, 8, "float32", **options)
        config = config.model_copy(
            update={
                "data": config.data.model_copy(update={"noise": 0.01}),
                "model": config.model.model_copy(update={"dropout": 0.1}),
            }
        )
        eager = final_state(config, scale, device)
        answers = {"operation by operation again": final_state(config, scale, device)}
        if device.type == "cuda":
            answers["CUDA graph"] = final_state(with_graph(config), scale, device)
        cells = []
        for name, state in answers.items():
            same = all(torch.equal(value, state[key]) for key, value in eager.items())
            largest = max(float((value - state[key]).abs().max()) for key, value in eager.items())
            cells.append(f"{name}: {'yes' if same else f'NO, off by up to {largest:.2g}'}")
        print(f"  {architecture:<15} {', '.join(cells)}", flush=True)
