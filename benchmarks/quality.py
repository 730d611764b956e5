"""Quality as the stage `evaluate` measures it, for benchmarks that sample many settings."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from multiscale.evaluation.classifier import accuracy, load
from stages.common.cluster import Pool
from stages.common.extraction import Extractor, extract
from stages.common.paths import CLASSIFIER
from stages.evaluate import Reference, against
from stages.schema.data import Evaluate


class Quality:
    """KID, FD, recall and label accuracy against the reference of the pipeline."""

    def __init__(self, section: Evaluate, batch: int):
        self.section, self.batch = section, batch
        self.workers = Pool(partial(Extractor, section.extractor, section.weights))
        self.reference = Reference.read()
        self.classifier = load(CLASSIFIER)

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        section, count = self.section, len(images)
        few = {"is_splits": min(section.is_splits, count), "prc_neighborhood": min(section.prc_neighborhood, count - 1)}
        layers = extract("features", self.workers, images.__getitem__, count, self.batch)
        values, _ = against(self.reference, layers, labels, section.model_copy(update=few), tested=False)
        right = accuracy(self.classifier, images, labels) if self.classifier else None
        return {key: values[key] for key in ("kid", "kid_se", "fd", "recall")} | {"label_accuracy": right}
