"""The records that a data section names: opened, mixed, filtered, held out, and judged by what is broken in them."""

import dataclasses
from collections.abc import Sequence

from input_pipeline.data_config import DataConfig, Kind, MixturePart, resolve_source
from input_pipeline.examples import BLOCK, Examples, Order
from input_pipeline.scenes import SceneSource
from input_pipeline.sources import (
    OPTION_KINDS,
    FilteredSource,
    FolderSource,
    Mixture,
    Source,
    SubsetSource,
    filters_of,
    make_source,
)
from input_pipeline.sources.caption_fields import CaptionFields
from input_pipeline.sources.guess import guess_kind
from input_pipeline.tokenizers import Tokenizer

FEW_RECORDS = 1000  # the share of broken records is not judged on fewer


def make_examples(config: DataConfig, source: Source, tokenizer: Tokenizer, image_size: int) -> Examples:
    """What a config trains on."""
    return Examples(
        source=source,
        tokenizer=tokenizer,
        image_size=image_size,
        min_scale=config.min_crop_scale,
        seed=config.seed,
        decode=config.decode,
        orient=config.orient,
        caption_weights=tuple(config.weight_of_fields.values()),
    )


def make_sources(config: DataConfig, image_size: int) -> tuple[Source, Source]:
    """The records to train on and those held out for validation."""
    if config.validation_path:
        return open_all(config, image_size), open_other(
            config, config.validation_path, image_size, "data.validation_path"
        )[1]
    if config.source == "mixture":
        return _make_mixtures(config, image_size)
    part = _only_part(config)
    whole = _open_part(config, part, image_size, "data")
    if part.kind == "scenes" and config.num_validation:
        return whole, _open_part(config, part, image_size, "data", config.num_validation)
    return _split(whole, config.num_validation, f"data.num_validation={config.num_validation}", config.path)


def open_all(config: DataConfig, image_size: int) -> Source:
    """All records of a config's path, none held out."""
    if config.source != "mixture":
        return _open_part(config, _only_part(config), image_size, "data")
    parts = enumerate(config.mixture)
    opened = {part.name: _open_part(config, part, image_size, f"data.mixture[{i}]") for i, part in parts}
    return _mix(config, opened)


def _only_part(config: DataConfig, kind: Kind | None = None) -> MixturePart:
    return MixturePart(
        kind=kind or resolve_source(config.source, config.path),  # type: ignore[arg-type]  # the mixture is handled before
        name="",
        path=config.path,
        split=config.split,
        num_examples=config.num_examples,
        scene_kinds=config.scene_kinds,
        captions_field=config.captions_field,
        image_field=config.image_field,
        separator=config.separator,
        link_root=config.link_root,
    )


def open_other(config: DataConfig, path: str, image_size: int, where: str) -> tuple[Kind, Source]:
    """All records of other data than a config's, and its kind, which its files have.

    Of the config's options it takes those that this kind has. where: the key that names the path, for messages.
    """
    kind = resolve_source("auto", path)
    unread = {name: "" for name, kinds in OPTION_KINDS.items() if kind not in kinds}
    part = dataclasses.replace(_only_part(config, kind), path=path, **unread)  # type: ignore[arg-type]  # all are str
    return kind, _open_part(config, part, image_size, where)


def _make_mixtures(config: DataConfig, image_size: int) -> tuple[Mixture, Mixture]:
    # Pictures are drawn when asked for, so their number for validation may be known later.
    opened = [_open_part(config, part, image_size, f"data.mixture[{i}]") for i, part in enumerate(config.mixture)]
    held_out = _proportional(config.num_validation, list(map(len, opened)))
    train: dict[str, Source] = {}
    validation: dict[str, Source] = {}
    for part, whole, num_validation in zip(config.mixture, opened, held_out):
        train[part.name] = whole
        if not num_validation:
            continue
        if part.kind == "scenes":
            validation[part.name] = _open_part(config, part, image_size, part.name, num_validation)
        else:
            share = f"the share {num_validation} of {part.name!r} in data.num_validation={config.num_validation}"
            train[part.name], validation[part.name] = _split(whole, num_validation, share, part.path)
    if not validation:
        raise ValueError(f"data.num_validation={config.num_validation} must hold out at least one record")
    return _mix(config, train), Mixture(validation)


