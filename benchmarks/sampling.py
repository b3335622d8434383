"""Images per second and scores by scheduler and steps: ``python benchmarks/sampling.py --run FOLDER [--images 48]``.

Draws reconstructions of a trained run with each scheduler and number of steps, reads them back, and says how often the
parts are those that were asked for (EMR). All draw the same prompts from the same seeds, so differences are paired; the
last column is the mean difference to the first row with its standard error over images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.utils import logging

from partcraft_lit.commands.evaluate.evaluate import scorer_of_run
from partcraft_lit.config import factories
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.types import PartPrediction
from partcraft_lit.evaluation.scorer import Scorer
from partcraft_lit.metrics.composition import reconstruction_targets
from partcraft_lit.metrics.cosim import CosineSimilarity
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.parts.predictor import KMeansPartPredictor
from partcraft_lit.runs import stored
from partcraft_lit.runs.assembly import load_trained
from partcraft_lit.runs.settings import TrainSettings

#: The first is what the others are compared with.
CASES = (
    ("ddim", 50),
    ("ddim", 20),
    ("euler", 20),
    ("dpm++", 30),
    ("dpm++", 20),
    ("dpm++", 15),
    ("dpm++", 12),
    ("dpm++", 10),
    ("dpm++", 8),
    ("dpm++", 6),
    ("dpm++_trailing", 12),
    ("dpm++_trailing", 8),
    ("dpm++_trailing", 6),
    ("unipc", 15),
    ("unipc", 12),
    ("unipc", 10),
    ("unipc", 8),
    ("unipc", 6),
)


def load(run: Path) -> tuple[PersonalizationModule, Scorer]:
    """A trained run, and what reads its images."""
    values = stored.values_of_run(run)
    settings = factories.settings_of(TrainSettings, values)
    source = factories.make_source(values)
    module, dictionary = load_trained(settings, run, factories.backbone_loader(values)(), source.class_noun)
    features = factories.features_loader(values)()
    with tempfile.TemporaryDirectory() as folder:
        scorer = scorer_of_run(settings, Path(folder), run, source, features, dictionary, Stages())
    return module, replace(scorer, predictor=KMeansPartPredictor(dictionary, features))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a trained run, such as that of make demo")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--cases", nargs="+", default=[f"{name}:{steps}" for name, steps in CASES])
    given, _ = parser.parse_known_args()
    if given.run is None:
        print("Nothing is drawn without --run FOLDER, the folder of a trained run.")
        return
    logging.set_verbosity_error()
    module, scorer = load(given.run)
    targets = reconstruction_targets(scorer.codes, given.images, scorer.settings.seed)
    prompts = [module.method.plain_caption(row) for row in targets.codes]
    scale = module.sampling.guidance_scale
    print(f"{len(prompts)} pictures, guidance {scale:g}, {module.sampling.batch_size} at once, {module.device}")
    print("| scheduler | steps | images/s | CPU s per image | EMR | CoSim | EMR - first |")
    print("|---|---|---|---|---|---|---|")
    first: torch.Tensor | None = None
    for name, steps in ((case.split(":")[0], int(case.split(":")[1])) for case in given.cases):
        module.use_sampling(replace(module.sampling, scheduler=name))
        started, own = time.perf_counter(), time.process_time()
        images = module.generate(prompts, targets.seeds, steps=steps)
        seconds, own = time.perf_counter() - started, time.process_time() - own
        found = scorer.predictor.predict(list(images))
        hits = (found.codes == targets.codes).float().mean(dim=1)  # (N,)
        cosim = _cosim(scorer, found, targets.codes)
        first = hits if first is None else first
        away = hits - first
        error = float(away.std()) / len(away) ** 0.5
        print(
            f"| {name} | {steps} | {len(prompts) / seconds:.2f} | {own / len(prompts):.3f} | {float(hits.mean()):.3f} "
            f"| {cosim:.3f} | {float(away.mean()):+.3f} ± {error:.3f} |",
            flush=True,
        )


def _cosim(scorer: Scorer, found: PartPrediction, codes: torch.Tensor) -> float:
    metric = CosineSimilarity(scorer.predictor, scorer.predictor.dictionary.names)
    metric.update(found, codes)
    return float(metric.compute()["all"])


if __name__ == "__main__":
    main()
