"""Let Lightning write the checkpoint of this directory, after a step of training on one image.

Run it with the root of the project and ``tests`` in ``PYTHONPATH``, in an environment of its own
with ``lightning``; the file is of version 2.6.6.
"""

import lzma
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from support.checkpoints import UpstreamNames
from torch import Tensor
from torch.utils.data import DataLoader

from model_export.architectures import ARCHITECTURES, box_head_channels

DIRECTORY = Path(__file__).parent
ARCHITECTURE = "res_18_slim"


class Detector(lightning.LightningModule):
    """A network with hyperparameters, an optimizer and a schedule."""

    def __init__(self, classes: list[str], lr: float = 1e-12) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        network = ARCHITECTURES[ARCHITECTURE].build(box_head_channels(len(classes)))
        self.model = UpstreamNames(network)

    def training_step(self, images: Tensor) -> Tensor:
        loss = sum(maps.square().mean() for maps in self.model(images).values())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), self.lr)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, step_size=1),
        }


def main() -> None:
    """Write ``ARCHITECTURE.ckpt.xz``."""
    detector = Detector(["circle", "square", "triangle"])
    with tempfile.TemporaryDirectory() as directory:
        trainer = lightning.Trainer(
            default_root_dir=directory,
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            callbacks=[
                ModelCheckpoint(directory, monitor="loss"),
                EMAWeightAveraging(update_every_n_steps=1),
            ],
        )
        trainer.fit(detector, DataLoader(torch.rand(1, 3, 64, 64)))
        path = Path(directory) / "stored.ckpt"
        checkpoint = trainer._checkpoint_connector.dump_checkpoint()
        trainer.strategy.save_checkpoint(_stored(checkpoint, directory), path)
        content = path.read_bytes()
    stored = DIRECTORY / f"{ARCHITECTURE}.ckpt.xz"
    stored.write_bytes(lzma.compress(content))
    print(stored, stored.stat().st_size, "of", len(content), "bytes", file=sys.stderr)


def _stored(value: object, directory: str) -> Any:
    """Copy ``value`` without paths, and with zeros in tensors; the tests replace the weights."""
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    if isinstance(value, str):
        return value.replace(directory, "run")
    if isinstance(value, dict):
        items = ((_stored(key, directory), _stored(item, directory)) for key, item in value.items())
        return type(value)(items)
    if isinstance(value, list | tuple):
        return type(value)(_stored(item, directory) for item in value)
    return value


if __name__ == "__main__":
    main()
