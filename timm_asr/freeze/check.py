"""Whether folding constants changed nothing: each place compared with the plain multiplication, on real images."""

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from ..inference.compare import close
from .fold import Constant, Place, fold_constants


def checked_fold(
        model: nn.Module, constants: dict[str, Constant], places: dict[str, Place], images: Any,
) -> tuple[nn.Module, dict[str, Place]]:
    """A copy of a model in eval mode with its gates replaced, and where each constant went in the end.

    The copy is compared with one whose constants are all multiplications: after each gate or, where its constant went
    on, after the layers that took it. A place that makes a difference beyond rounding stays a multiplication. If only
    the model's output shows a difference, all do. The model is left as it is; a few images will do.
    """
    plain = copy.deepcopy(model)
    fold_constants(plain, constants, {name: Place(name) for name in places})
    points = {layer: name for name, place in places.items() for layer in _points(place)}
    expected = _outputs(plain, [*points, ''], images)
    del plain
    places = dict(places)
    while True:
        folded = copy.deepcopy(model)
        fold_constants(folded, constants, places)
        found = _outputs(folded, list(expected), images)
        differing = [point for point in found if not close(expected[point], found[point])]
        # In the order of execution: what comes after a wrong place is wrong too.
        wrong = next((points[p] for p in differing if p and places[points[p]].layers), None)
        if wrong is not None:
            places[wrong] = Place(wrong)
        elif differing and any(place.layers for place in places.values()):
            places = {name: Place(name) for name in places}
        else:
            return folded, places


def _points(place: Place) -> tuple[str, ...]:
    return place.layers if place.layers and not place.before else (place.gate,)


@torch.no_grad()
def _outputs(model: nn.Module, names: list[str], images: Any) -> dict[str, torch.Tensor]:
    """What modules put out, in the order in which they end; '' is the model itself. Tensors alone are kept."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            outputs[name] = output.clone()  # what comes next may work in place

    handles = [model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return outputs
