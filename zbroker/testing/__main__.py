"""`python -m zbroker.testing`: runs simulated clusters from seeds, for minutes or for hours, or one of them again.

Owns the progress, the report and the replay. What a run is, is `simulation`'s.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

import click

from zbroker.testing.faults import PROFILES
from zbroker.testing.simulation import Result, Simulation, simulate

PROGRESS_SECONDS = 10.0


@click.command()
@click.option("--seeds", default=100, show_default=True, help="How many seeds to run.")
@click.option("--start", default=0, show_default=True, help="The first seed.")
@click.option("--minutes", type=float, help="Stop after so many minutes, whatever --seeds says.")
@click.option(
    "--profile", default="mixed", show_default=True, type=click.Choice([*PROFILES, "all"]),
    help="What goes wrong; all takes one after the other.",
)  # fmt: skip
@click.option("--jobs", default=1, show_default=True, help="Processes to run seeds in.")
@click.option("--replay", type=int, metavar="SEED", help="Run one seed again, and show all of it.")
def main(
    seeds: int, start: int, minutes: float | None, profile: str, jobs: int, replay: int | None
) -> None:
    """Runs simulated clusters in which everything goes wrong, and says what was wrong with the brokers."""
    logging.disable()  # what clients warn of is the point of all this
    if replay is not None:
        sys.exit(_replay(replay, "mixed" if profile == "all" else profile))
    names = list(PROFILES) if profile == "all" else [profile]
    until = None if minutes is None else time.monotonic() + 60 * minutes
    count = seeds if minutes is None else sys.maxsize
    work = ((seed, names[seed % len(names)]) for seed in range(start, start + count))
    sys.exit(_run(work, until, jobs))


def _replay(seed: int, profile: str) -> int:
    result = Simulation(seed, profile, keep=None).run()
    for line in result.transcript:
        click.echo(line)
    if result.place:
        click.echo(result.place)
    _show(result)
    click.echo(f"digest {result.digest}")
    return bool(result.problems)


def _run(work: Iterator[tuple[int, str]], until: float | None, jobs: int) -> int:
    began = said = time.monotonic()
    total, failed, simulated = 0, 0, 0.0
    faults: Counter[str] = Counter()
    for result in _results(work, until, jobs):
        total += 1
        simulated += result.seconds
        faults.update(result.faults)
        if result.problems:
            failed += 1
            _show(result)
        now = time.monotonic()
        if now - said >= PROGRESS_SECONDS:
            said = now
            click.echo(_progress(total, failed, simulated, now - began))
    click.echo(_progress(total, failed, simulated, time.monotonic() - began))
    click.echo("faults: " + ", ".join(f"{name} {count}" for name, count in faults.most_common()))
    return bool(failed)


def _results(work: Iterator[tuple[int, str]], until: float | None, jobs: int) -> Iterator[Result]:
    def more() -> bool:
        return until is None or time.monotonic() < until

    if jobs == 1:
        for seed, profile in work:
            yield simulate(seed, profile)
            if not more():
                return
        return
    with ProcessPoolExecutor(jobs, initializer=logging.disable) as pool:
        waiting: set[Future[Result]] = set()
        for seed, profile in work:
            waiting.add(pool.submit(simulate, seed, profile))
            if len(waiting) >= 2 * jobs:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for each in done:
                    yield each.result()
            if not more():
                break
        for each in waiting:
            yield each.result()


def _progress(total: int, failed: int, simulated: float, seconds: float) -> str:
    return (
        f"{total} seeds in {seconds:.0f} s, {simulated / 3600:.2f} simulated hours, {failed} failed"
    )


def _show(result: Result) -> None:
    if not result.problems:
        click.echo(f"seed {result.seed} ({result.profile}): all is well")
        return
    click.echo(f"seed {result.seed} ({result.profile}):")
    for problem in result.problems:
        click.echo(f"    {problem}")
    click.echo(
        f"    again: python -m zbroker.testing --profile {result.profile} --replay {result.seed}"
    )


if __name__ == "__main__":
    main()
