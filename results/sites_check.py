"""What `sites.py` does to one model: find its sites, and see that ASR is exact there."""

import copy
import re
import sys
from collections import Counter
from typing import Any

SEED = 42
LARGEST = 60e6  # parameters of a model that is built for real
#: Keywords that make a shallow or narrow model of a large one; the first that its constructor takes.
SHALLOW: tuple[dict[str, Any], ...] = (
    {'depth': 2}, {'depths': (1, 1, 1, 1)}, {'layers': (1, 1, 1, 1)}, {'depths': (1, 1, 2, 1)}, {'depths': (1, 1, 1)},
    {'mlp_ratio': 0.02})
SMALL = 64  # side of the image, where a model takes any
EXACT, PRESERVED, MERGED = 1e-12, 1e-9, 1e-3


def family_of(name: str) -> str:
    """The timm module that defines a model."""
    from timm.models import model_entrypoint
    return model_entrypoint(name).__module__.rpartition('.')[2]


def signature(model: Any) -> dict[str, Any]:
    """Classes, keys and shapes of a model."""
    return {
        'classes': {name: type(module) for name, module in model.named_modules()},
        'state': {name: tuple(t.shape) for name, t in model.state_dict().items()}}


def structure(name: str, **kwargs: Any) -> dict[str, Any]:
    """Attach and fold on the meta device; the row, with what tells its kind.

    Attaching leaves every parameter and buffer the same object, and writes to none (torch counts writes).
    """
    import timm

    import timm_asr
    from timm_asr.asr.wrapper import ASR

    model = timm.create_model(name, device='meta', **kwargs)
    stock = signature(model)
    tensors = [(t, t._version) for t in (*model.parameters(), *model.buffers())]
    timm_asr.attach_asr(model, 'se')
    present = {id(t): t._version for t in (*model.parameters(), *model.buffers())}
    if any(present.get(id(t)) != version for t, version in tensors):
        raise AssertionError('attaching replaces or writes to a parameter or buffer')
    sites = {n: m.layer for n, m in model.named_modules() if isinstance(m, ASR)}
    places = Counter((re.sub(r'\d+', '*', n), type(layer).__name__) for n, layer in sites.items())
    timm_asr.fold_asr(model)
    problem = '' if signature(model) == stock else 'what is left after folding is not the stock model'
    return {
        'sites': len(sites), 'places': ' '.join(f'{n}:{kind}' for n, kind in sorted(places)), 'problem': problem,
        'parameters': sum(p.numel() for p in model.parameters())}


