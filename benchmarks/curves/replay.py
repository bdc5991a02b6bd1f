"""Compare searches on recorded learning curves: mcrnn, plain Ray Tune, plain Optuna, Syne Tune and random search.

    python -m benchmarks.curves.replay [--tables navier-stokes turbulence] [--workers 2 8 32] [--seeds 50]
    python -m benchmarks.curves.replay --set search.sampler=random --peers mcrnn

Every search is replayed through its own classes on a simulated clock, on the landscape that is fitted to a table.
Printed are the time to come within 5 % of its best validation error, the smallest of 10,000 random configurations
(median, quartiles, and how many seeds did), and the regret, the smallest validation error so far over the best, after
5, 10, 20 and 40 whole trainings' worth of processor time. The figure build/replay.png shows the regret over time.
"""

from __future__ import annotations

import argparse
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import optuna

from benchmarks.curves.blackbox import Blackbox
from benchmarks.curves.peers import PEERS
from benchmarks.curves.simulation import History, simulate
from benchmarks.curves.syne_tune_peers import INSTALL, missing_peers
from mcrnn.config.loading import load_search
from mcrnn.config.paths import Values
from mcrnn.search.parameters import value_at

SPACE = Path(__file__).parent.parent.parent / "search_spaces/ns.yaml"
START_SECONDS = 0.3
"""What the start of a trial, or of a part of one, costs in a live search: about one hundredth of a training here."""
CLOSE = 1.05
REGRETS = (5, 10, 20, 40)
"""Whole trainings after whose processor time the regret is printed."""


@cache
def _blackbox(table: str) -> Blackbox:
    return Blackbox.load(table)


def best_error(table: str, configurations: int = 10_000) -> float:
    """Return the smallest validation error of so many random configurations."""
    search, generator = load_search(str(SPACE), ["data.store=recorded"]), np.random.default_rng(0)

    def draw() -> Values:
        values: Values = {}
        for path in search.space:
            if (entry := search.space.active_entry(path, values)) is not None:
                choice, share = entry.choice, generator.random()
                values[path] = choice[int(share * len(choice))] if choice is not None else value_at(entry, share)
        return values

    return _blackbox(table).best_of([draw() for _ in range(configurations)])


def whole_training(blackbox: Blackbox) -> float:
    """Return the mean seconds of a whole training in the table."""
    return float(np.mean([curve.seconds.sum() for curve in blackbox.curves]))


