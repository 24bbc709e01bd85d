"""All vectors of a network at once: a handful of operations for each kind of site instead of ten for each site.

Sites whose gates have the same class, settings and shapes, and whose layers have the same scaled tensors, form a group:
in ResNet-164 three groups of 18. For each group the parameters of the gates are stacked, the gate is evaluated once
under ``torch.vmap``, the stacked tensors of the layers are multiplied by the stacked v, and each site is handed its
slice. The parameters stay where they are.

A forward pre-hook of the network does this, and a forward hook forgets the slices, also after an error. Where a site
runs without its network, as when blocks are recomputed for the backward pass, it computes its own v.
"""

import functools
import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from ..gates.fused import hooks_of, is_hooked
from ..gates.passes import begin, detached, end, find, uncounted, version, within
from .scaled import owner_of, scaled_names, stacks, stand_in
from .wrapper import ASR

_Tensors = list[torch.Tensor]


class _Group:
    """Sites that are alike, and where their tensors are."""

    def __init__(self, sites: list[ASR]) -> None:
        self._sites = [weakref.ref(site) for site in sites]  # of which a network may be pruned
        # Every module inside, and where it hangs: one that is replaced must not go on computing.
        self.links = [(parent._modules, key, child) for site in sites for parent in site.modules()
                      for key, child in parent._modules.items()]
        self.links += [(vars(module), key, value) for site in sites for module in site.vectors.modules()
                       for key, value in _settings(module).items() if key != 'training']  # which changes in all at once
        self.hooks = [hooks for site in sites for module in site.vectors.modules() for hooks in hooks_of(module)]
        self.vectors = list(sites[0].vectors)  # they compute those of all others
        names = scaled_names(sites[0].layer)
        # Scaled tensors with one value a channel, and those with more, such as the weights of linear layers.
        self.rows = [name for name in names if getattr(*owner_of(sites[0].layer, name)).ndim == 1]
        self.blocks = [name for name in names if name not in self.rows]
        self.parameters = [[name for name, _ in vector.named_parameters()] for vector in self.vectors]
        inside = [f'{i}.{name}' for i, own in enumerate(self.parameters) for name in own]
        self.inside = len(inside)
        # Where the tensors are: parameters of the vectors, then ``rows``, then ``blocks``; of each, site by site.
        self.places = [
            *([owner_of(site.vectors, name) for site in sites] for name in inside),
            *([owner_of(site.layer, name) for site in sites] for name in (*self.rows, *self.blocks))]

    @property
    def sites(self) -> list[ASR]:
        return [site for ref in self._sites if (site := ref()) is not None]

    def read(self) -> list[_Tensors] | None:
        """The tensors as they are now; None where the sites are no longer what they were when they were grouped."""
        if (any(self.hooks) or None in (ref() for ref in self._sites)
                or any(own.get(key) is not it for own, key, it in self.links)):
            return None
        # Not by ``getattr``, which would find what a hook or a parametrization has made of a parameter.
        tensors = [[module._parameters.get(leaf, module._buffers.get(leaf)) for module, leaf in places]
                   for places in self.places]
        like = tensors[0][0]
        alike = all(
            type(t) in (torch.Tensor, nn.Parameter) and t.shape == one[0].shape and t.is_contiguous()
            and (t.dtype, t.device) == (like.dtype, like.device) for one in tensors for t in one)
        return tensors if alike else None

    def channel_weights(self, stacks: _Tensors) -> torch.Tensor:
        """v of all sites, (sites, C), from the stacked parameters of the vectors."""
        rest = iter(stacks)
        with _Columns():
            found = [
                torch.vmap(lambda own, vector=vector: stand_in(vector, own)(), randomness='different')(
                    {name: next(rest) for name in names})
                for vector, names in zip(self.vectors, self.parameters, strict=True)]
        return functools.reduce(torch.mul, found)


class _Columns(TorchFunctionMode):
    """Linear layers as W x^T + b: under ``vmap`` two operations instead of five, and W gets a contiguous gradient."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and args[0].ndim == 2:
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    y = torch.mm(weight, x.t()).t()
    return y.clone() if bias is None else y + bias  # an activation in place on a view takes six operations backward


class _ScaledStack(torch.autograd.Function):
    """(N, C, ...) from v, (N, C), and N tensors: their stack times v. Of the tensors no copy is kept for backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        stack = torch.stack(tensors)
        return stack * v.view(*v.shape, *[1] * (stack.ndim - 2))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        v, *tensors = ctx.saved_tensors
        of_v = (grad * torch.stack(tensors)).flatten(2).sum(2) if ctx.needs_input_grad[0] else None
        return of_v, *(grad * v.view(*v.shape, *[1] * (grad.ndim - 2))).unbind()


