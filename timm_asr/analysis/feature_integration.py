"""Which earlier layers a layer's attention depends on: the DIA paper's Algorithm 1 and Figure 7.

A random forest predicts the attention weights h_t of one block of a stage from those of all blocks before it. The Gini
importances of a source block's channels, summed and divided by the largest sum of the row, say how much h_t depends on
that block. Needs the extra ``analysis`` (scikit-learn, matplotlib)::

    python -m timm_asr.analysis.feature_integration --checkpoint model_best.pth.tar --output map.png
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..gates.gate import ChannelGate
from ..gates.shared_stage import SharedStage


@torch.inference_mode()
def collect_attention(
        model: nn.Module,
        loader: Iterable[Any],
        samples: int = 1000,
        device: torch.device | str = 'cpu',
) -> dict[str, torch.Tensor]:
    """Attention weights of every block over real images.

    Args:
        model: A residual network with a gate in its blocks or with shared units, before ``reparameterize``. Left in
            the training or eval mode it was in; run in eval mode.
        loader: Gives batches (images, ...), as timm's loaders do.
        samples: Images to use, the first ones that the loader gives.
        device: Where the model runs.

    Returns:
        Name of each stage -> weights (samples, blocks, channels) of its blocks, on the CPU in float32; stages without
        attention are left out.

    Raises:
        ValueError: No block has weights per channel, or the loader gives no image.
    """
    places = _attention_places(model)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in places}
    hooks = [module.register_forward_hook(_recorder(seen[name])) for name, module in places.items()]
    training = model.training
    model.eval().to(device)
    count = 0
    try:
        for batch in loader:
            images = batch[0] if isinstance(batch, tuple | list) else batch
            images = images[:samples - count].to(device)
            model(images)
            count += len(images)
            if count >= samples:
                break
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    if not count:
        raise ValueError('The loader gives no image to collect attention from.')
    stages: dict[str, list[torch.Tensor]] = {}
    for name, parts in seen.items():
        stages.setdefault(name.split('.')[0], []).append(torch.cat(parts))
    return {stage: torch.stack(blocks, dim=1) for stage, blocks in stages.items()}


def _attention_places(model: nn.Module) -> dict[str, nn.Module]:
    places: dict[str, nn.Module] = {}
    for name, stage in model.named_children():
        if isinstance(stage, SharedStage):
            places.update({f'{name}.{n}.own': block.get_submodule('own') for n, block in enumerate(stage)})
        elif name.startswith('layer'):
            gates = {f'{name}.{n}.se': getattr(block, 'se', None) for n, block in enumerate(stage.children())}
            places.update({key: gate for key, gate in gates.items() if isinstance(gate, ChannelGate)})
    if not places:
        raise ValueError(
            f'No block of this {type(model).__name__} has attention to look at; take a model such as '
            "'resnet164_dia_lstm' or 'resnet164_se', before reparameterize().")
    return places


def _recorder(store: list[torch.Tensor]) -> Any:
    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        v = module.excite(module.pool(inputs[0])) if isinstance(module, ChannelGate) else output
        v = v.flatten(1) if v.shape[2:].numel() == 1 else v
        if v.ndim != 2:
            raise ValueError('This attention weighs positions; feature integration is about weights per channel.')
        store.append(v.float().cpu())

    return record


def feature_integration(
        attention: torch.Tensor,
        trees: int = 100,
        channels: int | None = None,
        seed: int = 0,
        jobs: int | None = None,
) -> torch.Tensor:
    """Importance of every source block for every target block of a stage: Algorithm 1.

    The paper's loop closes a group of channels one early (``cnt == c_z - 1``); here a group is a block's channels.

    Args:
        attention: Weights (samples, blocks, channels).
        trees: Of each random forest.
        channels: Use this many channels, drawn at random, instead of all: time grows with their square.
        seed: Of the draw and of the forests.
        jobs: Processes, as scikit-learn's ``n_jobs``.

    Returns:
        (blocks, blocks) in float64; row t, column n < t: importance of block n for block t, 1 for the most important
        one of the row; NaN elsewhere.

    Raises:
        ValueError: Fewer than two samples or blocks.
        ImportError: scikit-learn is missing.
    """
    samples, blocks, width = attention.shape
    if samples < 2 or blocks < 2:
        raise ValueError(f'{samples} samples of {blocks} blocks tell nothing; both must be two at least.')
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ImportError:
        raise ImportError(
            "Feature integration needs scikit-learn: pip install 'timm-asr[analysis]'.") from None
    if channels is not None and channels < width:
        draw = torch.randperm(width, generator=torch.Generator().manual_seed(seed))[:channels].sort().values
        attention, width = attention[:, :, draw], channels
    importance = torch.full((blocks, blocks), torch.nan, dtype=torch.float64)
    for target in range(1, blocks):
        x = attention[:, :target].flatten(1).numpy()
        y = attention[:, target].numpy()
        forest = RandomForestRegressor(n_estimators=trees, random_state=seed, n_jobs=jobs)
        forest.fit(x, y[:, 0] if width == 1 else y)
        row = torch.from_numpy(forest.feature_importances_).view(target, width).sum(1)
        importance[target, :target] = row / row.max().clamp_min(1e-30)
    return importance


def plot_feature_integration(maps: dict[str, torch.Tensor], path: str | Path, title: str = '') -> None:
    """Heat maps of all stages side by side, as the paper's Figure 7.

    Args:
        maps: Name of a stage -> importance (blocks, blocks), as :func:`feature_integration` gives it.
        path: Of the image; its ending names the format.
        title: Above the panels.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise ImportError("Heat maps need matplotlib: pip install 'timm-asr[analysis]'.") from None
    figure = Figure(figsize=(4.2 * len(maps) + 1, 4.6), layout='constrained')
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (name, importance) in zip(panels, maps.items(), strict=True):
        blocks = len(importance)
        # The first block has no sources and the last is none: rows 2 to N, columns 1 to N - 1.
        image = axes.imshow(
            importance[1:, :-1].numpy(), cmap='viridis', vmin=0, vmax=1, extent=(0.5, blocks - 0.5, blocks + 0.5, 1.5))
        axes.set(title=name, xlabel='source block', ylabel='target block')
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=list(panels), label='Gini importance, largest of a row = 1', shrink=0.8)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=120)


