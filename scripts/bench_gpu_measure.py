"""What ``bench_gpu.py`` measures with: ceilings, counts of work, floors, times and errors."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from bench_gpu_parts import Piece
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Outputs = tuple[Tensor, ...]
Call = Callable[[], Outputs]
WARM_UP, LEAST, MOST = 3, 7, 200
"""Calls before measuring, and of a measurement."""


@dataclass(frozen=True)
class Precision:
    """How a network computes."""

    name: str
    dtype: torch.dtype
    tf32: bool = False

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let FP32 matrices and convolutions be rounded to TF32, or not."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


PRECISIONS = {
    p.name: p
    for p in (
        Precision("fp32", torch.float32),
        Precision("tf32", torch.float32, tf32=True),
        Precision("fp16", torch.float16),
        Precision("bf16", torch.bfloat16),
    )
}


@dataclass(frozen=True)
class Ceilings:
    """What the device was measured to reach."""

    flops: Mapping[str, float]
    """Operations per second of a large product of matrices, by precision."""
    bytes_per_s: float
    """Read and written by a large copy, both counted."""


@dataclass(frozen=True)
class Work:
    """What a call cannot do without."""

    flops: float
    """Of products, convolutions and attention (all of it, where a causal half would do); a multiply-add is two."""
    moved_bytes: float
    """Parameters that are used, inputs and outputs, each once."""


@dataclass(frozen=True)
class Floor:
    """The least time of a call by the roofline model."""

    ms: float
    bound: str
    """``compute`` or ``memory``."""


def floor_of(work: Work, precision: str, ceilings: Ceilings) -> Floor:
    """Return the greater of operations over the ceiling of that precision and bytes over the bandwidth."""
    compute, memory = work.flops / ceilings.flops[precision], work.moved_bytes / ceilings.bytes_per_s
    return Floor(1000 * max(compute, memory), "compute" if compute >= memory else "memory")


def measure_ceilings(device: torch.device) -> Ceilings:
    """Measure what the device reaches; the best of several sizes."""
    large = device.type == "cuda"
    flops = {}
    for name, precision in PRECISIONS.items():
        with precision.active():
            flops[name] = max(_product(size, precision.dtype, device) for size in ((4096, 8192) if large else (256,)))
    source = torch.zeros(2**28 if large else 2**22, device=device)
    target = torch.empty_like(source)
    ms = median_ms(lambda: (target.copy_(source),), device, 0.1)
    return Ceilings(flops, 2 * source.nbytes / ms * 1000)


def _product(size: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / median_ms(lambda: (a @ b,), device, 0.1) * 1000


def median_ms(call: Call, device: torch.device, budget_s: float) -> float:
    """Return the median time of a call after a warm-up; a GPU is timed by its own events."""
    for _ in range(WARM_UP):
        call()
    once_s = _spent_ms(call, device, 1)[0] / 1000
    repeats = min(MOST, max(LEAST, int(budget_s / max(once_s, 1e-6))))
    return statistics.median(_spent_ms(call, device, repeats))


def _spent_ms(call: Call, device: torch.device, repeats: int) -> list[float]:
    if device.type != "cuda":
        return [_wall_ms(call) for _ in range(repeats)]
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    return [begin.elapsed_time(end) for begin, end in events]


def _wall_ms(call: Call) -> float:
    begun_s = time.perf_counter()
    call()
    return (time.perf_counter() - begun_s) * 1000


@dataclass
class Count:
    """Operations of one and of two entries, and the parameters that are used; more entries follow linearly."""

    one: float
    two: float
    used: frozenset[str]

    def work(self, module: nn.Module, inputs: Sequence[Tensor], outputs: Outputs, batch: int) -> Work:
        """Return the work of a batch, with parameters as ``module`` stores them."""
        tensors = _tensors(module)
        moved = sum(tensors[name].nbytes for name in self.used) + sum(t.nbytes for t in (*inputs, *outputs))
        return Work(self.one + (batch - 1) * (self.two - self.one), moved)


def count(piece: Piece) -> Count:
    """Count the operations of a network, whatever kernels its device would choose."""
    flops, used = [], _Used(piece.module)
    for batch in (1, 2):
        counter = FlopCounterMode(display=False)
        # Fused attention is not counted on every device; its plain form is products, which are.
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), used, counter:
            piece.module(*piece.batched(batch))
        flops.append(float(counter.get_total_flops()))
    return Count(flops[0], flops[1], frozenset(used.names))


class _Used(TorchDispatchMode):
    """Notes which parameters and buffers a network reads: a module may hold many that it does not."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._owners = {t.untyped_storage().data_ptr(): name for name, t in _tensors(module).items()}
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's own signature
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and (name := self._owners.get(leaf.untyped_storage().data_ptr())):
                self.names.add(name)
        return func(*args, **(kwargs or {}))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@dataclass
