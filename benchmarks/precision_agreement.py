"""How much detections change in lower precisions, and in fp32 if the image changes imperceptibly.

    python -m benchmarks.precision_agreement models/blood_cells --images data/bccd/images

The reference is ONNX Runtime in fp32 on images resized bicubically. The changes of the image are
those that clients make unknowingly: another interpolation, JPEG compression, brightness. The limits
of ``labels/output_agreement.py`` are meant to be of the order of these changes.

Prints one row per change or engine, for detections from the score threshold of the model: how many
are within the limits of bf16 and of int8; of matched detections (same class, IoU of 0.5), the
median, the 90th percentile and the maximum of the differences; and the largest difference of a
sorted score, in groups of four images, of which the median is printed, and in all images.
"""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.cpu import CPU_ENGINES_WITH_INT8, describe_cpu
from evaluation.report import markdown_row, markdown_table
from labels.matching import box_iou, match_boxes
from labels.output_agreement import AGREEMENT_LIMITS, combine_agreements, compare_outputs
from labels.outputs import Outputs, boxes_in_cells
from model_package import load_package
from service.decoders.center_boxes_3d import decode_alphas
from service.engines import Engine, EngineUnavailableError, open_engine

Pixels = NDArray[np.uint8]
Preparation = Callable[[Image.Image, tuple[int, int]], Pixels]
"""Makes the network input of an image, given its width and height."""

MIN_IOU = 0.5
GROUP = 4
"""Images of a package's references at most, which the self-test compares."""


def bicubic(image: Image.Image, size: tuple[int, int]) -> Pixels:
    return np.array(image.resize(size, Image.Resampling.BICUBIC), np.uint8)


def bilinear(image: Image.Image, size: tuple[int, int]) -> Pixels:
    return np.array(image.resize(size, Image.Resampling.BILINEAR), np.uint8)


def compressed(image: Image.Image, size: tuple[int, int]) -> Pixels:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return bicubic(Image.open(buffer), size)


def brighter(image: Image.Image, size: tuple[int, int]) -> Pixels:
    return np.minimum(bicubic(image, size), 253) + np.uint8(2)


CHANGES: dict[str, Preparation] = {
    "fp32, bilinear instead of bicubic": bilinear,
    "fp32, JPEG of quality 90": compressed,
    "fp32, brighter by 2 of 255": brighter,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("package", type=Path, metavar="PACKAGE")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=80, help="images, the first by name")
    args = parser.parse_args()
    package = load_package(args.package)
    suffixes = (".jpg", ".jpeg", ".png")
    paths = sorted(path for path in args.images.iterdir() if path.suffix.lower() in suffixes)
    paths = paths[: args.count]
    if not paths:
        sys.exit(f"{args.images} has no images.")
    reference_engine = open_engine(package, "onnxruntime-cpu", 1)
    spec = package.manifest.input
    size = spec.width_px, spec.height_px
    reference = run(reference_engine, paths, bicubic, size)
    threshold = package.manifest.decoder.score_threshold
    print(f"{describe_cpu()}; {package.manifest.name}, {len(paths)} images of {args.images}, "
          f"scores from {threshold:g}\n")  # fmt: skip
    names = differences(reference[0], reference[0], threshold)
    columns = ["", "detections", "within bf16", "within int8", *names]
    print(markdown_table([*columns, f"sorted scores, {GROUP} images", "sorted scores, all"]))
    for name, prepare in CHANGES.items():
        print_row(name, reference, run(reference_engine, paths, prepare, size), threshold)
    for backend, precision in list(CPU_ENGINES_WITH_INT8.values())[1:]:
        try:
            engine = open_engine(package, backend, 1, precision=precision)
        except EngineUnavailableError as error:
            print(f"{backend}, {precision}: {error}", file=sys.stderr)
            continue
        found = run(engine, paths, bicubic, size)
        print_row(f"{precision}, {backend}", reference, found, threshold)
        engine.close()


def run(
    engine: Engine, paths: Sequence[Path], prepare: Preparation, size: tuple[int, int]
) -> list[Outputs]:
    """Return the outputs of each image, without the batch axis."""
    outputs = []
    for path in paths:
        with Image.open(path) as image:
            pixels = prepare(image.convert("RGB"), size)
        outputs.append({name: one[0] for name, one in engine.run(pixels[np.newaxis]).items()})
    return outputs


def print_row(
    name: str, reference: Sequence[Outputs], found: Sequence[Outputs], threshold: float
) -> None:
    pairs = list(zip(reference, found, strict=True))
    shares = []
    for precision in ("bf16", "int8"):
        limits = AGREEMENT_LIMITS[precision]
        agreement = combine_agreements(
            [compare_outputs(*pair, limits, threshold) for pair in pairs]
        )
        shares.append(f"{agreement.matched_fraction:.1%}")
    by_image = [differences(*pair, threshold) for pair in pairs]
    quantiles = []
    for key in by_image[0]:
        values = np.concatenate([one[key] for one in by_image])
        quantiles.append(", ".join(f"{one:.2g}" for one in np.quantile(values, (0.5, 0.9, 1))))
    errors = np.array([score_error(*pair) for pair in pairs])
    groups = [errors[start : start + GROUP].max() for start in range(0, len(errors), GROUP)]
    largest = f"{np.median(groups):.2g}", f"{errors.max():.2g}"
    print(markdown_row([name, agreement.compared, *shares, *quantiles, *largest]), flush=True)


def differences(
    reference: Outputs, found: Outputs, threshold: float
) -> dict[str, NDArray[np.float64]]:
    """Return the differences of matched detections, in the units of ``AgreementLimits``."""
    boxes = boxes_in_cells(reference), boxes_in_cells(found)
    assert boxes[0] is not None
    assert boxes[1] is not None
    rows, columns = match_boxes(
        *(boxes[0], reference["class_ids"]), *(boxes[1], found["class_ids"]), MIN_IOU
    )
    is_counted = reference["scores"][rows] >= threshold
    rows, columns = rows[is_counted], columns[is_counted]
    before = {name: values[rows].astype(np.float64) for name, values in reference.items()}
    after = {name: values[columns].astype(np.float64) for name, values in found.items()}
    iou = box_iou(boxes[0][rows], boxes[1][columns]).diagonal()
    errors = {"scores": np.abs(after["scores"] - before["scores"]), "1 - IoU": 1 - iou}
    for name in ("depths", "dimensions", "rotations"):
        if name in before:
            expected = before[name].reshape(len(rows), -1)
            error = np.abs(after[name].reshape(expected.shape) - expected).max(axis=1)
            errors[name] = error / np.maximum(1, np.abs(expected).max(axis=1))
    if "rotations" in before:
        turns = decode_alphas(after["rotations"]) - decode_alphas(before["rotations"])
        errors["angles (rad)"] = np.abs((turns + np.pi) % (2 * np.pi) - np.pi)
    if "keypoints" in before:
        sides = (boxes[0][:, 2:] - boxes[0][:, :2])[rows].max(axis=1)
        distances = np.abs(after["keypoints"] - before["keypoints"]).max(axis=2)
        errors["keypoints"] = (distances / sides[:, np.newaxis]).ravel()
    return errors


def score_error(reference: Outputs, found: Outputs) -> float:
    """Return the largest difference of the sorted scores."""
    return float(np.abs(np.sort(reference["scores"]) - np.sort(found["scores"])).max())


if __name__ == "__main__":
    main()
