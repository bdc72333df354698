"""The largest batch that fits, found by compiling, not by running out of memory."""

import os
from collections.abc import Callable
from typing import Any

import jax

NUM_PARTS = 16  # the answer is exact to a sixteenth of the last doubling that fits
START = 64  # about the first size that is tried; each costs a compilation
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "HBM")  # in XLA's error about a program that it refuses to compile


def largest_batch(fits: Callable[[int], bool], multiple: int, most: int) -> int:
    """The largest batch that fits, a multiple of `multiple`, at most `most`: doubled from about 64 on, then bisected.

    Between the last doubling that fits and the next, sixteenths are tried. A larger batch is taken to fit only if all
    smaller ones do. Raises ValueError when not even `multiple` fits.
    """
    low, high = 0, multiple * min(-(-START // multiple), max(most // multiple, 1))
    while high <= most and fits(high):
        low, high = high, 2 * high
    part = max(multiple, low // NUM_PARTS // multiple * multiple)
    high = min(high, most // part * part + part)  # does not fit, or is not wanted
    while high - low > part:
        middle = low + (high - low) // part // 2 * part
        low, high = (middle, high) if fits(middle) else (low, middle)
    if not low:
        raise ValueError(
            f"not even a batch of {multiple} fits: take a smaller model, remat=full, or more devices with fsdp"
        )
    return low


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes of a running program on each device: arguments, results that do not overwrite them, temporaries, code."""
    memory: Any = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether XLA refused to compile a program that exceeds the device's memory."""
    return any(sign in str(error) for sign in OUT_OF_MEMORY)


def memory_limit(device: jax.Device) -> int:
    """Bytes that programs may take of a device: its allocator's limit, or a CPU device's share of all memory."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
