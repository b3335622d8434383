"""Part fidelity while training goes on, and the checkpoint that was best by it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from partcraft_lit.callbacks.binding import TrainingRun
from partcraft_lit.callbacks.checkpoint import manifest_of, manifest_path
from partcraft_lit.callbacks.hooks import EveryNSteps, evaluating, log_metrics, part_module, warn_on_error
from partcraft_lit.core.files import atomic_path, atomic_write
from partcraft_lit.core.settings import NonNegative, Positive
from partcraft_lit.metrics.cosim import CosineSimilarity
from partcraft_lit.metrics.emr import ExactMatchingRate
from partcraft_lit.metrics.leakage import leakage_matrix

BEST = "best.json"


class LiveScore(Callback):
    """Draws a fixed probe set every N steps, reads its parts back, and keeps the weights that did best.

    Logs ``live/emr``, ``live/cosim``, ``live/score`` (their mean), ``live/best`` (the highest score so far), the EMR of
    each part as ``live/emr_<part>``, and ``live/attention_inside`` (share of the parts' attention that lies on the
    parts). The best weights are ``best/step=000150.ckpt``, without the state of the
    optimiser; ``best/best.json`` says in one sentence why.

    Training does not notice: random state and modes are restored, and a failure is a warning. A score that is not
    finite is never the best.

    Args:
        every_n_steps: optimizer steps between scores; the last step has one too.
        steps: denoising steps of a probe image; the module's own by default.
        guidance_scale: of the probe images, likewise.
    """

    #: The last optimizer step that was scored, and its live score; None where that failed or is not finite.
    scored_at: int
    score: float | None

    def __init__(
        self, every_n_steps: Positive, steps: Positive | None = None, guidance_scale: NonNegative | None = None
    ) -> None:
        self.steps, self.guidance_scale = steps, guidance_scale
        self._trigger = EveryNSteps(every_n_steps)
        self._best: dict[str, Any] = {}
        self.scored_at, self.score = -1, None

    def bind(self, run: TrainingRun) -> None:
        """Takes from the run what is drawn and how it is read."""
        self.folder = run.folder / "checkpoints" / "best"
        self.prompts, self.seeds = list(run.probe_prompts.prompts), list(run.probe_prompts.seeds)
        self.target_codes = run.probe_prompts.codes
        self.predictor, self.batch, self.part_names = run.predictor, run.probe_batch, list(run.part_names)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trigger.start(trainer.global_step)
        self.scored_at = -1
        self._best = read_best(self.folder.parent)
        if self._best.get("step", 0) > trainer.global_step:  # of updates that are lost and come again
            self._best = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = self._trigger.fires(step)
        if due or (step != self.scored_at and 0 < trainer.max_steps <= step):
            self.scored_at, self.score = step, None
            self._score(trainer, pl_module)

    def _score(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, better = trainer.global_step, False
        if trainer.is_global_zero:
            with warn_on_error(f"The live score at step {step}"), isolate_rng(), evaluating(pl_module):
                metrics = self.measure(pl_module)
                score = metrics["live/score"]
                better = math.isfinite(score) and score > self._best.get("score", -math.inf)
                if better:
                    self._best = {"step": step, "score": score, "numbers": metrics}
                best = {"live/best": self._best["score"]} if "score" in self._best else {}
                log_metrics(trainer, {**metrics, **best})
                self.score = score if math.isfinite(score) else None
                self._best["last"] = {"step": step, "score": self.score}
        if trainer.strategy.broadcast(better):
            self._keep(trainer, step)
        if trainer.is_global_zero and "score" in self._best:
            atomic_write(self.folder / BEST, json.dumps({**self._best, "why": why(self._best)}, indent=1) + "\n")

    def measure(self, pl_module: LightningModule) -> dict[str, float]:
        """Metrics of the model as it is."""
        module = part_module(pl_module)
        images = module.generate(self.prompts, self.seeds, steps=self.steps, guidance_scale=self.guidance_scale)
        predicted = self.predictor.predict(list(images.cpu()))
        metrics = {}
        for key, metric in (("emr", ExactMatchingRate), ("cosim", CosineSimilarity)):
            scores = metric(self.predictor).image_scores(predicted, self.target_codes)  # (prompts, M + 1)
            metrics[f"live/{key}"] = float(scores.mean())
            if key == "emr":
                of_parts = zip(self.part_names, scores.mean(dim=0), strict=True)
                metrics |= {f"live/emr_{name}": float(value) for name, value in of_parts}
        metrics["live/score"] = (metrics["live/emr"] + metrics["live/cosim"]) / 2
        maps = module.probe_attention(self.batch.to(pl_module.device)).float().cpu()
        tokens, places = self.batch.tokens.part_ids.cpu(), self.batch.label_map.cpu()
        inside = leakage_matrix(maps, tokens, places, self.predictor.num_parts).diagonal().nanmean()
        if not inside.isnan():
            metrics["live/attention_inside"] = float(inside)
        return metrics

    def _keep(self, trainer: Trainer, step: int) -> None:
        """Writes the weights, then removes the former best; every process has to call it."""
        path = self.folder / f"step={step:06d}.ckpt"
        if not trainer.is_global_zero:
            trainer.save_checkpoint(path, weights_only=True)  # collective; only process 0 writes
            return
        with atomic_path(path) as temporary:
            trainer.save_checkpoint(temporary, weights_only=True)
            atomic_write(manifest_path(path), json.dumps(manifest_of(temporary, step), indent=1) + "\n")
        for old in self.folder.glob("step=*.ckpt"):
            if old != path:
                old.unlink(missing_ok=True)
                manifest_path(old).unlink(missing_ok=True)


def why(best: dict[str, Any]) -> str:
    """One sentence on why a checkpoint is the best."""
    metrics, last = best["numbers"], best["last"]
    parts = f"EMR {metrics['live/emr']:.3f}, CoSim {metrics['live/cosim']:.3f}"
    start = f"The best of the probed steps is {best['step']}, with a live score of {best['score']:.3f} ({parts})"
    if last["step"] == best["step"]:
        return f"{start}; it is also the last."
    ended = "no finite score" if last["score"] is None else f"{last['score']:.3f}"
    return f"{start}; step {last['step']}, the last, has {ended}."


def read_best(checkpoints: Path) -> dict[str, Any]:
    """What ``best.json`` says; empty if there is none that can be read."""
    try:
        best = json.loads((checkpoints / "best" / BEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return best if isinstance(best, dict) else {}
