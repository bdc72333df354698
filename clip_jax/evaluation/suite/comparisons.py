"""What a suite measures beyond one labelled set: retrieval, robustness to shifts, overlap with training, bias."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.evaluation.metrics.bias import bias_metrics, read_people
from clip_jax.evaluation.metrics.overlap import contamination, nearest_images, pairs_around
from clip_jax.evaluation.metrics.robustness import check_reference_models, robustness_metrics
from clip_jax.evaluation.pictures import thumbnail
from clip_jax.evaluation.retrieval import measure_retrieval
from clip_jax.evaluation.suite.config import BiasSection, RobustnessSection
from clip_jax.evaluation.suite.context import ALL, THUMBNAIL, SuiteContext
from clip_jax.evaluation.suite.labelled_sets import LabelledSet
from clip_jax.evaluation.suite.measures import headline_classified
from clip_jax.evaluation.suite.result_store import file_name
from clip_jax.evaluation.suite.results import Absent, Measured, Robustness, ZeroShot, count_skipped, to_json
from clip_jax.evaluation.suite.sources import FilesSource
from clip_jax.plots.robustness import plot_bias, plot_contamination, plot_duplicates, plot_robustness
from input_pipeline.sources import Source


def retrieval(context: SuiteContext, source: Source) -> Measured | Absent:
    """Recall in both directions over captioned pictures, with a picture of queries and their best matches."""
    settings = context.config.retrieval

    def make() -> dict[str, Any]:
        features = context.features.images(source, "retrieval", settings.num_examples)
        captions_of = [source.captions(index) for index in features.index.tolist()]
        captioned = np.flatnonzero([len(captions) > 0 for captions in captions_of])
        if not captioned.size:
            raise ValueError(f"retrieval.source={settings.source!r} has no captions")
        pictures = {what: context.results.picture(f"{what}.png") for what in ("retrieval", "similarity")}
        measured = measure_retrieval(
            source,
            features.index[captioned],
            [captions_of[i] for i in captioned],
            features.embeddings[captioned],
            context.features.texts,
            context.features.tokenizer,
            prompt_prefix=settings.prompt_prefix,
            pictures=pictures["retrieval"].parent,
        )
        skipped = count_skipped(features.skipped, more=len(features.index) - len(captioned))
        return {**measured, **skipped, "prompt_prefix": settings.prompt_prefix, "pictures": pictures}

    return context.results.result(Measured, "retrieval", ALL, context.source_key(source, settings), make)


def robustness(context: SuiteContext, zero_shot: Mapping[str, ZeroShot]) -> Robustness:
    """Accuracy under shifts. zero_shot: {set: its result}, with the reference and the shifts among them."""
    settings = context.config.robustness
    models = read_reference_models(settings)
    found = {name: zero_shot[name] for name in (settings.reference, *settings.shifts)}
    classes = {name: set(result.per_class) for name, result in found.items()}
    others = [name for name in settings.shifts if classes[name] != classes[settings.reference]]
    scores = {name: (round(of.top1.value * of.count), of.count) for name, of in found.items() if of.top1}

    def make() -> dict[str, Any]:
        result = robustness_metrics(settings.reference, scores, models, settings.baseline)
        for name in others:
            shift = result["shifts"][name]
            note = f"{name} has other classes than {settings.reference}, so that their accuracies do not compare"
            shift["note"] = "; ".join(filter(None, [shift["note"], note]))
        picture = context.results.picture("robustness.png")
        plot_robustness(result, models, picture)
        return {**result, "pictures": {"robustness": picture}}

    key = {"scores": scores, "models": models, "other_classes": others, "settings": dataclasses.asdict(settings)}
    result = context.results.result(Robustness, "robustness", ALL, key, make)
    assert isinstance(result, Robustness)
    return result


def read_reference_models(settings: RobustnessSection) -> dict[str, dict[str, float]]:
    """{model: {set: accuracy}} of the JSON file; {} without one. Raises ValueError for a file of another form."""
    path, models = settings.reference_models, {}
    try:
        found = json.loads(Path(path).read_text()) if path else {}
        models = {model: {name: float(value) for name, value in sets.items()} for model, sets in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"robustness.reference_models={path!r} must be a JSON file of {{model: {{set: accuracy}}}}: {error}"
        ) from error
    check_reference_models(models, settings.baseline)
    return models


def overlap(context: SuiteContext, labelled: LabelledSet, training: Source) -> Measured | Absent:
    """Near-duplicates of a test set among training images, and what they do to its zero-shot accuracy."""
    if labelled.multi_label:
        return Absent(absent="images with several labels are neither right nor wrong")
    settings = context.config.overlap
    key = {
        **context.data_key(labelled, ["test"]),
        "tokenizer": context.features.tokenizer_id,
        "training": context.features.source_id(training),
        "prompts": list(context.prompts(labelled)[context.config.zero_shot.headline]),
        "settings": dataclasses.asdict(settings),
    }

    def make() -> dict[str, Any]:
        test = labelled.splits["test"]
        classified = headline_classified(context, labelled, context.labelled_features(labelled, "test"))
        ours, index = _embedded(context, test, labelled.title, context.config.suite.num_examples)
        theirs, positions = _embedded(context, training, "training images", settings.num_training)
        nearest, similarity = nearest_images(ours, theirs)
        picture = context.results.picture(f"{file_name(labelled.name)}-duplicates.png")
        drawn = pairs_around(similarity, settings.threshold, settings.num_pairs)
        pairs = [
            (thumbnail(test, i, THUMBNAIL), thumbnail(training, j, THUMBNAIL), float(s))
            for i, j, s in zip(index[drawn], positions[nearest[drawn]], similarity[drawn])
        ]
        plot_duplicates(pairs, settings.threshold, picture)
        return {
            **contamination(classified.rank == 0, similarity, settings.threshold),
            "embedding": settings.embedding,
            "training_images": len(theirs),
            "pictures": {"duplicates": picture},
        }

    return context.results.result(Measured, "overlap", labelled.name, key, make)


def overlap_picture(context: SuiteContext, overlaps: Mapping[str, Measured]) -> Measured | Absent:
    """The picture over all sets, as the paper's fig. 17."""

    def make() -> dict[str, Any]:
        picture = context.results.picture("overlap.png")
        plot_contamination({title: found.metrics for title, found in overlaps.items()}, picture)
        return {"pictures": {"overlap": picture}}

    return context.results.result(Measured, "overlap", ALL, {"overlaps": to_json(overlaps)}, make)


