"""Make the goldens of this directory with MMDetection; see README.md.

Usage: python tests/mmdetection/make_goldens.py NETWORK...; OPERATORS is the directory in which the
operators are built.
"""

import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

DIRECTORY = Path(__file__).parent
PROJECT = DIRECTORY.parents[1]
sys.path.insert(0, str(DIRECTORY.parent))

from mmdetection import mmcv_operators  # noqa: E402
from mmdetection.weights import weights_of  # noqa: E402

mmcv_operators.install(Path(os.environ.get("OPERATORS", "build/mmcv_operators")).resolve())

import mmdet  # noqa: E402
from mmcv.transforms import Compose  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

CONFIGS = {
    "centernet_r18": "centernet/centernet_r18_8xb16-crop512-140e_coco.py",
    "centernet_r18_dcnv2": "centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py",
    "cornernet_hourglass104": "cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py",
}
IMAGES = ("people/people_1.jpg", "blood_smear_1.jpg")
NETWORK_IMAGES = {"cornernet_hourglass104": IMAGES[:1]}


def read_config(network: str) -> Config:
    """Return MMDetection's configuration, without the download of a pretrained backbone."""
    config = Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs" / CONFIGS[network])
    config.model.backbone.pop("init_cfg", None)
    return config


def build(config: Config, network: str) -> tuple[torch.nn.Module, dict[str, tuple[int, ...]]]:
    """Return the network with the weights of the rule, and the shapes of its tensors."""
    model = MODELS.build(config.model).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    state = {key: torch.from_numpy(value) for key, value in weights_of(network, shapes).items()}
    model.load_state_dict(state)
    return model, shapes


def detect(model: torch.nn.Module, pipeline: Compose, image: Path) -> dict[str, NDArray[Any]]:
    """Return the detections of MMDetection's test for an image, as rows of box, score, label."""
    data = pipeline({"img_path": str(image), "img_id": 0, "instances": []})
    batch = {"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]}
    with torch.no_grad():
        (sample,) = model.test_step(batch)
    pixels = cv2.imread(str(image))
    return {
        "image": np.array(str(image.relative_to(PROJECT))),
        "image_crc32": np.array(f"{zlib.crc32(pixels.tobytes()):08x}"),
        "final": rows_of(sample.pred_instances),
    }


def corner_head() -> dict[str, NDArray[Any]]:
    """Return random maps of CornerNet's head for an image of 100 x 90, and their detections."""
    config = read_config("cornernet_hourglass104").model
    head = MODELS.build(
        {**config.bbox_head, "num_classes": 2, "in_channels": 4, "test_cfg": config.test_cfg}
    )
    rng = np.random.default_rng(0)
    channels = {"tl_heat": 2, "br_heat": 2, "tl_emb": 1, "br_emb": 1, "tl_off": 2, "br_off": 2}
    maps = {
        name: rng.standard_normal((1, count, 32, 32)).astype(np.float16)
        for name, count in channels.items()
    }
    meta = {"batch_input_shape": (127, 127), "border": np.array([18, 108, 13, 113], np.float32)}
    tensors = [[torch.from_numpy(values.astype(np.float32))] for values in maps.values()]
    (found,) = head.predict_by_feat(*tensors, batch_img_metas=[meta])
    return {**maps, "final": rows_of(found)}


def rows_of(found: InstanceData) -> NDArray[np.float32]:
    """Return rows of box, score and label."""
    rows = [found.bboxes.numpy(), found.scores.numpy(), found.labels.numpy()]
    return np.column_stack(rows).astype(np.float32)


def main() -> None:
    """Write the golden of the corner head, and manifest and goldens of the networks named."""
    register_all_modules()
    np.savez_compressed(DIRECTORY / "goldens/corner_head.npz", **corner_head())
    for network in sys.argv[1:]:
        config = read_config(network)
        model, shapes = build(config, network)
        manifest = DIRECTORY / "manifests" / f"{network}.json"
        manifest.parent.mkdir(exist_ok=True)
        manifest.write_text(json.dumps(shapes, separators=(",", ":")) + "\n")
        pipeline = Compose(config.test_dataloader.dataset.pipeline)
        for name in NETWORK_IMAGES.get(network, IMAGES):
            image = PROJECT / "docs/samples" / name
            golden = detect(model, pipeline, image)
            path = DIRECTORY / "goldens" / f"{network}_{image.stem}.npz"
            path.parent.mkdir(exist_ok=True)
            np.savez_compressed(path, **golden)
            rows = golden["final"]
            print(network, image.stem, len(rows), rows[:, 4].max(), rows[:, 4].min(), rows[0])


if __name__ == "__main__":
    main()
