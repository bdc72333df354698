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
from clip_jax.evaluation.suite.labelled_sets import LabelledSet
from clip_jax.evaluation.suite.measures import THUMBNAIL, Bench, data_key, headline_classified
from clip_jax.evaluation.suite.result_store import Results, file_name
from clip_jax.evaluation.suite.sources import FilesSource
from clip_jax.plots.robustness import plot_bias, plot_contamination, plot_duplicates, plot_robustness
from input_pipeline.sources import Source

ALL = "all"  # name of a result that is not of one set


def retrieval(bench: Bench, source: Source) -> Results:
    """Recall both ways over captioned pictures, with a picture of queries and their best matches."""
    settings = bench.config.retrieval
    key = {
        **bench.features.model_id,
        "tokenizer": bench.features.tokenizer_id,
        "source": bench.features.source_id(source),
        "settings": dataclasses.asdict(settings),
    }

    def make() -> Results:
        features = bench.features.images(source, "retrieval", settings.num_examples)
        captions_of = [source.captions(index) for index in features.index.tolist()]
        captioned = np.flatnonzero([len(captions) > 0 for captions in captions_of])
        if not captioned.size:
            raise ValueError(f"retrieval.source={settings.source!r} has no captions")
        captions_of = [captions_of[i] for i in captioned]
        images, index = features.embeddings[captioned], features.index[captioned]
        measured = measure_retrieval(
            source,
            index,
            captions_of,
            images,
            bench.features.texts,
            bench.features.tokenizer,
            prompt_prefix=settings.prompt_prefix,
            pictures=bench.results.picture("retrieval.png").parent,
        )
        skipped = features.skipped
        return {
            **measured,
            "num_skipped": len(skipped) + len(features.index) - len(captioned),
            "first_skipped": [list(pair) for pair in skipped[:5]],
            "prompt_prefix": settings.prompt_prefix,
            "pictures": {what: bench.results.picture(f"{what}.png") for what in ("retrieval", "similarity")},
        }

    return bench.results.result("retrieval", ALL, key, make)


def robustness(bench: Bench, zero_shot: Mapping[str, Results]) -> Results:
    """Accuracy under shifts. zero_shot: {set: its result}, with the reference and the shifts among them."""
    settings = bench.config.robustness
    models = read_reference_models(settings)
    counts = {name: zero_shot[name]["count"] for name in (settings.reference, *settings.shifts)}
    classes = {name: set(zero_shot[name]["per_class"]) for name in counts}
    others = [name for name in settings.shifts if classes[name] != classes[settings.reference]]
    scores = {name: (round(zero_shot[name]["top1"]["value"] * count), count) for name, count in counts.items()}

    def make() -> Results:
        result = robustness_metrics(settings.reference, scores, models, settings.baseline)
        for name in others:
            shift = result["shifts"][name]
            note = f"{name} has other classes than {settings.reference}, so that their accuracies do not compare"
            shift["note"] = "; ".join(filter(None, [shift["note"], note]))
        picture = bench.results.picture("robustness.png")
        plot_robustness(result, models, picture)
        return {**result, "pictures": {"robustness": picture}}

    key = {"scores": scores, "models": models, "other_classes": others, "settings": dataclasses.asdict(settings)}
    return bench.results.result("robustness", ALL, key, make)


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


def overlap(bench: Bench, labelled: LabelledSet, training: Source) -> Results:
    """Near-duplicates of a test set among training images, and what they do to its zero-shot accuracy."""
    settings = bench.config.overlap
    key = {
        **data_key(bench, labelled, ["test"]),
        "tokenizer": bench.features.tokenizer_id,
        "training": bench.features.source_id(training),
        "prompts": list(bench.prompts(labelled)[bench.config.zero_shot.headline]),
        "settings": dataclasses.asdict(settings),
    }

    def make() -> Results:
        test = labelled.splits["test"]
        correct = headline_classified(bench, labelled).rank == 0
        ours, index = _similar_by(bench, test, labelled.title, bench.config.suite.num_examples)
        theirs, places = _similar_by(bench, training, "training images", settings.num_training)
        nearest, similarity = nearest_images(ours, theirs)
        picture = bench.results.picture(f"{file_name(labelled.name)}-duplicates.png")
        drawn = pairs_around(similarity, settings.threshold, settings.num_pairs)
        pairs = [
            (thumbnail(test, i, THUMBNAIL), thumbnail(training, j, THUMBNAIL), float(s))
            for i, j, s in zip(index[drawn], places[nearest[drawn]], similarity[drawn])
        ]
        plot_duplicates(pairs, settings.threshold, picture)
        return {
            **contamination(correct, similarity, settings.threshold),
            "embedding": settings.embedding,
            "training_images": len(theirs),
            "pictures": {"duplicates": picture},
        }

    return bench.results.result("overlap", labelled.name, key, make)


def overlap_picture(bench: Bench, overlaps: Mapping[str, Results]) -> Results:
    """The picture over all sets, as the paper's fig. 17."""

    def make() -> Results:
        picture = bench.results.picture("overlap.png")
        plot_contamination(overlaps, picture)
        return {"pictures": {"overlap": picture}}

    return bench.results.result("overlap", ALL, {"overlaps": dict(overlaps)}, make)


def _similar_by(bench: Bench, source: Source, title: str, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings in which duplicates are near, [N, E], and their records' places in the source, [N]."""
    if bench.config.overlap.embedding == "model":
        features = bench.features.images(source, title, num_examples)
        return features.embeddings, features.index
    return bench.features.perceptual(source, f"{title}, perceptual", num_examples)


def listed_people(settings: BiasSection) -> tuple[list[Path], dict[str, list[str]]]:
    """Pictures of people and their groups; see `read_people`."""
    return read_people(Path(settings.people), settings.image_column, settings.group_columns)


def bias(bench: Bench) -> Results:
    """The paper's tables of people classified into denigrating or crime-related classes, by group."""
    settings = bench.config.bias
    paths, groups = listed_people(settings)
    source = FilesSource(paths)
    key = {
        **bench.features.model_id,
        "tokenizer": bench.features.tokenizer_id,
        "source": bench.features.source_id(source),
        "groups": groups,
        "settings": dataclasses.asdict(settings),
    }

    def make() -> Results:
        features = bench.features.images(source, "pictures of people")
        kept = {column: [of[i] for i in features.index.tolist()] for column, of in groups.items()}

        def embed_classes(names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
            return bench.features.classes(names, templates, "people")

        result = bias_metrics(features.embeddings, kept, embed_classes)
        pictures = {f"bias {column}": bench.results.picture(f"bias-{file_name(column)}.png") for column in groups}
        for column in groups:
            plot_bias(result, column, pictures[f"bias {column}"])
        skipped: Any = features.skipped
        return {
            **result,
            "num_skipped": len(skipped),
            "first_skipped": [list(pair) for pair in skipped[:5]],
            "pictures": pictures,
        }

    return bench.results.result("bias", ALL, key, make)
