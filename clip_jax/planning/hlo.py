"""Collectives between devices, and bytes to and from a device's memory, read off the text of a compiled program.

XLA's own counts take the body of a loop once; here it counts as often as it runs.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# Instructions that move nothing: names of existing arrays, or the sum of what they call.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
        "opt-barrier", "partition-id", "replica-id", "iota", "broadcast"}  # fmt: skip
SLICES = ("dynamic-slice", "slice", "gather")
BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
FAST_MEMORY = "S(1)"  # the layout of what lies in a TPU's on-chip memory
NAME = r"%([\w.\-]+)"
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")


@dataclass(frozen=True)
class Collective:
    """One kind: how often a device starts it in a run of the program, and the bytes of the whole arrays on that device:
    the results of gathers, the operands of reductions."""

    kind: str
    count: int
    bytes: int

    @property
    def sent_bytes(self) -> int:
        """Bytes that a device sends at most, round a ring: an all-reduce is a reduce-scatter and an all-gather."""
        return self.bytes * (2 if self.kind == "all-reduce" else 1)


class Instruction(NamedTuple):
    """One line of a program; `shape` is text, `operands` are names."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool


class Program:
    """The text of a compiled program (`jax.stages.Compiled.as_text`) as computations of instructions."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self._entry = ""
        instructions: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line.startswith(("%", "ENTRY")) and (header := HEADER.match(line)):
                instructions = self.computations.setdefault(header[2], {})
                self._entry = header[2] if header[1] else self._entry
            elif line.startswith("  ") and (instruction := _parse(line)):
                instructions[instruction.name] = instruction
        if not self._entry:
            raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")

    def collectives(self) -> list[Collective]:
        """Each kind that occurs, in the order of COLLECTIVES."""
        found: dict[tuple[str, str], tuple[int, int]] = {}  # a TPU spreads one collective over several computations
        for name, runs in self._runs(through_fusions=True).items():
            for instruction in self.computations[name].values():
                kind = instruction.opcode.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                taken = sum(_bytes(self.computations[name][operand].shape) for operand in instruction.operands)
                given = _bytes(instruction.shape) - (taken if instruction.opcode.endswith("-start") else 0)
                array = max(taken, given)
                if name.startswith("all-reduce-scatter"):  # how a TPU writes it: a sum of which each keeps its part
                    kind = "reduce-scatter"
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                found[kind, channel[1] if channel else instruction.name] = runs, array
        return [
            Collective(kind, sum(r for r, _ in of_kind), sum(r * b for r, b in of_kind))
            for kind in COLLECTIVES
            if (of_kind := [value for (found_kind, _), value in found.items() if found_kind == kind])
        ]

    def bytes_moved(self) -> int:
        """Bytes that a device reads from and writes to its main memory in one run.

        Each instruction outside a fusion reads its operands and writes its result once; what a fusion slices, or
        updates in place, counts by the slice; what lies in on-chip memory does not count.
        """
        total = 0
        for name, runs in self._runs(through_fusions=False).items():
            instructions = self.computations[name]
            busy = [i for i in instructions.values() if i.opcode not in FREE and i.operands]  # else: room for a result
            total += runs * sum(self._moved(instruction, instructions) for instruction in busy)
        return total

    def _moved(self, instruction: Instruction, instructions: dict[str, Instruction]) -> int:
        fused = _called(instruction, "calls") if instruction.opcode == "fusion" else None
        body = self.computations[fused] if fused else {}
        parameters = _parameters(body)
        read = 0
        for position, operand in enumerate(instruction.operands):
            whole = _bytes(instructions[operand].shape, slow_only=True) if operand in instructions else 0
            parameter = parameters.get(str(position))
            sliced = self._sliced(parameter, body) if parameter else None
            if not fused and instruction.opcode in SLICES and position == 0:
                sliced = _bytes(instruction.shape)
            if not fused and instruction.opcode == "dynamic-update-slice" and position == 0:
                sliced = 0
            read += whole if sliced is None else min(whole, sliced)
        return read + self._written(instruction, instructions, body)

    def _sliced(self, operand: Instruction, body: dict[str, Instruction]) -> int | None:
        """What a fusion reads of an operand that it only slices or updates in place; None where it reads all."""
        total = 0
        for user in body.values():
            if operand.name not in user.operands:
                continue
            is_first = user.operands[0] == operand.name
            if user.opcode in SLICES and is_first:
                total += _bytes(user.shape)
                continue
            inner: int | None = 0 if user.opcode == "dynamic-update-slice" and is_first else None
            if user.opcode == "bitcast":
                inner = self._sliced(user, body)
            elif user.opcode == "fusion":
                called = self.computations[_called(user, "calls")]
                inner = self._sliced(_parameters(called)[str(user.operands.index(operand.name))], called)
            if inner is None:
                return None
            total += inner
        return total

    def _written(self, instruction: Instruction, own: dict[str, Instruction], body: dict[str, Instruction]) -> int:
        whole = _bytes(instruction.shape, slow_only=True)
        if instruction.opcode == "dynamic-update-slice":
            return min(whole, _bytes(own[instruction.operands[1]].shape)) if instruction.operands[1] in own else whole
        updates = [i for i in body.values() if i.opcode == "dynamic-update-slice"]
        for update in updates:
            in_place = _bytes(update.shape)
            whole -= min(whole, in_place - _bytes(body[update.operands[1]].shape))
        return whole

    def _runs(self, through_fusions: bool) -> dict[str, int]:
        """How often each computation that is reached runs."""
        runs: dict[str, int] = defaultdict(int)

        def visit(name: str, times: int) -> None:
            runs[name] += times
            for instruction in self.computations[name].values():
                if instruction.opcode == "while":
                    visit(_called(instruction, "body"), times * self._trips(instruction))
                elif through_fusions or instruction.opcode in ("call", "conditional"):
                    for called in _all_called(instruction):
                        visit(called, times)

        visit(self._entry, 1)
        return runs

    def _trips(self, loop: Instruction) -> int:
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        # A scan counts from zero to a constant, the largest one of its condition.
        condition = self.computations[_called(loop, "condition")]
        limits = [i.rest.partition(")")[0] for i in condition.values() if i.opcode == "constant" and i.shape[0] in "su"]
        return max((int(limit) for limit in limits if limit.isdigit()), default=1)


def _parse(line: str) -> Instruction | None:
    name, equals, right = line.strip().removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    # A tuple's shape has spaces, and both kinds have parentheses in their layouts: the opcode follows the last.
    end = _closing(right) + 1 if right.startswith("(") else right.find(" ")
    opcode, _, rest = right[end:].strip().partition("(")
    inside = rest[: _closing("(" + rest) - 1]
    operands = tuple(re.findall(NAME, inside))
    return Instruction(name.lstrip("%"), right[:end], opcode, operands, rest, line.lstrip().startswith("ROOT "))


def _closing(text: str) -> int:
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def _called(instruction: Instruction, role: str) -> Any:
    match = re.search(rf"\b{role}={NAME}", instruction.rest)
    return match[1] if match else None


def _all_called(instruction: Instruction) -> list[str]:
    one = re.findall(rf"\b(?:calls|to_apply|true_computation|false_computation)={NAME}", instruction.rest)
    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    return one + (re.findall(NAME, branches[1]) if branches else [])


def _bytes(shape: str, slow_only: bool = False) -> int:
    """Of all arrays of a shape; slow_only leaves out what lies in on-chip memory."""
    total = 0
    for dtype, dims, layout in ARRAY.findall(shape):
        if slow_only and FAST_MEMORY in layout:
            continue
        bits = BITS[dtype] if dtype in BITS else int((re.search(r"\d+", dtype) or ["0"])[0])
        total += math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8
    return total


def _parameters(body: dict[str, Instruction]) -> dict[str, Instruction]:
    return {i.rest.partition(")")[0]: i for i in body.values() if i.opcode == "parameter"}
