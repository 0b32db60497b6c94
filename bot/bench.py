"""`frontdesk bench`: this engine beside the textbook recipe on this machine, and what its memory would allow."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bot.errors import FrontdeskError
from engine.bench import LLAMA, SHAPES, TEXTBOOK, Run, bandwidth, bytes_per_token

WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
PEERS = {TEXTBOOK: "fp32", LLAMA: "q8_0"}
"""And the precision of each."""
LIMIT_S = 900
"""A variant that takes longer is given up."""


def bench(
    shape: str,
    customers: Sequence[int],
    precisions: Sequence[str],
    against: Sequence[str],
    messages: int,
    json_file: Path | None,
) -> None:
    """Measure and print a table. `shape` is a name, or the directory of a model.

    Raises FrontdeskError when a variant cannot run here.
    """
    _refuse_unknown(shape, precisions, against)
    console = Console()
    speed = bandwidth()
    plan = [(variant, count) for count in customers for variant in (*against, *precisions)]
    runs: list[Run] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(plan))
        for variant, count in plan:
            progress.update(task, description=f"{variant}, {count} customers")
            runs.append(_measured(variant, shape, count, 1 if variant == TEXTBOOK else messages))
            progress.advance(task)
    cpu = _cpu()
    limits = {name: speed / bytes_per_token(shape, WEIGHT_BYTES[name]) for name in precisions}
    console.print(_table(shape, cpu, runs, limits))
    console.print(
        f"Memory is read at {speed / 1e9:.1f} GB/s, which limits a lone reply, except where guessing ahead helps."
    )
    if json_file is not None:
        roofline = {"gb_per_s": speed / 1e9, "tokens_per_s": limits}
        result = {"shape": shape, "cpu": cpu, "roofline": roofline, "runs": [_as_json(run) for run in runs]}
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _refuse_unknown(shape: str, precisions: Sequence[str], against: Sequence[str]) -> None:
    if shape not in SHAPES and not (Path(shape) / "config.json").is_file():
        raise FrontdeskError(f"--shape {shape} is unknown: use one of {', '.join(SHAPES)}")
    if LLAMA in against and not all(map(find_spec, ("llama_cpp", "gguf"))):
        raise FrontdeskError(f'--against {LLAMA} needs the extra `peers`: run python -m pip install ".[peers]"')
    if LLAMA in against and shape not in SHAPES:
        raise FrontdeskError(f"--against {LLAMA} measures random weights only: use --shape, one of {', '.join(SHAPES)}")
    for option, named, known in (("--precision", precisions, WEIGHT_BYTES), ("--against", against, PEERS)):
        for each in named:
            if each not in known:
                raise FrontdeskError(f"{option} {each} is unknown: use {', '.join(known)}")


def _measured(variant: str, shape: str, customers: int, messages: int) -> Run:
    command = [sys.executable, "-m", "engine.bench", variant, shape, str(customers), str(messages)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)  # noqa: S603 - our own
    except subprocess.TimeoutExpired:
        raise FrontdeskError(f"{variant} with {customers} customers took more than {LIMIT_S} s: try fewer") from None
    if done.returncode < 0:
        ended = signal.Signals(-done.returncode).name
        hint = "it was compiled for another CPU, so build it for this one" if ended == "SIGILL" else "is memory short?"
        raise FrontdeskError(f"{variant} cannot be measured here: its process ended with {ended}: {hint}")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no further word"])[-1]
        raise FrontdeskError(f"{variant} cannot be measured here: {reason}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def _table(shape: str, cpu: str, runs: Sequence[Run], limits: dict[str, float]) -> Table:
    table = Table(
        *("variant", "customers", "mood ms", "first token ms", "tokens/s", "of the limit", "s per message"),
        *("messages/min", "RSS GB"),
        title=f"{shape}, random weights, {cpu}",
    )
    for run in runs:
        limit = limits.get(run.variant)
        table.add_row(
            run.variant,
            str(run.customers),
            f"{run.sentiment_ms:.0f}",
            f"{run.first_token_ms:.0f}",
            f"{run.tokens_per_s:.1f}",
            f"{run.tokens_per_s / limit:.0%}" if limit and run.customers == 1 else "",
            f"{run.seconds_per_message:.2f}",
            f"{run.messages_per_min:.1f}",
            f"{run.rss_gb:.2f}",
        )
    return table


def _as_json(run: Run) -> dict[str, Any]:
    return {**asdict(run), "precision": PEERS.get(run.variant, run.variant)}


def _cpu() -> str:
    """The processor's name, as Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.machine()}, {len(named) or '?'} cores"
