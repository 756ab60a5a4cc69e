"""How a model is built up: its stacks of blocks, where a tensor stands in them, how its layer is called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from transfer_bo.errors import TransferError
from transfer_bo.parametrization.builds import BuildModel, build_meta, parameters_of
from transfer_bo.scale import Scale

__all__ = ["PROBE", "Place", "find_stacks", "match_blocks", "module_types", "place_of"]

PROBE = 2
"""The wider and the deeper build are this many times the base: the least that keeps head counts dividing."""


@dataclass(frozen=True)
class Place:
    """Where a name stands: its stack and block number, and the rest of the path."""

    stack: str | None
    block: int | None
    inner: str

    @property
    def block_path(self) -> str | None:
        """Path of the block, e.g. "blocks.3"."""
        return None if self.stack is None else f"{self.stack}.{self.block}".lstrip(".")


def _containers(names: Iterable[str]) -> dict[str, dict[int, set[str]]]:
    """For each path with numbered children: the inner names of each child."""
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        parts = name.split(".")
        for position, part in enumerate(parts):
            if part.isdigit():
                found[".".join(parts[:position])][int(part)].add(".".join(parts[position + 1 :]))
    return found


def find_stacks(
    build_model: BuildModel, base: Scale, base_model: nn.Module, target_model: nn.Module
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Path of each stack of blocks -> its block numbers, in the base and in the target.

    A stack is a container that gets more children when the model gets deeper. Without a depth axis, the
    outermost containers of two or more children of like structure count.
    """
    in_base = _containers(parameters_of(base_model))
    in_target = _containers(parameters_of(target_model))
    if "depth" in base:
        deeper = build_meta(build_model, base.replace(depth=PROBE * base.depth))
        in_deeper = _containers(parameters_of(deeper))
        stacks = [path for path in in_base if set(in_base[path]) < set(in_deeper.get(path, {}))]
        if not stacks:
            raise TransferError(
                f"build_model ignores depth: no numbered container of blocks has more of them at depth "
                f"{PROBE * base.depth:g} than at {base.depth:g}; keep blocks in an nn.ModuleList of "
                "scale.depth blocks."
            )
    else:
        alike = [
            path
            for path, blocks in in_base.items()
            if len(blocks) > 1
            and len({frozenset(inner) for inner in blocks.values()}) == 1
            and any("." in inner for inner in next(iter(blocks.values())))
        ]
        stacks = [p for p in alike if not any(p != q and p.startswith(f"{q}.") for q in alike)]
    return (
        {path: sorted(in_base[path]) for path in stacks},
        {path: sorted(in_target[path]) for path in stacks},
    )


def place_of(name: str, blocks: Mapping[str, list[int]]) -> Place:
    """The place of a name, given the stacks and the numbers of their blocks."""
    for stack in blocks:
        prefix = f"{stack}." if stack else ""
        if name.startswith(prefix):
            number, _, inner = name.removeprefix(prefix).partition(".")
            if number.isdigit():
                return Place(stack, int(number), inner)
    return Place(None, None, name)


def match_blocks(base: Mapping[str, list[int]], target: Mapping[str, list[int]]) -> dict[str, str]:
    """Each block of the target -> the block of the base that covers its middle in relative depth."""
    matched = {}
    for stack, numbers in target.items():
        for rank, number in enumerate(numbers):
            match = base[stack][int((rank + 0.5) / len(numbers) * len(base[stack]))]
            matched[f"{stack}.{number}".lstrip(".")] = f"{stack}.{match}".lstrip(".")
    return matched


def module_types(places: Mapping[str, Place]) -> dict[str, str]:
    """A layer's shortest name that no other kind of layer has: "q", "attn.c_proj" where mlp has one too.

    Numbers are dropped (the experts of a layer are of one type) unless they are the layer's own name.
    """
    paths: dict[str, tuple[str, ...]] = {}
    for name, place in places.items():
        full = [*(place.stack or "").split("."), *place.inner.split(".")]
        if len(full) > 1 and full[-1] in ("weight", "bias"):
            full.pop()
        paths[name] = tuple(p for i, p in enumerate(full) if p and (not p.isdigit() or i == len(full) - 1))
    distinct = set(paths.values())

    def shortest(path: tuple[str, ...]) -> str:
        for length in range(1, len(path) + 1):
            suffix = path[-length:]
            if not suffix[0].isdigit() and sum(other[-length:] == suffix for other in distinct) == 1:
                return ".".join(suffix)
        return ".".join(path)

    short = {path: shortest(path) for path in distinct}
    return {name: short[path] for name, path in paths.items()}
