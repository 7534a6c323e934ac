"""Which device computes: picked by sizes, refused in a line where it cannot be, and set to the products that were asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedsim.core.errors import ScenarioError
from fedsim.learn.arithmetic import PLAIN, Arithmetic
from fedsim.learn.engine import devices
from fedsim.learn.engine.devices import Picked, Work, faster
from fedsim.scenario import judge, placing
from fedsim.scenario.build import build
from fedsim.scenario.load import load
from fedsim.scenario.schema import Engine

MEASURED = {
    "pfl-research's CIFAR shape": (Work(545_098, 10, 50, convolves=True), "cuda"),
    "the same, one client alone": (Work(545_098, 10, 1, convolves=True), "cuda"),
    "100 2NN clients": (Work(199_210, 10, 100), "cuda"),
    "1000 logistic regressions": (Work(7850, 10, 1000), "cuda"),
    "drift-staggered": (Work(97, 10, 10, alone=True), "cpu"),
    "leaf-synthetic": (Work(610, 10, 10), "cpu"),
    "quickstart's like": (Work(650, 10, 10), "cpu"),
}
"""What was measured on a GPU, and which device was the faster there (the last one by far)."""


@pytest.mark.parametrize("name", MEASURED)
def test_the_rule_gives_what_was_measured(name: str) -> None:
    """The device that was the faster is picked, and the reason has the sizes in it."""
    work, device = MEASURED[name]

    assert device == faster(work).device and f"{work.parameters:,} parameters" in faster(work).why


def test_more_of_anything_never_leaves_the_gpu() -> None:
    """Teeth of the rule: it only grows with parameters, batch, clients and convolutions, and shrinks where clients train alone."""
    base = Work(10_000, 10, 100)
    assert "cuda" == faster(base).device and "cpu" == faster(Work(10_000, 10, 100, alone=True)).device
    for more in (Work(20_000, 10, 100), Work(10_000, 20, 100), Work(10_000, 10, 200), Work(10_000, 10, 100, convolves=True)):
        assert more.flop > base.flop and "cuda" == faster(more).device


@pytest.mark.parametrize(("changes", "device"), [
    ({}, "cpu"),
    ({"clients.count": 90, "model": {"kind": "mlp", "hidden": [500]}}, "cuda"),
    ({"clients.count": 90, "model": {"kind": "mlp", "hidden": [500]}, "server.strategy.clients_per_round": 2}, "cpu"),
    ({"model": {"kind": "cnn"}}, "cuda"),
])  # fmt: skip
def test_auto_reads_the_scenario(tiny: Callable[..., Any], changes: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes come from the model, the batch, and how many clients a round asks; what is not there, or does not work, is not taken."""
    loaded = load(tiny({**changes, "engine.device": "auto"}))
    parts = build(load(tiny(changes)))
    given = loaded.scenario, parts.model, parts.job, parts.federation, parts.strategy.asked

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "broken", lambda _: "")
    assert device == placing.placed(*given).device
    monkeypatch.setattr(devices, "broken", lambda _: "CUDA error: no kernel image is available: older.")
    assert "cpu" == placing.placed(*given).device
    assert device == "cpu" or "no kernel image" in placing.placed(*given).why
    named = (loaded.scenario.model_copy(update={"engine": Engine(device="cuda")}), *given[1:])
    with pytest.raises(ScenarioError, match="^engine.device = 'cuda': CUDA error: no kernel image"):
        placing.placed(*named)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "cpu" == placing.placed(*given).device and (device == "cpu" or "finds no CUDA device" in placing.placed(*given).why)


def test_a_run_says_what_was_picked(go: Callable[..., Any]) -> None:
    """With 'auto' the manifest says which device and why; where it is named, nothing."""
    run, named = go({"engine.device": "auto"}), go()

    said = [note for note in run.manifest["notes"] if "engine.device = 'auto' picked 'cpu': " in note]
    assert 1 == len(said) and "MFLOP" in said[0] and "cpu" == run.manifest["executor"]["device"]
    assert run.digest == named.digest and not any("picked" in note for note in named.manifest["notes"])


def test_a_device_that_does_not_compute_is_told() -> None:
    """Torch without a GPU says so when it is asked to compute on one, in a line; a CPU computes."""
    assert "" == devices.broken("cpu")
    if not torch.cuda.is_available():
        assert devices.broken("cuda") and "\n" not in devices.broken("cuda")


@pytest.mark.parametrize(("engine", "gpu", "line"), [
    ({"device": "cuda"}, False, "torch finds no CUDA device"),
    ({"device": "cuda", "executor": {"kind": "mine:Far"}}, True, "'mine:Far': trains on the CPU only"),
    ({"workers": 2, "executor": {"kind": "local"}}, True, "engine.workers = 2: engine.executor.kind = 'local'"),
    ({"device": "cuda", "workers": 4}, True, ""),
])  # fmt: skip
def test_what_cannot_be_is_a_line(engine: dict[str, Any], gpu: bool, line: str) -> None:
    """Workers go with GPUs; an executor of the reader's own does not, and neither does a GPU that is not there."""
    if not line:
        judge.check_device(Engine(**engine), gpu=gpu)
        return
    with pytest.raises(ScenarioError, match=line):
        judge.check_device(Engine(**engine), gpu=gpu)


def test_tf32_is_a_gpus(tiny: Callable[..., Any]) -> None:
    """On a CPU it is refused, and 'auto' says why it picked one."""
    with pytest.raises(ScenarioError, match=r"engine.precision = 'tf32': a GPU has such products.*engine.device = 'cpu'.*Leave it out"):
        build(load(tiny({"engine.precision": "tf32"})))
    with pytest.raises(ScenarioError, match=r"'auto' picked the CPU: .*MFLOP"):
        build(load(tiny({"engine.precision": "tf32", "engine.device": "auto"})))
    judge.check_precision(Engine(precision="tf32"), Picked("cuda"), lowers=True)


@pytest.mark.parametrize("precision", [None, "tf32", "bfloat16"])
def test_products_are_what_was_asked_for_while_training_alone(precision: Any) -> None:
    """A GPU rounds factors where tf32 says so and nowhere else, takes no kernel by its timing, and has its settings back afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def settings() -> tuple[Any, ...]:
        return matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark

    before = settings()
    with PLAIN.at_work("cuda"):
        assert (False, False, True, False) == settings()
        with pytest.raises(KeyError), Arithmetic(precision).at_work("cuda"):
            assert (precision == "tf32",) * 2 + (True, False) == settings()
            raise KeyError
        assert (False, False, True, False) == settings()
    with Arithmetic("tf32").at_work("cpu"):
        assert before == settings()
    assert before == settings()


def test_workers_have_gpus_of_their_own() -> None:
    """They are dealt out in turn; on a CPU there is nothing to deal."""
    assert ["cuda:0", "cuda:1", "cuda:0"] == [devices.mine("cuda", worker, 2) for worker in (1, 2, 3)]
    assert "cpu" == devices.mine("cpu", 3, 2)