class Converter:
    """Gives networks in a precision; each is made once."""

    _made: dict[tuple[int, str], nn.Module] = field(default_factory=dict)

    def module(self, piece: Piece, precision: Precision) -> nn.Module:
        """Return the network in a precision: as a whole where it is typed, else its matrices, for autocast."""
        if precision.dtype == torch.float32:
            return piece.module
        key = (id(piece.module), precision.name)
        if key not in self._made:
            # Compilers take ordinary tensors more gladly than those made for inference only.
            with torch.inference_mode(mode=False):
                module = copy.deepcopy(piece.module)
                for part in (module,) if piece.typed else module.modules():
                    if piece.typed or isinstance(part, (nn.Linear, nn.modules.conv._ConvNd)):
                        part.to(precision.dtype)
            self._made[key] = module
        return self._made[key]

    @staticmethod
    def inputs(piece: Piece, precision: Precision, batch: int) -> tuple[Tensor, ...]:
        """Return the inputs of a batch; a typed network takes them in its own type."""
        return tuple(
            t.to(precision.dtype) if piece.typed and t.is_floating_point() else t for t in piece.batched(batch)
        )

    @staticmethod
    def context(piece: Piece, precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
        """Return what a call runs in."""
        if piece.typed or precision.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(device.type, dtype=precision.dtype, cache_enabled=False)


def captured(call: Call) -> Call:
    """Return a call that replays a CUDA graph of another one: the same kernels without the time to launch them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay


class _Double(TorchFunctionMode):
    """Where code says FP32 it means FP64."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - torch's own signature
        if func is Tensor.float:
            return args[0].double()
        wide = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*(torch.float64 if a is torch.float32 else a for a in args), **wide)


def reference(piece: Piece) -> Outputs:
    """Return the outputs of one entry, computed in float64 on the CPU from the same FP32 weights and inputs."""
    module = copy.deepcopy(piece.module).to("cpu", torch.float64)
    inputs = [t.cpu().double() if t.is_floating_point() else t.cpu() for t in piece.inputs]
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), _Double():
            outputs = as_tuple(module(*inputs))
    finally:
        torch.set_default_dtype(torch.float32)
    if found := {o.dtype for o in outputs} - {torch.float64}:
        raise TypeError(f"{piece.name}: the float64 reference has outputs of {found}.")
    return outputs


def as_tuple(outputs: Tensor | Outputs) -> Outputs:
    """Return one output or several as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


@dataclass(frozen=True)
class Error:
    """The outputs of a call's first entry against the reference; of the worst output each."""

    max_abs: float
    relative: float
    """Largest difference over the largest magnitude of the reference."""
    cosine: float


def error_of(outputs: Outputs, expected: Outputs) -> Error:
    """Compare outputs, whose first axis is the batch, with those of one entry."""
    found = [o[:1].cpu().double() for o in outputs]
    differences = [float((f - e).abs().max()) for f, e in zip(found, expected, strict=True)]
    scales = [float(e.abs().max()) or 1.0 for e in expected]
    relative = [d / s for d, s in zip(differences, scales, strict=True)]
    return Error(
        _worst(differences), _worst(relative), -_worst([-_cosine(*p) for p in zip(found, expected, strict=True)])
    )


def _worst(values: Sequence[float]) -> float:
    """Return the largest; NaN where there is one."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def _cosine(a: Tensor, b: Tensor) -> float:
    # Flattened features are long enough for their products to leave the range of FP32, not of FP64.
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))