def _mix(config: DataConfig, sources: dict[str, Source]) -> Mixture:
    weights = [part.weight for part in config.mixture if part.weight is not None]
    mixed = Mixture(sources, weights or None)
    try:
        Order(mixed.lengths, mixed.weights, config.seed)  # now, before a tokenizer is trained and the workdir bound
    except ValueError as error:
        if weights:
            raise ValueError(f"data.mixture: {error}") from None
        counts = dict(zip(mixed.names, mixed.lengths))
        raise ValueError(
            f"data.mixture has no weights, so its sources count by their records, {counts}, and "
            f"{min(counts, key=counts.__getitem__)!r} is below one sample in {BLOCK}: give weights, or leave it out"
        ) from None
    return mixed


def _open_part(config: DataConfig, part: MixturePart, image_size: int, where: str, num_validation: int = 0) -> Source:
    """The records of a source that pass the filters; with num_validation so many held-out ones, which are drawn."""
    if part.kind == "scenes":
        number, split = (num_validation, "validation") if num_validation else (part.num_examples, "train")
        source: Source = SceneSource(config.seed, number, image_size, part.scene_kinds or None, split)
    else:
        if not part.path:
            key = "source" if where == "data" else "kind"
            fix = ", as --config.data.path=DIR" if where == "data" else ""
            raise ValueError(f"{where}.path is empty: {where}.{key}={part.kind!r} needs one{fix}")
        source = _open_fields(config, part, where)
    if isinstance(source, FolderSource) and not source.has_captions:
        fix = "; ".join(source.notes) or "write them as SAME_NAME.txt, or name a table by source=table"
        raise ValueError(f"{where}.path={part.path}: no picture has captions beside it: {fix}")
    filters = [chosen for keys in (config, part) if (chosen := filters_of(keys))]
    if filters:
        source = FilteredSource(source, filters)
    check_broken_share(len(source.broken), count_indexed(source), source.broken, config.max_broken_share)
    return source


def _open_fields(config: DataConfig, part: MixturePart, where: str) -> Source:
    """The source of a part; with data.caption_weights with the captions of several fields."""
    names = list(config.weight_of_fields)
    if not names or not part.captions_field:
        return _make_source(part, where)
    fields = {
        name: _make_source(dataclasses.replace(part, captions_field=name), where, require_captions=False)
        for name in names
    }
    try:
        return CaptionFields(fields)
    except ValueError as error:
        raise ValueError(f"data.captions_field={config.captions_field!r}: {error}") from None


def _make_source(part: MixturePart, where: str, *, require_captions: bool = True) -> Source:
    """As `make_source`; its error says which kind the files have, where that is another."""
    try:
        return make_source(
            part.kind,
            part.path,
            part.split,
            part.captions_field,
            image_field=part.image_field,
            separator=part.separator,
            link_root=part.link_root,
            require_captions=require_captions,
        )
    except ValueError as error:
        try:
            kind = guess_kind(part.path)
        except ValueError:
            raise error from None
        if kind == part.kind:
            raise
        key = "source" if where == "data" else "kind"
        raise ValueError(
            f"{error}. The files look like {kind!r}, and {where}.{key} is {part.kind!r}: set it to {kind!r}"
        ) from None


def _split(source: Source, num_validation: int, what: str, path: str) -> tuple[Source, Source]:
    num_train = len(source) - num_validation
    if num_train < 1 or num_validation < 1:
        raise ValueError(
            f"{what} must leave something on both sides of the {len(source)} records of {path}; or name data of their "
            "own in data.validation_path, with data.num_validation=0"
        )
    return SubsetSource(source, 0, num_train), SubsetSource(source, num_train, len(source))


def _proportional(total: int, lengths: Sequence[int]) -> list[int]:
    """Whole numbers in the proportion of the lengths that sum to the total; the longest take what rounding leaves."""
    shares = [total * length // sum(lengths) for length in lengths]
    longest = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for i in longest[: total - sum(shares)]:
        shares[i] += 1
    return shares


def count_indexed(source: Source) -> int:
    """All records of a source, those among them that were found broken or are left out by choice."""
    return len(source) + len(source.broken) + sum(getattr(source, "filtered", {}).values())


def check_broken_share(
    num_broken: int,
    num_seen: int,
    broken: Sequence[tuple[str, str]],
    max_share: float,
    limit: str = "data.max_broken_share",
    num_to_see: int = 0,
) -> None:
    """Raises ValueError that names the first broken records when their share is over the limit, of that name.

    num_to_see: records seen in the end; so many, at most FEW_RECORDS, count as seen from the start.
    """
    num_judged = max(num_seen, min(num_to_see, FEW_RECORDS))
    if num_broken > max_share * num_judged:
        examples = "; ".join(f"{record_id}: {reason}" for record_id, reason in broken[:3])
        raise ValueError(
            f"{num_broken} of {num_judged} records cannot be used, more than {limit}={max_share} "
            f"({examples}): fix the data or raise {limit}"
        )
