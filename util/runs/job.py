"""One run over the images of a data set: begun, restored, reported. A table's cell is one, too."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

from data.dataloader import output_name
from guided_diffusion.precision import AcceleratedNetwork, Execution
from util.atomic import sweep
from util.errors import UserError
from util.hashing import settings_hash
from util.logger import get_logger
from util.runs.distributed import was_restarted
from util.runs.forecast import forecast
from util.runs.interrupt import Interrupted
from util.runs.occupied import Occupied
from util.runs.plan import Plan, least_bytes, make_plan, result_settings
from util.runs.report import Outcome, final_report
from util.runs.restoration import Restoration

_SHOWN_NAMES = 5


class Job:
    """A run of this process, which `restoration` works off; what can be wrong with its configs was
    found when that was made, before anything is written."""

    def __init__(self, restoration: Restoration) -> None:
        self.restoration = restoration
        self.settings, self.dataset = restoration.settings, restoration.dataset
        self.results, self.world = restoration.results, restoration.world
        self.stop = restoration.stop
        self.started = time.perf_counter()
        self._again = "the same command"  # that goes on after an interruption
        self._occupied: Occupied | None = None

    def begin(self, names: Sequence[str], overwrite: bool = False) -> Plan:
        """What of `names` is still to be done, the same on every rank; rank 0 prepares the results
        folder. UserError where that holds results of other settings, or has no space."""
        if overwrite:
            self._again = "the same command without --overwrite"
        plan = self.world.agree(
            lambda: self._prepare(names, overwrite and not was_restarted()), self.settings.device
        )
        if self.world.is_first:
            log = get_logger()
            log.info("%d image(s); %s", len(names), self.dataset.describe_fit())
            if plan.finished:
                log.info("%d of them finished before; %d to go", plan.finished, len(plan.names))
        return plan

    def foretell(self, names: Sequence[str], overwrite: bool = False) -> str:
        """What restoring `names` would cost, by all processes, and why the results folder would not
        take them, if it would not; nothing is written."""
        what = (self.results, self._pixels(), self.restoration.sources, names)
        refusal = ""
        try:
            plan = make_plan(*what, overwrite, dry=True)
        except UserError as error:
            refusal = f"\nBut the run would be refused: {error}"
            plan = make_plan(*what, overwrite=True, dry=True)
        cost = forecast(self.restoration, plan.names, plan.finished)
        return f"{replace(cost, seconds=cost.seconds / self.world.size)}{refusal}"

    @property
    def _execution(self) -> Execution:
        return cast(AcceleratedNetwork, self.restoration.prior.model).execution

    def _pixels(self) -> dict[str, Any]:
        """The settings that decide the pixels."""
        restoration = self.restoration
        precision = self._execution.precision or "fp32"  # never None once resolved
        return result_settings(
            restoration.config, self.settings, self.dataset, restoration.operator, precision
        )

    def _prepare(self, names: Sequence[str], overwrite: bool) -> Plan:
        restoration, results, execution = self.restoration, self.results, self._execution
        pixels = self._pixels()
        self._occupied = Occupied(results.root, settings_hash(pixels), alone=overwrite)
        try:
            plan = make_plan(results, pixels, restoration.sources, names, overwrite)
        except UserError:
            self._occupied.close()
            raise
        self._occupied.settle()
        sweep(results.root)
        operator, count, steps = restoration.operator, len(plan.names), restoration.steps
        results.check_space(least_bytes(self.settings, self.dataset, operator, count, steps))
        self.describe({"precision": execution.precision, "compile": execution.compile})
        return plan

    def describe(self, more: Mapping[str, Any]) -> None:
        """Keep the configs, the settings and `more` in the results folder, and the run's arrays."""
        settings = self.settings
        command = {
            "seed": settings.seed,
            "device": str(settings.device),
            "batch_size": settings.batch_size or "auto",
            **({"samples": settings.samples} if settings.samples > 1 else {}),
            **more,
            "record": asdict(settings.record),
        }
        self.results.save_run(self.restoration.config.raw, command)
        for stem, array in self.restoration.operator.saved().items():
            self.results.save_array(stem, array)

    def restore(self, plan: Plan) -> None:
        """This rank's share of what is planned; after a signal what is finished stays."""
        if not plan.names:
            return
        try:
            share = self.world.share_of(plan.names)
            self.restoration.run(share, plan.config, len(plan.names))
            if self.world.is_first:
                self.world.wait_for_others(self.stop)
        except Interrupted:
            get_logger().warning(
                "stopped by signal %d; %s goes on from here", self.stop.signal, self._again
            )

    def report(self, plan: Plan, names: Sequence[str]) -> int:
        """Write the reports and say what came out; the exit status of the program."""
        if not self.world.is_first:
            return self.stop.exit_status or 0
        try:
            return self._report(plan, names)
        finally:
            if self._occupied is not None:
                self._occupied.close()

    def _report(self, plan: Plan, names: Sequence[str]) -> int:
        log, root = get_logger(), self.results.root
        outcome = final_report(self.results, plan.config, names)
        log.info("%s", outcome.table(time.perf_counter() - self.started))
        self._name_those_gone(outcome)
        log.info("results in %s; look at %s", root, root / "report.html")
        if outcome.failed:
            log.error("%d image(s) failed:", len(outcome.failed))
            for name, reason in outcome.failed.items():
                log.error("  %s: %s", name, reason)
        if self.stop.exit_status is not None:
            return self.stop.exit_status
        if outcome.missing:
            log.error("%d image(s) are not done; the same command goes on", len(outcome.missing))
        return 1 if outcome.failed or outcome.missing else 0

    def _name_those_gone(self, outcome: Outcome) -> None:
        there = {output_name(name) for name in self.dataset.names}
        gone = sorted({row.output for row in outcome.rows} - there)
        if gone:
            more = ", ..." * (len(gone) > _SHOWN_NAMES)
            get_logger().warning(
                "%d finished image(s) are no longer among the images, but count in the figures "
                "above: %s; choose another --save_dir to leave them out",
                *(len(gone), ", ".join(gone[:_SHOWN_NAMES]) + more),
            )
