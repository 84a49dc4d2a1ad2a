"""Make a wheel for another machine, a RISC-V board for example, with all its kernel variants.

Runs in a source checkout. The zig toolchain comes from PyPI and needs no system package; gcc takes
<target>-linux-gnu-g++ and clang takes clang++ from the system. A variant that the compiler cannot
build is left out with a message (XTheadVector needs GCC 15 or newer). The same source gives the
same bytes; SOURCE_DATE_EPOCH sets the time of the files.

\b
Examples:
  rillm build --target riscv64
  rillm build --target riscv64 --toolchain gcc --out wheels
  rillm build --target x86_64 --variants scalar,x86_avx2
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rillm.cli.console import stderr, stdout
from rillm.units import format_bytes


def build(
    target: Annotated[str, typer.Option("--target", help="riscv64, aarch64 or x86_64.")],
    variants: Annotated[
        str, typer.Option("--variants", help="Names, with commas [default: all].")
    ] = "",
    toolchain: Annotated[str, typer.Option("--toolchain", help="zig, gcc or clang.")] = "zig",
    out: Annotated[
        Path | None, typer.Option("--out", file_okay=False, help="Folder [default: dist].")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--source", file_okay=False, help="Source checkout [default: this one]."),
    ] = None,
    jobs: Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Compilers at once.")] = (
        None
    ),
) -> None:
    """Builds and says what the wheel needs."""
    from rillm.board.build import build_wheel

    result = build_wheel(
        target,
        variants=[name.strip() for name in variants.split(",") if name.strip()],
        toolchain=toolchain,
        out=out,
        source=source,
        jobs=jobs,
        say=lambda line: stderr.print(line, markup=False),
    )
    stdout.print(
        f"{result.wheel}: {format_bytes(result.wheel.stat().st_size)}, {result.target}, "
        f"variants {', '.join(result.variants)}; needs glibc {result.glibc[0]}.{result.glibc[1]} "
        "and Python 3.11, or newer",
        markup=False,
    )
