"""Replacement test: a model is replaced many times under load, with damaged packages in between.

    python -m benchmarks.endurance.model_replacement --count 100

The versions alternate between two packages that differ in their scores, by which each response is
checked: it must have the detections of the version that it states. Before each replacement, a newer
package with a damaged file must be refused. Memory growth is the slope of a line fitted after the
first quarter, which is the warm-up.
Prints Markdown; the exit status is 1 if a request was lost or wrong, if a damaged package was
loaded, or if something grew.
"""

import argparse
import itertools
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.endurance.report import Check, exit_with_checks
from benchmarks.endurance.service import BUNDLED, IMAGES, ProcessState, Service, run_service
from evaluation.report import markdown_row, markdown_table
from model_package import ModelManifest, OnnxArtifact, draft_package, load_package

NAME = "replaced"
FACTORS = (1.0, 0.5)
"""Factors of the scores of the two packages."""
SCORE_TOLERANCE = 1e-3
CLIENTS = 4
STEADY_S = 10.0
SETTLE_S = 20.0
"""Idle keep-alive connections are closed within this time."""
MAX_GROWTH_MIB = 16.0


def write_package(directory: Path, version: int) -> None:
    """Publish the fp32 network of the bundled package; the version decides the factor."""
    package = load_package(BUNDLED)
    factor = FACTORS[version % len(FACTORS)]
    (source,) = (
        artifact
        for artifact in package.manifest.artifacts
        if isinstance(artifact, OnnxArtifact) and artifact.precision == "fp32"
    )
    with draft_package(directory) as draft:
        model = onnx.load(package.path_of(source))
        _scale_scores(model.graph, factor)
        onnx.save(model, draft.directory / "model.onnx")
        decoder = package.manifest.decoder
        threshold = factor * decoder.score_threshold
        manifest: ModelManifest = package.manifest.model_copy(
            update={
                "name": NAME,
                "version": str(version),
                "artifacts": (draft.describe_artifact("model.onnx"),),
                "decoder": decoder.model_copy(update={"score_threshold": threshold}),
                "references": None,
            }
        )
        draft.publish(manifest)


def _scale_scores(graph: Any, factor: float) -> None:
    for node in graph.node:
        for index, output in enumerate(node.output):
            if output == "scores":
                node.output[index] = "scores/unscaled"
    graph.initializer.append(numpy_helper.from_array(np.float32(factor), "scores/factor"))
    graph.node.append(helper.make_node("Mul", ["scores/unscaled", "scores/factor"], ["scores"]))


def damage(directory: Path) -> None:
    """Change one byte in the middle of the ONNX file."""
    with (directory / "model.onnx").open("r+b") as file:
        file.seek((directory / "model.onnx").stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0xFF]))


