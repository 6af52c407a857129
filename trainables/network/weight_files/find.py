"""Find the weights of a model in what a file holds, whatever tool wrote it.

Checkpoints nest the state dict under some key, put a prefix before its names, keep a second copy (an
average of the weights, a teacher), or add counters. `find_weights` tries every mapping of tensors in the file
with every prefix, and takes the one in which the whole model is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainables.errors import InputError
from trainables.network.weight_files.read import some

State = dict[str, torch.Tensor]

DEPTH = 4  # levels of nesting that are searched
# Where training scripts keep the weights; of two sets that fit, the one named first is taken.
USUAL = ("state_dict", "model_state_dict", "model", "module", "net", "network")
AVERAGED = re.compile(r"(^|[^a-z])(ema|swa|averag\w*)($|[^a-z])", re.I)
# Components that wrappers add to names: DataParallel, torch.compile, FSDP, activation checkpoints.
WRAPPING = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Last components of names that are no weights: counters of profilers and averages, fixed indices and masks.
COUNTERS = {"total_ops", "total_params", "n_averaged", "relative_position_index", "position_ids", "attn_mask"}
LOSSES = {"criterion", "loss", "loss_fn", "loss_func", "metric", "metrics"}  # first components, likewise


@dataclass(frozen=True)
class Found:
    """The weights of a model by the model's own names, and what a person should know about them."""

    state: State
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Fit:
    """One set of weights in the file, compared with the model."""

    place: tuple[str, ...]  # keys that lead to it
    prefix: str
    state: State  # by the model's names
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: Mapping[str, str]  # both shapes, by the model's name
    ignored: tuple[str, ...]  # no weights of the model
    head: tuple[str, ...] = ()  # left out: of another number of classes

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshaped)

    @property
    def averaged(self) -> bool:
        return any(AVERAGED.search(part) for part in (*self.place, self.prefix))

    @property
    def where(self) -> str:
        parts = [f"under {'/'.join(self.place)!r}"] if self.place else []
        parts += [f"with the prefix {self.prefix!r}"] if self.prefix else []
        return " ".join(parts) or "at the top level"

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """Order of preference, the smallest first."""
        names = (*self.place, *self.prefix.split("."))
        last = next((name for name in reversed(names) if name), USUAL[0])
        usual = USUAL.index(last) if last in USUAL else len(USUAL)
        return not self.averaged, usual, bool(self.prefix)


def find_weights(
    content: Any, model: torch.nn.Module, path: Path, what: str = "the model", *, fresh_head: bool = False
) -> Found:
    """Return the weights of `model` in `content`.

    Args:
        content: nested mappings, lists, tensors and plain values, as read from a file.
        model: gives names, shapes and types; not changed.
        path: the file, for errors.
        what: the model's name in errors.
        fresh_head: leave out the head (the last layer) if it has another number of classes and all else fits.

    Returns:
        Tensors by the names of the model's state dict. Averaged weights (EMA, SWA) are preferred. Counters of
        norms, names of tied tensors and a head that is left out may be missing.

    Raises:
        InputError: no tensors; names, shapes or types that do not fit; values that are not finite; or several
            sets of weights that fit.
    """
    expected = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    tied = _tied(model)
    fits = [fit for place, mapping in _mappings(content) for fit in _fits(place, mapping, expected, tied)]
    if not fits:
        raise InputError(f"{path}: expected weights (names to tensors), got {_described(content)}")
    if fresh_head:
        fits = [_without_head(fit) for fit in fits]
    whole = sorted((fit for fit in fits if not fit.faults), key=lambda fit: fit.rank)
    if not whole:
        nearest = min(fits, key=lambda fit: (fit.faults, fit.rank))
        raise InputError(f"{path}{_misfit(nearest, content, expected, what)}")
    chosen = whole[0]
    others = [fit for fit in whole[1:] if not _same(fit.state, chosen.state)]
    if others and others[0].rank == chosen.rank:
        places = some([fit.where for fit in (chosen, *others)])
        raise InputError(
            f"{path}: several sets of weights fit {what}: {places}; save "
            "the right one alone, with torch.save or safetensors"
        )
    _check_values(chosen.state, expected, path)
    return Found(chosen.state, tuple(_notes(chosen, others, fits)))


