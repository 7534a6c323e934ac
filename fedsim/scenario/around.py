"""What stands around a scenario's strategy: an algorithm's server half, and what becomes of running statistics, where that can be."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fedsim.core.errors import ScenarioError
from fedsim.core.types import Params
from fedsim.learn.calibration import Calibration
from fedsim.learn.job import Job
from fedsim.learn.norms import is_variance
from fedsim.scenario.schema import Scenario
from fedsim.strategy.extras import Extras, check_goes
from fedsim.strategy.statistics import Statistics, beside
from fedsim.strategy.stock import Built

OWN_STATISTICS = (
    "server.statistics = 'keep_local': the server has no running statistics, so its model is scored and saved with those that it was built"
    " with, and these scores say little. evaluate.federated_fraction scores clients with their own, and server.calibration_examples gives"
    " the server some."
)


def first(whole: Params, names: Sequence[str], job: Job, calibration: Calibration | None) -> Params:
    """Return what travels at first of the *whole* model: the parameters, called *names*, and the buffers unless they are the clients'."""
    if job.own_statistics:
        return {name: whole[name] for name in names}
    return calibration.measured(whole) if calibration else whole


def put(
    scenario: Scenario, strategy: Built, job: Job, first: Params, names: Sequence[str], calibration: Calibration | None
) -> tuple[Extras | None, Statistics | None]:
    """Put around *strategy* what belongs there, and return it; *names* are the parameters of the model, which begins as *first*."""
    beside(strategy.strategy, [name for name in first if name not in names])
    extras = _extras(scenario, strategy, job, first, names)
    return extras, _statistics(scenario, strategy, job, first, calibration)


def notes(job: Job, calibration: Calibration | None) -> list[str]:
    """Return what a reader must know of the server's own statistics."""
    return [OWN_STATISTICS] if job.own_statistics and calibration is None else []


def _extras(scenario: Scenario, strategy: Built, job: Job, first: Params, names: Sequence[str]) -> Extras | None:
    """Put the server's half of the algorithm around *strategy*, where it has one, and return it."""
    server = job.algorithm.server(scenario.clients.count) if job.algorithm else None
    if job.algorithm is None or server is None:
        return None
    check_goes(strategy.strategy, scenario.server.strategy["kind"], (scenario.training.algorithm or {})["kind"])
    extras = Extras(server, names, job.algorithm.down, job.algorithm.up, first)
    extras.around(strategy.strategy)
    return extras


def _statistics(scenario: Scenario, strategy: Built, job: Job, first: Params, calibration: Calibration | None) -> Statistics | None:
    """Put around *strategy* what makes of running statistics something that can be one; None where there are none."""
    measure = None if calibration is None or job.own_statistics else calibration.measured
    if measure is None and not any(map(is_variance, first)):
        return None
    statistics = Statistics(scenario.server.strategy["kind"], first, measure)
    statistics.around(strategy.strategy)
    return statistics


def check_statistics(scenario: Scenario, buffers: Collection[str], measured: Collection[str]) -> None:
    """Refuse settings of running statistics where there are none: *buffers* are the model's, *measured* those that can be measured."""
    server, asked = scenario.server, f"server.statistics = {scenario.server.statistics!r}"
    if server.statistics == "aggregate":
        if server.calibration_examples is not None:
            raise ScenarioError(
                f"server.calibration_examples = {server.calibration_examples}: server.statistics = 'aggregate' measures nothing. Take"
                f" 'recalibrate', or leave it out."
            )
        return
    if not buffers:
        raise ScenarioError(
            f"{asked}: model.kind = {scenario.model.kind!r} has no running statistics. Leave it out, or take norm = 'batch' in an 'mlp' or"
            f" 'cnn'."
        )
    if server.statistics == "recalibrate" and server.calibration_examples is None:
        raise ScenarioError(f"server.calibration_examples: missing. {asked} measures on examples of the server's own, like 200.")
    if server.calibration_examples is None:
        return
    if not measured:
        raise ScenarioError(
            f"server.calibration_examples = {server.calibration_examples}: model.kind = {scenario.model.kind!r} has no layer whose"
            f" statistics could be measured; BatchNorm's, and those of norm = 'ghost' and 'frozen', can. Leave it out."
        )
    if scenario.stream is not None:
        raise ScenarioError(
            f"server.calibration_examples = {server.calibration_examples}: on a [stream] examples come with time, and a server has none"
            f" before they come. Leave it out; statistics = 'aggregate' and 'keep_local' work."
        )


def check_calibration(scenario: Scenario) -> None:
    """Refuse examples of the server's own where each client makes its own."""
    if scenario.server.calibration_examples is not None:
        raise ScenarioError(
            f"server.calibration_examples = {scenario.server.calibration_examples}: data.source.kind = {scenario.data.source['kind']!r}"
            f" makes each client's examples itself, and there is no pool to take any from. Leave it out."
        )
