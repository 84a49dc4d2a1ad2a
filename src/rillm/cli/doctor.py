"""Look at this machine: what it can run, how fast, and what stands in the way.

Exit code 0 if a model can run here, warnings or not; 1 if none can.

\b
Examples:
  rillm doctor
  rillm doctor -m glm-4-9b-chat.Q4_K_M.gguf
  rillm doctor --model-shape glm-4-9b --json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rillm.board.doctor import Report, examine
from rillm.board.machine import format_cpu_list
from rillm.cli.console import stderr, stdout
from rillm.units import format_bytes


def doctor(
    model: Annotated[
        Path | None,
        typer.Option("-m", "--model", exists=True, dir_okay=False, help="GGUF file to advise on."),
    ] = None,
    model_shape: Annotated[
        str | None, typer.Option("--model-shape", help="A known model, e.g. glm-4-9b.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure memory and disk.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Examines and prints."""
    if model is not None and model_shape is not None:
        raise typer.BadParameter("give either -m FILE or --model-shape NAME")
    report = examine(
        model, model_shape, measure=measure, say=lambda line: stderr.print(line, style="dim")
    )
    if as_json:
        print(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
    else:
        for title, text in _lines(report):
            stdout.print(f"{title:12} {text}", markup=False)
        for problem in report.problems:
            label = "cannot run" if problem.fatal else "warning"
            style = "bold red" if problem.fatal else "yellow"
            stdout.print(f"{label:12} {problem.what}", markup=False, style=style)
            stdout.print(f"{'':12} -> {problem.fix}", markup=False)
    raise typer.Exit(0 if report.can_run else 1)


def _lines(report: Report) -> list[tuple[str, str]]:
    machine = report.machine
    rows = [
        ("CPU", f"{report.cpu}, {report.architecture}, Linux {report.kernel}"),
        ("vector", report.vector),
    ]
    if report.vector_evidence:
        rows.append(("", report.vector_evidence))
    if machine.vendor_ids:
        rows.append(("ids", f"mvendorid/marchid/mimpid {machine.vendor_ids}"))
    allowed = f"CPUs {format_cpu_list(tuple(report.allowed))} of {len(machine.online)} are ours"
    quota = "" if report.quota is None else f", quota {report.quota:g} CPUs"
    rows.append(("cores", allowed + quota))
    for cluster in machine.clusters:
        clock = f", {cluster.max_mhz} MHz" if cluster.max_mhz else ""
        governor = f", governor {cluster.governor}" if cluster.governor else ""
        name = f" {cluster.name}" if cluster.name else ""
        rows.append(("cluster", f"CPUs {format_cpu_list(cluster.cpus)}{name}{clock}{governor}"))
    if len(machine.nodes) > 1:
        for node in machine.nodes:
            rows.append(
                (
                    f"node {node.number}",
                    f"CPUs {format_cpu_list(node.cpus)}, {format_bytes(node.memory)}",
                )
            )
    swap = f"swap {format_bytes(machine.swap_used)} of {format_bytes(machine.swap)} used"
    rows.append(
        (
            "memory",
            f"{format_bytes(report.available)} available of {format_bytes(machine.memory)}, "
            f"{swap if machine.swap else 'no swap'}, "
            f"huge pages {machine.huge_pages or 'unknown'}",
        )
    )
    if machine.temperature is not None:
        rows.append(("heat", f"{machine.temperature:.0f} degrees Celsius"))
    for choice in report.variants:
        mark = "kernels" if choice.chosen else "not"
        rows.append((mark, f"{choice.name}: {choice.reason}"))
    if report.blas:
        rows.append(("OpenBLAS", f"{report.blas}; for --blas, with unquantised models only"))
    if report.bandwidth:
        speeds = (
            f"{row.num_threads}: {row.bytes_per_second / 1e9:.1f}" for row in report.bandwidth
        )
        rows.append(("bandwidth", f"GB/s read by threads: {', '.join(speeds)}"))
    speed = "" if report.disk is None else f", {report.disk / 1e6:.0f} MB/s from the model's file"
    rows.append(("disk", f"{format_bytes(report.disk_free)} free{speed}"))
    rows.append(("threads", f"-t {report.num_threads}: {report.num_threads_reason}"))
    if (advice := report.advice) is not None:
        size = advice.model
        rows.append(
            (
                "model",
                f"{size.name} in {size.quantization}, {format_bytes(size.total)}: {advice.reason}",
            )
        )
        if advice.fits:
            rows.append(("context", f"-c {advice.context} for one user"))
        if report.bandwidth:
            rows.append(
                (
                    "decode",
                    f"at most {advice.decode:.1f} tokens/s (estimate: read bandwidth / "
                    f"{format_bytes(size.per_token)} a token)",
                )
            )
    return rows
