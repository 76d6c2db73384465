"""What a long command tells about its progress: a bar with time left, or nothing."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Observer:
    """Is told what is being done. This one ignores it."""

    def stage(self, name: str, steps: int) -> None:
        """A new stage begins, which will take so many steps."""

    def advance(self, loss: float | None = None, *, steps: int = 1) -> None:
        """So many steps are done."""


SILENT = Observer()


class ProgressBar(Observer):
    """Draws the stages of one run as a bar on a terminal; used as a context manager."""

    def __init__(self, console: Console, run: str) -> None:
        self.run = run
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.current: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.progress.stop()

    def stage(self, name: str, steps: int) -> None:
        self.current = self.progress.add_task(f"{self.run}: {name}", total=steps, loss="")

    def advance(self, loss: float | None = None, *, steps: int = 1) -> None:
        if self.current is None:
            return
        shown = {} if loss is None else {"loss": f"loss {loss:.3f}"}
        self.progress.update(self.current, advance=steps, **shown)  # type: ignore[arg-type]