_DEFAULT_MODEL = 'resnet20_dia_lstm'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m timm_asr.analysis.feature_integration',
        description='Heat map of how the attention of each block depends on that of the blocks before it.')
    parser.add_argument(
        '--model', help=f'registered name (default: what the checkpoint says, {_DEFAULT_MODEL} without one)')
    parser.add_argument('--checkpoint', help='weights: a training checkpoint or a state dict; without, untrained')
    parser.add_argument('--num-classes', type=int, help='(default: those of the checkpoint)')
    parser.add_argument('--dataset', default='digits', help="as timm's scripts name them (default: %(default)s)")
    parser.add_argument('--data-dir', help='folder of the data')
    parser.add_argument('--split', default='validation', help='(default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=128, help='(default: %(default)s)')
    parser.add_argument('--samples', type=int, default=1000, help='images to use (default: %(default)s)')
    parser.add_argument('--channels', type=int, help='channels to use of each block (default: all; slow beyond 32)')
    parser.add_argument('--trees', type=int, default=100, help='trees of each forest (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='(default: %(default)s)')
    parser.add_argument('--jobs', type=int, default=-1, help='processes, -1 for all processors (default: %(default)s)')
    parser.add_argument('--device', default='cpu', help='(default: %(default)s)')
    parser.add_argument('--output', default='feature_integration.png', help='the image (default: %(default)s)')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Collect, compute, plot; returns the exit status, with one sentence on standard error where it is not 0."""
    from ..errors import run_main

    return run_main(lambda: _run(_parser().parse_args(argv)), 'feature_integration')


def _run(args: argparse.Namespace) -> None:
    from ..checkpoints.load_model import load_model
    from ..errors import BadInput  # only the command needs the engine

    model = load_model(
        args.model or ('' if args.checkpoint else _DEFAULT_MODEL), args.checkpoint or '', num_classes=args.num_classes)
    name = args.model or model.default_cfg['architecture']
    try:
        _attention_places(model)  # so that a model without attention is refused before any data is read
        attention = collect_attention(model, _loader(args, model), samples=args.samples, device=args.device)
        maps = {}
        for stage, weights in attention.items():
            if weights.shape[1] < 2:
                print(f'{stage}: one block, nothing to integrate')
                continue
            images, blocks, channels = weights.shape
            print(f'{stage}: {images} images, {blocks} blocks, {channels} channels', flush=True)
            maps[stage] = feature_integration(weights, args.trees, args.channels, args.seed, args.jobs)
        if not maps:
            raise ValueError(f'No stage of {name} has two blocks with attention.')
        plot_feature_integration(maps, args.output, f'{name}: feature integration')
    except (AssertionError, ImportError, OSError, RuntimeError, ValueError) as error:
        raise BadInput(' '.join(str(error).split()) or f'cannot open the data set {args.dataset}') from None
    print(f'{args.output} written')


def _loader(args: argparse.Namespace, model: nn.Module) -> Iterable[Any]:
    from timm.data import create_loader, resolve_model_data_config

    from ..data import create_dataset

    if args.dataset != 'digits' and not Path(args.data_dir or '').exists():
        raise ValueError(f"--data-dir '{args.data_dir}' does not exist; it is the folder of the data set.")
    config = resolve_model_data_config(model)
    channels = model.in_chans
    mean, std = (
        values if len(values) == channels else (sum(values) / len(values),) * channels
        for values in (config['mean'], config['std']))
    mode = 'L' if channels == 1 else 'RGB'
    return create_loader(
        create_dataset(args.dataset, root=args.data_dir, split=args.split, input_img_mode=mode),
        input_size=(channels, *config['input_size'][1:]),
        mean=mean,
        std=std,
        interpolation=config['interpolation'],
        crop_pct=config['crop_pct'],
        batch_size=args.batch_size,
        use_prefetcher=False,
        num_workers=0,
        device=torch.device(args.device),
    )


if __name__ == '__main__':
    sys.exit(main())
