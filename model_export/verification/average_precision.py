"""Average precision (AP) of ONNX files on labelled images, measured by ``centernet-eval``'s code.

The extras ``serve`` and ``eval`` contain the libraries that this needs besides those of the export.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import EvaluationError
from evaluation.ground_truth import GroundTruth, check_images, map_to_classes
from evaluation.label_readers import read_ground_truth
from evaluation.local_model import LocalModel, describe_model
from evaluation.tasks import average_precisions, choose_sigmas, choose_task
from model_export.errors import ImagesError
from model_export.verification.ap_limits import AveragePrecisions
from model_package import ModelManifest, draft_package

_ONNX_FILE = "model.onnx"


@dataclass(frozen=True)
class LabelledImages:
    """Labels with the class ids of a model; ``sigmas``: those of the keypoints of poses."""

    ground_truth: GroundTruth
    sigmas: NDArray[np.float64] | None

    def count_objects(self) -> dict[str, int]:
        """Return the number of labelled objects by class, without crowds."""
        coco = self.ground_truth.coco
        names = {category["id"]: category["name"] for category in coco["categories"]}
        labels = (label for label in coco["annotations"] if not label["iscrowd"])
        return dict(Counter(names[label["category_id"]] for label in labels))


def read_labels(annotations: Path, directory: Path, manifest: ModelManifest) -> LabelledImages:
    """Read the labels of the model's classes and task; ``directory`` has the images.

    ``annotations``: a COCO file, or a directory of Pascal VOC or KITTI files. Raises
    :class:`ImagesError`.
    """
    model = describe_model(manifest, "")
    try:
        ground_truth = read_ground_truth(annotations, directory)
        check_images(ground_truth)
        task = choose_task(None, model, ground_truth)
        ground_truth = map_to_classes(ground_truth, model.classes)
        sigmas = choose_sigmas(None, model, ground_truth) if task == "poses" else None
    except EvaluationError as error:
        raise ImagesError(f"{annotations}: {error}") from error
    if task == "poses" and sigmas is None:
        raise ImagesError(
            f"{annotations} has no sigmas for the {len(model.keypoints)} keypoints of the model: "
            'add "sigmas" to the category, one number per keypoint.'
        )
    return LabelledImages(ground_truth, sigmas)


def measure_average_precision(
    onnx_file: bytes, manifest: ModelManifest, labelled: LabelledImages
) -> AveragePrecisions:
    """Measure the APs of a serialized graph in ONNX Runtime on the CPU.

    Images are processed as the service processes them. Raises :class:`ImagesError` for images that
    cannot be read, and for labels without an object that counts.
    """
    images = labelled.ground_truth.images
    with TemporaryDirectory(prefix="average-precision-") as parent:
        # As the float32 file of a package: the backend refuses the other precisions.
        with draft_package(Path(parent, "package")) as draft:
            (draft.directory / _ONNX_FILE).write_bytes(onnx_file)
            artifacts = (draft.describe_artifact(_ONNX_FILE),)
            changes = {"artifacts": artifacts, "references": None}
            package = draft.publish(manifest.model_copy(update=changes))
        try:
            model = LocalModel(package.directory, backend="onnxruntime-cpu", precision="fp32")
            detections = model.detect(images, lambda: None).detections
        except EvaluationError as error:
            raise ImagesError(str(error)) from error
    metrics = average_precisions(model.model, labelled.ground_truth, detections, labelled.sigmas)
    for name, aps in metrics.items():
        if aps["all"] != aps["all"]:  # NaN
            raise ImagesError(f"the labels have no object that counts for the AP of {name}.")
    return metrics