@dataclass
class Results:
    """What the clients received in one phase."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    wrong: int = 0


class Clients:
    """Clients that send images without a pause and check every response.

    ``expected``: the scores of the first package, by image.
    """

    def __init__(self, url: str, expected: Mapping[Path, list[float]]) -> None:
        self._url = url
        self._expected = expected

    @contextmanager
    def sending(self) -> Iterator[Results]:
        """Send during the block."""
        results, ended = Results(), threading.Event()
        with ThreadPoolExecutor(CLIENTS) as threads:
            futures = [
                threads.submit(self._send, results, ended, start) for start in range(CLIENTS)
            ]
            try:
                yield results
            finally:
                ended.set()
        for future in futures:
            future.result()

    def _send(self, results: Results, ended: threading.Event, start: int) -> None:
        bodies = [(path, path.read_bytes()) for path in IMAGES]
        with httpx.Client(base_url=self._url, timeout=60) as client:
            for path, body in itertools.islice(itertools.cycle(bodies), start, None):
                if ended.is_set():
                    return
                began_at = time.perf_counter()
                try:
                    response = client.post("/detect", content=body)
                except httpx.TransportError:
                    results.lost += 1
                    continue
                results.latencies_s.append(time.perf_counter() - began_at)
                results.statuses[response.status_code] += 1
                if response.status_code == 200:
                    self._check(results, path, response.json())

    def _check(self, results: Results, path: Path, body: Mapping[str, Any]) -> None:
        version = body["model"]["version"]
        results.versions[version] += 1
        factor = FACTORS[int(version) % len(FACTORS)]
        scores = [detection["score"] for detection in body["detections"]]
        expected = self._expected[path]
        is_right = len(scores) == len(expected) and np.allclose(
            scores, factor * np.array(expected), rtol=0, atol=SCORE_TOLERANCE
        )
        results.wrong += not is_right


def expected_scores(url: str, version: int) -> dict[Path, list[float]]:
    """Return the scores of the detections in each image, divided by the factor of the version."""
    factor = FACTORS[version % len(FACTORS)]
    with httpx.Client(base_url=url, timeout=60) as client:
        return {
            path: [
                detection["score"] / factor
                for detection in client.post("/detect", content=path.read_bytes()).json()[
                    "detections"
                ]
            ]
            for path in IMAGES
        }


@dataclass
class Replacements:
    """What the replacements did: memory after each, seconds of each, and failures."""

    states: list[ProcessState] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    not_replaced: int = 0
    not_refused: int = 0


def replace(service: Service, url: str, models: Path, count: int) -> Replacements:
    """Replace the model ``count`` times, each time after the refusal of a damaged package."""
    result = Replacements()
    with httpx.Client(base_url=url, timeout=600) as client:
        for version in range(2, count + 2):
            damaged = models / "damaged"
            write_package(damaged, 1_000_000 + version)
            damage(damaged)
            refusal = client.post(f"/v2/repository/models/{NAME}/load", json={})
            result.not_refused += refusal.status_code == 200 or "error" not in refusal.json()
            shutil.rmtree(damaged)
            write_package(models / str(version), version)
            began_at = time.monotonic()
            response = client.post(f"/v2/repository/models/{NAME}/load", json={})
            result.seconds.append(time.monotonic() - began_at)
            served = client.get(f"/models/{NAME}").json()["version"]
            result.not_replaced += response.status_code != 200 or served != str(version)
            shutil.rmtree(models / str(version - 1))
            result.states.append(service.state())
            if len(result.states) % 10 == 0:
                print(f"{len(result.states)} of {count} replacements", file=sys.stderr)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steady-seconds", type=float, default=STEADY_S)
    parser.add_argument(
        "--max-batch-size", type=int, default=8, help="a small one shortens the warm-up"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        write_package(models / "1", 1)
        options = ("--model-control", "explicit", "--max-batch-size", str(args.max_batch_size))
        with run_service(*options, package=models) as service:
            url = f"http://127.0.0.1:{service.port}"
            clients = Clients(url, expected_scores(url, 1))
            with clients.sending() as before:
                time.sleep(args.steady_seconds)
            time.sleep(SETTLE_S)
            idle_before = service.state()
            with clients.sending() as during:
                replacements = replace(service, url, models, args.count)
            time.sleep(SETTLE_S)
            idle_after = service.state()
            with clients.sending() as after:
                time.sleep(args.steady_seconds)
    report(
        {"before": before, "during the replacements": during, "after": after},
        replacements,
        idle_before,
        idle_after,
    )


def report(
    phases: Mapping[str, Results],
    replacements: Replacements,
    before: ProcessState,
    after: ProcessState,
) -> None:
    print(markdown_table(["", "requests", "versions", "p50 ms", "p99 ms", "longest ms"]))
    for name, phase in phases.items():
        p50, p99 = np.percentile(phase.latencies_s, [50, 99])
        figures = [f"{1000 * value:.0f}" for value in (p50, p99, max(phase.latencies_s))]
        print(markdown_row([name, len(phase.latencies_s), len(phase.versions), *figures]))
    median_s = np.median(replacements.seconds)
    print(f"\nmedian {median_s:.2f} s, longest {max(replacements.seconds):.2f} s per replacement\n")
    print(markdown_table(["after replacement", "memory MiB", "threads", "files"]))
    states = list(enumerate(replacements.states, start=1))
    chosen = [(str(number), state) for number, state in states[:: max(1, len(states) // 10)]]
    for label, state in [("idle before", before), *chosen, ("idle after", after)]:
        print(markdown_row([label, f"{state.memory_mib:.1f}", state.threads, state.files]))
    fitted = states[len(states) // 4 :]
    numbers = [number for number, _ in fitted]
    slope = np.polyfit(numbers, [state.memory_mib for _, state in fitted], 1)[0]
    growth_mib = slope * (numbers[-1] - numbers[0])
    not_200 = sum(
        count
        for phase in phases.values()
        for status, count in phase.statuses.items()
        if status != 200
    )
    exit_with_checks(
        [
            Check("requests without a response", sum(p.lost for p in phases.values()), max=0),
            Check("responses with another status than 200", not_200, max=0),
            Check("responses that are not those of their version", _wrong(phases), max=0),
            Check("replacements that did not take effect", replacements.not_replaced, max=0),
            Check("damaged packages that were not refused", replacements.not_refused, max=0),
            Check("fitted memory growth after the warm-up, MiB", growth_mib, -1e6, MAX_GROWTH_MIB),
            # The thread that loads packages.
            Check("additional threads", after.threads - before.threads, -1e6, 1),
            Check("additional open files", after.files - before.files, -1e6, 0),
        ]
    )


def _wrong(phases: Mapping[str, Results]) -> int:
    return sum(phase.wrong for phase in phases.values())


if __name__ == "__main__":
    main()