def reduced(name: str, places: str, parameters: int) -> dict[str, Any] | None:
    """Keywords for a cheaper model of the same kind: half the image where its size is fixed, and shallow where the
    model is large; None if it is large and there is no such model."""
    import timm
    cfg = timm.get_pretrained_cfg(name)
    halves = [{'img_size': cfg.input_size[1] // 2}, {}] if cfg.fixed_input_size else [{}]
    for half in halves:
        for kwargs in SHALLOW if parameters > LARGEST else ({},):
            if not half and not kwargs:
                return {}
            try:
                found = structure(name, **half, **kwargs)
            except Exception:  # whatever a constructor says to a keyword that it does not take
                continue
            if found['places'] == places and found['parameters'] <= 2 * LARGEST:
                return {**half, **kwargs}
    return None


def randomize(model: Any) -> None:
    """Move every parameter and statistic away from its initial value, keeping activations of order one."""
    import torch
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if not t.is_floating_point():
            continue
        noise = torch.rand_like(t) * 2 - 1
        with torch.no_grad():
            if name.endswith('psi'):
                t.copy_(noise)
            elif name.endswith(('running_var', 'gain')) or (t.ndim <= 1 and name.endswith('weight')):
                t.copy_(1 + 0.4 * noise)
            elif name.endswith('running_mean') or (t.ndim <= 1 and isinstance(t, torch.nn.Parameter)):
                t.copy_(0.3 * noise)
            elif isinstance(t, torch.nn.Parameter):
                t.add_(0.3 * noise * (t.std() if t.numel() > 1 and t.std() > 0 else 0.1))


def first_output(model: Any, cfg: dict[str, Any]) -> tuple[Any, Any]:
    """Images and what the model says to them: small ones where it takes them."""
    import torch
    from timm.models import get_model_args
    channels, *size = cfg['input_size']
    grid = get_model_args(model).get('img_size')
    sizes = [list(grid or size)] if cfg.get('fixed_input_size') else [[SMALL, SMALL], size]
    for size in sizes:
        images = torch.randn(1, channels, *size, dtype=torch.float64)
        try:
            with torch.no_grad():
                return images, model(images)
        except (RuntimeError, AssertionError, ValueError, ZeroDivisionError):
            if size is sizes[-1]:
                raise
    raise AssertionError


def check(name: str, **kwargs: Any) -> dict[str, Any]:
    """Everything that must hold, on one model in float64: its largest relative error, and what went wrong.

    Looking for sites leaves every tensor the same object with the same content. Attaching with preserve=True changes
    nothing; folding keeps the function; the folded weights load strictly into the
    stock model, which then computes the same; the inference form does, too, ours and that of timm's own function;
    every psi and gate gets a finite gradient in training mode, and psi one that is not zero.
    """
    import timm
    import torch
    from timm.utils import reparameterize_model

    import timm_asr
    from timm_asr.asr.sites import known_sites
    from timm_asr.asr.wrapper import ASR
    from timm_asr.inference.compare import relative_difference as difference

    torch.manual_seed(SEED)
    model = timm.create_model(name, **kwargs).double().eval()
    randomize(model)
    images, before = first_output(model, model.pretrained_cfg)
    tensors = {key: (id(t), t.clone()) for key, t in model.state_dict(keep_vars=True).items()}
    known_sites(model)
    for key, t in model.state_dict(keep_vars=True).items():
        if id(t) != tensors[key][0] or t.is_meta or not torch.equal(t, tensors[key][1]):
            return {'problem': f'looking for sites changes {key}'}
    with torch.no_grad():
        timm_asr.attach_asr(model, 'se', preserve=True)
        if difference(before, model(images)) > PRESERVED:
            return {'problem': f'preserve=True changes the function by {difference(before, model(images)):.1e}'}
        for module in model.modules():
            if isinstance(module, ASR):
                randomize(module.vectors)
        expected = model(images)
        # A network that makes 1e-9 of a rounded image (HaloNet-H1) cannot be exact to 1e-12.
        exact = max(EXACT, 10 * difference(expected, model(images * (1 + 1e-15))))
        if difference(before, expected) < 1e-9:
            return {'problem': 'the attention has no effect'}
        single = copy.deepcopy(model).float()  # which some of timm's merged layers are made in
        verbs = ('fuse', 'reparameterize', 'switch_to_deploy')
        merges = any(hasattr(m, verb) for m in model.modules() for verb in verbs if not isinstance(m, ASR))
        unmerged = single(images.float()) if merges else None
        for verb in (timm_asr.reparameterize, reparameterize_model) if merges else ():
            try:
                merged = verb(copy.deepcopy(single))
            except (AttributeError, AssertionError) as error:
                if verb is timm_asr.reparameterize:
                    raise
                # A block of timm's reads a layer that has ASR: loud, so nobody gets a wrong model.
                print(f'{name}: timm.utils.reparameterize_model: {error}', file=sys.stderr)
                continue
            wrong = difference(unmerged, merged(images.float()))
            if wrong > MERGED:
                return {'problem': f'{verb.__module__}.{verb.__name__} changes the function by {wrong:.1e}'}
            del merged
        del single
        state = timm_asr.fold_asr(model).state_dict()
        error = difference(expected, model(images))
        del model
        stock = timm.create_model(name, **kwargs).double().eval()
        stock.load_state_dict(state, strict=True)
        error = max(error, difference(expected, stock(images)))
    if not error <= exact:
        return {'error': error, 'problem': f'folding changes the function by {error:.1e}'}
    timm_asr.attach_asr(stock, 'se').train()
    for module in stock.modules():
        if type(module).__name__ == 'DropPath':  # it could drop both images of a branch
            module.eval()
    output = stock(torch.cat([images, images.flip(-1)]))  # two, since a norm may be left with one position
    sum(o.square().mean() for o in (output if isinstance(output, tuple | list) else (output,))).backward()
    for key, p in stock.named_parameters():
        if '.vectors.' in key and (p.grad is None or not p.grad.isfinite().all()):
            return {'error': error, 'problem': f'{key} gets no finite gradient'}
        if key.endswith('.psi') and not p.grad.any():
            return {'error': error, 'problem': f'{key} gets a gradient of zero'}
    return {'error': error, 'problem': ''}
