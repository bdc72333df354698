"""Numbers of a config: each field has a range, and what is outside of it ends in one message, at once."""

import dataclasses
import importlib
import itertools
import json
import math
import random
import time
from typing import Annotated

import pytest

from clip_jax.config.experiment import make_config
from clip_jax.evaluation.suite.config import make_suite_config
from clip_jax.training.optimizer import make_schedule
from input_pipeline.open_data import make_sources
from input_pipeline.ranges import POSITIVE, Range, check_ranges
from input_pipeline.sources import filters_of

CONFIGS = ("tiny", "clip_rn50", "suites.scenes")
MAKE = {name: make_suite_config if name.startswith("suites.") else make_config for name in CONFIGS}


def given(name):
    return importlib.import_module(f"configs.{name}").get_config().to_dict()


def numbers_of(name):
    """(section, key, index within a tuple or None) of every number in a config."""
    for section, keys in given(name).items():
        for key, value in keys.items():
            for i, item in enumerate(value) if isinstance(value, tuple | list) else [(None, value)]:
                if isinstance(item, int | float) and not isinstance(item, bool):
                    yield section, key, i


def with_value(name, section, key, index, value):
    sections = given(name)
    if index is not None:
        items = list(sections[section][key])
        items[index] = value
        value = tuple(items)
    sections[section][key] = value
    return sections


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400])
def test_no_number_may_be_nan_or_infinite(name, value):
    for place in numbers_of(name):
        section, key, index = place
        item = f"{section}.{key}" + ("" if index is None else f"[{index}]")
        with pytest.raises(ValueError) as error:  # noqa: PT011, compared below
            MAKE[name](with_value(name, *place, value))
        assert str(error.value).startswith((f"{item}={value!r} must be ", f"{item}=inf must be a finite number")), place


@pytest.mark.parametrize("name", CONFIGS)
def test_a_number_that_no_computer_can_count_to_is_refused_at_once(name):
    """Twenty digits made some searches endless, and overflowed in others."""
    start = time.perf_counter()
    for (section, key, index), sign in itertools.product(numbers_of(name), (1, -1)):
        number = given(name)[section][key]
        if isinstance(number if index is None else number[index], int):
            with pytest.raises(ValueError, match=rf"^{section}.{key}\S*=-?10{{20}} must "):
                MAKE[name](with_value(name, section, key, index, sign * 10**20))
    assert time.perf_counter() - start < 10


@dataclasses.dataclass
class Numbers:
    share: Annotated[float, Range(0, below=1)] = 0.5
    rate: Annotated[float, POSITIVE] = 1.0
    count: Annotated[int, Range(2, 9)] = 3
    weight: Annotated[float | None, POSITIVE] = None
    sizes: tuple[Annotated[int, Range(1)], ...] = (1,)
    free: float = 0.0
    name: str = ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"share": 0, "rate": 5, "weight": 1e-9, "sizes": (), "free": -1e9}, None),
        ({"share": 1.0}, "a.share=1.0 must lie in [0, 1)"),
        ({"share": -0.1}, "a.share=-0.1 must lie in [0, 1)"),
        ({"rate": 0}, "a.rate=0 must be above 0"),
        ({"rate": 1e39}, "a.rate=1e+39 must be at most 3.4028235e+38"),
        ({"rate": "1"}, "a.rate='1' must be a number"),
        ({"rate": True}, "a.rate=True must be a number"),
        ({"count": 1}, "a.count=1 must be at least 2"),
        ({"count": 10}, "a.count=10 must be at most 9"),
        ({"count": 3.0}, "a.count=3.0 must be a whole number"),
        ({"weight": 0.0}, "a.weight=0.0 must be above 0"),
        ({"sizes": (2, 0)}, "a.sizes[1]=0 must be at least 1"),
        ({"sizes": (2, None)}, None),
        ({"sizes": (2**63,)}, "a.sizes[0]=9223372036854775808 must be at most 9223372036854775807"),
        ({"free": math.nan}, "a.free=nan must be a finite number"),
    ],
)
def test_messages(changes, message):
    numbers = Numbers(**changes)
    if message is None:
        check_ranges(numbers, "a.")
        return
    with pytest.raises(ValueError) as error:  # noqa: PT011, compared below
        check_ranges(numbers, "a.")
    assert str(error.value) == message


@pytest.mark.parametrize("section", ["text", "data", "optimizer"])
@pytest.mark.parametrize("value", [None, 3, "x", [1]])
def test_a_section_must_be_one(section, value):
    with pytest.raises(ValueError, match=rf"^config.{section}=.* must be a section of keys, as {section}.KEY=VALUE$"):
        make_config(given("tiny") | {section: value})


EXTREME = [0, -1, 1, 2, 3, 7, 2**15, 2**20, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**20, 10**400, 0.5, 1.0, -0.0]
EXTREME += [math.nan, math.inf, -math.inf, 1e-320, 1e308, True, None, "", "x", "nan", "1", b"x", (), (1,), (math.nan,)]
EXTREME += [[], {}, {"a": 1}, (1, 2, 3), (0, 0, 0, 0), ("x",), ({"kind": "scenes", "name": "a", "weight": math.nan},)]


def mutated(rng, sections):
    """One to three changes: another value, of any type, a key or section more or less, one in the wrong place."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        section = rng.choice(sorted(sections))
        keys = sections[section]
        if not isinstance(keys, dict) or not keys:
            continue
        key = rng.choice(sorted(keys, key=str))
        kind = rng.randrange(12)
        if kind == 0:
            del keys[key]
        elif kind == 1:
            keys[rng.choice([f"{key}s", str(key)[1:], 7, "", None])] = keys[key]
        elif kind == 2:
            sections[rng.choice(sorted(sections))] = rng.choice(EXTREME)
        elif kind == 3:
            other = rng.choice([name for name in sections if isinstance(sections[name], dict)] or [section])
            if isinstance(sections[other], dict):
                sections[other][key] = keys[key]
        elif isinstance(keys[key], tuple | list) and keys[key] and rng.random() < 0.5:
            items = list(keys[key])
            items[rng.randrange(len(items))] = rng.choice(EXTREME)
            keys[key] = tuple(items)
        elif isinstance(keys[key], int | float) and rng.random() < 0.7:
            keys[key] = type(keys[key])(keys[key] * rng.choice([0, -1, 2, 0.5, 3]))
        else:
            keys[key] = rng.choice(EXTREME)


def numbers_in(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [number for item in value for number in numbers_in(item)]
    return [value] if isinstance(value, float | int) else []


@pytest.mark.parametrize("number", [150, pytest.param(2000, marks=pytest.mark.nightly)])
def test_mutated_configs_are_accepted_or_refused_in_one_message(number):
    """Any exception but ValueError fails the test; what is accepted holds finite numbers, and its data opens."""
    rng, accepted = random.Random(0), 0
    for _ in range(number):
        name = rng.choice(CONFIGS)
        sections = given(name)
        mutated(rng, sections)
        start = time.perf_counter()
        try:
            config = MAKE[name](sections)
            accepted += 1
            plain = dataclasses.asdict(config)
            assert all(math.isfinite(number) for number in numbers_in(plain))
            json.dumps(plain, allow_nan=False)
            if MAKE[name] is make_config:
                make_schedule(config.optimizer, config.train.total_steps)
                if config.data.source == "scenes" and filters_of(config.data) is None:  # filters draw every picture
                    make_sources(config.data, config.model.vision.image_size)
        except ValueError:
            pass
        assert time.perf_counter() - start < 2, sections
    assert number / 20 < accepted < number / 2
