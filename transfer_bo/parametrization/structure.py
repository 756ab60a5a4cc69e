"""The structure of a model: its stacks of blocks, and which tensors of base and target correspond.

A stack is a container with numbered children (nn.ModuleList, nn.Sequential) that gets more of them when the
model gets deeper. Children are compared by their *kind*: their tensors' names and shapes at two widths. In a
plain nn.Sequential the first and the last layer are children too; they differ from blocks in that their kind
does not repeat, and are recognised in a deeper model although their numbers shift.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from transfer_bo.errors import ParametrizationError
from transfer_bo.scale import Scale

__all__ = ["PROBE", "Place", "Stack", "base_name_of", "find_stacks", "module_types", "place_of"]

PROBE = 2
"""Size of the wider and the deeper build in units of the base: whole, so that head counts divide it."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each tensor by name."""
Kind = frozenset[tuple[str, tuple[int, ...], tuple[int, ...]]]
"""Tensors of a child: name inside it, shape at the base width, shape at the wider one."""


@dataclass(frozen=True)
class Stack:
    """The blocks of one container in the target, and the children of the base that they correspond to."""

    depth: float
    """Ratio of blocks target/base."""
    blocks: dict[int, int | None]
    """Number of each block in the target -> that of the base's block of the same kind that covers its middle
    in relative depth; None if the base has none of its kind."""
    others: dict[int, int | None]
    """Likewise for children that are no blocks, such as the first and last layer of an nn.Sequential."""


@dataclass(frozen=True)
class Place:
    """The stack and block that hold a tensor or module."""

    stack: str | None
    """Path of the stack; None outside stacks."""
    block: int | None
    """Number of the block."""
    inner: str
    """Path inside the block; the whole path outside stacks."""

    @property
    def block_path(self) -> str | None:
        """Path of the block, e.g. "blocks.3"."""
        return None if self.stack is None else _join(self.stack, self.block)


def _join(path: str, number: int | None) -> str:
    return f"{path}.{number}".lstrip(".")


def _containers(narrow: Shapes, wide: Shapes) -> dict[str, dict[int, Kind]]:
    """For each path with numbered children: the kind of each child, by number."""
    found: dict[str, dict[int, set[tuple[str, tuple[int, ...], tuple[int, ...]]]]] = defaultdict(
        lambda: defaultdict(set)
    )
    for name in narrow:
        parts = name.split(".")
        for position, part in enumerate(parts):
            if part.isdigit():
                inner = ".".join(parts[position + 1 :])
                found[".".join(parts[:position])][int(part)].add((inner, narrow[name], wide[name]))
    return {
        path: {number: frozenset(tensors) for number, tensors in sorted(children.items())}
        for path, children in found.items()
    }


def _maps_width_to_width(kind: Kind) -> bool:
    return any(
        sum(n != w for n, w in zip(narrow, wide, strict=True)) >= 2  # two growing dimensions
        for _, narrow, wide in kind
    )


def find_stacks(shapes: Callable[[Scale], Shapes], base: Scale, target: Scale) -> dict[str, Stack]:
    """The stacks of the target by path.

    Without a depth axis, stacks are the outermost containers of two or more children of the same structure.

    Args:
        shapes: Names and shapes of the model's tensors at a scale.
        base: Has the axis `width`.
        target: Has the same axes.

    Raises:
        ParametrizationError: if the model has a depth but nothing in it repeats.
    """
    wider = PROBE * base.width

    def containers(scale: Scale) -> dict[str, dict[int, Kind]]:
        return _containers(shapes(scale.replace(width=base.width)), shapes(scale.replace(width=wider)))

    # Another axis (a number of experts) would make all blocks of the target another kind.
    other_axes = [axis for axis in base if axis not in ("width", "depth", "batch", "tokens")]
    if any(base[axis] != target[axis] for axis in other_axes):
        target = base.replace(depth=target.depth) if "depth" in base else base
    in_base, in_target = containers(base), containers(target)

    if "depth" not in base:
        alike = [
            path
            for path, children in in_base.items()
            if len(children) > 1
            and len({frozenset(inner for inner, *_ in kind) for kind in children.values()}) == 1
            and any("." in inner for inner, *_ in next(iter(children.values())))
        ]
        outermost = [p for p in alike if not any(p != q and p.startswith(f"{q}.") for q in alike)]
        return {path: _stack(in_base[path], in_target[path], set(in_base[path])) for path in outermost}

    deep = base.replace(depth=PROBE * base.depth)
    in_deeper = containers(deep)
    stacks = {}
    for path, children in in_base.items():
        deeper = in_deeper.get(path, {})
        if set(children) < set(deeper) and path in in_target:
            before, after = Counter(children.values()), Counter(deeper.values())
            blocks = {
                number
                for number, kind in children.items()
                if after[kind] > before[kind] or _maps_width_to_width(kind)
            }
            if blocks:
                stacks[path] = _stack(children, in_target[path], blocks)
    if not stacks:
        raise ParametrizationError(
            f"build_model ignores depth: no numbered container of blocks has more of them at depth "
            f"{deep.depth:g} than at {base.depth:g}; keep blocks in an nn.ModuleList of scale.depth blocks."
        )
    return stacks


