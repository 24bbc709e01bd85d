"""The wrapper around a layer: its channels weighed by attention that is fed by learned vectors."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from timm.layers import register_notrace_module
from torch import nn

from ..gates.gate import ChannelGate
from ..gates.passes import take, uncounted
from ..gates.precision import without_tf32
from .blocks import facts_of
from .scaled import WITH_ACTIVATION, channel_dim, out_channels, run_with, scale_, scaled_names, scaled_tensors
from .vector import ASRVector

MAX_DEPTH = 4

@register_notrace_module
class ASR(nn.Module):
    """A layer whose output channels are multiplied by v = v_1 * ... * v_delta, through its parameters.

    layer(x; w, b) * v = layer(x; v * w, v * b) (ASR paper, Eq. 5 to 7), while training and when folded. The layer stays
    an ordinary module inside, so what converts, freezes or synchronises BatchNorms finds it and the attention stays.

    Args:
        layer: A layer of one of the classes in :mod:`timm_asr.asr.scaled`, or a block that sums parallel branches which
            end in such layers, of a class that :mod:`timm_asr.asr.blocks` knows.
        gate: Constructor ``f(channels, device=None, dtype=None)`` of a foldable gate.
        depth: Number of vectors delta, 1 to 4.
        options: Of each vector: ``init``, ``learnable``, ``constant``, ``gain``, see :class:`ASRVector`.

    Raises:
        TypeError: The layer cannot be scaled.
        ValueError: ``depth`` or ``init`` is out of range, or the gate does not fit the layer.
    """

    def __init__(self, layer: nn.Module, gate: Callable[..., ChannelGate], depth: int = 1, **options: Any) -> None:
        super().__init__()
        self.layer = layer
        self.channel_dim = channel_dim(layer)
        if not 1 <= depth <= MAX_DEPTH:
            raise ValueError(f'asr_depth={depth} does not fit: a site takes 1 to {MAX_DEPTH} vectors.')
        channels = out_channels(layer)
        like = next(t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point())
        self.vectors = nn.ModuleList(
            ASRVector(gate, channels, **options, device=like.device, dtype=like.dtype) for _ in range(depth))

    def attention_vector(self) -> torch.Tensor:
        """The channel weights v, (C,), the product over all vectors at this site."""
        v: list[torch.Tensor] = []
        for vector in self.vectors:
            v.append(vector())
        return v[0] if len(v) == 1 else torch.stack(v).prod(0)

    @torch.jit.ignore
    def _full_precision_vector(self) -> torch.Tensor:
        # Autocast would round v to 8 bits of mantissa here, and folding could not reproduce it. It costs nothing.
        device = self.vectors[0].psi.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return self.attention_vector()
        with torch.autocast(device, enabled=False):
            return self.attention_vector()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():  # TorchScript cannot run a layer with other parameters than its own
            return self.scripted(x, self.attention_vector())
        else:  # noqa: RET505 - TorchScript compiles what follows a return
            return self._run(x)

    @torch.jit.ignore
    def _run(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x, torch.fx.Proxy):
            raise TypeError('torch.fx cannot look into ASR: call timm_asr.fold_asr(model) first, or trace by '
                            'timm.models.create_feature_extractor.')
        compiling = torch.compiler.is_compiling()
        tensors = None if compiling else take(self, self.vectors[0].psi)  # type: ignore[arg-type]
        if tensors is None:
            with nullcontext() if compiling else uncounted():
                tensors = scaled_tensors(self.layer, self._full_precision_vector())
        return run_with(self.layer, tensors, x)

    def scripted(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """What TorchScript compiles in the place of :func:`run_with`."""
        y = self.layer(x)
        shape = [1] * y.ndim
        shape[self.channel_dim] = -1
        return y * v.view(shape)

    def __prepare_scriptable__(self) -> nn.Module:
        """Called by ``torch.jit.script``: refuses what scripting would silently change."""
        facts = facts_of(self.layer)
        if not isinstance(self, facts.scripted) if facts.scripted else (
                facts.ends or isinstance(self.layer, WITH_ACTIVATION)):
            raise TypeError(
                f'ASR on a {type(self.layer).__name__} cannot be scripted, since its scale comes before the '
                'activation; call timm_asr.fold_asr(model) first, or use torch.compile or torch.export.')
        return self

    @torch.jit.ignore
    @without_tf32()
    def fold(self) -> nn.Module:
        """Multiply the layer's parameters by v in place and return the layer; a second call changes nothing."""
        if len(self.vectors):
            scale_(self.layer, self._full_precision_vector())
            self.vectors = nn.ModuleList()
        return self.layer

    @torch.jit.ignore
    def fuse(self) -> nn.Module:
        """:meth:`fold`, then what the layer itself has to merge: the call that timm looks for.

        timm goes on inside this wrapper, not inside what it returns, so a layer that would return another one in its
        turn must do it here.
        """
        layer = self.fold()
        if callable(getattr(layer, 'fuse', None)):
            self.layer = layer = layer.fuse()
        return layer

    @torch.jit.ignore
    @torch.no_grad()
    @without_tf32()
    def preserve_(self, dry: bool = False) -> None:
        """Divide the layer's parameters by v, so that the wrapped layer computes what the plain one did.

        ``dry`` changes nothing and asks for a v that allows it, by a ``ValueError``.
        """
        inverse = self._full_precision_vector().reciprocal()
        if not dry:
            scale_(self.layer, inverse)
        elif not all(t.is_meta or t.isfinite().all() for t in scaled_tensors(self.layer, inverse).values()):
            raise ValueError(
                'a channel weight is zero or so small that dividing by it gives infinite parameters; start nearer to '
                'one (asr_init), or pass preserve=False.')

    def _load_from_state_dict(
            self, state_dict: dict, prefix: str, local_metadata: dict, strict: bool, missing_keys: list[str],
            unexpected_keys: list[str], error_msgs: list[str]) -> None:
        plain = [key for name in scaled_names(self.layer) if (key := prefix + name) in state_dict]
        if plain:
            error_msgs.append(
                f"This is a folded or plain checkpoint ('{plain[0]}') and the model still trains its ASR vectors: load "
                'it into the plain architecture (or fold_asr(model) first); to go on training from it, use '
                'attach_asr(plain_model, gate, preserve=True).')
        given = {key for key in state_dict if key.startswith(f'{prefix}vectors.')}
        # Some may be missing: Hugging Face loads a file of several after another.
        if given - {f'{prefix}vectors.{key}' for key in self.vectors.state_dict()}:
            error_msgs.append(f"The vectors of '{prefix}' come from another gate or asr_depth than the model has.")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)


def wrap(layer: nn.Module, gate: Callable[..., ChannelGate], depth: int = 1, **options: Any) -> ASR:
    """The :class:`ASR` that fits a layer best: where its class is one that TorchScript needs help with, a subclass."""
    kind: Any = facts_of(layer).scripted or ASR
    return kind(layer, gate, depth, **options)
