"""Counts of right and wrong answers, and Markdown tables of the counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

EXACT = 1e-6
Answer = float | None
HEAD = ["answered", "exact", "within 1 %", "wrong", "refused", "worst"]


@dataclass(slots=True)
class Tally:
    """Answers of one kind against what is true."""

    exact: int = 0
    close: int = 0
    wrong: int = 0
    refused: int = 0
    errors: list[float] = field(default_factory=list)

    def add(self, answer: Answer, truth: float, *, exact: float = EXACT, close: float = 0.01) -> None:
        """Count one; an answer within `exact` is exact, within `close` close."""
        if answer is None:
            self.refused += 1
            return
        error = abs(answer / truth - 1) if truth else float(bool(answer))
        self.errors.append(error)
        if error <= exact:
            self.exact += 1
        elif error <= close:
            self.close += 1
        else:
            self.wrong += 1

    @property
    def answered(self) -> int:
        """How many were answered."""
        return self.exact + self.close + self.wrong

    def cells(self) -> list[str]:
        """Cells of a table row."""
        worst = f"{100 * max(self.errors):.3g} %" if self.errors else "–"
        numbers = (self.answered, self.exact, self.close, self.wrong, self.refused)
        return [*map(str, numbers), worst]

    def short(self) -> str:
        """One cell for the row: exact / within 1 % / wrong / refused; a dash where nothing was answered."""
        if not self.answered:
            return "–"
        return f"{self.exact} / {self.close} / {self.wrong} / {self.refused}"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table, all columns but the first to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
