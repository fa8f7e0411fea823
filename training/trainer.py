"""The training loop, from a configuration to checkpoints in the upstream key layout."""

import json
import math
import time
from collections.abc import Mapping, Sized
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from model_export.checkpoints.safe_load import read_state
from model_export.errors import CheckpointUnreadableError
from model_export.graph.normalization import NORMALIZATIONS
from training.average_precision import evaluate
from training.config import ConfigError, ScheduleSection, TrainConfig
from training.dataset import SampleSettings, TrainingDataset, ValidationDataset
from training.deep_supervision import (
    build_network,
    load_pretrained,
    load_upstream_state_dict,
    predict_all,
    to_upstream_state_dict,
)
from training.ema import ExponentialMovingAverage
from training.initialization import initialize
from training.load_images import TrainingData, read_data
from training.objectives import OBJECTIVES
from training.precision import CpuPrecision, choose_precision, has_bfloat16
from training.progress import TrainingProgress
from training.tensorboard import TensorBoardLogger

LAST_CHECKPOINT, BEST_CHECKPOINT, LOG_FILE = "last.pth", "best.pth", "epochs.jsonl"

Batch = Mapping[str, Tensor]


class ResumeError(ValueError):
    """There is no checkpoint to resume from, or another configuration wrote it."""


class Trainer:
    """One training run: network, optimizer, weight average and progress.

    ``data``: the images of ``config``, if they have been read already. With ``resume`` the run
    continues from ``last.pth`` in ``output``. Raises :class:`ResumeError` if there is no such file
    or a different configuration wrote it, because the result could not be reproduced, and
    :class:`ConfigError` if the configuration's images or its ``start`` cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        output: Path,
        *,
        data: TrainingData | None = None,
        device: str = "cpu",
        tensorboard: TensorBoardLogger | None = None,
        resume: bool = False,
        quiet: bool = False,
    ) -> None:
        # DataLoader workers are forked; they would hang if OpenCV had started its threads before.
        cv2.setNumThreads(0)
        self._config = config
        self._output = output
        self._device = torch.device(device)
        self._tensorboard = tensorboard
        self._objective = OBJECTIVES[config.task].reweighted(config.loss_weights)
        data = data or read_data(config)
        self._images, self._validation = data.train, data.validation
        self.network = self._build_network(load_start=not resume)
        self.average = ExponentialMovingAverage(self.network, config.schedule.average_decay)
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.schedule.learning_rate,
            weight_decay=config.schedule.weight_decay,
        )
        # float16 needs a scaler; bfloat16 has the range of float32. A disabled one does nothing.
        self._scaler = torch.amp.GradScaler(enabled=self._device.type == "cuda")
        self._epoch = 0
        self._best_score = -math.inf
        self._precision: CpuPrecision = "float32"
        if resume:
            self._resume()
        else:
            self._precision = self._choose_precision()
        self._progress = TrainingProgress(config.schedule.epochs, self._epoch, quiet=quiet)
        self._scheduler = self._build_scheduler()

    def _build_network(self, *, load_start: bool) -> nn.Module:
        config = self._config
        torch.manual_seed(config.seed)
        network = build_network(config.network, config.head_channels())
        initialize(network)
        if config.start is not None and load_start:
            self._load_start(network, config.start)
        # torch declares this argument only together with a tensor or a dtype.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.to(self._device)

    def _load_start(self, network: nn.Module, checkpoint: Path) -> None:
        try:
            initialized = load_pretrained(network, self._config.network, read_state(checkpoint))
        except (CheckpointUnreadableError, ValueError) as error:
            raise ConfigError(f"start: {checkpoint}: {error}") from error
        print(
            f"Loaded {checkpoint}; newly initialized: {', '.join(initialized) or 'no weights'}",
            flush=True,
        )

    def _choose_precision(self) -> CpuPrecision:
        """Return the precision of the network on CPUs; on GPUs it is float16, with a scaler."""
        if self._device.type != "cpu":
            return "float32"
        if self._config.precision != "auto":
            return self._config.precision
        if not has_bfloat16():
            return "float32"
        batch = next(iter(self._loader(workers=0)))
        choice = choose_precision(
            self.network,
            lambda network, dtype: self._objective.total(self._terms(network, batch, dtype)),
        )
        print(f"precision: {choice.reason}", flush=True)
        return choice.precision

    @property
    def _dtype(self) -> torch.dtype:
        """The type in which the network computes; losses are in float32."""
        if self._scaler.is_enabled():
            return torch.float16
        return torch.bfloat16 if self._precision == "bfloat16" else torch.float32

    def _build_scheduler(self) -> LambdaLR:
        """Return the schedule, one step per batch, at the start of the current epoch."""
        schedule, steps_per_epoch = self._config.schedule, len(self._loader())
        # LambdaLR scales initial_lr, and sets it itself only if it starts at step 0.
        for group in self._optimizer.param_groups:
            group["initial_lr"] = schedule.learning_rate
        factor = partial(
            learning_rate_factor, schedule=schedule, total_steps=schedule.epochs * steps_per_epoch
        )
        return LambdaLR(self._optimizer, factor, last_epoch=self._epoch * steps_per_epoch - 1)

    def run(self) -> None:
        """Train the remaining epochs; write checkpoints and a log entry after each."""
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
            if self._tensorboard is not None:
                self._tensorboard.log(self._epoch, entry)
            self._progress.end_epoch(self._objective.total(entry), entry)

    def _train_epoch(self) -> dict[str, float]:
        """Train on the epoch's samples; return mean losses and the last learning rate."""
        self.network.train()
        loader = self._loader()
        sums = dict.fromkeys(self._objective.weights, 0.0)
        steps, batch_size = len(loader), self._config.schedule.batch_size
        images = min(steps * batch_size, len(cast(Sized, loader.dataset)))
        with self._progress.training_bar(images) as bar:
            for count, batch in enumerate(loader, start=1):
                losses = self._step(batch)
                (rate,) = self._scheduler.get_last_lr()
                self._scheduler.step()
                for name in sums:
                    sums[name] += losses[name]
                loss = self._objective.total(sums) / count
                bar.set_postfix_str(self._progress.describe(loss, count / steps), refresh=False)
                bar.update(len(batch["image"]))
        means = {name: total / steps for name, total in sums.items()}
        return {**means, "learning_rate": float(rate)}

    def _step(self, batch: Batch) -> dict[str, float]:
        """Update network and average with one batch; return the unweighted losses by name."""
        terms = self._terms(self.network, batch)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(self._objective.total(terms)).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(
            self.network.parameters(),
            self._config.schedule.gradient_clip,
            # A step on NaN gradients would corrupt all later checkpoints. In mixed precision
            # gradients overflow occasionally, and the scaler skips such a step.
            error_if_nonfinite=not self._scaler.is_enabled(),
        )
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.average.update_parameters(self.network)
        return {name: float(value.detach()) for name, value in terms.items()}

    def _terms(
        self, network: nn.Module, batch: Batch, dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        """Return the loss terms of one batch, averaged over the stacks."""
        batch = {name: value.to(self._device) for name, value in batch.items()}
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        dtype = dtype or self._dtype
        with torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32):
            stacks = predict_all(network, images)
        each = [
            self._objective.compute({name: values.float() for name, values in maps.items()}, batch)
            for maps in stacks
        ]
        first, *others = each
        return {
            name: sum((terms[name] for terms in others), start=value) / len(each)
            for name, value in first.items()
        }

    def _loader(self, workers: int | None = None) -> DataLoader[dict[str, Tensor]]:
        config = self._config
        dataset = TrainingDataset(
            self._images,
            repeats=config.data.repeats,
            rendered=config.data.rendered_per_epoch,
            settings=SampleSettings.for_training(config),
            seed=config.seed,
            epoch=self._epoch,
        )
        order = torch.Generator().manual_seed(config.seed * 100_003 + self._epoch)
        return DataLoader(
            dataset,
            batch_size=config.schedule.batch_size,
            shuffle=True,
            generator=order,
            num_workers=config.loader_workers if workers is None else workers,
            drop_last=len(dataset) > config.schedule.batch_size,
        )

    def _validate(self) -> dict[str, Any]:
        """Evaluate the averaged weights and save them if they are the best so far."""
        if not self._validation:
            self._save(self._output / BEST_CHECKPOINT, with_optimizer=False)
            return {}
        is_boxes = self._config.task == "boxes"
        entry = self._average_precision() if is_boxes else self._validation_loss()
        score = entry.get("ap", -entry.get("validation_loss", math.inf))
        if score > self._best_score:
            self._best_score = score
            self._save(self._output / BEST_CHECKPOINT, with_optimizer=False)
        return entry

    def _average_precision(self) -> dict[str, Any]:
        config = self._config
        with self._progress.validation_bar(len(self._validation)) as bar:
            result = evaluate(
                self.average.module,
                self._validation,
                config.classes,
                (config.input_width, config.input_height),
                NORMALIZATIONS[config.normalization],
                self._device,
                bar.update,
            )
        per_class = {"ap50_per_class": dict(result.ap50_per_class)}
        return {"ap": result.ap, "ap50": result.ap50, **per_class}

    @torch.inference_mode()
    def _validation_loss(self) -> dict[str, Any]:
        """Return the weighted loss on images without augmentation; lower is better."""
        dataset: Dataset[dict[str, Tensor]] = ValidationDataset(
            self._validation, SampleSettings.for_evaluation(self._config)
        )
        loader = DataLoader(dataset, batch_size=self._config.schedule.batch_size)
        totals = []
        with self._progress.validation_bar(len(self._validation)) as bar:
            for batch in loader:
                terms = self._terms(self.average.module, batch)
                totals.append(float(self._objective.total(terms)))
                bar.update(len(batch["image"]))
        return {"validation_loss": sum(totals) / len(totals)}

    def _save(self, path: Path, *, with_optimizer: bool) -> None:
        """Write tensors, numbers and strings only, which ``weights_only=True`` can load."""
        architecture = self._config.network
        checkpoint: dict[str, Any] = {
            "epoch": self._epoch,
            "state_dict": to_upstream_state_dict(self.average.module, architecture),
            "config": self._config.model_dump_json(),
        }
        if with_optimizer:
            checkpoint["optimizer"] = self._optimizer.state_dict()
            checkpoint["scaler"] = self._scaler.state_dict()
            checkpoint["precision"] = self._precision
            checkpoint["unaveraged_state_dict"] = to_upstream_state_dict(self.network, architecture)
            checkpoint["average_updates"] = self.average.updates
            checkpoint["best_score"] = self._best_score
        partial = path.with_suffix(".partial")
        torch.save(checkpoint, partial)
        partial.replace(path)

    def _resume(self) -> None:
        path = self._output / LAST_CHECKPOINT
        if not path.is_file():
            raise ResumeError(f"{path} does not exist: no epoch is complete; leave out --resume")
        checkpoint = torch.load(path, map_location=self._device, weights_only=True)
        if checkpoint["config"] != self._config.model_dump_json():
            raise ResumeError(
                f"{path} was trained with another configuration; choose another --output"
            )
        architecture = self._config.network
        load_upstream_state_dict(self.network, architecture, checkpoint["unaveraged_state_dict"])
        load_upstream_state_dict(self.average.module, architecture, checkpoint["state_dict"])
        self.average.updates = checkpoint["average_updates"]
        self._optimizer.load_state_dict(checkpoint["optimizer"])
        self._scaler.load_state_dict(checkpoint["scaler"])
        self._precision = checkpoint["precision"]
        self._epoch, self._best_score = checkpoint["epoch"], checkpoint["best_score"]


def learning_rate_factor(step: int, *, schedule: ScheduleSection, total_steps: int) -> float:
    """Return the share of the learning rate: linear warm-up, then cosine decay to 0."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * done))