def replay(
    table: str, peer: str, workers: int, seed: int, settings: tuple[str, ...], trainings: float, best: float
) -> History:
    """Replay one search for the processor time of so many whole trainings, or until it has come to the best error."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    blackbox = _blackbox(table)
    search = load_search(str(SPACE), ["data.store=recorded", *settings])
    return simulate(
        PEERS[peer](search, seed, blackbox.epochs, workers),
        blackbox,
        workers=workers,
        seconds=trainings * whole_training(blackbox) / workers,
        start_seconds=START_SECONDS,
        enough=best,
    )


def print_rows(table: str, workers: int, found: dict[str, list[History]], trainings: float, best: float) -> None:
    """Print a row for each search."""
    blackbox = _blackbox(table)
    one = whole_training(blackbox)
    limit = trainings * one / workers
    times = {peer: np.array([history.time_to(CLOSE * best) for history in each]) for peer, each in found.items()}
    for peer, histories in found.items():
        low, median, high = (np.percentile(np.minimum(times[peer], limit), q) for q in (25, 50, 75))
        ratios = [
            f"{median / np.median(np.minimum(times[other], limit)):5.2f}" if other in times else "    -"
            for other in ("ray-tune", "random")
        ]
        regrets = []
        for count in REGRETS:
            errors = [history.error_at(count * one / workers) / best - 1 for history in histories]
            regrets.append("/".join(f"{100 * value:.0f}" for value in np.nanpercentile(errors, [25, 50, 75])))
        shown = [f"{value:7.0f}" if value < limit else f">{limit:6.0f}" for value in (low, median, high)]
        print(
            f"{workers:7d} {peer:9} {' '.join(shown)} {np.mean(times[peer] < limit):5.0%}   {'   '.join(ratios)}   "
            f"{'  '.join(f'{each:>11}' for each in regrets)} {np.median([h.trials for h in histories]):6.0f} "
            f"{np.median([h.busy for h in histories]):5.0%}",
            flush=True,
        )


def draw(
    file: Path, results: dict[tuple[str, int], dict[str, list[History]]], last: float, best: dict[str, float]
) -> None:
    """Draw the regret over time: a panel for each table and number of workers, medians with quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tables = list(dict.fromkeys(table for table, _ in results))
    counts = list(dict.fromkeys(workers for _, workers in results))
    figure, panels = plt.subplots(
        len(tables), len(counts), figsize=(4.2 * len(counts), 3.4 * len(tables)), squeeze=False, sharey="row"
    )
    for (table, workers), found in results.items():
        panel = panels[tables.index(table)][counts.index(workers)]
        blackbox = _blackbox(table)
        trainings = np.linspace(1, last, 300)
        for number, (peer, histories) in enumerate(found.items()):
            seconds = trainings * whole_training(blackbox) / workers
            errors = np.array([[history.error_at(s) for s in seconds] for history in histories]) / best[table] - 1
            low, median, high = np.nanpercentile(errors, [25, 50, 75], axis=0)
            panel.plot(trainings, median, color=f"C{number}", label=peer)
            panel.fill_between(trainings, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
        panel.axhline(CLOSE - 1, color="0.5", linewidth=0.8, linestyle=":")
        panel.set(yscale="log", ylim=(0.008, 2), title=f"{table}, {workers} workers")
        panel.grid(alpha=0.2)
    for panel in panels[-1]:
        panel.set_xlabel("processor time in whole trainings")
    for row in panels:
        row[0].set_ylabel("regret: error / best error - 1")
    panels[0][-1].legend(frameon=False)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    print(f"figure: {file}")


def main() -> None:
    """Replay the searches and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=["navier-stokes", "turbulence"])
    parser.add_argument("--workers", nargs="+", type=int, default=[2, 8, 32], help="trainings at a time")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--trainings", type=float, default=100, help="processor time of a search, in whole trainings")
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="all that are installed if not given")
    parser.add_argument("--set", action="append", default=[], help="setting of ns.yaml, for mcrnn")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--figure", type=Path, default=Path("build/replay.png"))
    options = parser.parse_args()
    missing = [peer for peer in missing_peers() if peer in (options.peers or PEERS)]
    if missing and options.peers:
        parser.error(f"{' and '.join(missing)} not installed. {INSTALL}")
    if missing:
        print(f"without {' and '.join(missing)}. {INSTALL}")
    peers = options.peers or [peer for peer in PEERS if peer not in missing]
    results: dict[tuple[str, int], dict[str, list[History]]] = {}
    best: dict[str, float] = {}
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        for table in options.tables:
            blackbox, best[table] = _blackbox(table), best_error(table)
            print(
                f"\n{table}: {len(blackbox.rows)} configurations, best validation error {best[table]:.4f}, a whole "
                f"training takes {whole_training(blackbox):.0f} s\nsurrogate: {blackbox.accuracy()}\n"
                "seconds to within 5 % of the best (quartiles, seeds that came there), median over that of ray-tune "
                "and random; regret in % after 5, 10, 20 and 40 trainings (quartiles); trials started; workers busy\n"
                "workers search     quarter  median quarter seeds  ray-tune random   "
                f"{'  '.join(f'{count:>11}' for count in REGRETS)} trials  busy",
                flush=True,
            )
            for workers in options.workers:
                futures = {
                    peer: [
                        pool.submit(
                            replay, table, peer, workers, seed, tuple(options.set), options.trainings, best[table]
                        )
                        for seed in range(options.seeds)
                    ]
                    for peer in peers
                }
                found = {peer: [future.result() for future in each] for peer, each in futures.items()}
                results[table, workers] = found
                print_rows(table, workers, found, options.trainings, best[table])
    draw(options.figure, results, options.trainings, best)


if __name__ == "__main__":
    main()
