"""Measure the tensor form of a model with perf_analyzer, beside Triton with the same ONNX file.

    python -m benchmarks.open_inference --environments DIR --output DIR

Triton is PyTriton with dynamic batching, which runs the ONNX file with the same ONNX Runtime; its
configurations are listed below, and the one with the highest throughput is kept. Then both servers
run and are measured in alternating turns; this service is paused during those of Triton. A turn
consists of a run of perf_analyzer for each concurrency. Both return the same outputs, or nothing is
measured. Writes results.json after each round, and results.md.

perf_analyzer is the binary of the package of that name on PyPI, which needs glibc 2.38.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from benchmarks.comparison.servers import (
    DEFAULT,
    SERVERS,
    Configuration,
    RunningServer,
    Server,
    ServerError,
    prepare_environment,
    run_server,
)
from benchmarks.cpu import describe_cpu
from benchmarks.open_inference.perf_analyzer import Measured, PerfAnalyzer
from benchmarks.open_inference.report import to_markdown
from benchmarks.open_inference.tensors import largest_difference, write_image
from model_package import load_package
from service.open_inference.models import TENSOR_SUFFIX

ENGINE = "onnxruntime-fp32"
TRITON = "triton"
MODEL_OF_TRITON = "network"
"""Name of the model in ``benchmarks/comparison/triton/server.py`` with the variant ``tensors``."""
TOLERANCE = 1e-4
"""Accepted difference between the outputs: sums are computed in another order in other batches."""
_RAW = ("Content-Type: application/octet-stream", "Inference-Header-Content-Length: 0")
_TRITON_CONFIGURATIONS = (
    Configuration(2, 1, 8, 0, "tensors"),
    Configuration(2, 1, 8, 1, "tensors"),
    Configuration(2, 1, 1, 0, "tensors"),
    Configuration(1, 2, 8, 0, "tensors"),
    Configuration(1, 2, 8, 1, "tensors"),
)


def servers_of(model: str) -> tuple[Server, Server]:
    """Return this service with its default settings, and Triton, for a package of that name."""
    local = Server(
        DEFAULT,
        [Configuration(0, 0, 0, 0, "defaults")],
        f"/v2/models/{model}{TENSOR_SUFFIX}/infer",
        SERVERS[DEFAULT].command,
        headers=_RAW,
    )
    triton = Server(
        TRITON,
        _TRITON_CONFIGURATIONS,
        f"/v2/models/{MODEL_OF_TRITON}/infer",
        SERVERS[TRITON].command,
        headers=_RAW,
        can_pause=False,
    )
    return local, triton


class Comparison:
    """The servers, and what was measured of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._package: Path = args.package.absolute()
        manifest = load_package(self._package).manifest
        self.local, self.triton = servers_of(manifest.name)
        self._models = {
            self.local.name: manifest.name + TENSOR_SUFFIX,
            self.triton.name: MODEL_OF_TRITON,
        }
        self._body = write_image(args.output / "image.bin", manifest.input)
        self._analyzer = PerfAnalyzer(args.perf_analyzer, args.output, args.seconds)
        self.throughputs: dict[str, float] = {}
        self.rounds: list[dict[str, list[Measured]]] = []

    def run(self) -> None:
        """Choose the configuration of Triton, then measure both in alternating turns."""
        configuration = self._tune()
        with ExitStack() as stack:
            triton = stack.enter_context(self._serve(self.triton, configuration))
            local = stack.enter_context(self._serve(self.local, self.local.configurations[0]))
            difference = largest_difference(local.target, triton.target)
            if difference > TOLERANCE:
                raise ServerError(f"the outputs of the servers differ by {difference:g}")
            local.pause()
            for number in range(self._args.rounds):
                turns = [(self.local, local), (self.triton, triton)]
                # The first of a round changes, in case one turn affects the next.
                self.rounds.append(
                    {
                        server.name: self._measure(server, running)
                        for server, running in turns[:: 1 if number % 2 else -1]
                    }
                )
                self._write(configuration, difference)
                _log(f"round {number + 1} of {self._args.rounds}: {self.rounds[-1]}")

    def _serve(
        self, server: Server, configuration: Configuration
    ) -> AbstractContextManager[RunningServer]:
        return run_server(
            server,
            configuration,
            ENGINE,
            prepare_environment(server, self._args.environments),
            self._package,
            [self._body],
            self._args.output / "logs",
        )

    def _tune(self) -> Configuration:
        """Return the configuration of Triton with the highest throughput."""
        rates: dict[Configuration, float] = {}
        for configuration in self.triton.configurations:
            try:
                with self._serve(self.triton, configuration) as running:
                    measured = self._measure(self.triton, running)
            except ServerError as error:  # another configuration may work
                _log(str(error))
                continue
            rates[configuration] = max(one.images_per_s for one in measured)
            _log(f"{self.triton.name} [{configuration}]: {rates[configuration]:.1f} images/s")
        if not rates:
            raise ServerError("Triton did not start with any configuration")
        self.throughputs = {str(key): rate for key, rate in rates.items()}
        return max(rates, key=rates.__getitem__)

    def _measure(self, server: Server, running: RunningServer) -> list[Measured]:
        with running.resumed() as target:
            return [
                self._analyzer.run(self._models[server.name], target.port, concurrency)
                for concurrency in self._args.concurrency
            ]

    def _write(self, configuration: Configuration, difference: float) -> None:
        names = (self.local.name, self.triton.name)
        document = {
            "cpu": describe_cpu(),
            "package": self._package.name,
            "triton": str(configuration),
            "triton_throughputs": self.throughputs,
            "largest_difference": difference,
            "rounds": [
                {name: [one._asdict() for one in measured] for name, measured in turns.items()}
                for turns in self.rounds
            ],
        }
        (self._args.output / "results.json").write_text(json.dumps(document, indent=1) + "\n")
        text = to_markdown(self.rounds, names)
        (self._args.output / "results.md").write_text(
            f"{describe_cpu()}; {self._package.name}; Triton with {configuration}\n\n{text}\n"
        )


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--package", type=Path, default=Path("models/blood_cells"))
    parser.add_argument("--environments", type=Path, required=True, help="virtual environments")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--seconds", type=float, default=4.0, help="of a run of perf_analyzer")
    parser.add_argument(
        "--perf-analyzer", type=shlex.split, default=["perf_analyzer"], help="its command"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = read_arguments(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(args)
    comparison.run()
    print((args.output / "results.md").read_text())


if __name__ == "__main__":
    main()