def _mappings(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Yield every mapping that holds tensors, with the keys that lead to it."""
    if isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
        if tensors:
            yield place, tensors
        inner: Iterable[tuple[Any, Any]] = content.items()
    elif isinstance(content, (list, tuple)):
        inner = enumerate(content)
    else:
        return
    if len(place) < DEPTH:
        for key, value in inner:
            yield from _mappings(value, (*place, str(key)))


def _fits(place: tuple[str, ...], state: State, expected: State, tied: list[set[str]]) -> Iterator[_Fit]:
    """Compare a mapping with the model, once per prefix that could be removed."""
    plain, wanted = _unwrapped(state), _unwrapped(expected)
    found = Counter(_prefixes(plain, wanted))
    most = max(found.values(), default=0)
    for prefix in [prefix for prefix, votes in found.items() if 2 * votes > most] or [""]:
        yield _fit(place, prefix, plain, wanted, tied)


def _unwrapped(state: State) -> dict[str, tuple[str, torch.Tensor]]:
    """Return name and tensor by the name without the components of wrappers, if those stay different."""
    short = {name: ".".join(part for part in name.split(".") if part not in WRAPPING) for name in state}
    if len(set(short.values())) < len(short) or "" in short.values():
        short = {name: name for name in state}
    return {short[name]: (name, tensor) for name, tensor in state.items()}


def _prefixes(state: Iterable[str], expected: Mapping[str, object]) -> Iterator[str]:
    """Yield, for every name that ends with a name of the model, what is before it."""
    for name in state:
        start = 0
        while start >= 0 and name[start:] not in expected:
            start = name.find(".", start) + 1 or -1
        if start >= 0:
            yield name[:start]


def _fit(
    place: tuple[str, ...],
    prefix: str,
    plain: Mapping[str, tuple[str, torch.Tensor]],
    wanted: Mapping[str, tuple[str, torch.Tensor]],
    tied: list[set[str]],
) -> _Fit:
    state: State = {}
    misshaped: dict[str, str] = {}
    unexpected, ignored = [], []
    for short, (name, tensor) in plain.items():
        inner = short.removeprefix(prefix)
        parts = inner.split(".")
        if short.startswith(prefix) and inner in wanted:
            own, like = wanted[inner]
            state[own] = tensor
            if tensor.shape != like.shape:
                misshaped[own] = f"{own}: file {tuple(tensor.shape)}, model {tuple(like.shape)}"
        elif not short.startswith(prefix) or parts[-1] in COUNTERS or parts[0] in LOSSES:
            ignored.append(name)
        else:
            unexpected.append(name)
    present = set(state).union(*(names for names in tied if names & state.keys()))
    # Old files lack the batch counters of batch norms, which matter for norms without momentum alone.
    missing = [n for n, _ in wanted.values() if n not in present and not n.endswith("num_batches_tracked")]
    return _Fit(place, prefix, state, tuple(missing), tuple(unexpected), misshaped, tuple(ignored))


def _head(fit: _Fit) -> tuple[str, ...]:
    """Return the names of the one layer whose shape differs, if all other weights fit."""
    layers = {name.rpartition(".")[0] for name in fit.misshaped}
    return tuple(fit.misshaped) if len(layers) == 1 and fit.faults == len(fit.misshaped) else ()


def _without_head(fit: _Fit) -> _Fit:
    head = _head(fit)
    if not head:
        return fit
    state = {name: tensor for name, tensor in fit.state.items() if name not in head}
    return replace(fit, state=state, misshaped={}, head=head)


def _tied(model: torch.nn.Module) -> list[set[str]]:
    """Return the groups of names that are one tensor; files of safetensors hold one of each group."""
    groups: dict[int, set[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), set()).add(name)
    return [names for names in groups.values() if len(names) > 1]


def _same(state: State, other: State) -> bool:
    return state.keys() == other.keys() and all(
        state[name].dtype == other[name].dtype and torch.equal(state[name], other[name]) for name in state
    )


def _check_values(state: State, expected: State, path: Path) -> None:
    """Refuse weights that are quantised or not finite."""
    coarse = [
        f"{name}: {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in state.items()
        if expected[name].is_floating_point()
        and (not tensor.is_floating_point() or tensor.element_size() == 1)
    ]
    if coarse:
        raise InputError(
            f"{path}: {len(coarse)} weights are quantised or of a wrong type ({some(coarse)}); expected "
            "floating-point numbers: name the file from before the quantisation"
        )
    broken = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point()
        and not tensor.isfinite().all()
        and expected[name].isfinite().all()  # masks may be infinite
    ]
    if broken:
        raise InputError(
            f"{path}: {len(broken)} of {len(state)} tensors are not finite, NaN or infinite ({some(broken)}):"
            " the training diverged; name an earlier checkpoint"
        )


def _notes(chosen: _Fit, others: list[_Fit], fits: list[_Fit]) -> Iterator[str]:
    if chosen.averaged:
        yield f"the averaged weights (EMA) {chosen.where} are taken"
    elif broken := [fit for fit in fits if fit.averaged and fit.faults and fit.state]:
        yield f"the averaged weights (EMA) {broken[0].where} do not fit; those {chosen.where} are taken"
    elif others:
        yield f"the weights {chosen.where} are taken; others fit, too: {some([fit.where for fit in others])}"
    if chosen.head:
        yield f"the head ({some(list(chosen.head))}) has another number of classes and starts fresh"
    if left := [name for name in chosen.ignored if name.rpartition(".")[2] not in COUNTERS]:
        yield f"{len(left)} tensors outside the model are ignored ({some(left)})"


def _misfit(fit: _Fit, content: Any, expected: State, what: str) -> str:
    if not fit.state:
        return f": no weights of {what} (such as {next(iter(expected), 'none')}), but {_described(content)}"
    misshaped = tuple(fit.misshaped.values())
    faults = {"missing": fit.missing, "unexpected": fit.unexpected, "of another shape": misshaped}
    text = "; ".join(f"{len(names)} {kind} ({some(list(names))})" for kind, names in faults.items() if names)
    where = f" (weights {fit.where})" if fit.place or fit.prefix else ""
    if head := _head(fit):
        text += (
            f". All but the head ({some(list(head))}) fits: to take all but the head, call "
            "trainables.network.weights.load_weights(model, path, fresh_head=True)"
        )
    return f" does not fit {what}{where}: {text}"


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a mapping of {some([str(key) for key in content])}" if content else "nothing"
    return type(content).__name__
