"""Choose the submodules that become blocks, from a trace.

The first choice are composite modules (a residual block, an inverted residual, an encoder layer): modules
with code around several convolutions or linear layers. If these do little of the computation (VGG, plain
Sequentials), choose runs of layers between changes of the map's size.
"""

from __future__ import annotations

from torch import nn

from trainables.network.trace import Call, Trace, compute_leaves, is_compute, is_container, layout_of

Group = tuple[str, ...]  # paths of submodules that run one after the other

MOST = 0.8  # larger than this share of the FLOPs: not a block
ENOUGH = 0.5  # composites with a smaller share of the FLOPs in total: use runs of layers as well


def choose_groups(record: Trace) -> list[Group]:
    """Return groups of submodules in execution order, each with one tensor in and out; never the head."""
    return _Chooser(record).choose()


class _Chooser:
    def __init__(self, record: Trace) -> None:
        self.record = record
        self.modules = dict(record.model.named_modules())
        self.leaves = {path: compute_leaves(module) for path, module in self.modules.items()}
        self.head = self._head()
        most: dict[type[nn.Module], int] = {}
        for path, module in self.modules.items():
            most[type(module)] = max(self.leaves[path], most.get(type(module), 0))
        self.composites = [
            path
            for path, module in self.modules.items()
            if path and not is_container(module) and most[type(module)] >= 2 and self._eligible(path)
        ]
        self.stages = {type(self.modules[path]) for path in self.composites if self._is_stage(path)}

    def choose(self) -> list[Group]:
        found = self._without_stem(self._descend(""))
        shares = [self._share((path,)) for path in found]
        if sum(shares) >= ENOUGH and not (len(found) == 1 and shares[0] > MOST):
            return [(path,) for path in found]
        closed = {path for path, share in zip(found, shares, strict=True) if share <= MOST}
        groups: list[Group] = []
        for level in ("whole", "runs", "units"):
            groups = sorted(self._runs("", level, closed), key=self._begin)
            if len(groups) >= 2 and max(map(self._share, groups)) <= MOST:
                return groups
        return groups or [(path,) for path in found]

    def _children(self, path: str) -> list[str]:
        prefix = f"{path}." if path else ""
        return [
            prefix + name for name, _ in self.modules[path].named_children() if prefix + name in self.modules
        ]

    def _begin(self, group: Group) -> int:
        return self._call(group[0]).begin

    def _call(self, path: str) -> Call:
        call = self.record.single(path)
        assert call is not None
        return call

    def _share(self, group: Group) -> float:
        return sum(self._call(path).flops for path in group) / max(1, self.record.flops)

    def _head(self) -> str | None:
        """Return the path of the classifier: the layer with weights whose call ends last."""
        ends = [(call.end, call.begin, call.path) for call in self.record.order if is_compute(call.module)]
        return max(ends)[2] if ends else None

    def _eligible(self, path: str) -> bool:
        call = self.record.single(path)
        if call is None or layout_of(self.record, call) is None:
            return False
        return self.head is None or not f"{self.head}.".startswith(f"{path}.")

    def _is_stage(self, path: str) -> bool:
        """Return whether a composite is a sequence of composites of one class, to be split into them."""
        inner = [p for p in self.composites if p.startswith(f"{path}.")]
        kinds = [type(self.modules[p]) for p in inner]
        repeated = [p for p, kind in zip(inner, kinds, strict=True) if kinds.count(kind) >= 2]
        # A residual block of two separable convolutions is one block; a sequence of residual blocks is not.
        return bool(repeated) and (not self._ends_in_sum(path) or any(self._ends_in_sum(p) for p in repeated))

    def _ends_in_sum(self, path: str) -> bool:
        """Return whether the module's code, not a child's, ends in a sum and perhaps an activation."""
        call = self._call(path)
        key, node = call.out_key, call.result
        inner = {other.out_key: other for other in self.record.inside(call) if other.out_key is not None}
        while key in inner:
            child = inner.pop(key)
            if self.leaves[child.path]:
                return False
            key, node = child.in_key, child.source
        for _ in range(2):
            if node is None or node.name().startswith("AddBackward"):
                break
            node = node.next_functions[0][0] if node.next_functions else None
        return node is not None and node.name().startswith("AddBackward")

    def _descend(self, path: str) -> list[str]:
        if path in self.composites and type(self.modules[path]) not in self.stages:
            return [path]
        return [found for child in self._children(path) for found in self._descend(child)]

    def _without_stem(self, found: list[str]) -> list[str]:
        """Remove a composite that reads the image itself and is the only one of its class."""
        kinds = [type(self.modules[path]) for path in found]
        image = self.record.image
        kept = [
            p
            for p, k in zip(found, kinds, strict=True)
            if self._call(p).in_key != image or kinds.count(k) > 1
        ]
        return sorted(kept or found, key=lambda path: self._call(path).begin)

    def _runs(self, path: str, level: str, closed: set[str]) -> list[Group]:
        """Return the groups inside the module at `path`; composites in `closed` are not split."""
        if path in closed:
            return [(path,)]
        if not self.leaves[path]:
            return []
        if path and self.leaves[path] == 1 and self._eligible(path):
            return [(path,)]
        if not is_container(self.modules[path]):
            return [group for child in self._children(path) for group in self._runs(child, level, closed)]
        if level == "whole" and self._is_whole(path):
            return [(path,)]
        return self._split(path, level, closed)

    def _is_whole(self, path: str) -> bool:
        """Return whether a Sequential of single layers is one stage: changes the map's size at most once."""
        children = self._children(path)
        if not path or not self._eligible(path) or any(self.leaves[child] > 1 for child in children):
            return False
        return sum(self._call(child).resized for child in children if self.record.single(child)) <= 1

    def _split(self, path: str, level: str, closed: set[str]) -> list[Group]:
        """Split a Sequential into runs of children between pooling, strided layers and nested networks."""
        groups: list[Group] = []
        run: list[str] = []

        def end_run() -> None:
            if any(self.leaves[child] for child in run):
                whole = path and len(run) == len(self._children(path)) and self._eligible(path)
                groups.append((path,) if whole else tuple(run))
            run.clear()

        for child in self._children(path):
            if child in closed or self.leaves[child] > 1 or not self._eligible(child):
                end_run()
                groups += self._runs(child, level, closed)
                continue
            resized = self._call(child).resized
            if not self.leaves[child] and resized:
                end_run()
                continue
            if self.leaves[child] and (resized or level == "units") and any(self.leaves[c] for c in run):
                end_run()
            run.append(child)
        end_run()
        return groups
