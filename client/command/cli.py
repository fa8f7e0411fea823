"""The run of ``centernet-detect``: sources, detection in threads, outputs."""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from client.command.annotation import Annotation, check_unique
from client.command.arguments import DETECTION_OPTIONS, build_parser
from client.command.backends import Backend, ServiceBackend, concerns_the_image
from client.command.errors import CommandError
from client.command.outputs import (
    FORMATS,
    KittiOutput,
    Outcome,
    Output,
    read_progress,
)
from client.command.progress import Progress
from client.command.sources import IMAGE_SUFFIXES, Content, Item, Source, find_sources
from client.errors import ClientError
from client.ordered_map import ordered_map
from command_line.progress import progress_bar


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    args = build_parser().parse_args(arguments)
    try:
        status = run(args)
    except BrokenPipeError:
        # The reader closed the pipe (``| head``). Python flushes stdout once more at exit, which
        # would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 2
    except (CommandError, ClientError, OSError) as error:
        print(f"centernet-detect: error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


def run(args: argparse.Namespace) -> int:
    """Process all images; return the exit status."""
    _check_arguments(args)
    sources = find_sources(args.inputs)
    annotation = _annotation(args, sources)
    backend = _open_backend(args)
    limit = args.concurrency or backend.concurrency
    with _running(backend, limit) as threads:
        done = read_progress(args.output, backend.model) if args.resume else set()
        items = (item for source in sources for item in source.items(done))
        outcomes = ordered_map(threads, partial(_process, backend, annotation), items, limit)
        progress, is_interrupted = Progress(skipped=len(done)), False
        try:
            with ExitStack() as files:
                outputs = _open_outputs(args, annotation, backend, files)
                for outcome in _with_progress(outcomes, args, sources):
                    for output in outputs:
                        output.write(outcome)
                    progress.add(outcome)
        except KeyboardInterrupt:
            is_interrupted = True
        finally:
            if not args.quiet:
                print(progress.summary(), file=sys.stderr)
        if is_interrupted:
            # Ends at once, without waiting for requests, and tells the shell the cause.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    return 1 if progress.failed else 0


def _check_arguments(args: argparse.Namespace) -> None:
    if args.package is not None and args.model is not None:
        raise CommandError("--model names a model of a service, and --package is one: give one.")
    if args.format is None:
        is_table = args.output is None and sys.stdout.isatty()
        args.format = "text" if is_table else "jsonl"
    if args.format == "kitti" and args.output is None:
        raise CommandError("--format kitti writes a file per image: give a folder with --output.")
    if args.resume and (args.output is None or args.format != "jsonl"):
        raise CommandError("--resume continues a JSON Lines file: give it with --output.")
    if args.output is not None:
        _check_output(args.output, args.format, args.resume)


def _check_output(path: Path, output_format: str, resume: bool) -> None:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise CommandError(f"--output {path} is for detections: use --draw for annotated images.")
    if not path.parent.is_dir():
        raise CommandError(f"--output {path}: there is no folder {path.parent}")
    if output_format == "jsonl" and path.exists() and path.stat().st_size and not resume:
        raise CommandError(f"--output {path} exists: continue it with --resume, or delete it.")


def _annotation(args: argparse.Namespace, sources: Sequence[Source]) -> Annotation | None:
    if args.format == "kitti":
        names = [source.name.with_suffix("") for source in sources]
        check_unique(names, f"--output {args.output}")
    if args.draw is None:
        return None
    annotation = Annotation(args.draw, sources, birds_eye=args.birds_eye)
    if annotation.is_video and args.resume:
        raise CommandError("--resume: a video cannot be continued; give a folder with --draw.")
    return annotation


def _open_backend(args: argparse.Namespace) -> Backend:
    options: Any = {name: getattr(args, name) for name in DETECTION_OPTIONS}
    if args.package is None:
        return ServiceBackend(args.url, args.model, args.api_key, options)
    try:
        from client.command.package_backend import PackageBackend
    except ModuleNotFoundError as error:
        raise CommandError(
            f"--package: {error.name} is not installed. Install the package with the extra 'serve' "
            "or 'gpu': centernet-serving[serve]"
        ) from None
    return PackageBackend(args.package, options)


@contextmanager
def _running(backend: Backend, concurrency: int) -> Iterator[ThreadPoolExecutor]:
    threads = ThreadPoolExecutor(concurrency)
    try:
        yield threads
    finally:
        backend.stop()
        threads.shutdown(cancel_futures=True)
        backend.close()


def _process(backend: Backend, annotation: Annotation | None, item: Item) -> Outcome:
    """Detect in one image. Raises :class:`CommandError` if others would fail, too."""
    content: Content = b""
    try:
        content = item.load()
        result = backend.detect(content)
        drawing = None
        if annotation is not None:
            drawing = annotation.draw(item, content, result, backend.model)
    except ClientError as error:
        if not concerns_the_image(error):
            raise CommandError(f"{item.file}: {error}") from error
        return Outcome(item, None, error, annotation.plain(content) if annotation else None)
    return Outcome(item, result, None, drawing)


def _open_outputs(
    args: argparse.Namespace, annotation: Annotation | None, backend: Backend, files: ExitStack
) -> list[Output]:
    """Open the outputs; drawings first, so that a row in the file means that they are complete."""
    outputs = [] if annotation is None else [files.enter_context(closing(annotation.open()))]
    if args.format == "kitti":
        return [*outputs, KittiOutput(args.output)]
    if args.output is None:
        file: IO[str] = sys.stdout
        files.callback(sys.stdout.flush)
    else:
        file = files.enter_context(args.output.open("a" if args.resume else "w", newline=""))
    return [*outputs, files.enter_context(closing(FORMATS[args.format](file, backend.model)))]


def _with_progress(
    outcomes: Iterator[Outcome], args: argparse.Namespace, sources: Sequence[Source]
) -> Iterator[Outcome]:
    """Show the progress unless rows appear on the same terminal."""
    is_mixed = args.output is None and sys.stdout.isatty()
    if args.quiet or is_mixed:
        return outcomes
    counts = [source.count() for source in sources]
    total = None if None in counts else sum(count for count in counts if count is not None)
    return iter(progress_bar(iterable=outcomes, total=total, unit=" images", desc="detect"))
