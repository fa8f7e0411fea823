"""Settings of the service, from environment variables and command-line options."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.cpu_cores import available_cores

PREFIX = "CENTERNET_"
CLIENT_VARIABLES = frozenset({"CENTERNET_API_KEY"})
"""Variables of ``centernet-detect`` and ``centernet-eval``, which also run models in process."""
# Variables that Kubernetes sets in every pod next to a Service named "centernet".
_SERVICE_LINK = re.compile(PREFIX + r"(SERVICE_HOST|SERVICE_PORT.*|PORT_.+)")

_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
_ENDPOINT = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
_SHADOW = re.compile(
    r"(?P<name>[a-z0-9_-]+):(?P<version>[A-Za-z0-9._+-]+)=(?P<share>[0-9]*\.?[0-9]+)"
)


class Shadow(NamedTuple):
    """A version of a model that runs on a share of the requests, to be compared."""

    version: str
    share: float


def split_commas(value: Any) -> Any:
    """Split a string, or the strings of a list, at commas; return other values unchanged."""
    if isinstance(value, str):
        return value.split(",")
    if not isinstance(value, list):
        return value
    return [
        part for item in value for part in (item.split(",") if isinstance(item, str) else [item])
    ]


def _split_names(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(part for part in map(str.strip, split_commas(value)) if part)


_Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)]
_Triggers = Annotated[
    tuple[Literal["explicit", "signal", "poll"], ...], NoDecode, BeforeValidator(_split_names)
]


class Settings(BaseSettings):
    """Settings of the service.

    Each field is an option (``--max-batch-size``) and an environment variable
    (``CENTERNET_MAX_BATCH_SIZE``).
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_hide_none_type=True,
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 selects a free one.")
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the Open Inference Protocol over gRPC, on the same address; 0 selects "
        "a free one. Needs the extra `grpc`. Default: no gRPC.",
    )
    workers: int = Field(
        1,
        ge=1,
        le=1024,
        description="Processes that share the port. Each has its share of the cores, engines of "
        "its own, and every limit below for itself.",
    )
    models: Path = Field(Path("models"), description="A model package, or a directory of packages.")
    default_model: str | None = Field(
        None, description="The model of POST /detect; may be omitted if there is only one model."
    )
    model_versions: int = Field(
        1,
        ge=1,
        le=16,
        description="Newest versions of each model that are served side by side. Requests that "
        "name no version use the newest.",
    )
    model_control: _Triggers = Field(
        (),
        description="What changes the models while they are served, separated by commas: "
        "`explicit` (the requests to load and unload models of the Open Inference Protocol), "
        "`signal` (SIGHUP), `poll` (changes in the directory). Default: nothing.",
    )
    model_poll_s: float = Field(
        5.0,
        ge=0.1,
        le=86400,
        description="Seconds between two readings of the directory with the model control `poll`. "
        "Changed files are loaded when two readings find them equal.",
    )
    shadow: _Names = Field(
        (),
        description="Versions that run, while capacity is free, on a share of the requests of the "
        "version that is served, to be compared with it in the metrics: NAME:VERSION=SHARE, such "
        "as people:3=0.1; separated by commas. They are loaded in addition and are never the "
        "default.",
    )
    strict_start: bool = Field(
        False,
        description="End the start if any package cannot be loaded. Otherwise the other packages "
        "are served, and requests for a model without any get 503.",
    )
    backend: Literal[
        "auto", "tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "openvino", "onnxruntime-cpu"
    ] = Field(
        "auto",
        description="Runtime of the models; auto selects the first that works on this machine and "
        "passes the self-test.",
    )
    precision: Literal["auto", "fp32", "bf16", "int8"] = Field(
        "auto",
        description="Precision of the layers of the networks; auto selects the fastest that the "
        "backend and the processor support and that passes the self-test.",
    )
    build_engines: bool = Field(
        False,
        description="Build the engines of the backend (tensorrt or tensorrt-rtx) before the "
        "service is ready, if a package has none for this machine; needs centernet-export and "
        "writable packages.",
    )
    engine_threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Threads per engine run on the CPU; concurrent runs share the cores. Default: "
        "one thread, or all cores for slow models.",
    )
    engine_concurrency: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Concurrent engine runs per model on the CPU. Default: the cores divided by "
        "the threads per run.",
    )
    image_threads: int = Field(
        default_factory=available_cores,
        ge=1,
        le=1024,
        description="Threads that decode images and outputs, shared by all models. One of "
        "them, of at least two, decodes small images only.",
    )
    max_batch_size: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Maximum batch size; default: chosen by warm-up.",
    )
    max_queue_delay_ms: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Maximum milliseconds that a batch waits for further inputs while the engine "
        "is idle.",
    )
    target_latency_ms: float | None = Field(
        None,
        gt=0,
        le=3_600_000,
        description="Target latency in milliseconds, from the end of the body to the response: "
        "requests that are expected to exceed it get 429. Default: only "
        "max_queue_size limits the queue.",
    )
    max_queue_size: int = Field(
        128,
        ge=1,
        le=65536,
        description="Maximum number of admitted network inputs per model (one per scale and "
        "flipped image of a request); further requests get 429. A quarter is kept for requests of "
        "one input.",
    )
    max_images_per_request: int = Field(
        16, ge=1, le=1024, description="Maximum number of images in a request to /detect/batch."
    )
    max_body_bytes: int = Field(
        16 * 1024 * 1024, ge=1024, le=2**30, description="Maximum bytes of a request body."
    )
    max_upload_bytes: int = Field(
        512 * 1024 * 1024,
        ge=1024,
        le=2**40,
        description="Maximum bytes of all request bodies in memory.",
    )
    max_image_pixels: int = Field(
        50_000_000,
        ge=256,
        le=170_000_000,
        description="Maximum pixels of an image, checked before decoding.",
    )
    max_decoding_bytes: int = Field(
        1024**3,
        ge=1024,
        le=2**40,
        description="Maximum memory in bytes for decoding images at a time, all models together, "
        "as computed from the headers of the images; further images wait.",
    )
    scaled_decoding: bool = Field(
        True, description="Decode JPEGs much larger than the network input at 1/2, 1/4 or 1/8."
    )
    body_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Maximum seconds for a request body to arrive."
    )
    request_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Maximum seconds from the end of the body to the response."
    )
    keep_alive_s: int = Field(
        75,
        ge=1,
        le=3600,
        description="Seconds after which an idle connection is closed. Must exceed the idle "
        "timeout of a proxy in front of the service (often 60 s).",
    )
    self_test_interval_s: float = Field(
        60.0,
        ge=0,
        le=86400,
        description="Seconds between runs of the self-test, which sets a model with wrong outputs "
        "to not ready; 0 disables it.",
    )
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        le=600,
        description="Seconds after SIGTERM in which requests are still accepted, so that load "
        "balancers notice that the service is not ready.",
    )
    shutdown_timeout_s: int = Field(
        20,
        ge=1,
        le=3600,
        description="Maximum seconds for admitted requests to complete after SIGTERM.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File with one API key per line; each request must then contain one. "
        "Probes, the web page and the API documentation need no key.",
    )
    rate_limit_per_s: float | None = Field(
        None,
        ge=0.001,
        le=1e6,
        description="Requests per second per API key, or per address without keys; further "
        "requests get 429.",
    )
    rate_limit_burst: int = Field(
        20,
        ge=1,
        le=1_000_000,
        description="Requests that a client may send at once before the rate limit applies.",
    )
    trusted_proxies: _Names = Field(
        (),
        description="Addresses or networks of proxies whose X-Forwarded-For is trusted; separated "
        "by commas.",
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[\w.~-]+)*$",
        description="Path prefix under which a proxy publishes the service and which it removes, "
        "such as /vision.",
    )
    cors_origins: _Names = Field(
        (),
        description="Origins of web pages that may call the API, such as https://example.org; "
        "separated by commas.",
    )
    label_studio_url: str | None = Field(
        None,
        description="Label Studio whose files the routes /label-studio may request, such as "
        "https://labels.example.org; the service requests no other address.",
    )
    label_studio_token_file: Path | None = Field(
        None,
        description="File with the access token of a user of that Label Studio, who sees the "
        "projects that are to be annotated.",
    )
    log_format: Literal["text", "json"] = Field("text", description="Format of log lines.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Minimum log level; info has a line per request, warning only failures.",
    )
    otlp_endpoint: str | None = Field(
        None,
        description="OTLP/HTTP receiver of traces, such as http://localhost:4318; needs the extra "
        "`otel`.",
    )

    @field_validator("port", "grpc_port", mode="before")
    @classmethod
    def _not_a_service_link(cls, port: object, info: ValidationInfo) -> object:
        if isinstance(port, str) and port.startswith("tcp://"):
            service = "centernet" if info.field_name == "port" else "centernet-grpc"
            raise ValueError(
                f"received {port!r}, which Kubernetes sets beside a Service named {service!r}; "
                "set enableServiceLinks: false in the pod, or choose another name for the Service"
            )
        return port

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            ipaddress.ip_network(proxy)  # raises a ValueError that names the invalid network
        return proxies

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"received {origin!r}; an origin is a scheme, a host and perhaps a port in "
                    "lower case, without a path: https://example.org:8443"
                )
        return origins

    @field_validator("otlp_endpoint", "label_studio_url")
    @classmethod
    def _is_url(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
            raise ValueError(f"received {endpoint!r}; expected a URL such as http://localhost:4318")
        return endpoint

    @field_validator("shadow")
    @classmethod
    def _are_shadows(cls, shadows: tuple[str, ...]) -> tuple[str, ...]:
        names = []
        for text in shadows:
            match = _SHADOW.fullmatch(text)
            if match is None:
                raise ValueError(
                    f"received {text!r}; expected NAME:VERSION=SHARE, such as people:3=0.1"
                )
            if not 0 < float(match["share"]) <= 1:
                raise ValueError(f"received {text!r}; the share must be more than 0 and at most 1")
            names.append(match["name"])
        if len(set(names)) != len(names):
            raise ValueError(f"received {', '.join(shadows)}; give one version of each model")
        return shadows

    @property
    def shadows(self) -> dict[str, Shadow]:
        """The shadow of each model that has one."""
        matches = filter(None, map(_SHADOW.fullmatch, self.shadow))
        return {match["name"]: Shadow(match["version"], float(match["share"])) for match in matches}

    @model_validator(mode="after")
    def _backend_can_be_built(self) -> Self:
        if self.build_engines and not self.backend.startswith("tensorrt"):
            raise ValueError(
                f"build_engines needs the backend tensorrt or tensorrt-rtx, received {self.backend}"
            )
        if self.build_engines and self.workers > 1:
            raise ValueError(
                f"build_engines works with one worker, received {self.workers} workers: each would "
                "build the same engines; run centernet-export build before the start"
            )
        return self

    @model_validator(mode="after")
    def _label_studio_has_a_token(self) -> Self:
        if (self.label_studio_url is None) != (self.label_studio_token_file is None):
            raise ValueError(
                "label_studio_url and label_studio_token_file belong together: set both, or neither"
            )
        return self

    @model_validator(mode="after")
    def _models_are_controlled_in_every_worker(self) -> Self:
        if "explicit" in self.model_control and self.workers > 1:
            raise ValueError(
                f"model_control explicit works with one worker, received {self.workers} workers: a "
                "request reaches one of them; use signal or poll, which reach all"
            )
        return self

    @model_validator(mode="after")
    def _no_unknown_variables(self) -> Self:
        known = {PREFIX + name.upper() for name in type(self).model_fields}
        unknown = sorted(
            name
            for name in os.environ
            if name.upper().startswith(PREFIX)
            and name.upper() not in known | CLIENT_VARIABLES
            and not _SERVICE_LINK.fullmatch(name)
        )
        if unknown:
            raise ValueError(
                f"unknown variables in the environment: {', '.join(unknown)}; "
                f"accepted are {', '.join(sorted(known))}"
            )
        return self
