#!/usr/bin/env python3
"""Style transfer under batch noise (ASR paper, Figure 5): instance norm, batch norm, and batch norm with ASR.

    python examples/style_transfer.py --output style        # photographs that come with scikit-learn
    python examples/style_transfer.py --images PHOTOS --style PAINTING.jpg --pretrained --steps 4000 --device cuda

Each network turns a photograph into a picture of the style image in one forward pass (Johnson, Alahi, Fei-Fei:
Perceptual Losses for Real-Time Style Transfer and Super-Resolution, ECCV 2016). It is trained on a loss over the
features of a VGG. Batch norm mixes the images of a batch, which is noise for the single image. ASR scales the norms'
output and so regulates that noise. Afterwards the vectors are folded, and the folded network draws the sheet. Without
``--pretrained`` the VGG has random weights: everything runs, and the pictures show texture rather than style.
"""

import argparse
import shlex
import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms import v2
from tqdm import tqdm

import timm_asr
from timm_asr.figures.style import new, save, styled

NORMS = {'in': 'instance norm', 'bn': 'batch norm', 'bn_asr': 'batch norm + ASR(SE)'}


class Transformer(nn.Module):
    """The feed-forward network: down by 4, residual blocks, up by 4; (B, 3, H, W) to (B, 3, H, W) in [0, 1].

    Args:
        norm: 'in', 'bn' or 'bn_asr'.
        width: Channels of the first layer.
        blocks: Residual blocks.
    """

    def __init__(self, norm: str, width: int = 32, blocks: int = 5) -> None:
        super().__init__()

        def layer(conv: nn.Module, channels: int, act: bool = True) -> nn.Sequential:
            made = nn.InstanceNorm2d(channels, affine=True) if norm == 'in' else nn.BatchNorm2d(channels)
            return nn.Sequential(conv, made, nn.ReLU() if act else nn.Identity())

        def conv(inside: int, outside: int, kernel: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(inside, outside, kernel, stride, kernel // 2, padding_mode='reflect')

        def up(inside: int, outside: int) -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(inside, outside, 4, 2, 1)

        self.down = nn.Sequential(
            layer(conv(3, width, 9), width), layer(conv(width, 2 * width, 3, 2), 2 * width),
            layer(conv(2 * width, 4 * width, 3, 2), 4 * width))
        self.blocks = nn.ModuleList(
            nn.Sequential(layer(conv(4 * width, 4 * width, 3), 4 * width),
                          layer(conv(4 * width, 4 * width, 3), 4 * width, act=False)) for _ in range(blocks))
        self.up = nn.Sequential(
            layer(up(4 * width, 2 * width), 2 * width), layer(up(2 * width, width), width), conv(width, 3, 9))
        if norm == 'bn_asr':
            timm_asr.attach_asr(self, 'se', sites=['down.*.1', 'blocks.*.*.1', 'up.0.1', 'up.1.1'])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(2 * x - 1)
        for block in self.blocks:
            x = x + block(x)
        return self.up(x).sigmoid()


class PerceptualLoss(nn.Module):
    """Content from one depth of a VGG, style from all: mean squared differences of features and of Gram matrices.

    Args:
        style: The style image, (1, 3, H, W) in [0, 1].
        pretrained: Load the VGG's weights.
        weight: Of the style over the content.
    """

    def __init__(self, style: torch.Tensor, pretrained: bool = False, weight: float = 1e5) -> None:
        super().__init__()
        self.vgg = timm.create_model('vgg16', pretrained=pretrained, features_only=True, out_indices=(0, 1, 2, 3))
        self.vgg.eval().requires_grad_(False).to(style.device)
        config = self.vgg.pretrained_cfg
        self.normalize = v2.Normalize(config['mean'], config['std'])
        self.weight = weight
        with torch.no_grad():
            self.style = [self.gram(f) for f in self.features(style)]

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.vgg(self.normalize(x))

    @staticmethod
    def gram(f: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, C), divided by the number of values."""
        f = f.flatten(2)
        return f @ f.transpose(1, 2) / f[0].numel()

    def forward(self, made: torch.Tensor, photograph: torch.Tensor) -> torch.Tensor:
        wanted, found = self.features(photograph)[2], self.features(made)
        style = sum(F.mse_loss(self.gram(f), s.expand(len(f), -1, -1)) for f, s in zip(found, self.style, strict=True))
        return F.mse_loss(found[2], wanted) + self.weight * style


def read_images(folder: Path | None, size: int) -> list[torch.Tensor]:
    """Photographs (3, size, size) in [0, 1]: of a folder, or the two that come with scikit-learn."""
    if folder is None:
        from sklearn.datasets import load_sample_images

        images = [Image.fromarray(array) for array in load_sample_images().images]
    else:
        images = [Image.open(path).convert('RGB') for path in sorted(folder.iterdir())
                  if path.suffix.lower() in ('.jpg', '.jpeg', '.png')]
    return [to_tensor(image, size) for image in images]


def to_tensor(image: Image.Image, size: int) -> torch.Tensor:
    steps = [v2.ToImage(), v2.Resize(size), v2.CenterCrop(size), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose(steps)(image)


def stripes(size: int) -> torch.Tensor:
    """A style to start with: coloured waves."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing='ij')
    phases = (0.0, 2.1, 4.2)
    return torch.stack([0.5 + 0.5 * torch.sin(40 * (x + 0.3 * torch.sin(7 * y)) + phase) for phase in phases])


def train(norm: str, photographs: torch.Tensor, loss: PerceptualLoss, args: argparse.Namespace) -> Transformer:
    """Train one network on random crops of the photographs, each batch of one photograph's crops or of several."""
    torch.manual_seed(args.seed)
    network = Transformer(norm, args.width).to(args.device)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    crop = v2.Compose([v2.RandomCrop(args.size * 3 // 4), v2.RandomHorizontalFlip()])
    progress = tqdm(range(args.steps), desc=NORMS[norm])
    for _ in progress:
        chosen = torch.randint(len(photographs), (args.batch_size,))
        batch = torch.stack([crop(photographs[i]) for i in chosen])
        value = loss(network(batch), batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        progress.set_postfix(loss=f'{value.item():.4g}')
    return network.eval()


@styled
@torch.no_grad()
def draw(networks: dict[str, Transformer], photographs: torch.Tensor, style: torch.Tensor, path: Path,
         caption: str = '') -> None:
    """One sheet: a row a photograph; the photograph, what each network makes of it, and the style."""
    columns = [('photograph', photographs), *((NORMS[n], net(photographs)) for n, net in networks.items()),
               ('style', style[None])]
    figure, panels = new(len(photographs), len(columns), 1.6)
    for column, (title, images) in enumerate(columns):
        panels[0, column].set_title(title)
        for axes, image in zip(panels[:, column], images, strict=False):
            axes.imshow(image.permute(1, 2, 0).cpu().numpy())
    for axes in panels.flat:
        axes.axis('off')
    save(figure, path, caption=caption)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=Path, help='folder of photographs (default: two of scikit-learn)')
    parser.add_argument('--style', type=Path, help='style image (default: coloured waves)')
    parser.add_argument('--norms', nargs='+', choices=list(NORMS), default=list(NORMS))
    parser.add_argument('--pretrained', action='store_true', help='load the weights of the VGG')
    parser.add_argument('--steps', type=int, default=200)
    parser.add_argument('--size', type=int, default=128, help='side of the images, a multiple of 16')
    parser.add_argument('--width', type=int, default=16, help='channels of the first layer (32 in the paper)')
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--seed', type=int, default=42)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--output', type=Path, default=Path('output/style'))
    args = parser.parse_args(argv)
    for path in (args.images, args.style):
        if path is not None and not path.exists():
            parser.error(f'there is no {path}')
    if args.size % 16:
        parser.error(f'--size {args.size} is no multiple of 16')
    args.output.mkdir(parents=True, exist_ok=True)
    images = read_images(args.images, args.size)
    if not images:
        parser.error(f'--images {args.images}: there is no image in this folder')
    photographs = torch.stack(images).to(args.device)
    style = to_tensor(Image.open(args.style).convert('RGB'), args.size) if args.style else stripes(args.size)
    style = style.to(args.device)
    torch.manual_seed(args.seed)  # of the VGG, where its weights are random
    loss = PerceptualLoss(style[None], args.pretrained).to(args.device)
    networks = {}
    for norm in args.norms:
        network = networks[norm] = train(norm, photographs, loss, args)
        with torch.no_grad():
            before = network(photographs)
            difference = (timm_asr.fold_asr(network)(photographs) - before).abs().max().item()
        print(f'{NORMS[norm]}: loss {loss(before, photographs).item():.4g}; folding changed the pictures by at most '
              f'{difference:.1e}')
        torch.save(network.state_dict(), args.output / f'{norm}.pt')
    command = shlex.join(['python', 'examples/style_transfer.py', *(sys.argv[1:] if argv is None else argv)])
    draw(networks, photographs[:4], style, args.output / 'sheet.png', command)
    print(f'Results: {args.output}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
