"""Metadata, configuration, statistics and index of the models, as dictionaries.

The names of their fields are those of the JSON of the protocol and of Triton's extensions, which
are also those of the fields of their protobuf messages.
"""

import json
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from model_package import KeypointsDecoder
from service.cancellation import CancelScope
from service.errors import UnsupportedOperationError
from service.observability.statistics import DurationStatistic, InferenceStatistics
from service.open_inference.models import TENSOR_SUFFIX, ImageForm, ModelForm, TensorForm
from service.open_inference.parameters import DEFAULT_PRIORITY, PRIORITIES
from service.open_inference.types import BYTES, TensorMetadata
from service.state import ServiceState

PLATFORM = "centernet"
_VERSION = version("centernet-serving")  # read from a file
_EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
_EMPTY = DurationStatistic()


def split_name(name: str) -> tuple[str, type[ImageForm] | type[TensorForm]]:
    """Return the name of the loaded model, and the form that the name stands for."""
    if name.endswith(TENSOR_SUFFIX):
        return name.removesuffix(TENSOR_SUFFIX), TensorForm
    return name, ImageForm


def find_form(state: ServiceState, name: str, version: str | None) -> ImageForm | TensorForm:
    """Return the form of a loaded model; ``version``: None for the default.

    Raises :class:`UnknownModelError`, :class:`ModelUnavailableError` and :class:`NotReadyError`.
    """
    model, form = split_name(name)
    models = state.loader.models
    found = form(models.get(model, version), state.settings.max_images_per_request)
    found.versions = [detector.manifest.version for detector in models.versions(model)]
    return found


def server_metadata() -> dict[str, Any]:
    """Return the name and the version of the server, and the extensions that it supports."""
    return {
        "name": "centernet-serving",
        "version": _VERSION,
        "extensions": list(_EXTENSIONS),
    }


def model_metadata(form: ModelForm[Any]) -> dict[str, Any]:
    """Return the inputs and outputs of a model; the first dimension is the number of images."""
    return {
        "name": form.name,
        "versions": list(form.versions),
        "platform": PLATFORM,
        "inputs": [_tensor_metadata(form.input)],
        "outputs": [_tensor_metadata(output) for output in form.outputs],
    }


def _tensor_metadata(tensor: TensorMetadata) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def model_config(form: ModelForm[Any]) -> dict[str, Any]:
    """Return the fields of Triton's ``ModelConfig`` that describe this model.

    ``parameters`` has the names of the classes and keypoints, as JSON.
    """
    manifest, detector = form.detector.manifest, form.detector
    parameters = {"class_names": manifest.classes}
    if isinstance(manifest.decoder, KeypointsDecoder):
        parameters["keypoint_names"] = manifest.decoder.keypoints
    return {
        "name": form.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"latest": {"num_versions": len(form.versions)}},
        "max_batch_size": form.max_images if form.has_batch_dimension else 0,
        "input": [_tensor_config(form, form.input)],
        "output": [_tensor_config(form, output) for output in form.outputs],
        "instance_group": [
            {"name": form.name, "kind": "KIND_AUTO", "count": detector.detector.engine.concurrency}
        ],
        "dynamic_batching": {
            "preferred_batch_size": [detector.max_batch_size],
            "max_queue_delay_microseconds": round(1e6 * detector.max_queue_delay_s),
            "priority_levels": len(PRIORITIES),
            "default_priority_level": DEFAULT_PRIORITY,
        },
        "parameters": {
            name: {"string_value": json.dumps(names)} for name, names in parameters.items()
        },
    }


def _tensor_config(form: ModelForm[Any], tensor: TensorMetadata) -> dict[str, Any]:
    kind = "STRING" if tensor.datatype == BYTES else tensor.datatype
    dims = tensor.shape[1:] if form.has_batch_dimension else tensor.shape
    return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": list(dims)}


def model_statistics(form: ModelForm[Any]) -> dict[str, Any]:
    """Return the statistics of a model; its two forms share them, as they share the engine."""
    counted = form.detector.statistics
    durations = {
        "success": counted.success,
        "fail": counted.fail,
        "queue": counted.queue,
        "compute_input": counted.compute_input,
        "compute_infer": counted.compute_infer,
        "compute_output": counted.compute_output,
        "cache_hit": _EMPTY,
        "cache_miss": _EMPTY,
    }
    return {
        "name": form.name,
        "version": form.detector.manifest.version,
        "last_inference": counted.last_inference_ms,
        "inference_count": counted.inference_count,
        "execution_count": counted.execution_count,
        "inference_stats": {name: _duration(value) for name, value in durations.items()},
        "batch_stats": _batch_statistics(counted),
    }


def _batch_statistics(counted: InferenceStatistics) -> list[dict[str, Any]]:
    """Return the runs of each batch size; inputs and outputs are processed per image."""
    return [
        {
            "batch_size": size,
            "compute_input": _duration(_EMPTY),
            "compute_infer": _duration(runs),
            "compute_output": _duration(_EMPTY),
        }
        for size, runs in sorted(counted.batches.items())
    ]


def _duration(statistic: DurationStatistic) -> dict[str, int]:
    return {"count": statistic.count, "ns": round(1e9 * statistic.seconds)}


def all_statistics(state: ServiceState) -> list[dict[str, Any]]:
    """Return the statistics of both forms of every version. Raises :class:`NotReadyError`."""
    models = state.loader.models
    return [
        model_statistics(find_form(state, name + suffix, detector.manifest.version))
        for name in models.detectors
        for detector in models.versions(name)
        for suffix in ("", TENSOR_SUFFIX)
    ]


async def load_model(state: ServiceState, name: str, parameters: Iterable[str]) -> None:
    """Load the packages of a model as they are now; ``name``: of either form.

    ``parameters``: names of those of the request. Raises :class:`UnsupportedOperationError`,
    :class:`StoppingError` and the errors of :meth:`ModelRegistry.load`.
    """
    _check_change(state, parameters, accepted=frozenset())
    with CancelScope(state.stopping):
        await state.loader.models.load(split_name(name)[0])


async def unload_model(state: ServiceState, name: str, parameters: Iterable[str]) -> None:
    """Unload a model; see :func:`load_model`."""
    # Other models never depend on this one.
    _check_change(state, parameters, accepted=frozenset({"unload_dependents"}))
    await state.loader.models.unload(split_name(name)[0])


def _check_change(state: ServiceState, parameters: Iterable[str], accepted: frozenset[str]) -> None:
    if "explicit" not in state.settings.model_control:
        raise UnsupportedOperationError(
            "Loading and unloading of models on request is not supported by this service. Start it "
            "with --model-control explicit."
        )
    if unknown := sorted(set(parameters) - accepted):
        raise UnsupportedOperationError(
            f"Received the parameter {unknown[0][:100]!r}; accepted are "
            f"{', '.join(sorted(accepted)) or 'none'}. Packages are read from the directory of the "
            "service, with the configuration in their model.json."
        )


def repository_index(state: ServiceState, *, only_ready: bool) -> list[dict[str, str]]:
    """Return both forms of every version of every model, with their state.

    Raises :class:`NotReadyError`.
    """
    return [
        {
            "name": one.name + suffix,
            "version": one.version,
            "state": one.state,
            "reason": one.reason,
        }
        for one in state.loader.models.states()
        for suffix in ("", TENSOR_SUFFIX)
        if one.state == "READY" or not only_ready
    ]
