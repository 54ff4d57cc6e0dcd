"""What tables would cost, told before they are made."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from guided_diffusion.gaussian_diffusion import Model
from util.errors import UnsupportedError, described
from util.runs.forecast import Forecast, StandIn, discarded, forecast, timed, written
from util.runs.progress import duration
from util.tables.cells import Runner
from util.tables.measure import photographs
from util.tables.spec import Cell, TableSpec, build_cells

_NOTHING = Forecast(0, 0, 0, 0, 0)


@dataclass
class RowForecast:
    """Cost of what is missing of a row; `problems`: why a task has no values, by task."""

    name: str
    left: int = 0  # cells
    cost: Forecast = _NOTHING
    problems: dict[str, str] = field(default_factory=dict)

    def lines(self, processes: int) -> list[str]:
        lines = []
        if self.left:
            costs = _costs(self.cost, processes)
            lines.append(f"  {self.name}: {self.left} cell(s) left, {costs}")
        for task, why in self.problems.items():
            lines.append(f"  {self.name}, {task}: no values: {why}")
        return lines


@dataclass
class TableForecast:
    """Cost of what is missing of a table. A cell is a row on a task, with all its seeds."""

    name: str
    cells: int
    rows: list[RowForecast]
    failed: bool = False  # whether a cell has no values that should have some

    def text(self, processes: int = 1) -> str:
        """For people; the time is that of so many processes."""
        left = sum(row.left for row in self.rows)
        without = sum(len(row.problems) for row in self.rows)
        parts = [f"{self.name}: {self.cells} cells", f"{self.cells - left - without} finished"]
        parts += [f"{left} left"] + [f"{without} without values"] * bool(without)
        whole = sum((row.cost for row in self.rows), _NOTHING)
        done = f" ({whole.finished} more are finished)" if whole.finished else ""
        last = f"in all {_costs(whole, processes)} of files{done}; time on this machine, no scoring"
        lines = [line for row in self.rows for line in row.lines(processes)]
        return "\n".join([", ".join(parts), *lines, f"  {last if left else 'nothing to restore'}"])


def _costs(cost: Forecast, processes: int) -> str:
    return (
        f"{cost.images} image(s): {cost.evaluations:,.0f} network evaluations and "
        f"{cost.gradients:,.0f} passes back, about "
        f"{duration(cost.seconds / processes)}, {cost.bytes / 2**20:,.0f} MiB"
    )


class Forecaster:
    """Foretells tables one after the other; what several of them share counts once. Nothing is
    written, and the network is run only to be timed."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._counted: dict[tuple[str, int], set[str]] = defaultdict(set)  # by cell and seed
        self._stand_in: StandIn | None = None

    def table(self, spec: TableSpec, name: str) -> TableForecast:
        """UserError where the table cannot be made at all."""
        cells = build_cells(spec)
        names, _ = photographs(cells, self.runner, spec.limit)
        found = TableForecast(name, sum(map(len, cells)), [])
        for row in cells:
            found.rows.append(RowForecast(row[0].row.name))
            for cell in row:
                try:
                    self._add(found.rows[-1], cell, spec, names)
                except Exception as error:  # any failure would be the cell's
                    found.rows[-1].problems[cell.task.name] = described(error)
                    found.failed |= not isinstance(error, UnsupportedError)
        return found

    def _add(self, row: RowForecast, cell: Cell, spec: TableSpec, names: Sequence[str]) -> None:
        todo = {}
        for seed in spec.seeds:
            _, plan = self.runner.begun(cell, seed, names, dry=True)
            todo[seed] = [n for n in plan.names if n not in self._counted[cell.key, seed]]
        missing = [name for of_seed in todo.values() for name in of_seed]
        finished = len(names) * len(spec.seeds) - len(missing)
        if missing:
            cost = self._baseline if cell.row.baseline else self._method
            row.cost += cost(cell, spec, missing)
            row.left += 1
        for seed, of_seed in todo.items():
            self._counted[cell.key, seed].update(of_seed)
        row.cost += Forecast(0, finished, 0, 0, 0)

    def _method(self, cell: Cell, spec: TableSpec, names: Sequence[str]) -> Forecast:
        with discarded() as results:
            restoration = self.runner.restoration(cell, spec.seeds[0], spec.batch_size, results)
            stand_in = self._stand_in_for(restoration.prior.model)
            return forecast(restoration, names, stand_in=stand_in)

    def _stand_in_for(self, network: Model) -> StandIn:
        if self._stand_in is None or self._stand_in.network is not network:
            self._stand_in = StandIn(network)
        return self._stand_in

    def _baseline(self, cell: Cell, spec: TableSpec, names: Sequence[str]) -> Forecast:
        restore = self.runner.baseline(cell, spec.seeds[0])
        (case, image, _), seconds = timed(lambda: restore(names[0]))
        with discarded() as results:
            results.save_restored(case.output, case.label, image)
            size = written(results)
        count = len(names)
        return Forecast(count, 0, 0, seconds * count, size * count)
