"""The largest batch that fits, found by compiling and not by running out of memory."""

import os
from collections.abc import Callable
from typing import Any

import jax

NUM_PARTS = 16  # the answer is the largest multiple, of the last doubling's sixteenth, that fits
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "HBM")  # in what XLA says of a program that it refuses to compile


def largest_batch(fits: Callable[[int], bool], multiple: int, most: int) -> int:
    """The largest batch that fits, at most `most`: doubled from `multiple` on, then bisected.

    Exact to a sixteenth of the last size that was doubled to, or to `multiple` where that is more; a larger batch is
    taken to fit only if all smaller ones do. Raises ValueError when not even `multiple` fits.
    """
    if not fits(multiple):
        raise ValueError(
            f"not even a batch of {multiple} fits: take a smaller model, remat=full or more devices with fsdp"
        )
    low = multiple
    while 2 * low <= most:
        if not fits(2 * low):
            break
        low *= 2
    part = max(multiple, low // NUM_PARTS // multiple * multiple)
    high = min(2 * low, most + 1)  # does not fit, or is not wanted
    while high - low > part:
        middle = low + (high - low) // 2 // part * part
        if middle == low:
            break
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def program_bytes(compiled: jax.stages.Compiled) -> int:
    """What a program holds on each device while it runs: arguments, results that are not written over them,
    temporaries and code."""
    memory: Any = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether XLA refused to compile a program for want of the device's memory."""
    return any(sign in str(error) for sign in OUT_OF_MEMORY)


def memory_limit(device: jax.Device) -> int:
    """Bytes that programs may take of a device: what its allocator says, or a CPU device's share of the machine's."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
