"""A config file's ConfigDict to frozen dataclasses, once, at the edge."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from clip_jax.distributed.sharding import ShardingConfig
from clip_jax.losses import LossConfig
from clip_jax.models import ModelConfig, ResNetConfig, TextConfig, VisionConfig
from input_pipeline.data_config import DataConfig, MixturePart, resolve_source
from input_pipeline.ranges import BATCH, COUNT, COUNT_OR_0, FLOAT32, NOT_NEGATIVE, POSITIVE, Range, check_ranges
from input_pipeline.tokenizers import Tokenizer

T = TypeVar("T")
DERIVED = ("vision", "text", "head", "eot_token")  # fields that are no keys of their section
SHARE = Range(0, below=1)
TOKENIZER_FILE = "tokenizer.model"  # the vocabulary of a run, in its workdir


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its schedule and the clamp of the temperature.

    Attributes:
      learning_rate: the peak, reached after warmup_steps.
      weight_decay: decoupled, multiplied by the learning rate, on weights that are not gains or biases.
      b1, b2, eps: Adam's; the paper has b2 0.98 and eps 1e-6 for ViTs, 0.999 and 1e-8 for ResNets.
      warmup_steps: linear from 0; 2,000 in the paper.
      max_logit_scale: the logit scale is clamped to this after each step; 100 in the paper (sec. 2.5).
      learn_logit_scale: the logit scale learns, as in the paper (sec. 2.3); else it stays as it starts.
      first_moment_dtype: in which Adam's first moment is stored, by default the parameters' own; "bfloat16" halves it
        (Zhai et al. 2021, sec. 3.4). The second moment needs more digits and keeps the parameters' dtype.
      ema_decay: of an exponential moving average of the parameters and running statistics, by which the model is then
        evaluated and exported; in [0, 1), and 0 keeps none.
      frozen: towers that do not learn, their projection included: (), ("visual",) as in LiT, or ("text",).

    Reference: Radford et al. 2021, tables 18 and 19; first moment in bfloat16: Zhai et al. 2021,
    https://arxiv.org/abs/2106.04560; frozen towers: Zhai et al. 2021, https://arxiv.org/abs/2111.07991.
    """

    learning_rate: Annotated[float, POSITIVE]
    weight_decay: Annotated[float, NOT_NEGATIVE]
    b1: Annotated[float, SHARE]
    b2: Annotated[float, SHARE]
    eps: Annotated[float, POSITIVE]
    warmup_steps: Annotated[int, COUNT_OR_0]
    max_logit_scale: Annotated[float, Range(1)]
    learn_logit_scale: bool = True
    first_moment_dtype: Literal["param_dtype", "bfloat16"] = "param_dtype"
    ema_decay: Annotated[float, SHARE] = 0.0
    frozen: tuple[Literal["visual", "text"], ...] = ()

    @property
    def has_ema(self) -> bool:
        """Whether a moving average is kept."""
        return self.ema_decay > 0

    def __post_init__(self) -> None:
        check_ranges(self, "optimizer.")
        if self.first_moment_dtype not in ("param_dtype", "bfloat16"):
            raise ValueError(
                f"optimizer.first_moment_dtype={self.first_moment_dtype!r} must be 'param_dtype' or 'bfloat16'"
            )
        if self.frozen not in ((), ("visual",), ("text",)):
            raise ValueError(
                f"optimizer.frozen={self.frozen} must be (), ('visual',) or ('text',): with both towers frozen there "
                "is nothing to train"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long a run is, and how often it saves and measures.

    Attributes:
      global_batch_size: pairs a step over all devices; 32,768 in the paper.
      num_microbatches: the parts in which the towers see a batch, one after the other, for a batch whose activations do
        not fit; every pair still meets all negatives, at the cost of one more forward pass. 1 sees all at once.
      total_steps: steps of the whole run; samples seen = total_steps * global_batch_size.
      checkpoint_every, evaluate_every: in steps; 0 only at the end.
      keep_checkpoints: how many of the newest are kept.
      hang_timeout_s: seconds without a step (or a batch of an evaluation) after which a process shows where it is stuck
        and ends, a process alone after it has saved the steps before the data that does not come; longer than
        compilation, the first index of the data and a save; 0 waits forever.
      init_from: weights to start from, a name or path as `clip_jax.load` takes; position embeddings are interpolated to
        the config's image_size and context_length. Empty starts from random parameters.
      init_towers: what is taken from init_from: both towers and the temperature, or one tower alone, ("visual",) or
        ("text",), so that the other may be of any size and vocabulary.
      seed: of the initial parameters.
    """

    global_batch_size: Annotated[int, BATCH]
    num_microbatches: Annotated[int, BATCH]
    total_steps: Annotated[int, COUNT]
    checkpoint_every: Annotated[int, COUNT_OR_0]
    evaluate_every: Annotated[int, COUNT_OR_0]
    keep_checkpoints: Annotated[int, COUNT]
    hang_timeout_s: Annotated[int, COUNT_OR_0]
    init_from: str
    init_towers: tuple[Literal["visual", "text"], ...]
    seed: int

    def __post_init__(self) -> None:
        check_ranges(self, "train.")
        if self.init_towers not in (("visual", "text"), ("visual",), ("text",)):
            raise ValueError(f"train.init_towers={self.init_towers} must be ('visual', 'text') or one of them")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What a model is measured on.

    Attributes:
      zero_shot: labelled sets, see `evaluation.suite.labelled_sets.open_labelled_set`; may be empty.
      data_dir: where prepared tfds sets lie.
      link_root: folder below which links in folders and paths in tables may lead; empty for their own folders alone.
      templates: a prompt set of clip_jax/evaluation/prompts; empty takes the labelled set's own.
      num_examples: pictures of each labelled set and of retrieval; 0 takes all there are.
      batch_size: images or texts encoded at once, over all devices.
    """

    zero_shot: tuple[str, ...]
    data_dir: str
    link_root: str = ""
    templates: str
    num_examples: Annotated[int, COUNT_OR_0]
    batch_size: Annotated[int, BATCH]

    def __post_init__(self) -> None:
        check_ranges(self, "evaluation.")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of a run. Each attribute is a section of the config file; vision and text are parts of model."""

    model: ModelConfig
    loss: LossConfig
    data: DataConfig
    optimizer: OptimizerConfig
    sharding: ShardingConfig
    train: TrainConfig
    evaluation: EvaluationConfig

    def __post_init__(self) -> None:
        has_bias = self.model.logit_bias_init is not None
        if has_bias != (self.loss.kind == "sigmoid"):
            raise ValueError(
                f"model.logit_bias_init={self.model.logit_bias_init} with loss.kind={self.loss.kind!r}: "
                + (
                    "only the sigmoid loss learns a bias; leave it None, or set loss.kind='sigmoid'"
                    if has_bias
                    else "the sigmoid loss learns a bias; start it at -10.0, as SigLIP does"
                )
            )
        if self.loss.caption_kind:
            _check_prediction(self)
        if (self.loss.caption_weight > 0) != (self.model.decoder_depth > 0):
            raise ValueError(
                f"loss.caption_weight={self.loss.caption_weight} with model.decoder_depth={self.model.decoder_depth}: "
                "a caption loss needs a decoder, and only it trains one; set both or neither"
            )
        if self.loss.caption_weight and self.data.pack_text:
            raise ValueError(
                f"data.pack_text=True with loss.caption_weight={self.loss.caption_weight}: a decoder reads each "
                "caption in a row of its own; set it to False"
            )
        head = self.loss.caption_kind or "embedding"
        if self.model.head != head:
            raise ValueError(f"model.head={self.model.head!r} with loss.kind={self.loss.kind!r}: it must be {head!r}")
        for tower in self.optimizer.frozen:
            if not self.train.init_from or tower not in self.train.init_towers:
                raise ValueError(
                    f"optimizer.frozen={self.optimizer.frozen} would keep a random tower: name its weights in "
                    f"train.init_from, and {tower!r} in train.init_towers"
                )
        patch_dropout = getattr(self.model.vision, "patch_dropout", 0)
        if patch_dropout and "visual" in self.optimizer.frozen:
            raise ValueError(
                f"vision.patch_dropout={patch_dropout} has no effect on a frozen image tower, which sees all patches: "
                "set it to 0"
            )


def _check_prediction(config: Config) -> None:
    """Raises ValueError for what a model that predicts captions cannot do."""
    kind, towers = config.loss.kind, config.train.init_towers
    if config.data.pack_text:
        raise ValueError(
            f"data.pack_text=True with loss.kind={kind!r}: it packs for text features alone; set it to False"
        )
    if config.train.init_from and towers != ("visual",):
        raise ValueError(
            f"train.init_towers={towers} with loss.kind={kind!r}: only the image tower can be given; set ('visual',)"
        )


def make_config(sections: Mapping[str, Mapping[str, Any]]) -> Config:
    """Checks and freezes the sections of a config file.

    Raises ValueError that names the unknown, missing or mistyped keys of a section. text.eot_token is not a key: it
    comes from the tokenizer, see `with_tokenizer`.
    """
    classes = typing.get_type_hints(Config) | {"vision": VisionConfig, "text": TextConfig}
    check_sections(sections, classes)
    sections = with_mixture(sections)
    vocab_size = sections["text"].get("vocab_size")
    eot_token = max(vocab_size - 1, 0) if isinstance(vocab_size, int) else 0
    # The number of blocks by stage is what only a ResNet has.
    vision_class: type[VisionConfig | ResNetConfig] = ResNetConfig if "stages" in sections["vision"] else VisionConfig
    vision = make_section("vision", vision_class, sections["vision"])
    text = make_section("text", TextConfig, sections["text"], eot_token=eot_token)
    loss = make_section("loss", LossConfig, sections["loss"])
    head = loss.caption_kind or "embedding"
    return Config(
        model=make_section("model", ModelConfig, sections["model"], vision=vision, text=text, head=head),
        loss=loss,
        data=make_section("data", DataConfig, sections["data"]),
        optimizer=make_section("optimizer", OptimizerConfig, sections["optimizer"]),
        sharding=make_section("sharding", ShardingConfig, sections["sharding"]),
        train=make_section("train", TrainConfig, sections["train"]),
        evaluation=make_section("evaluation", EvaluationConfig, sections["evaluation"]),
    )


def with_found_data(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sections with what lies at data.path: data.source where it is "auto" or "", and data.mixture.

    Drawn scenes take no path, so that a path beside them is guessed, too. The mixture is that of `with_mixture`.

    Raises ValueError where nothing that can be read is there, and for a drawn part of a mixture with a path.
    """
    data = dict(sections.get("data", {}))
    if data.get("source") in ("auto", "") or (data.get("source") == "scenes" and data.get("path")):
        data["source"] = resolve_source("auto", data.get("path", ""))
    sections = with_mixture({**sections, "data": data})
    for i, part in enumerate(sections["data"].get("mixture") or ()):
        if isinstance(part, Mapping) and part.get("kind") == "scenes" and part.get("path"):
            raise ValueError(
                f"data.mixture[{i}].kind='scenes' draws its own pictures and would not read its path={part['path']!r}: "
                "give the kind of what lies there, or leave the path empty"
            )
    return sections


def with_mixture(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sections with data.mixture read from the JSON file that data.path names, where the config has none.

    Raises ValueError for a file that is missing or no list.
    """
    data = dict(sections.get("data", {}))
    if data.get("source") == "mixture" and not data.get("mixture") and data.get("path"):
        data["mixture"] = _read_mixture(data["path"])
    return {**{name: dict(section) for name, section in sections.items()}, "data": data}


def with_data_path(data: DataConfig, path: str) -> DataConfig:
    """The same data where it lies now; of a mixture the path names a JSON file with its sources. Raises ValueError."""
    if data.source != "mixture":
        return dataclasses.replace(data, path=path, source="auto" if data.source == "scenes" else data.source)
    parts = _typed("data.mixture", _read_mixture(path), tuple[MixturePart, ...])
    return dataclasses.replace(data, path=path, mixture=parts)


def _read_mixture(path: str) -> list[Any]:
    try:
        parts = json.loads(Path(path).read_text())
    except (OSError, TypeError, ValueError, RecursionError) as error:  # TypeError: the path is no string
        raise ValueError(f"data.path={path} of a mixture must be a JSON file with its sources: {error}") from None
    if not isinstance(parts, list):
        raise ValueError(f"data.path={path} must hold a list of sources, as data.mixture does")
    return parts


def with_tokenizer(model: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The model that reads this tokenizer's rows. Raises ValueError when its vocabulary is too small."""
    tokenizer.check_fits(model.text.vocab_size)
    return dataclasses.replace(model, text=dataclasses.replace(model.text, eot_token=tokenizer.eot_token))


def check_sections(sections: Mapping[str, Any], classes: Mapping[str, Any]) -> None:
    """ValueError for sections that are unknown, missing or none, and for a key that stands in another's place."""
    check_names("config", set(sections), set(classes))
    keys = {name: {field.name for field in dataclasses.fields(cls)} - set(DERIVED) for name, cls in classes.items()}
    for section, values in sections.items():
        if not isinstance(values, Mapping):
            raise ValueError(f"config.{section}={values!r} must be a section of keys, as {section}.KEY=VALUE")
        for name in sorted(set(values) - keys[section], key=str):
            if homes := [f"{other}.{name}" for other, names in keys.items() if name in names]:
                raise ValueError(f"unknown {section}.{name}: did you mean {' or '.join(homes)}?")


def check_names(where: str, given: set[str], expected: set[str]) -> None:
    """ValueError that lists what is unknown, with what may be meant, and what is missing."""
    wrong = []
    for name in sorted(given - expected, key=str):
        meant = difflib.get_close_matches(str(name), expected, n=1, cutoff=0.8)
        wrong.append(f"unknown {where}.{name}" + (f" (did you mean {meant[0]}?)" if meant else ""))
    wrong += [f"missing {where}.{name}" for name in sorted(expected - given)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}; {where} has {', '.join(sorted(expected))}")


def make_section(section: str, cls: type[T], values: Mapping[str, Any], **derived: Any) -> T:
    """A section's frozen dataclass; ValueError that names unknown, missing or mistyped keys."""
    hints = typing.get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    check_names(section, set(values), names - set(derived))
    return cls(**{name: _typed(f"{section}.{name}", value, hints[name]) for name, value in values.items()}, **derived)


def _entry(name: str, cls: Any, values: Mapping[str, Any]) -> Any:
    """One of several alike within a section: keys that have a default may be left out."""
    optional = {field.name: field.default for field in dataclasses.fields(cls)}
    given = {key: value for key, value in optional.items() if value is not dataclasses.MISSING} | dict(values)
    return make_section(name, cls, given)


def _typed(name: str, value: Any, expected: Any) -> Any:
    origin = typing.get_origin(expected)
    if origin is typing.Literal:
        if value not in typing.get_args(expected):
            raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, typing.get_args(expected)))}")
        return value
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise ValueError(f"{name}={value!r} must be a tuple")
        return tuple(_typed(f"{name}[{i}]", item, typing.get_args(expected)[0]) for i, item in enumerate(value))
    if dataclasses.is_dataclass(expected):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}={value!r} must be a dict")
        return _entry(name, expected, value)
    if origin is types.UnionType:  # of something and None
        return None if value is None else _typed(name, value, typing.get_args(expected)[0])
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < FLOAT32 else math.inf  # which no field may be
    if not isinstance(value, expected) or (expected is not bool and isinstance(value, bool)):
        raise ValueError(f"{name}={value!r} must be {expected.__name__}, not {type(value).__name__}")
    return value
