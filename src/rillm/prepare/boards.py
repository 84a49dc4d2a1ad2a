"""RISC-V boards, and which type of a model fits into one's memory.

A token reads all weights once, so a board decodes no faster than its bandwidth / their bytes: on
the slow ones the suggestion stops at Q4_K_M although more would fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rillm.memory_plan import MemoryPlan
from rillm.prepare.errors import PrepareError

# Best first. Q8_0 and 16-bit files are not suggested: their gain over Q6_K is within the error of
# a perplexity measurement, their cost in speed is a quarter and more.
CANDIDATES = (
    "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
)  # fmt: skip
_GIB = 1 << 30


@dataclass(frozen=True)
class Board:
    """A system on chip, and the boards that carry it."""

    name: str
    title: str
    memory: tuple[int, ...]  # GB that boards with it have; empty: it varies
    bandwidth: float  # bytes per second that kernels reach, published; 0: unknown
    best: str  # the largest type worth suggesting


_BOARDS = (
    Board("k1", "SpacemiT K1 (BPI-F3, Jupiter, OrangePi RV2)", (4, 8, 16), 7e9, "Q4_K_M"),
    Board("k3", "SpacemiT K3 (Jupiter 2)", (16, 32), 26.8e9, "Q6_K"),
    Board("sg2042", "SG2042 (Milk-V Pioneer)", (128,), 0, "Q6_K"),
    Board("sg2044", "SG2044", (), 0, "Q6_K"),
    Board("th1520", "TH1520 (LicheePi 4A)", (16,), 0, "Q4_K_M"),
    Board("p550", "P550 (no vector unit)", (8, 16, 32), 0, "Q4_K_M"),
    Board("k230", "Kendryte K230", (), 0, "Q4_K_M"),
    Board("x280", "SiFive X280", (), 0, "Q4_K_M"),
)
_ALIASES = {
    "bpi-f3": "k1", "bananapi-f3": "k1", "jupiter": "k1", "orangepi-rv2": "k1", "jupiter2": "k3",
    "pioneer": "sg2042", "milkv-pioneer": "sg2042", "licheepi4a": "th1520", "lpi4a": "th1520",
}  # fmt: skip
BOARDS = {board.name: board for board in _BOARDS}


@dataclass(frozen=True)
class Target:
    """A board with a stated amount of memory."""

    board: Board
    memory: int  # GB

    @property
    def name(self) -> str:
        """As --for takes it: k1:8."""
        return f"{self.board.name}:{self.memory}"

    @property
    def usable_bytes(self) -> int:
        """What a model may take: the firmware keeps a share, Linux and its services half a GiB."""
        return int(0.93 * self.memory * _GIB) - _GIB // 2

    def __str__(self) -> str:
        return f"{self.board.title} with {self.memory} GB"


def find_target(text: str) -> Target:
    """The board that "NAME" or "NAME:GB" means, e.g. "k1:8"; without GB the board's largest memory.

    Raises PrepareError for an unknown name, or a board whose memory must be stated.
    """
    match = re.fullmatch(r"\s*([\w-]+?)\s*(?::\s*(\d{1,4})\s*(?:gi?b?)?)?\s*", text.lower())
    name = match[1] if match else text
    board = BOARDS.get(_ALIASES.get(name, name))
    if match is None or board is None:
        known = ", ".join(BOARDS)
        raise PrepareError(f"unknown board {text!r}; known: {known} (with memory: k1:8)")
    if match[2]:
        if int(match[2]) < 1:
            raise PrepareError(f"--for {text}: a board has at least 1 GB")
        return Target(board, int(match[2]))
    if not board.memory:
        raise PrepareError(f"--for {name}: such boards differ in memory; say it: {name}:16")
    return Target(board, board.memory[-1])


@dataclass(frozen=True)
class Suggestion:
    """A type for a board, and what it takes there."""

    type_name: str
    plan: MemoryPlan
    target: Target

    @property
    def decode_limit(self) -> float:
        """Tokens per second that the board's bandwidth allows, or 0 where it is not known."""
        return self.target.board.bandwidth / self.plan.weights

    def __str__(self) -> str:
        text = (
            f"{self.type_name} for {self.target}: {self.plan.total / _GIB:.2f} GiB of "
            f"{self.target.usable_bytes / _GIB:.2f} with a context of {self.plan.context} tokens"
        )
        if self.decode_limit:
            text += f", at most {self.decode_limit:.1f} tokens/s"
        return text


def fitting_boards(plan: MemoryPlan) -> str:
    """One line: what a model takes, the boards that have it and those that do not."""
    targets = [Target(board, memory) for board in _BOARDS for memory in board.memory]
    fits = [t.name for t in targets if plan.total <= t.usable_bytes]
    lacks = [t.name for t in targets if plan.total > t.usable_bytes]
    return (
        f"runs in {plan.total / _GIB:.2f} GiB with a context of {plan.context} tokens; "
        f"fits {', '.join(fits) or 'no board that is known here'}"
        + (f"; not {', '.join(lacks)}" if lacks else "")
    )


def suggest(
    target: Target,
    plan_of: Callable[[str], MemoryPlan],
    candidates: Sequence[str] = CANDIDATES,
) -> Suggestion:
    """The best candidate that fits; `plan_of` gives the memory that the model takes in a type.

    Raises PrepareError where not even the smallest fits.
    """
    worth = candidates[candidates.index(target.board.best) :]
    for name in worth:
        plan = plan_of(name)
        if plan.total <= target.usable_bytes:
            return Suggestion(name, plan, target)
    raise PrepareError(
        f"{target}: even {worth[-1]} needs {plan.total / _GIB:.2f} GiB with a context of "
        f"{plan.context} tokens, and {target.usable_bytes / _GIB:.2f} can be used; take a smaller "
        "model, a shorter --ctx-size or a q8_0 cache"
    )
