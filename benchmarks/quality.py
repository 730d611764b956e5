"""Quality as the stage `evaluate` measures it, for benchmarks that sample many settings."""

from __future__ import annotations

from functools import partial

from safetensors.torch import load_file
from torch import Tensor

from multiscale.core.storage import read_json
from multiscale.evaluation import metrics
from multiscale.evaluation.classifier import accuracy, load
from stages.common.cluster import Pool
from stages.common.extraction import Extractor, extract
from stages.common.paths import CLASSIFIER, REFERENCE
from stages.schema.data import Evaluate


class Quality:
    """KID, FD, recall and label accuracy against the reference of the pipeline."""

    def __init__(self, section: Evaluate, batch: int):
        self.section, self.batch = section, batch
        self.workers = Pool(partial(Extractor, section.extractor, section.weights))
        self.real = load_file(REFERENCE / "features.safetensors")["real"]
        self.within = read_json(REFERENCE / "reference.json")["within"]["real"]
        self.classifier = load(CLASSIFIER)

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        section, count = self.section, len(images)
        seen, logits = extract("features", self.workers, images.__getitem__, count, self.batch)
        kid, error = metrics.kid(seen, self.real, labels, self.within)
        values = metrics.distances(
            seen,
            self.real,
            logits,
            is_splits=min(section.is_splits, count),
            prc_neighborhood=min(section.prc_neighborhood, count - 1),
        )
        right = accuracy(self.classifier, images, labels) if self.classifier else None
        found = {"kid": kid, "kid_se": error, "fd": values["fd"], "recall": values["recall"]}
        return found | {"label_accuracy": right}