class _Joined:
    """Tensors joined to a flat one, which autograd does not keep: for the backward pass they are joined anew."""

    def __init__(self, tensors: _Tensors) -> None:
        self.tensors, self.versions = tensors, [version(t) for t in tensors]
        self.again: torch.Tensor | None = None

    def join(self) -> torch.Tensor:
        flat = torch.cat([t if t.ndim == 1 else t.reshape(-1) for t in self.tensors])
        self.flat = weakref.ref(flat)
        return flat

    def pack(self, tensor: torch.Tensor) -> Any:
        if tensor._base is None or tensor._base is not self.flat():
            return detached(tensor)
        return tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(self, packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        if self.again is None:
            if self.versions != [version(t) for t in self.tensors]:
                raise RuntimeError('a parameter under ASR was changed in place between forward and backward pass')
            with torch.no_grad():
                self.again = self.join()
        return self.again.as_strided(*packed)


class _Reached:
    """The sites that a backward pass reaches. Parameters of all others get no gradient, as if their sites were alone.

    Else zeros would be theirs, by which an optimizer decays weights of a layer that was dropped, say. It works by hooks
    on the first and the last node of what is computed together.
    """

    def __init__(self) -> None:
        self.sites: set[ASR] = set()
        self.all = False  # where gradients of gradients may be wanted, which have other ways than through the sites

    def out_of(self, tensors: Sequence[torch.Tensor], sites: Sequence[ASR]) -> Sequence[torch.Tensor]:
        """Mark sites as reached by the gradients of their tensors, which come out of one operation."""
        def mark(grads: Any) -> None:
            self.all = self.all or torch.is_grad_enabled()
            self.sites.update(site for site, grad in zip(sites, grads, strict=True) if grad is not None)

        if tensors[0].grad_fn is not None:
            tensors[0].grad_fn.register_prehook(mark)
        return tensors

    def into(self, tensor: torch.Tensor, sites: Sequence[ASR | None], last: bool = False) -> torch.Tensor:
        """Drop the gradients for inputs of the sites that were not reached (None: of all), where a tensor is made."""
        def drop(grads: Any, _: Any) -> Any:
            reached = None if self.all else {None, *self.sites}
            if last:
                self.sites.clear()
            return reached and tuple(
                grad if site in reached else None for site, grad in zip(sites, grads, strict=True))

        if tensor.grad_fn is not None:
            tensor.grad_fn.register_hook(drop)
        return tensor


def _compute(groups: list[tuple[_Group, list[_Tensors]]]) -> dict[ASR, dict[str, torch.Tensor]]:
    """The scaled tensors of each site, from the tensors of groups that have one type, device and number of ``rows``.

    The vectors' parameters and the layers' ``rows`` are joined to one tensor, and cut where those of a name and group
    end: one operation forward and one backward.
    """
    rows = len(groups[0][0].rows)
    pieces = [one for group, tensors in groups for one in tensors[:group.inside]]
    # Name by name, then group by group, then site by site.
    pieces.append([t for j in range(rows) for group, tensors in groups for t in tensors[group.inside + j]])
    joined, reached = _Joined([t for piece in pieces for t in piece]), _Reached()
    sites = [site for group, _ in groups for site in group.sites]
    owners = [site for group, _ in groups for _ in range(group.inside) for site in group.sites] + sites * rows
    flat = reached.into(joined.join(), owners, last=True)
    cuts = iter(flat.split([sum(t.numel() for t in piece) for piece in pieces]))

    found: dict[ASR, dict[str, torch.Tensor]] = {site: {} for site in sites}
    weights = []
    with uncounted(joined.pack, joined.unpack):
        for group, tensors in groups:
            v = group.channel_weights([next(cuts).view(len(one), *one[0].shape) for one in tensors[:group.inside]])
            weights.append(v)
            for name, one in zip(group.blocks, tensors[group.inside + rows:], strict=True):
                stack = reached.into(_ScaledStack.apply(v, *one), [None, *group.sites])
                for site, tensor in zip(group.sites, reached.out_of(stack.unbind(), group.sites), strict=True):
                    found[site][name] = tensor
        if rows:
            takers = [(site, group.rows[j], v.shape[1]) for j in range(rows)
                      for (group, _), v in zip(groups, weights, strict=True) for site in group.sites]
            scaled = next(cuts).view(rows, -1) * torch.cat([v.reshape(-1) for v in weights])
            cut = reached.out_of(scaled.view(-1).split([n for *_, n in takers]), [site for site, *_ in takers])
            for (site, name, _), tensor in zip(takers, cut, strict=True):
                found[site][name] = tensor
    for group, tensors in groups:
        for site, *own in zip(group.sites, *tensors, strict=True):
            # What is frozen must not send the backward pass through all that comes before it.
            if not any(t.requires_grad for t in own) and any(t.requires_grad for t in found[site].values()):
                found[site] = {name: t.detach() for name, t in found[site].items()}
    return found


#: Network -> its groups. They are looked for anew when a site has become another one.
_groups: 'weakref.WeakKeyDictionary[nn.Module, list[_Group]]' = weakref.WeakKeyDictionary()


_OWN = vars(nn.Module()).keys()


def _settings(module: nn.Module) -> dict[str, Any]:
    """What decides what a module computes, beside its tensors and the modules inside."""
    return {key: value for key, value in vars(module).items() if key == 'training' or key not in _OWN}


def _watched(site: ASR) -> bool:
    """Whether vectors have hooks, each of which wants a pass of its own: those of the backward pass too."""
    return any(map(is_hooked, site.vectors.modules()))


def _key(site: ASR) -> Any:
    """Sites with the same key form a group, whose vectors one of them can compute; None for one that stays alone."""
    if getattr(site, '_is_fsdp_managed_module', False) or any(hasattr(p, 'ds_id') for p in site.parameters()):
        return None  # outside of its block it has a part of its parameters (FSDP, DeepSpeed)
    places = {name: owner_of(site.layer, name) for name in scaled_names(site.layer)}
    if (_watched(site) or next(site.vectors.buffers(), None) is not None
            or not all(stacks(owner) for owner, _ in places.values())):
        return None
    settings = [(name, type(module), sorted((key, repr(value)) for key, value in _settings(module).items()))
                for name, module in site.vectors.named_modules()]
    tensors = [*site.vectors.named_parameters(), *((name, getattr(*place)) for name, place in places.items())]
    return repr(settings), *((name, t.shape, t.dtype, t.device) for name, t in tensors)


def _find_groups(network: nn.Module) -> list[_Group]:
    alike: dict[Any, list[ASR]] = {}
    for module in network.modules():
        if isinstance(module, ASR) and len(module.vectors):
            alike.setdefault(_key(module), []).append(module)
    alike.pop(None, None)
    return [_Group(sites) for sites in alike.values() if len(sites) > 1]


def _scaled_by_site(network: nn.Module) -> dict[ASR, dict[str, torch.Tensor]]:
    read = [(group, group.read()) for group in _groups.get(network, ())]
    if network not in _groups or any(tensors is None for _, tensors in read):
        # What cannot be joined, such as the shards of FSDP, stays alone from then on; what has hooks, while it has.
        read = [(group, tensors) for group in _find_groups(network) if (tensors := group.read()) is not None]
        if any(isinstance(m, ASR) and _watched(m) for m in network.modules()):
            _groups.pop(network, None)
        else:
            _groups[network] = [group for group, _ in read]
    lanes: dict[Any, list[Any]] = {}
    for group, tensors in read:
        like = tensors[0][0]  # type: ignore[index]
        lanes.setdefault((like.dtype, like.device, len(group.rows)), []).append((group, tensors))
    return {site: tensors for lane in lanes.values() for site, tensors in _compute(lane).items()}


def _start(network: nn.Module, args: Any) -> None:
    """Forward pre-hook: compute what the sites of the network need."""
    # A compiler joins small operations by itself; a tracer takes what one site does for all that there is; and
    # _ScaledStack has no derivative in forward mode.
    if (torch.compiler.is_compiling() or torch.jit.is_tracing() or forward_ad._current_level >= 0
            or getattr(network, '_is_replica', False)):
        return
    end(network)  # a pass that was interrupted
    if within() and any(isinstance(m, ASR) and find(m) for m in network.modules()):  # of a network around this one
        return
    device = next((p.device.type for p in network.parameters()), 'cpu')
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        tensors = _scaled_by_site(network)
    begin(network, tensors, {site: site.vectors[0].psi for site in tensors})  # type: ignore[misc]


def _end(network: nn.Module, args: Any, output: Any) -> None:
    """Forward hook, called after an error too: forget what is left."""
    end(network)


def together(network: nn.Module) -> None:
    """Let a network compute the vectors of its sites together, whenever it runs as a whole."""
    apart(network)
    network.register_forward_pre_hook(_start)
    network.register_forward_hook(_end, always_call=True)
    # TorchScript calls this before it compiles a network. It would compile hooks, and needs none.
    network.__dict__['__prepare_scriptable__'] = functools.partial(apart, network)


def apart(network: nn.Module) -> nn.Module:
    """Undo :func:`together`, in every module inside too. Returns the network."""
    for module in network.modules():
        if vars(module).pop('__prepare_scriptable__', None):
            for hooks, own in ((module._forward_pre_hooks, _start), (module._forward_hooks, _end)):
                for key in [key for key, hook in hooks.items() if hook is own]:
                    del hooks[key]
                    module._forward_hooks_always_called.pop(key, None)
            _groups.pop(module, None)
    return network
