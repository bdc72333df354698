"""The data section of a config, the sources that it names, and what a run trains on."""

import os
from dataclasses import dataclass
from typing import Annotated, Literal, cast

from input_pipeline.examples import Decode
from input_pipeline.ranges import COUNT_OR_0, EXAMPLES_OR_0, NOT_NEGATIVE, POSITIVE, SEED, Range
from input_pipeline.sources import (
    Filters,
)
from input_pipeline.sources.guess import guess_kind

Kind = Literal["auto", "scenes", "webdataset", "tfds", "array_record", "table", "folder", "mixture", ""]


@dataclass(frozen=True, kw_only=True)
class MixturePart(Filters):
    """One source of a mixture.

    Attributes:
      kind, path, split, num_examples, scene_kinds, captions_field, image_field, separator, link_root: as source, path,
        ... of `DataConfig`.
      name: what it is called in the metrics and in the ids of its records; unlike the others'.
      weight: its share of the samples, relative to the others'; None, then of all, stands for its number of records.

    The filters apply to its records besides those of the whole.
    """

    kind: Literal["scenes", "webdataset", "tfds", "array_record", "table", "folder"]
    name: str
    path: str = ""
    split: str = ""
    num_examples: Annotated[int, EXAMPLES_OR_0] = 0
    scene_kinds: tuple[str, ...] = ()
    captions_field: str = ""
    image_field: str = ""
    separator: str = ""
    link_root: str = ""
    weight: Annotated[float | None, POSITIVE] = None


