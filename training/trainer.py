"""The training loop: recipe in, checkpoints in the authors' layout out."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from model_export.architectures import ARCHITECTURES, box_head_channels
from model_export.checkpoints.objects_as_points import to_checkpoint_key, to_network_key
from model_export.normalization import NORMALIZATIONS
from training.averaging import WeightAverage
from training.dataset import CocoSplit, EpochViews, ViewSettings, read_coco_split
from training.evaluation import evaluate
from training.initialization import initialize
from training.losses import center_losses
from training.recipe import Recipe

LAST_CHECKPOINT, BEST_CHECKPOINT, LOG_FILE = "last.pth", "best.pth", "epochs.jsonl"


class ResumeError(ValueError):
    """A checkpoint that does not belong to the recipe it should continue."""


class Trainer:
    """One run: network, optimizer, average of the weights, and where it stands."""

    def __init__(self, recipe: Recipe, output: Path) -> None:
        # Loader processes are forked: with OpenCV's threads started before, they would hang.
        cv2.setNumThreads(0)
        self._recipe = recipe
        self._output = output
        self._normalization = NORMALIZATIONS[recipe.normalization]
        data = recipe.data
        splits = [read_coco_split(path, data.images, recipe.classes) for path in data.train]
        self._images = [image for split in splits for image in split.images]
        self._validation: CocoSplit | None = None
        if data.validation is not None:
            self._validation = read_coco_split(data.validation, data.images, recipe.classes)
        torch.manual_seed(recipe.seed)
        heads = box_head_channels(len(recipe.classes))
        self.network: nn.Module = ARCHITECTURES[recipe.architecture].build(heads)
        initialize(self.network)
        # torch declares this argument only together with a tensor or a dtype.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = WeightAverage(self.network, recipe.schedule.average_decay)
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=recipe.schedule.learning_rate,
            weight_decay=recipe.schedule.weight_decay,
        )
        self._epoch = 0
        self._best_ap = -1.0

    def run(self) -> None:
        """Train the epochs that are left; writes checkpoints and a log line after each."""
        self._output.mkdir(parents=True, exist_ok=True)
        schedule = self._recipe.schedule
        while self._epoch < schedule.epochs:
            started = time.monotonic()
            entry: dict[str, Any] = {"epoch": self._epoch + 1, **self._train_epoch()}
            self._epoch += 1
            is_due = self._epoch % schedule.evaluate_every == 0 or self._epoch == schedule.epochs
            if is_due:
                entry.update(self._validate())
            entry["seconds"] = round(time.monotonic() - started, 1)
            self._save(self._output / LAST_CHECKPOINT, with_optimizer=True)
            with (self._output / LOG_FILE).open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")

    def _train_epoch(self) -> dict[str, float]:
        """One pass over the epoch's samples; returns mean losses and the last learning rate."""
        self.network.train()
        loader = self._loader()
        sums: dict[str, float] = {"heatmap": 0.0, "offset": 0.0, "size": 0.0}
        progress = tqdm(loader, desc=f"epoch {self._epoch + 1}", mininterval=5.0)
        for index, batch in enumerate(progress):
            rate = self._learning_rate(self._epoch * len(loader) + index, len(loader))
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            losses = self._step(batch)
            for name in sums:
                sums[name] += losses[name]
            progress.set_postfix(heatmap=f"{sums['heatmap'] / (index + 1):.3f}", refresh=False)
        return {name: total / len(loader) for name, total in sums.items()} | {"learning_rate": rate}

    def _step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        losses = center_losses(self.network(images), batch)
        self._optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(
            self.network.parameters(),
            self._recipe.schedule.gradient_clip,
            # A step taken on NaN would spoil every later checkpoint, so stop at once.
            error_if_nonfinite=True,
        )
        self._optimizer.step()
        self.average.update(self.network)
        return {
            name: float(getattr(losses, name).detach()) for name in ("heatmap", "offset", "size")
        }

    def _learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Linear warm-up, then half a cosine down to zero at the last step."""
        schedule = self._recipe.schedule
        if step < schedule.warmup_steps:
            return schedule.learning_rate * (step + 1) / schedule.warmup_steps
        total = schedule.epochs * steps_per_epoch
        done = (step - schedule.warmup_steps) / max(1, total - schedule.warmup_steps)
        return schedule.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))

    def _loader(self) -> DataLoader[dict[str, Tensor]]:
        recipe = self._recipe
        views = EpochViews(
            self._images,
            repeats=recipe.data.repeats,
            rendered=recipe.data.rendered_per_epoch,
            settings=ViewSettings(
                crop=recipe.train_crop,
                base_scale=recipe.input_width / recipe.picture_width,
                ranges=recipe.augmentation.ranges(),
                normalization=self._normalization,
                num_classes=len(recipe.classes),
            ),
            seed=recipe.seed,
            epoch=self._epoch,
        )
        order = torch.Generator().manual_seed(recipe.seed * 100_003 + self._epoch)
        return DataLoader(
            views,
            batch_size=recipe.schedule.batch_size,
            shuffle=True,
            generator=order,
            num_workers=recipe.loader_workers,
            drop_last=len(views) > recipe.schedule.batch_size,
        )

    def _validate(self) -> dict[str, Any]:
        """Score the averaged weights and keep them when they are the best so far."""
        if self._validation is None:
            self._save(self._output / BEST_CHECKPOINT, with_optimizer=False)
            return {}
        recipe = self._recipe
        size = (recipe.input_width, recipe.input_height)
        images, classes = self._validation.images, recipe.classes
        result = evaluate(self.average.network, images, classes, size, self._normalization)
        if result.ap > self._best_ap:
            self._best_ap = result.ap
            self._save(self._output / BEST_CHECKPOINT, with_optimizer=False)
        per_class = {"ap50_per_class": dict(result.ap50_per_class)}
        return {"ap": result.ap, "ap50": result.ap50, **per_class}

    def _save(self, path: Path, *, with_optimizer: bool) -> None:
        """Write tensors, numbers and strings only, so that a safe loader can read them."""
        checkpoint: dict[str, Any] = {
            "epoch": self._epoch,
            "state_dict": _to_authors(self.average.network),
            "recipe": self._recipe.model_dump_json(),
        }
        if with_optimizer:
            checkpoint["optimizer"] = self._optimizer.state_dict()
            checkpoint["unaveraged_state_dict"] = _to_authors(self.network)
            checkpoint["average_updates"] = self.average.updates
            checkpoint["best_ap"] = self._best_ap
        partial = path.with_suffix(".partial")
        torch.save(checkpoint, partial)
        partial.replace(path)

    def resume(self) -> None:
        """Continue from ``last.pth`` in the output directory.

        Raises :class:`ResumeError` when it was written by a different recipe, because the mixture
        could not be reproduced.
        """
        path = self._output / LAST_CHECKPOINT
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if checkpoint["recipe"] != self._recipe.model_dump_json():
            raise ResumeError(f"{path} was trained with another recipe; choose another --output")
        self.network.load_state_dict(_from_authors(checkpoint["unaveraged_state_dict"]))
        self.average.network.load_state_dict(_from_authors(checkpoint["state_dict"]))
        self.average.updates = checkpoint["average_updates"]
        self._optimizer.load_state_dict(checkpoint["optimizer"])
        self._epoch, self._best_ap = checkpoint["epoch"], checkpoint["best_ap"]


def _to_authors(network: nn.Module) -> dict[str, Tensor]:
    return {
        to_checkpoint_key(key): value.contiguous() for key, value in network.state_dict().items()
    }


def _from_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {to_network_key(key): value for key, value in state.items()}
