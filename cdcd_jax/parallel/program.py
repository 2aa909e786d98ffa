"""A compiled program, as its text (HLO) tells it: its instructions, how often each of them runs in a step, and what they move through memory.

XLA's own cost analysis counts the body of a loop once, so that 24 scanned layers look like one; here a loop's body counts as often as it runs.
"""

import collections
import dataclasses
import functools
import math
import re

# Bytes of an element, by the first letters of its type and their width in bits: f32, bf16, s8, pred, f8e4m3fn, ...
_ARRAY = re.compile(r"\b(pred|token|(?:[suf]|bf|c)(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COUNTER = re.compile(r"[su](32|64)\[\]")
# What an instruction runs: once for each time that it runs itself, but for a loop.
_CALLS = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
# Instructions that name arrays but move nothing.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all", "partition-id", "replica-id",
    "iota", "opt-barrier", "add-dependency", "send", "recv", "send-done", "recv-done", "copy-done", "async-done", "async-update",
}  # fmt: skip
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute", "collective-broadcast")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program: `shape` is what it yields, as text, `attributes` what follows its operands."""

    name: str
    op: str
    shape: str
    operands: tuple[str, ...]
    attributes: str
    value: str  # what stands in the parentheses, for constants and parameters
    root: bool

    @property
    def collective(self) -> str:
        """The kind of communication that it is or starts; "" if it is none, or only the end of one."""
        kind = self.op.removesuffix("-start")
        return kind if kind in COLLECTIVES else ""


@dataclasses.dataclass(frozen=True)
class Program:
    """`runs` says how often each computation runs in one run of the program; 0 for one whose loop does not tell how often it turns."""

    partitions: int  # devices that run it together: those of one slice, where there are several
    computations: dict[str, dict[str, Instruction]]
    runs: dict[str, float]
    fused: frozenset[str]  # computations that are inside of an instruction
    endless: frozenset[str]  # computations in loops that do not tell how often they turn

    def users(self, computation: str, name: str) -> list[Instruction]:
        """The instructions of a computation that take `name` as an operand."""
        return _users(tuple(self.computations[computation].values())).get(name, [])


@functools.cache
def _users(instructions: tuple[Instruction, ...]) -> dict[str, list[Instruction]]:
    found: dict[str, list[Instruction]] = collections.defaultdict(list)
    for instruction in instructions:
        for operand in dict.fromkeys(instruction.operands):
            found[operand].append(instruction)
    return found


