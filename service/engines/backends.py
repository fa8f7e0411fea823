"""The available backends and the choice among them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from model_package import ModelPackage
from model_package.gpu import find_gpu
from model_package.tensorrt_libraries import TENSORRT, TENSORRT_RTX
from service.engines.engine import Engine, EngineOptions
from service.engines.errors import EngineUnavailableError
from service.engines.onnxruntime import OnnxRuntimeEngine, open_cuda_engine
from service.engines.openvino import OpenVinoEngine
from service.engines.precision import ComputePrecision
from service.engines.tensorrt import open_tensorrt_engine

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A backend with the precisions that it selects from when it opens a package."""

    backend: str
    precisions: tuple[ComputePrecision, ...]
    open: Callable[[ModelPackage, EngineOptions], Engine]
    on_cpu: bool = False

    @property
    def title(self) -> str:
        """Backend and precisions, for messages."""
        return f"{self.backend} ({' or '.join(self.precisions)})"


CANDIDATES: Sequence[Candidate] = (
    Candidate(
        "tensorrt",
        ("fp16", "fp32", "int8"),
        lambda package, options: open_tensorrt_engine(package, options, TENSORRT),
    ),
    Candidate(
        "tensorrt-rtx",
        ("fp16", "fp32", "int8"),
        lambda package, options: open_tensorrt_engine(package, options, TENSORRT_RTX),
    ),
    Candidate("onnxruntime-cuda", ("fp16", "fp32"), open_cuda_engine),
    Candidate("openvino", ("int8",), OpenVinoEngine, on_cpu=True),
    Candidate("openvino", ("bf16",), OpenVinoEngine, on_cpu=True),
    Candidate("openvino", ("fp32",), OpenVinoEngine, on_cpu=True),
    Candidate("onnxruntime-cpu", ("fp32",), OnnxRuntimeEngine, on_cpu=True),
)
"""Ordered from fastest to slowest: the first that this machine can run is used."""


@dataclass(frozen=True)
class Selection:
    """A loaded engine, the candidate that it was opened with, and why it was selected.

    ``skipped``: the reasons of the candidates before it that cannot be used.
    """

    engine: Engine
    candidate: Candidate
    skipped: Mapping[Candidate, str]

    def __str__(self) -> str:
        """Describe the engine and the reasons, without those of GPU backends if there is no GPU."""
        titles: dict[str, list[str]] = {}
        has_gpu = all(candidate.on_cpu for candidate in self.skipped) or find_gpu() is not None
        for candidate, reason in self.skipped.items():
            if candidate.on_cpu or has_gpu:
                titles.setdefault(reason.rstrip("."), []).append(candidate.title)
            else:
                titles.setdefault("no NVIDIA GPU was found", []).append(candidate.backend)
        skipped = (f"; not {', '.join(names)}: {reason}" for reason, names in titles.items())
        return f"{self.engine.description}{''.join(skipped)}"


BACKENDS: Sequence[str] = tuple(dict.fromkeys(candidate.backend for candidate in CANDIDATES))


def open_engine(
    package: ModelPackage,
    backend: str,
    threads: int,
    concurrency: int = 1,
    max_batch_size: int = 8,
    precision: str = "auto",
) -> Engine:
    """Load a model package with a backend, without a check of its outputs.

    ``backend`` and ``precision``: see :func:`select_engine`. The other arguments are the fields of
    :class:`~service.engines.engine.EngineOptions`. Raises like :func:`select_engine`.
    """
    options = EngineOptions(threads, concurrency, max_batch_size)
    return select_engine(package, backend, precision, options, lambda _: None).engine


def select_engine(
    package: ModelPackage,
    backend: str,
    precision: str,
    options: EngineOptions,
    accept: Callable[[Engine], None],
) -> Selection:
    """Load a model package with the first candidate that works here and is accepted.

    ``backend`` is one of :data:`BACKENDS` and ``precision`` one of its precisions, or ``auto`` for
    any. ``accept`` raises :class:`~service.engines.errors.EngineUnavailableError` to refuse an
    engine. ``options.precisions`` is replaced by those of the candidate.

    Raises :class:`~service.engines.errors.EngineUnavailableError` if no candidate can run the
    package on this machine, and :class:`~service.engines.errors.EngineBrokenError` if opening
    leaves the GPU unusable for this process; no other candidate is then tried.
    """
    candidates = _candidates(backend, precision)
    name, skipped = package.manifest.name, {}
    for candidate in candidates:
        try:
            engine = candidate.open(package, replace(options, precisions=candidate.precisions))
            _check(engine, accept)
        except EngineUnavailableError as error:
            if candidate is candidates[-1] and backend != "auto":
                raise
            _log.debug("%s: backend %s is unavailable: %s", name, candidate.title, error)
            skipped[candidate] = str(error)
        else:
            return Selection(engine, candidate, skipped)
    reasons = "; ".join(f"{candidate.title}: {error}" for candidate, error in skipped.items())
    raise EngineUnavailableError(f"no backend can run {name}: {reasons}")


def _candidates(backend: str, precision: str) -> Sequence[Candidate]:
    of_backend = [one for one in CANDIDATES if backend in ("auto", one.backend)]
    if precision == "auto":
        return of_backend
    known = dict.fromkeys(name for one in of_backend for name in one.precisions)
    if precision not in known:
        raise EngineUnavailableError(
            f"the backend {backend} does not compute in {precision}, only in {', '.join(known)}. "
            "Choose another backend or precision."
        )
    return [
        replace(one, precisions=(name,))
        for one in of_backend
        for name in one.precisions
        if name == precision
    ]


def _check(engine: Engine, accept: Callable[[Engine], None]) -> None:
    try:
        accept(engine)
    except BaseException:
        engine.close()
        raise
