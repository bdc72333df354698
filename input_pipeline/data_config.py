"""The data section of a config, and the sources that it names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from input_pipeline.scenes import SceneSource
from input_pipeline.sources import Source, SubsetSource, make_source


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which records a run reads, and how.

    Attributes:
      source: "scenes" (drawn, needs no path), "webdataset", "tfds", "array_record" or "table".
      path: tar, folder, table or pattern of the source; for tfds the data set's folder, DATA_DIR/NAME.
      split: of a tfds data set; unused elsewhere.
      num_examples: pictures of a drawn epoch; unused elsewhere.
      scene_kinds: kinds drawn, equally often; empty draws all in their usual shares; unused elsewhere.
      num_validation: the source's last records, never trained on (for scenes, as many drawn from another stream).
      min_crop_scale: smallest side of the random square crop, as a share of the shorter side; 1 cuts the full height.
      tokenizer: "sentencepiece" or "clip_bpe".
      tokenizer_file: its vocabulary; empty trains SentencePiece on the run's captions, or looks in the Hub's cache.
      pack_text: several captions share a row of the text tower: the same features and gradients but for rounding, from
        fewer positions. A batch that does not fit the rows foreseen is encoded unpacked, and counted.
      num_workers: processes that read and decode; 0 does it in the training process.
      max_broken_share: the run stops when more of the records than this cannot be used.
      seed: of the order, the crops, the choice of captions and the drawn scenes.
    """

    source: Literal["scenes", "webdataset", "tfds", "array_record", "table"]
    path: str
    split: str
    num_examples: int
    scene_kinds: tuple[str, ...]
    num_validation: int
    min_crop_scale: float
    tokenizer: Literal["sentencepiece", "clip_bpe"]
    tokenizer_file: str
    pack_text: bool
    num_workers: int
    max_broken_share: float
    seed: int

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers={self.num_workers} must be at least 0")
        if not 0 < self.min_crop_scale <= 1:
            raise ValueError(f"data.min_crop_scale={self.min_crop_scale} must lie in (0, 1]")
        if not 0 <= self.max_broken_share <= 1:
            raise ValueError(f"data.max_broken_share={self.max_broken_share} must lie in [0, 1]")
        if self.seed < 0:
            raise ValueError(f"data.seed={self.seed} must be at least 0")


def make_sources(config: DataConfig, image_size: int) -> tuple[Source, Source]:
    """The records to train on and those held out for validation."""
    if config.source == "scenes":

        def scenes(num_examples: int, split: Literal["train", "validation"]) -> SceneSource:
            return SceneSource(config.seed, num_examples, image_size, config.scene_kinds or None, split)

        return scenes(config.num_examples, "train"), scenes(config.num_validation, "validation")
    if not config.path:
        raise ValueError(f"data.path is empty: data.source={config.source!r} needs one, as --config.data.path=DIR")
    source = make_source(config.source, config.path, config.split)
    check_broken_share(len(source.broken), len(source) + len(source.broken), source.broken, config.max_broken_share)
    num_train = len(source) - config.num_validation
    if num_train < 1 or config.num_validation < 1:
        raise ValueError(
            f"data.num_validation={config.num_validation} must leave something on both sides of the "
            f"{len(source)} records of {config.path}"
        )
    return SubsetSource(source, 0, num_train), SubsetSource(source, num_train, len(source))


def check_broken_share(
    num_broken: int,
    num_seen: int,
    broken: Sequence[tuple[str, str]],
    max_share: float,
    limit: str = "data.max_broken_share",
) -> None:
    """Raises ValueError that names the first broken records when their share is over the limit, of that name."""
    if num_broken > max_share * num_seen:
        examples = "; ".join(f"{record_id}: {reason}" for record_id, reason in broken[:3])
        raise ValueError(
            f"{num_broken} of {num_seen} records cannot be used, more than {limit}={max_share} "
            f"({examples}): mend the data or raise {limit}"
        )