def _stack(base: Mapping[int, Kind], target: Mapping[int, Kind], base_blocks: set[int]) -> Stack:
    block_kinds = {base[number] for number in base_blocks}
    target_blocks = [n for n, kind in target.items() if kind in block_kinds or _maps_width_to_width(kind)]

    # Norms between the layers of an nn.Sequential repeat as well, but they do not make it deeper.
    in_base = [n for n in base_blocks if _maps_width_to_width(base[n])] or sorted(base_blocks)
    in_target = [n for n in target_blocks if _maps_width_to_width(target[n])] or target_blocks
    matched = _match(base, target)

    return Stack(
        depth=len(in_target) / len(in_base),
        blocks={n: matched[n] for n in target_blocks},
        others={n: matched[n] for n in target if n not in target_blocks},
    )


def _match(base: Mapping[int, Kind], target: Mapping[int, Kind]) -> dict[int, int | None]:
    """Each child of the target -> the child of its kind in the base that covers its middle."""
    matched: dict[int, int | None] = {}
    for kind in set(target.values()):
        in_target = [number for number, k in target.items() if k == kind]
        in_base = [number for number, k in base.items() if k == kind]
        for rank, number in enumerate(in_target):
            middle = int((rank + 0.5) / len(in_target) * len(in_base))
            matched[number] = in_base[middle] if in_base else None
    return matched


def _in_container(name: str, path: str) -> tuple[int | None, str]:
    """Number of the child of a container that holds a name (None if none does), and the path inside it."""
    prefix = f"{path}." if path else ""
    number, _, inner = name.removeprefix(prefix).partition(".")
    return (int(number), inner) if name.startswith(prefix) and number.isdigit() else (None, name)


def place_of(name: str, stacks: Mapping[str, Stack]) -> Place:
    """The place of a name of the target."""
    for path, stack in stacks.items():
        number, inner = _in_container(name, path)
        if number in stack.blocks:
            return Place(path, number, inner)
    return Place(None, None, name)


def base_name_of(name: str, stacks: Mapping[str, Stack]) -> str | None:
    """The name in the base that a name of the target corresponds to; None if there is none."""
    for path, stack in stacks.items():
        number, inner = _in_container(name, path)
        if number is not None:
            match = {**stack.blocks, **stack.others}.get(number)
            return None if match is None else f"{_join(path, match)}.{inner}".rstrip(".")
    return name


def module_types(names: Iterable[str], stacks: Mapping[str, Stack]) -> dict[str, str]:
    """The module type of each tensor: the shortest name of its layer that no other kind of layer has.

    E.g. "q", or "attn.c_proj" where the MLP has a "c_proj" too. Names are taken from the base, so that they
    are the same at every scale. Numbers are left out (the experts of a layer are of one type) unless they are
    the layer's own name.
    """
    paths: dict[str, tuple[str, ...]] = {}
    for name in names:
        place = place_of(name, stacks)
        if place.stack is None:
            full = (base_name_of(name, stacks) or name).split(".")
        else:
            full = [*(place.stack or "layers").split("."), *place.inner.split(".")]
        if len(full) > 1 and full[-1] in ("weight", "bias"):
            full.pop()
        paths[name] = tuple(p for i, p in enumerate(full) if not p.isdigit() or i == len(full) - 1)

    distinct = set(paths.values())

    def shortest(path: tuple[str, ...]) -> str:
        for length in range(1, len(path) + 1):
            suffix = path[-length:]
            if (not suffix[0].isdigit() or len(path) == length) and sum(
                other[-length:] == suffix for other in distinct
            ) == 1:
                return ".".join(suffix)
        return ".".join(path)

    short = {path: shortest(path) for path in distinct}
    return {name: short[path] for name, path in paths.items()}