@dataclass(frozen=True, kw_only=True)
class DataConfig(Filters):
    """Which records a run reads, and how.

    The filters apply to all records, see `Filters`; what they leave out is no part of an epoch.

    Attributes:
      source: "scenes" (drawn; with a path as "auto"), "webdataset", "tfds", "array_record", "table", "folder" or
        "mixture"; "auto" takes the kind that the files at the path have, see `resolve_source`.
      path: tar, folder, table or pattern of the source, local or a URL; for tfds the data set's folder, DATA_DIR/NAME;
        for a mixture without entries a JSON file with the list of them.
      split: of a tfds data set; unused elsewhere.
      num_examples: pictures of a drawn epoch; unused elsewhere.
      scene_kinds: kinds drawn, equally often; empty draws all in their usual shares; unused elsewhere.
      captions_field: column, feature or JSON key of the captions, if not the usual one; with caption_weights several,
        with commas between them.
      caption_weights: of these fields, as (0.3, 0.7): in training one is drawn in this proportion for each picture, of
        those in which the record has captions, and then one of its captions. A field of weight 0 is not read.
        Evaluation takes the captions of all fields.
      image_field: column of a table with the pictures, if not the usual one.
      separator: of a text table, one character or tab, comma, semicolon, pipe; empty takes what its header says.
      link_root: folder below which links of a folder, and paths of a table, may lead besides their own folder.
      mixture: the sources of a mixture; empty elsewhere.
      num_validation: the source's last records, never trained on (for scenes, as many drawn from another stream and
        then filtered); of a mixture the last ones of each source, in proportion to its records. 0 with validation_path.
      validation_path: data of its own to validate on, all of them; of any kind, guessed from the files.
      repeat: allows a batch that is larger than the data, in which records occur more than once.
      min_crop_scale: smallest side of the random square crop, as a share of the shorter side; 1 cuts the full height.
      orient: turns pictures upright by their EXIF tag in training. False, as the reference does and as evaluation does:
        a model should be trained on the pictures as it will be measured on.
      decode: of training's JPEGs, "fast", or "exact" as the evaluation decodes; see `Examples`.
      tokenizer: "sentencepiece", "clip_bpe", "siglip" (its spiece.model) or "tokenizer_json" (any tokenizer.json of
        Hugging Face, with the settings beside it).
      tokenizer_file: its vocabulary; empty trains SentencePiece on the run's captions, takes that of train.init_from,
        or finds CLIP's in the Hub's cache.
      pack_text: several captions share a row of the text tower: the same features and gradients but for rounding, from
        fewer positions. A batch that needs more rows than planned is encoded unpacked, and counted.
      num_workers: processes that read and decode; 0 does it in the training process.
      max_broken_share: the run stops when more of the records than this cannot be used.
      seed: of the order, the crops, the choice of captions and the drawn scenes.
    """

    source: Kind
    path: str
    split: str
    num_examples: Annotated[int, EXAMPLES_OR_0]
    scene_kinds: tuple[str, ...]
    captions_field: str = ""
    caption_weights: tuple[Annotated[float, NOT_NEGATIVE], ...] = ()
    image_field: str = ""
    separator: str = ""
    link_root: str = ""
    mixture: tuple[MixturePart, ...] = ()
    num_validation: Annotated[int, COUNT_OR_0]
    validation_path: str = ""
    repeat: bool = False
    min_crop_scale: Annotated[float, Range(above=0, most=1)]
    orient: bool = False
    decode: Decode = "exact"
    tokenizer: Literal["sentencepiece", "clip_bpe", "siglip", "tokenizer_json"]
    tokenizer_file: str
    pack_text: bool
    num_workers: Annotated[int, Range(0, 4096)]
    max_broken_share: Annotated[float, Range(0, 1)]
    seed: Annotated[int, SEED]

    def __post_init__(self) -> None:
        if self.validation_path and self.num_validation:
            raise ValueError(
                f"data.validation_path={self.validation_path!r} with data.num_validation={self.num_validation}: "
                "validate on one of the two; set data.num_validation=0 to train on all of data.path"
            )
        self.check("data.")
        self._check_mixture()
        self._check_caption_weights()

    @property
    def weight_of_fields(self) -> dict[str, float]:
        """The weight of each field of captions that is read; {} without caption_weights."""
        names = [name.strip() for name in self.captions_field.split(",")] if self.caption_weights else []
        return {name: weight for name, weight in zip(names, self.caption_weights) if weight}

    def _check_caption_weights(self) -> None:
        if not self.caption_weights:
            return
        names = [name.strip() for name in self.captions_field.split(",")]
        asked = f"data.caption_weights={self.caption_weights} with data.captions_field={self.captions_field!r}"
        if len(names) != len(self.caption_weights) or len(set(names)) < len(names) or not all(names):
            raise ValueError(f"{asked}: name as many different fields as there are weights, with commas between them")
        if not self.weight_of_fields:
            raise ValueError(f"{asked}: one of the weights must be above 0")
        if self.source in ("mixture", "folder", "scenes"):
            raise ValueError(f"{asked}: data.source={self.source!r} has no fields of captions; leave the weights out")

    def _check_mixture(self) -> None:
        if (self.source == "mixture") != bool(self.mixture):
            raise ValueError(
                f"data.source={self.source!r} with {len(self.mixture)} entries in data.mixture: a mixture needs some, "
                "in the config or in a JSON file that data.path names, and nothing else takes any"
            )
        names = [part.name for part in self.mixture]
        for i, part in enumerate(self.mixture):
            where = f"data.mixture[{i}]"
            part.check(f"{where}.")
            if not part.name or "/" in part.name or names.count(part.name) > 1:
                raise ValueError(f"{where}.name={part.name!r} must be a name of its own, not empty and without a slash")
            if (part.weight is None) != (self.mixture[0].weight is None):
                raise ValueError(
                    f"{where}.weight={part.weight}: give weights to all sources of data.mixture, or to none"
                )


def resolve_source(source: Kind, path: str) -> Kind:
    """The kind of the data: `source`, or for "auto" the one that the files at the path have.

    Raises ValueError where nothing lies there that can be read.
    """
    if source not in ("auto", ""):
        return source
    if not path:
        raise ValueError("data.path is empty: data.source='auto' needs one, as --config.data.path=DIR")
    path = os.path.expanduser(path)
    return cast(Kind, guess_kind(f"./{path}" if path == "scenes" else path))  # the word alone would mean drawn ones