def arrays(shape: str) -> list[tuple[int, bool]]:
    """(bytes, whether they lie in the large memory) of each array that a shape's text names; the small ones are S(1) and the like on TPUs."""
    found = []
    for kind, bits, sizes, layout in _ARRAY.findall(shape):
        if kind == "token":
            continue
        count = math.prod(int(size) for size in sizes.split(",")) if sizes else 1
        found.append((count * max(int(bits), 8) // 8 if bits else count, not re.search(r"S\([1-9]", layout)))
    return found


def parse(text: str) -> Program:
    """Reads a program's text, as `compiled.as_text()` has it. Raises ValueError for a text that is none."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = head[2]
            computations[current] = {}
            entry = current if head[1] else entry
        elif current and (match := _INSTRUCTION.match(line)):
            root, name, shape, op, rest = match.groups()
            inside, attributes = _parenthesis(rest)
            operands = () if op in ("constant", "parameter") else tuple(re.findall(r"%([\w.\-]+)", inside))
            computations[current][name] = Instruction(name, op, shape, operands, attributes, inside, bool(root))
    if not entry:
        raise ValueError("this text is no compiled program: it has no ENTRY.")
    partitions = re.search(r"num_partitions=(\d+)", text[: text.find("\n")] if "\n" in text else text)
    runs, fused, endless = _count(computations, entry)
    return Program(int(partitions[1]) if partitions else 1, computations, runs, fused, endless)


def _parenthesis(rest: str) -> tuple[str, str]:
    """What stands before the parenthesis that closes an instruction's operands, and what stands behind it."""
    depth = 1
    for mark in re.finditer(r"[()]", rest):
        depth += 1 if mark[0] == "(" else -1
        if depth == 0:
            return rest[: mark.start()], rest[mark.end() :]
    return rest, ""


def _count(computations: dict[str, dict[str, Instruction]], entry: str) -> tuple[dict[str, float], frozenset[str], frozenset[str]]:
    runs, fused, endless = collections.Counter({entry: 1.0}), set(), set()
    for name in reversed(computations):  # what is called stands before what calls it
        for instruction in computations[name].values():
            called = [(how, callee) for how, callee in _CALLS.findall(instruction.attributes) if callee in computations]
            for branches in _BRANCHES.findall(instruction.attributes):
                called += [("branch", callee.strip().lstrip("%")) for callee in branches.split(",")]
            if instruction.op in ("async-update", "async-done"):  # they name again what was started
                continue
            turns = _turns(instruction, computations[name], computations) if instruction.op == "while" else 1
            for how, callee in called:
                runs[callee] += runs[name] * (1 if turns is None else turns)
                if turns is None or name in endless:
                    endless.add(callee)
                if name in fused or (how in ("calls", "to_apply") and instruction.op not in ("call", "async-start")):
                    fused.add(callee)
    return dict(runs), frozenset(fused), frozenset(endless)


def _turns(loop: Instruction, around: dict[str, Instruction], computations: dict[str, dict[str, Instruction]]) -> int | None:
    """How often a loop turns: as it says itself, or from its counter's limit, start and step; None if neither tells."""
    if said := re.search(r'known_trip_count"?[:=]\s*\{"?n"?[:=]"?(\d+)', loop.attributes):
        return int(said[1])
    called = dict(_CALLS.findall(loop.attributes))
    condition, body = (computations.get(called.get(name, ""), {}) for name in ("condition", "body"))
    constants = [_constant(i.name, condition) for i in condition.values() if i.op == "constant" and _COUNTER.match(i.shape)]
    limits = [limit for limit in constants if limit is not None]
    counters = [i for i in condition.values() if i.op == "get-tuple-element" and _COUNTER.match(i.shape)]
    index = re.search(r"index=(\d+)", counters[0].attributes) if len(counters) == 1 else None
    if len(limits) != 1 or index is None:
        return None
    # JAX's own loops count from zero in steps of one; the compiler may take turns out of a loop, or put two into one.
    start, step = 0, 1
    begins = around.get(loop.operands[0]) if loop.operands else None
    if begins is not None and begins.op == "tuple":
        start = _constant(begins.operands[int(index[1])], around) or 0
    ends = next((i for i in body.values() if i.root), None)
    if ends is not None and ends.op == "tuple":
        grown = body.get(ends.operands[int(index[1])])
        if grown is not None and grown.op == "add":
            step = next((value for operand in grown.operands if (value := _constant(operand, body))), 1)
    return max(0, -(-(limits[0] - start) // step))


def _constant(name: str, computation: dict[str, Instruction]) -> int | None:
    """The whole number that an instruction yields, if it is a constant or a copy of one."""
    found = computation.get(name)
    while found is not None and found.op in ("copy", "bitcast", "convert") and found.operands:
        found = computation.get(found.operands[0])
    return int(found.value) if found is not None and found.op == "constant" and re.fullmatch(r"-?\d+", found.value) else None


def traffic(program: Program) -> float:
    """Bytes that a device reads from and writes to its large memory (HBM) in one run: what each instruction takes and yields, as often as it runs.

    An estimate: of a slice of a stacked array only the slice counts, of an update in place only the update, of what stays in small memory nothing.
    """
    total = 0.0
    for name, computation in program.computations.items():
        if name not in program.fused and program.runs.get(name):
            total += program.runs[name] * sum(_moved(program, name, instruction) for instruction in computation.values())
    return total


def _large(shape: str) -> int:
    return sum(size for size, large in arrays(shape) if large)


def _moved(program: Program, where: str, instruction: Instruction) -> int:
    """Bytes that one run of an instruction reads and writes."""
    if instruction.op in _FREE or instruction.op.endswith("-done"):
        return 0
    around = program.computations[where]
    if instruction.op == "dynamic-slice":
        return 2 * _large(instruction.shape)
    if instruction.op == "dynamic-update-slice":
        return 2 * _large(around[instruction.operands[1]].shape) if instruction.operands[1] in around else 0
    if instruction.op == "copy-start":  # (destination, source, context)
        return sum(size for size, large in arrays(instruction.shape)[:2] if large)
    if instruction.op == "fusion":
        inner = re.search(r"calls=%?([\w.\-]+)", instruction.attributes)
        if inner and inner[1] in program.computations:
            return _moved_by_fusion(program, inner[1])
    return _large(instruction.shape) + sum(_large(around[operand].shape) for operand in instruction.operands if operand in around)


def _moved_by_fusion(program: Program, name: str) -> int:
    inside = program.computations[name]
    total = 0
    for instruction in inside.values():
        if instruction.op == "parameter":
            total += _read(program, name, instruction)
    root = next(instruction for instruction in inside.values() if instruction.root)
    for written in [inside[operand] for operand in root.operands] if root.op == "tuple" else [root]:
        while written.op == "bitcast" and written.operands[0] in inside:
            written = inside[written.operands[0]]
        if written.op == "dynamic-update-slice":
            total += _large(inside[written.operands[1]].shape)
        elif written.op == "custom-call" and "AsyncCollectiveStart" in written.attributes:
            total += _large(inside[written.operands[0]].shape)
        elif written.op != "parameter" and "AsyncCollective" not in written.attributes and not written.collective:
            total += _large(written.shape)
    return total


def _read(program: Program, name: str, parameter: Instruction) -> int:
    """Bytes that a fusion reads of one of its operands."""
    whole, total = _large(parameter.shape), 0
    for user in program.users(name, parameter.name):
        if user.op == "dynamic-slice" and user.operands[0] == parameter.name:
            total += _large(user.shape) or sum(size for size, _ in arrays(user.shape)) * bool(whole)
        elif user.op == "bitcast":
            total += _read(program, name, dataclasses.replace(user, shape=parameter.shape))
        elif user.op == "tuple" or (user.op == "custom-call" and "AsyncCollective" in user.attributes):
            continue  # handed on
        elif user.op == "dynamic-update-slice" and user.operands[0] == parameter.name:
            continue  # written in place
        elif user.collective and "async_collective_fusion_config" in user.attributes and not starts(program, name, user):
            continue  # an operand of what was started before
        else:
            return whole
    return min(total, whole)


def starts(program: Program, where: str, instruction: Instruction) -> bool:
    """Whether a collective that TPUs run beside other work, and name in each fusion that it runs beside, is named here for the first time."""
    return any("AsyncCollectiveStart" in user.attributes for user in program.users(where, instruction.name))
