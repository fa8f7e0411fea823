"""Draw the detections of the bundled models on sample images, for the README.

python -m docs.generate_detections_image docs/detections.png
"""

import sys
from pathlib import Path

from PIL import Image

from client.command.package_backend import PackageBackend
from client.drawing import draw_birds_eye, draw_detections
from client.protocol import DetectOptions
from client.results import DetectionResult

PROJECT = Path(__file__).parents[1]
SAMPLES = PROJECT / "docs" / "samples"
ROAD = SAMPLES / "road_scenes"
GAP_PX = 8


def main() -> None:
    """Write the image to the path that is the only argument."""
    smear, _ = drawn("blood_cells", SAMPLES / "blood_smear_1.jpg")
    camera = (ROAD / "calib" / "road_0002.txt").read_text().split()[1:13]
    options: DetectOptions = {"projection": [float(value) for value in camera]}
    road, result = drawn("road_vehicles", ROAD / "image_2" / "road_0002.jpg", options)
    above = draw_birds_eye(result.detections, road.height, range_m=30)
    people = [drawn("people", SAMPLES / "people" / f"people_{n}.jpg")[0] for n in (1, 2, 3)]

    left, width = smear.width + GAP_PX, 3 * people[0].width + 2 * GAP_PX
    sheet = Image.new("RGB", (left + width, smear.height), "white")
    sheet.paste(smear, (0, 0))
    sheet.paste(road, (left, 0))
    sheet.paste(above, (left + width - above.width, 0))
    for index, person in enumerate(people):
        position = left + index * (person.width + GAP_PX), smear.height - person.height
        sheet.paste(person, position)
    sheet.save(sys.argv[1], optimize=True)


def drawn(
    model: str, path: Path, options: DetectOptions | None = None
) -> tuple[Image.Image, DetectionResult]:
    """Return an image with the detections of a bundled model, and the detections."""
    backend = PackageBackend(PROJECT / "models" / model, options or {})
    result = backend.detect(path.read_bytes())
    described = backend.model
    with Image.open(path) as image:
        annotated = draw_detections(
            image,
            result.detections,
            skeleton=described.skeleton,
            keypoint_names=described.keypoints,
        )
    backend.close()
    return annotated, result


if __name__ == "__main__":
    main()
