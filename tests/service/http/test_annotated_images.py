"""The stated cost of drawing bounds the measured one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import json, sys, time
from pathlib import Path
import numpy as np
from support.serving import make_manifest
from support.tasks import POSES
from client.results import Detection, DetectionResult, Keypoint
from service.http.annotated_images import AnnotatedImage

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

width, height = 1920, 1080
count, share = int(sys.argv[1]), float(sys.argv[2])
corners = (Keypoint(1, 1, 1), Keypoint(share * width, share * height, 1))
box = (0.0, 0.0, share * width, share * height)
detections = (Detection(0, "red", 0.5, box, corners if share else ()),) * count
result = DetectionResult("m", "1", width, height, detections, {}, "", {})
image = AnnotatedImage(result, make_manifest(POSES), sys.argv[3])
pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
Path("/proc/self/clear_refs").write_text("5")
before, began_at = memory("VmRSS"), time.process_time()
image.draw(pixels)
cpu_s = time.process_time() - began_at
cost = image.cost
print(json.dumps([memory("VmHWM") - before, cpu_s, cost.memory_bytes, cost.cpu_s]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resets the peak of memory through /proc")
@pytest.mark.parametrize(
    ("count", "share", "media_type"),
    [(0, 0, "image/png"), (0, 0, "image/jpeg"), (5, 0.9, "image/png"), (300, 0.02, "image/png")],
)
def test_drawing_costs_no_more_than_stated(
    count: int, share: float, media_type: str, project: Path
) -> None:
    """CPU time of the process, with a second for other work on the machine."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(count), str(share), media_type],
        capture_output=True,
        cwd=project,
        env={"PYTHONPATH": f"{project}:{project / 'tests'}"},
        check=True,
    )
    memory, cpu_s, stated_memory, stated_s = json.loads(done.stdout)
    assert memory <= stated_memory
    assert cpu_s <= stated_s + 1
