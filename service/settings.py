"""Deployment facts: the only reader of the environment and the command line."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "CENTERNET_"
# What Kubernetes sets in every pod beside a Service named "centernet".
_SERVICE_LINK = re.compile(PREFIX + r"(SERVICE_HOST|SERVICE_PORT.*|PORT_.+)")

_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
_ENDPOINT = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")


def available_cores() -> int:
    """Cores that this process may use, which in a container can be fewer than there are."""
    return len(os.sched_getaffinity(0))


def _split_commas(given: object) -> object:
    if not isinstance(given, str):
        return given
    return tuple(part.strip() for part in given.split(",") if part.strip())


_Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]


class Settings(BaseSettings):
    """Each setting is an option, ``--max-batch-size``, and a variable with the prefix above."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        cli_prog_name="centernet-serve",
        cli_kebab_case=True,
        cli_hide_none_type=True,
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    models: Path = Field(
        Path("models"), description="A model package, or a directory that holds packages."
    )
    default_model: str | None = Field(
        None, description="The model behind POST /detect; may be left out when there is one."
    )
    backend: Literal["auto", "tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu"] = (
        Field("auto", description="What runs the models; auto takes the first that works here.")
    )
    build_engines: bool = Field(
        False,
        description="Build the engines of the backend (tensorrt or tensorrt-rtx) before the "
        "service is ready, where a package has none for this machine; needs centernet-export "
        "and packages that may be written to.",
    )
    engine_threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Threads of one run on the CPU, of which as many go on at a time as there are "
        "cores for. Without it, one thread; all cores for models that would take long so.",
    )
    image_threads: int = Field(
        default_factory=available_cores,
        ge=1,
        le=1024,
        description="Threads that decode images and results, for all models together.",
    )
    max_batch_size: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Images in one engine run; without it, as many as warm-up finds worth it.",
    )
    max_queue_delay_ms: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Milliseconds that a batch may wait for company while the engine is free.",
    )
    target_latency_ms: float | None = Field(
        None,
        gt=0,
        le=3_600_000,
        description="Milliseconds from a whole request to its answer that are to be kept to: who "
        "would wait longer gets 429. Without it, only max_queue_size bounds the queue.",
    )
    max_queue_size: int = Field(
        128,
        ge=1,
        le=65536,
        description="Network inputs per model (a request has one per scale and flipped image) "
        "before further requests get 429.",
    )
    max_images_per_request: int = Field(
        16, ge=1, le=1024, description="Images in one request to /detect/batch."
    )
    max_body_bytes: int = Field(
        16 * 1024 * 1024, ge=1024, le=2**30, description="Bytes of one request body."
    )
    max_upload_bytes: int = Field(
        512 * 1024 * 1024, ge=1024, le=2**40, description="Bytes of all request bodies in memory."
    )
    max_image_pixels: int = Field(
        50_000_000, ge=256, le=170_000_000, description="Pixels of one image, before decoding."
    )
    scaled_decoding: bool = Field(
        True, description="Decode JPEGs much larger than the network input at 1/2, 1/4 or 1/8."
    )
    body_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Seconds for a request body to arrive."
    )
    request_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="Seconds from the whole body to the answer."
    )
    self_test_interval_s: float = Field(
        60.0,
        ge=0,
        le=86400,
        description="Seconds between runs of a known image, which make a model that goes blind "
        "not ready; 0 for none.",
    )
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        le=600,
        description="Seconds after SIGTERM in which requests are still taken, so that load "
        "balancers can see that the service is not ready any more.",
    )
    shutdown_timeout_s: int = Field(
        20, ge=1, le=3600, description="Seconds that admitted requests get after SIGTERM."
    )
    api_keys_file: Path | None = Field(
        None,
        description="A file with one API key per line; requests must then bring one. Probes and "
        "the API's description stay open.",
    )
    rate_limit_per_s: float | None = Field(
        None,
        ge=0.001,
        le=1e6,
        description="Requests per second of one API key, or of one address without keys; more get "
        "429.",
    )
    rate_limit_burst: int = Field(
        20, ge=1, le=1_000_000, description="Requests that a client may send at once before that."
    )
    trusted_proxies: _Names = Field(
        (),
        description="Addresses or networks of proxies whose X-Forwarded-For is believed; separated "
        "by commas.",
    )
    cors_origins: _Names = Field(
        (),
        description="Origins of web pages that may call the API, such as https://example.org; "
        "separated by commas.",
    )
    log_format: Literal["text", "json"] = Field("text", description="How log lines are written.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="The least that is logged: info has a line per request, warning only failures.",
    )
    otlp_endpoint: str | None = Field(
        None,
        description="OTLP/HTTP receiver that gets traces, such as http://localhost:4318; needs the "
        "extra `otel`.",
    )

    @field_validator("port", mode="before")
    @classmethod
    def _not_a_service_link(cls, port: object) -> object:
        if isinstance(port, str) and port.startswith("tcp://"):
            raise ValueError(
                f"received {port!r}, which Kubernetes sets beside a Service named 'centernet'; "
                "set enableServiceLinks: false in the pod, or name the Service otherwise"
            )
        return port

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            ipaddress.ip_network(proxy)  # its ValueError says what is wrong with which
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

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_a_url(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
            raise ValueError(f"received {endpoint!r}; it looks like http://localhost:4318")
        return endpoint

    @model_validator(mode="after")
    def _what_to_build_is_known(self) -> Self:
        if self.build_engines and not self.backend.startswith("tensorrt"):
            raise ValueError(
                f"build_engines needs the backend tensorrt or tensorrt-rtx, not {self.backend}"
            )
        return self

    @model_validator(mode="after")
    def _no_unknown_variables(self) -> Self:
        known = {PREFIX + name.upper() for name in type(self).model_fields}
        unknown = sorted(
            name
            for name in os.environ
            if name.upper().startswith(PREFIX)
            and name.upper() not in known
            and not _SERVICE_LINK.fullmatch(name)
        )
        if unknown:
            raise ValueError(
                f"unknown variables in the environment: {', '.join(unknown)}; "
                f"there are {', '.join(sorted(known))}"
            )
        return self
