"""The training loop: configuration in, checkpoints in the upstream layout out."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from model_export.checkpoints.safe_load import read_state
from model_export.errors import CheckpointUnreadableError
from model_export.graph.normalization import NORMALIZATIONS
from training.average_precision import evaluate
from training.config import ConfigError, TrainConfig
from training.data.dataset import EpochViews, FixedViews, ViewSettings
from training.data.loading import read_images
from training.data.sample import AnnotatedImage
from training.deep_supervision import (
    build_network,
    load_pretrained,
    load_upstream_state_dict,
    predict_all,
    to_upstream_state_dict,
)
from training.ema import WeightAverage
from training.initialization import initialize
from training.objectives import OBJECTIVES
from training.tensorboard import TensorBoardLogger

LAST_CHECKPOINT, BEST_CHECKPOINT, LOG_FILE = "last.pth", "best.pth", "epochs.jsonl"

Batch = Mapping[str, Tensor]


class ResumeError(ValueError):
    """A checkpoint that does not belong to the configuration it should continue."""


class Trainer:
    """One run: network, optimizer, average of the weights, and where it stands.

    With ``resume`` it continues from ``last.pth`` in ``output``. Raises :class:`ResumeError` when
    that was written by a different configuration, because the mixture could not be reproduced, and
    :class:`ConfigError` when the configuration's images or its ``start`` cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        output: Path,
        *,
        device: str = "cpu",
        curves: TensorBoardLogger | None = None,
        resume: bool = False,
    ) -> None:
        # Loader processes are forked: with OpenCV's threads started before, they would hang.
        cv2.setNumThreads(0)
        self._config = config
        self._output = output
        self._device = torch.device(device)
        self._curves = curves
        self._objective = OBJECTIVES[config.task].reweighted(config.loss_weights)
        self._images = read_images(config, config.data.train)
        self._validation: Sequence[AnnotatedImage] = ()
        if config.data.validation is not None:
            self._validation = read_images(config, [config.data.validation])
        torch.manual_seed(config.seed)
        self.network = build_network(config.network, config.head_channels())
        initialize(self.network)
        if config.start is not None and not resume:
            self._take_over(config.start)
        # torch declares this argument only together with a tensor or a dtype.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.to(self._device)
        self.average = WeightAverage(self.network, config.schedule.average_decay)
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.schedule.learning_rate,
            weight_decay=config.schedule.weight_decay,
        )
        # Half precision pays on GPUs only; disabled, the scaler passes everything through.
        self._scaler = torch.amp.GradScaler(enabled=self._device.type == "cuda")
        self._epoch = 0
        self._best_score = -math.inf
        if resume:
            self._resume()

    def _take_over(self, checkpoint: Path) -> None:
        try:
            left = load_pretrained(self.network, self._config.network, read_state(checkpoint))
        except (CheckpointUnreadableError, ValueError) as error:
            raise ConfigError(f"start: {checkpoint}: {error}") from error
        print(f"Start from {checkpoint}; {', '.join(left) or 'no weight'} anew", flush=True)

    def run(self) -> None:
        """Train the epochs that are left; writes checkpoints and a log line after each."""
        self._output.mkdir(parents=True, exist_ok=True)
        schedule = self._config.schedule
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
            if self._curves is not None:
                self._curves.add(self._epoch, entry)

    def _train_epoch(self) -> dict[str, float]:
        """One pass over the epoch's samples; returns mean losses and the last learning rate."""
        self.network.train()
        loader = self._loader()
        sums = dict.fromkeys(self._objective.weights, 0.0)
        progress = tqdm(loader, desc=f"epoch {self._epoch + 1}", mininterval=5.0)
        shown = next(iter(sums))
        for index, batch in enumerate(progress):
            rate = self._learning_rate(self._epoch * len(loader) + index, len(loader))
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            losses = self._step(batch)
            for name in sums:
                sums[name] += losses[name]
            progress.set_postfix({shown: f"{sums[shown] / (index + 1):.3f}"}, refresh=False)
        return {name: total / len(loader) for name, total in sums.items()} | {"learning_rate": rate}

    def _step(self, batch: Batch) -> dict[str, float]:
        terms = self._terms(self.network, batch)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(self._objective.total(terms)).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(
            self.network.parameters(),
            self._config.schedule.gradient_clip,
            # A step taken on NaN would spoil every later checkpoint, so stop at once. In half
            # precision gradients overflow now and then; the scaler leaves such a step out.
            error_if_nonfinite=not self._scaler.is_enabled(),
        )
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.average.update(self.network)
        return {name: float(value.detach()) for name, value in terms.items()}

    def _terms(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The terms of the loss of one batch, averaged over the stacks."""
        batch = {name: value.to(self._device) for name, value in batch.items()}
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, enabled=self._scaler.is_enabled()):
            stacks = predict_all(network, images)
        each = [
            self._objective.terms({name: values.float() for name, values in maps.items()}, batch)
            for maps in stacks
        ]
        first, *others = each
        return {
            name: sum((terms[name] for terms in others), start=value) / len(each)
            for name, value in first.items()
        }

    def _learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Linear warm-up, then half a cosine down to zero at the last step."""
        schedule = self._config.schedule
        if step < schedule.warmup_steps:
            return schedule.learning_rate * (step + 1) / schedule.warmup_steps
        total = schedule.epochs * steps_per_epoch
        done = (step - schedule.warmup_steps) / max(1, total - schedule.warmup_steps)
        return schedule.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))

    def _loader(self) -> DataLoader[dict[str, Tensor]]:
        config = self._config
        views = EpochViews(
            self._images,
            repeats=config.data.repeats,
            rendered=config.data.rendered_per_epoch,
            settings=ViewSettings.of_training(config),
            seed=config.seed,
            epoch=self._epoch,
        )
        order = torch.Generator().manual_seed(config.seed * 100_003 + self._epoch)
        return DataLoader(
            views,
            batch_size=config.schedule.batch_size,
            shuffle=True,
            generator=order,
            num_workers=config.loader_workers,
            drop_last=len(views) > config.schedule.batch_size,
        )

    def _validate(self) -> dict[str, Any]:
        """Score the averaged weights and keep them when they are the best so far."""
        if not self._validation:
            self._save(self._output / BEST_CHECKPOINT, with_optimizer=False)
            return {}
        entry = self._average_precision() if self._config.task == "boxes" else self._fixed_losses()
        score = entry.get("ap", -entry.get("validation_loss", math.inf))
        if score > self._best_score:
            self._best_score = score
            self._save(self._output / BEST_CHECKPOINT, with_optimizer=False)
        return entry

    def _average_precision(self) -> dict[str, Any]:
        config = self._config
        result = evaluate(
            _FromAnywhere(self.average.network, self._device),
            self._validation,
            config.classes,
            (config.input_width, config.input_height),
            NORMALIZATIONS[config.normalization],
        )
        per_class = {"ap50_per_class": dict(result.ap50_per_class)}
        return {"ap": result.ap, "ap50": result.ap50, **per_class}

    @torch.inference_mode()
    def _fixed_losses(self) -> dict[str, Any]:
        """The loss of images as they are at test time; lower is better."""
        views: Dataset[dict[str, Tensor]] = FixedViews(
            self._validation, ViewSettings.of_test(self._config)
        )
        loader = DataLoader(views, batch_size=self._config.schedule.batch_size)
        totals = [
            float(self._objective.total(self._terms(self.average.network, batch)))
            for batch in loader
        ]
        return {"validation_loss": sum(totals) / len(totals)}

    def _save(self, path: Path, *, with_optimizer: bool) -> None:
        """Write tensors, numbers and strings only, so that a safe loader can read them."""
        architecture = self._config.network
        checkpoint: dict[str, Any] = {
            "epoch": self._epoch,
            "state_dict": to_upstream_state_dict(self.average.network, architecture),
            "config": self._config.model_dump_json(),
        }
        if with_optimizer:
            checkpoint["optimizer"] = self._optimizer.state_dict()
            checkpoint["scaler"] = self._scaler.state_dict()
            checkpoint["unaveraged_state_dict"] = to_upstream_state_dict(self.network, architecture)
            checkpoint["average_updates"] = self.average.updates
            checkpoint["best_score"] = self._best_score
        partial = path.with_suffix(".partial")
        torch.save(checkpoint, partial)
        partial.replace(path)

    def _resume(self) -> None:
        path = self._output / LAST_CHECKPOINT
        checkpoint = torch.load(path, map_location=self._device, weights_only=True)
        if checkpoint["config"] != self._config.model_dump_json():
            raise ResumeError(
                f"{path} was trained with another configuration; choose another --output"
            )
        architecture = self._config.network
        load_upstream_state_dict(self.network, architecture, checkpoint["unaveraged_state_dict"])
        load_upstream_state_dict(self.average.network, architecture, checkpoint["state_dict"])
        self.average.updates = checkpoint["average_updates"]
        self._optimizer.load_state_dict(checkpoint["optimizer"])
        self._scaler.load_state_dict(checkpoint["scaler"])
        self._epoch, self._best_score = checkpoint["epoch"], checkpoint["best_score"]


class _FromAnywhere(nn.Module):
    """A network on some device for callers that know the CPU only."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self._network = network
        self._device = device

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self._network(images.to(self._device))
        return {name: values.cpu() for name, values in maps.items()}
