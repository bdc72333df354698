"""What training measures: zero-shot classification of labelled sets, retrieval on held-out pairs, and their pictures.

A small suite: its data sets, its numbers without intervals, nothing kept on the disk.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from clip_jax.config.experiment import EvaluationConfig
from clip_jax.distributed import processes
from clip_jax.evaluation import retrieval
from clip_jax.evaluation.metrics.classification import accuracies, classify, classify_scores, confusion
from clip_jax.evaluation.metrics.zero_shot import class_embeddings, class_scores
from clip_jax.evaluation.pictures import Encoded, encode_pictures
from clip_jax.evaluation.prompts import load_templates
from clip_jax.evaluation.suite.labelled_sets import LabelledSet, open_labelled_set
from clip_jax.evaluation.suite.sources import open_run_sources
from clip_jax.inference.caption_scorer import CaptionScorer
from clip_jax.inference.encoder import Encoder
from clip_jax.inference.load import restore_run
from clip_jax.models import ModelConfig
from clip_jax.models.variables import Variables
from clip_jax.plots.training import plot_confusion
from clip_jax.tables import format_table
from input_pipeline.examples import load_image
from input_pipeline.sources import Record, Source
from input_pipeline.storage import write_json
from input_pipeline.tokenizers import Tokenizer
from input_pipeline.transforms import resize_and_center_crop

Results = dict[str, Any]


def make_encoder(model: ModelConfig, mesh: Mesh, batch_size: int) -> Encoder:
    """The encoder for an evaluation of this model: a CaptionScorer if it predicts captions."""
    return (Encoder if model.head == "embedding" else CaptionScorer)(model, mesh, batch_size)


class Evaluator:
    """Opens the data sets when it is made, before training starts; each call measures one set of variables.

    Raises ValueError as `open_labelled_set`; a set whose images have several labels each.
    """

    def __init__(
        self, config: EvaluationConfig, encoder: Encoder, tokenizer: Tokenizer, validation: Source, image_size: int
    ):
        self.encoder = encoder
        self._tokenizer, self._validation = tokenizer, validation
        self._image_size, self._limit = image_size, config.num_examples
        self.num_pairs = config.num_examples  # of the records for retrieval, 0 for all
        opened = (
            open_labelled_set(name, Path(config.data_dir), image_size, config.num_examples, config.link_root)
            for name in config.zero_shot
        )
        self._sets = {labelled.name: labelled for labelled in opened}
        if processes.is_first():
            for name, labelled in self._sets.items():
                for remark in labelled.remarks:
                    print(f"{name}: {remark}")
        for name, labelled in self._sets.items():
            if labelled.multi_label:
                raise ValueError(f"evaluation.zero_shot set {name!r} has several labels an image: use a suite")
        given = load_templates(config.templates) if config.templates else ()
        self._templates = {name: given or of.templates or load_templates("one") for name, of in self._sets.items()}

    def __call__(self, variables: Variables, pictures: Path | None = None) -> Results:
        """{"zero_shot": {set: metrics}, "retrieval": metrics}, ready for JSON; PNGs into the folder `pictures`.

        A model that predicts captions has no text features: it is not measured in retrieval.
        """
        self.encoder.variables = variables
        results: Results = {"zero_shot": {name: self._zero_shot(of, pictures) for name, of in self._sets.items()}}
        if not isinstance(self.encoder, CaptionScorer):
            found = self._encode(self._validation, "held-out pairs", self.num_pairs)
            captions_of = [record["captions"] for record in found.records]
            results["retrieval"] = {
                **retrieval.measure_retrieval(
                    self._validation,
                    found.index,
                    captions_of,
                    found.features,
                    self.encoder.texts,
                    self._tokenizer,
                    pictures=pictures,
                ),
                "skipped": found.skipped,
            }
        return results

    def _zero_shot(self, labelled: LabelledSet, pictures: Path | None) -> Results:
        found = self._encode(labelled.splits["test"], labelled.title, self._limit)
        labels = labelled.classes_of("test", found.labels(len(labelled.class_names)).get("labels"), found.index)
        prompts = self._tokenizer, labelled.class_names, self._templates[labelled.name]
        if isinstance(self.encoder, CaptionScorer):
            scores = class_scores(partial(self.encoder.score, found.features), *prompts)
            classified = classify_scores(scores, labels)
        else:
            classified = classify(found.features, labels, class_embeddings(self.encoder.texts, *prompts))
        names = labelled.shown_names
        if pictures:
            file = pictures / f"confusion_{labelled.name.replace('/', '_')}.png"
            plot_confusion(confusion(classified), names, file, labelled.name)
        return {**accuracies(classified, names), "skipped": found.skipped}

    def _encode(self, source: Source, title: str, limit: int) -> Encoded[np.ndarray]:
        """Features [N, E] of the first num_examples records."""

        def prepare(record: Record) -> np.ndarray:
            return resize_and_center_crop(load_image(record), self._image_size)

        chosen = range(min(len(source), limit or len(source)))
        return encode_pictures(self.encoder.images, source, chosen, prepare, title, show_progress=False)


def evaluate(workdir: Path, output: Path, data_path: str | None = None, **changes: Any) -> Results:
    """Evaluates the newest checkpoint of a run; writes evaluation.json and pictures into `output`.

    Args:
      workdir: folder of the run.
      output: folder for the results; made when missing.
      data_path: where the run's data lies now, of which the held-out part is measured; or other data, then all of it.
      **changes: fields of EvaluationConfig to replace.

    Raises:
      ValueError: no run or no checkpoint there, or an unknown set.
    """
    run = restore_run(workdir)
    config, image_size = run.config, run.config.model.vision.image_size
    evaluation = dataclasses.replace(config.evaluation, **changes)
    sources = open_run_sources(workdir, image_size, data_path)
    encoder = make_encoder(config.model, run.mesh, evaluation.batch_size)
    evaluator = Evaluator(evaluation, encoder, run.tokenizer, sources.validation, image_size)
    if data_path is not None and isinstance(encoder, CaptionScorer):
        raise ValueError(
            f"--data_path={data_path} would not be read: a model that predicts captions is not measured in retrieval"
        )
    if not sources.is_own and "num_examples" not in changes:
        evaluator.num_pairs = 0  # all of it, also where training measures fewer
    first = processes.is_first()
    if first:
        output.mkdir(parents=True, exist_ok=True)
    pictures = output if first else None
    results = {"step": int(run.state.step), **evaluator(run.state.variables, pictures=pictures)}
    if first:
        write_json(output / "evaluation.json", results)
    return results


def as_row(results: Results) -> dict[str, float]:
    """The headline numbers as a row of metrics: {"evaluation/SET/NAME": number}."""
    keys = ("top1", "chance")
    row = {f"evaluation/{name}/{key}": metrics[key] for name, metrics in results["zero_shot"].items() for key in keys}
    recalls = {name: value for name, value in results.get("retrieval", {}).items() if "_r@" in name}
    return row | {f"evaluation/retrieval/{name}": value for name, value in recalls.items()}


def as_table(results: Results) -> str:
    """The results for a terminal, each beside its level of chance."""
    tables = []
    if results["zero_shot"]:
        header = ["zero-shot", "top-1", "top-5", "per class", "chance", "classes", "images", "skipped"]
        rows = [
            [
                name,
                *(m.get(key, float("nan")) for key in ("top1", "top5", "mean_per_class", "chance")),
                *(len(m["per_class"]), m["count"], len(m["skipped"])),
            ]
            for name, m in results["zero_shot"].items()
        ]
        tables.append(format_table(header, rows))
    if "retrieval" in results:
        tables.append(retrieval.as_table(results["retrieval"], with_chance=True))
    return "\n\n".join(tables)
