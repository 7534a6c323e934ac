"""The models a scenario can name, and how one comes to its first parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.errors import ScenarioError
from fedsim.core.keys import Key
from fedsim.core.machine import memory
from fedsim.core.registry import Registry
from fedsim.core.types import Array, Count, Params, Range
from fedsim.learn.kept import worn
from fedsim.learn.norms import Norm, layers
from fedsim.learn.seeded import seeded
from fedsim.learn.standardise import Standardise

models: Registry[Callable[..., nn.Module]] = Registry("model", given=["shape", "outputs"], key="model")
"""Functions or classes that return an ``nn.Module``. Given: ``shape`` of one example, number of ``outputs``."""

Ghost: TypeAlias = Annotated[int, Range(ge=2, why="one example has no variance")]
Dropped: TypeAlias = Annotated[float, Range(ge=0, lt=1, why="the share of a layer's outputs that is left out; 0.5 is usual")]


@models.register("logreg")
def logreg(shape: tuple[int, ...], outputs: int, *, standardise: bool = False, zeros: bool = False) -> nn.Module:
    """A linear classifier: (inputs + 1) * outputs parameters.

    With *standardise* features are first scaled by the mean and variance of those seen so far; with *zeros* all
    parameters start at 0, so that the first predictions owe nothing to luck.
    """
    inputs = math.prod(shape)
    linear = nn.Linear(inputs, outputs)
    if zeros:
        for parameter in linear.parameters():
            nn.init.zeros_(parameter)
    return nn.Sequential(nn.Flatten(), *([Standardise(inputs)] if standardise else []), linear)


@models.register("mlp")
def mlp(
    shape: tuple[int, ...], outputs: int, *, hidden: Sequence[Count], dropout: Dropped = 0.0, standardise: bool = False,
    norm: Norm = "none", groups: Count | None = None, ghost_size: Ghost | None = None,
) -> nn.Module:  # fmt: skip
    """A multilayer perceptron with ReLU; ``hidden = [200, 200]`` on 28 x 28 images is McMahan's 2NN, 199,210 parameters.

    With *dropout*, that share of each hidden layer's outputs is left out while training; with *standardise* features are
    first scaled by the mean and variance of those seen so far. *norm* normalises what goes into each ReLU (norms.py).
    Reference: McMahan et al. 2017, arXiv:1602.05629, section 3.
    """
    widths = [math.prod(shape), *hidden]
    parts: list[nn.Module] = [nn.Flatten(), *([Standardise(widths[0])] if standardise else [])]
    for inputs, width in zip(widths, widths[1:], strict=False):
        parts += [nn.Linear(inputs, width), *layers(norm, width, groups, ghost_size), nn.ReLU()]
        parts += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*parts, nn.Linear(widths[-1], outputs))


@models.register("cnn")
def cnn(
    shape: tuple[int, ...], outputs: int, *, norm: Norm = "none", groups: Count | None = None, ghost_size: Ghost | None = None
) -> nn.Module:
    """McMahan's CNN: two 5 x 5 convolutions (32, 64), each with 2 x 2 pooling, then 512; 1,663,370 parameters on 28 x 28.

    *norm* normalises what goes into each ReLU, images by their channels (norms.py).
    Reference: McMahan et al. 2017, arXiv:1602.05629, section 3.
    """
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise ScenarioError(
            f"model.kind = 'cnn': wants images of shape (channels, height, width), 4 x 4 or more; these examples have"
            f" shape {shape}. 'mlp' and 'logreg' take any shape."
        )
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2), *layers(norm, 32, groups, ghost_size, images=True), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), *layers(norm, 64, groups, ghost_size, images=True), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * (height // 4) * (width // 4), 512), *layers(norm, 512, groups, ghost_size), nn.ReLU(),
        nn.Linear(512, outputs),
    )  # fmt: skip


def build(
    kind: str, settings: dict[str, Any], shape: tuple[int, ...], outputs: int, key: Key, whole: Array | None = None
) -> nn.Module:
    """Return the model *kind*, its first parameters drawn from *key* (PyTorch's own initialisation).

    Lazy layers take their sizes from a pass over *whole*, a few examples of whole numbers, where it takes these; else over zeros.

    Raises ScenarioError for a model that cannot be trained here: it is not an ``nn.Module``, has nothing to train, or
    normalises by a mean over all batches so far, which no server can average.
    """
    with seeded(key.seed64()):  # Layers draw from torch's global generator: borrow it, give it back.
        make = models.get(kind, at="model.kind")
        if ":" not in kind:
            with suppress(NotImplementedError), torch.device("meta"):  # Counted before memory is asked for.
                _check_memory(kind, models.call(make, settings, shape=shape, outputs=outputs))
        torch.manual_seed(key.seed64())  # Again: what was counted may have drawn.
        default = torch.get_default_dtype()
        try:
            model: Any = models.call(make, settings, shape=shape, outputs=outputs)
        finally:
            torch.set_default_dtype(default)  # It is the next model's too.
        if isinstance(model, nn.Module) and any(map(nn.parameter.is_lazy, (*model.parameters(), *model.buffers()))):
            _settle(model, shape, whole)
    if not isinstance(model, nn.Module):
        raise ScenarioError(f"model.kind = {kind!r}: returned a {type(model).__name__}, not a torch.nn.Module.")
    for name, layer in model.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):
            raise ScenarioError(
                f"model.kind = {kind!r}: {f'its layer {name!r}' if name else 'it'} is a {type(layer).__name__}, whose parameters cannot be"
                f" exchanged for a client's. Return the module itself, without torch.jit."
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ScenarioError(f"model.kind = {kind!r}: has no trainable parameter.")
    for name, parameter in model.named_parameters():
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ScenarioError(
                f"model.kind = {kind!r}: parameter {name!r} has a hook after its gradient's accumulation, and gradients are not accumulated"
                f" here. Use register_hook, which is given the gradient."
            )
    for name, layer in model.named_modules():
        if getattr(layer, "track_running_stats", False) and getattr(layer, "momentum", 0.1) is None:
            raise ScenarioError(
                f"model.kind = {kind!r}: {name} has momentum = None: it counts batches, and counts are not averaged."
                f" Give it a momentum; 0.1 is usual."
            )
    for module in model.modules():  # Elements that share one place in memory cannot be written apart.
        for name, buffer in module._buffers.items():  # pyright: ignore[reportPrivateUsage]
            if buffer is not None and 0 in buffer.stride() and buffer.numel() > 1:
                module._buffers[name] = buffer.clone(memory_format=torch.contiguous_format)  # pyright: ignore[reportPrivateUsage]
    return model.train()


def _settle(model: nn.Module, shape: tuple[int, ...], whole: Array | None) -> None:
    """Let lazy layers take their sizes from the first examples they see."""
    zeros = torch.zeros(2, *shape)
    tried = [*([] if whole is None else [torch.from_numpy(whole.astype(np.int64))]), zeros, zeros.long()]
    with torch.no_grad():
        for x in tried:
            with suppress(Exception):  # Of the wrong type, perhaps: the next one is not.
                model.eval()(x)
                return
        model.eval()(zeros)  # For what it raises.


COPIES = 3
"""Of a model's parameters, the least that training holds at once: the server's, a client's, and their gradient."""


def _check_memory(kind: str, model: nn.Module) -> None:
    """Refuse a model, built without memory, that this machine cannot train."""
    count = sum(parameter.numel() for parameter in model.parameters())
    size, has = 4 * count, memory()
    if COPIES * size > has:
        raise ScenarioError(
            f"model.kind = {kind!r}: these settings make {count:,} parameters, {size / 1e9:,.1f} GB. Training holds {COPIES} such at"
            f" once at the least, and this machine has {has / 1e9:,.1f} GB."
        )


def check_types(model: nn.Module, dtype: torch.dtype, kind: str) -> None:
    """Refuse a model of which something would lose what it is when the run's precision *dtype* is put upon it.

    torch's own ``Module.to`` drops imaginary parts and rounds without a word. Raises ScenarioError with the first name.
    """
    said = str(dtype).removeprefix("torch.")
    for what, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            if tensor.is_meta:
                raise ScenarioError(
                    f"model.kind = {kind!r}: {what} {name!r} lies on torch's 'meta' device, which holds no numbers. Build it without a"
                    f" device; engine.device says where it trains."
                )
            # float32 is what torch makes where nothing is said; widening it loses nothing.
            if tensor.dtype in (dtype, torch.float32) or not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            hint = (
                "Hold its real and imaginary parts as two parameters (torch.view_as_complex puts them together)."
                if tensor.is_complex()
                else f"Make it {said}, or set engine.dtype = 'float64'." if tensor.dtype == torch.float64 else f"Make it {said}."
            )
            raise ScenarioError(
                f"model.kind = {kind!r}: {what} {name!r} is {str(tensor.dtype).removeprefix('torch.')}, and the run computes in"
                f" {said} (engine.dtype). {hint}"
            )


def check_repeats(model: nn.Module, again: Callable[[], nn.Module], kind: str) -> None:
    """Refuse a *model* that comes out otherwise when it is built *again*: no run of it comes out twice, and none is verified."""

    def held(built: nn.Module) -> dict[str, Tensor]:
        return {**dict(built.named_parameters()), **dict(built.named_buffers())}  # Those too that no state_dict holds.

    second = held(again())
    for name, tensor in held(model).items():
        other = second.get(name)
        if other is None or other.shape != tensor.shape or not torch.equal(tensor.nan_to_num(), other.nan_to_num()):
            raise ScenarioError(
                f"model.kind = {kind!r}: {name!r} comes out otherwise when it is built again, so that no run of it comes out twice."
                f" Draw from the global generators of torch, numpy or Python, which are seeded while it is built."
            )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained; frozen ones stay as the model was built."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


Hooks: TypeAlias = list[list[Callable[[Tensor], Tensor | None]]]


def hooks(model: nn.Module) -> Hooks:
    """Return what ``Tensor.register_hook`` has put on each trained parameter: a mask of what is pruned, say. Empty where nothing is.

    Ask while the model has its own parameters: what stands in for these has none.
    """
    found = [list((parameter._backward_hooks or {}).values()) for parameter in trainable(model).values()]  # pyright: ignore
    return found if any(found) else []


def hooked(hooks: Hooks, gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return the *gradients* of the trained parameters after their *hooks*, as ``backward()`` on the parameters leaves them."""
    passed = list(gradients)
    for i, own in enumerate(hooks):
        for hook in own:
            given = hook(passed[i])
            passed[i] = passed[i] if given is None else given
    return passed


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that training may change and servers can average: floating ones that a state_dict holds.

    BatchNorm's running mean and variance are such; its count of batches, a whole number, stays at home.
    """
    kept = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in kept and buffer.is_floating_point()}


def travelling(model: nn.Module) -> dict[str, Tensor]:
    """Return what a message carries: the trained parameters, then the buffers."""
    return {**trainable(model), **buffers(model)}


def called(model: nn.Module, tensors: dict[str, Tensor], x: Tensor) -> Any:
    """Return what *model* puts out for *x* with *tensors* (by name) in the place of its own; see ``kept.worn``."""
    with worn(model, dict(tensors)):
        return model(x)


def params_of(model: nn.Module) -> Params:
    """Return a copy of what travels as numpy arrays, parameters first, in the module's order."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in travelling(model).items()}


def load_params(model: nn.Module, params: Params) -> nn.Module:
    """Return *model* with *params* written into it; buffers that are not among them stay as they are."""
    with torch.no_grad():
        for name, tensor in travelling(model).items():
            if name in params or name not in buffers(model):
                tensor.copy_(torch.tensor(params[name]).reshape(tensor.shape))
    return model
