"""Let MMEngine write the checkpoint of this directory, after an epoch of one image."""

import lzma
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from make_goldens import DIRECTORY, PROJECT, read_config
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch.utils.data import DataLoader, Dataset

NETWORK = "centernet_r18_dcnv2"


class OneImage(Dataset):
    """A sample image with one box."""

    metainfo = CocoDataset.METAINFO

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, object]:
        pixels = cv2.imread(str(PROJECT / "docs/samples/people/people_1.jpg"))
        sample = DetDataSample(
            metainfo={"img_shape": pixels.shape[:2], "pad_shape": pixels.shape[:2]},
            gt_instances=InstanceData(
                bboxes=torch.tensor([[20.0, 30.0, 90.0, 200.0]]), labels=torch.tensor([0])
            ),
        )
        inputs = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return {"inputs": inputs, "data_samples": sample}


def main() -> None:
    """Write ``checkpoints/NETWORK.pth.xz``."""
    register_all_modules()
    config = read_config(NETWORK)
    model = MODELS.build(config.model)
    with torch.no_grad():  # zeros take no space; the tests replace them
        for parameter in model.parameters():
            parameter.zero_()
    model.init_weights = lambda: None  # the runner would initialize the network again
    with tempfile.TemporaryDirectory() as directory:
        runner = Runner(
            model=model,
            work_dir=directory,
            train_dataloader=DataLoader(OneImage(), collate_fn=pseudo_collate),
            train_cfg={"by_epoch": True, "max_epochs": 1},
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 1e-12}},
            param_scheduler={"type": "MultiStepLR", "milestones": [1]},
            default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1}},
            default_scope="mmdet",
            cfg=config,
        )
        runner.train()
        content = (Path(directory) / "epoch_1.pth").read_bytes()
    stored = DIRECTORY / "checkpoints" / f"{NETWORK}.pth.xz"
    stored.parent.mkdir(exist_ok=True)
    stored.write_bytes(lzma.compress(content))
    print(stored, stored.stat().st_size, "of", len(content), "bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