def _embedded(context: SuiteContext, source: Source, title: str, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings in which duplicates are near, [N, E], and their records' positions in the source, [N]."""
    if context.config.overlap.embedding == "model":
        features = context.features.images(source, title, num_examples)
        return features.embeddings, features.index
    return context.features.perceptual(source, f"{title}, perceptual", num_examples)


def listed_people(settings: BiasSection) -> tuple[list[Path], dict[str, list[str]]]:
    """Pictures of people and their groups; see `read_people`."""
    return read_people(Path(settings.people), settings.image_column, settings.group_columns)


def bias(context: SuiteContext) -> Measured | Absent:
    """The paper's tables of people classified into denigrating or crime-related classes, by group."""
    settings = context.config.bias
    paths, groups = listed_people(settings)
    source = FilesSource(paths)
    key = {**context.source_key(source, settings), "groups": groups}

    def make() -> dict[str, Any]:
        features = context.features.images(source, "pictures of people")
        kept = {column: [of[i] for i in features.index.tolist()] for column, of in groups.items()}

        def embed_classes(names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
            return context.features.classes(names, templates, "people")

        result = bias_metrics(features.embeddings, kept, embed_classes)
        pictures = {f"bias {column}": context.results.picture(f"bias-{file_name(column)}.png") for column in groups}
        for column in groups:
            plot_bias(result, column, pictures[f"bias {column}"])
        return {**result, **count_skipped(features.skipped), "pictures": pictures}

    return context.results.result(Measured, "bias", ALL, key, make)
