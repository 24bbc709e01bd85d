"""Networks of three papers computed by their equations, slowly, from a dictionary of tensors.

Nothing of the package is used here: names of tensors in, logits and new BatchNorm statistics out. Attention is
computed sample by sample.
"""

import torch
import torch.nn.functional as F


class Literal:
    """One forward pass of a residual network.

    Args:
        tensors: State dict of the network; gradients flow into it.
        training: Whether BatchNorm uses the statistics of the batch.
        attention: ``f(net, a, stage, block)``, the weighed residual branch.
        skip: Whether there are shortcuts.
        wide: Whether its blocks begin with norm and activation; found by the final norm where there are any norms.
    """

    def __init__(self, tensors, training, attention=None, skip=True, wide=None):
        self.t = tensors
        self.training = training
        self.attention = attention or (lambda net, a, stage, block: a)
        self.skip = skip
        self.wide = 'norm.weight' in tensors if wide is None else wide
        self.stats = {}
        self.state = {}

    def conv(self, x, name, stride=1):
        w = self.t[f'{name}.weight']
        return F.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2, groups=x.shape[1] // w.shape[1])

    def norm(self, x, name):
        if f'{name}.weight' not in self.t:
            return x
        shape = (1, -1) + (1,) * (x.ndim - 2)
        keys = [f'{name}.running_mean', f'{name}.running_var']
        mean, var = [self.stats.get(key, self.t[key]) for key in keys]  # a shared norm has been here before
        if self.training:
            dims = [d for d in range(x.ndim) if d != 1]
            batch_mean = x.mean(dims)
            batch_var = ((x - batch_mean.view(shape)) ** 2).mean(dims)
            count = x.numel() / x.shape[1]
            self.stats[f'{name}.running_mean'] = (0.9 * mean + 0.1 * batch_mean).detach()
            self.stats[f'{name}.running_var'] = (0.9 * var + 0.1 * batch_var * count / (count - 1)).detach()
            mean, var = batch_mean, batch_var
        x = (x - mean.view(shape)) / (var.view(shape) + 1e-5) ** 0.5
        return x * self.t[f'{name}.weight'].view(shape) + self.t[f'{name}.bias'].view(shape)

    def post_activation(self, x, stage, block, stride):
        name = f'layer{stage}.{block}'
        if f'{name}.conv3.weight' in self.t:
            a = F.relu(self.norm(self.conv(x, f'{name}.conv1'), f'{name}.bn1'))
            a = F.relu(self.norm(self.conv(a, f'{name}.conv2', stride), f'{name}.bn2'))
            a = self.norm(self.conv(a, f'{name}.conv3'), f'{name}.bn3')
        else:
            a = F.relu(self.norm(self.conv(x, f'{name}.conv1', stride), f'{name}.bn1'))
            a = self.norm(self.conv(a, f'{name}.conv2'), f'{name}.bn2')
        if f'{name}.downsample.0.weight' in self.t:
            x = self.norm(self.conv(x, f'{name}.downsample.0', stride), f'{name}.downsample.1')
        a = self.attention(self, a, stage, block)
        return F.relu(x + a if self.skip else a)

    def pre_activation(self, x, stage, block, stride):
        name = f'layer{stage}.{block}'
        a = F.relu(self.norm(x, f'{name}.bn1'))
        if f'{name}.downsample.weight' in self.t:
            x = self.conv(a, f'{name}.downsample', stride)
        a = F.relu(self.norm(self.conv(a, f'{name}.conv1', stride), f'{name}.bn2'))
        a = self.norm(self.conv(a, f'{name}.conv2'), f'{name}.bn3')
        a = self.attention(self, a, stage, block)
        return x + a if self.skip else a

    def __call__(self, x):
        large = self.t['conv1.weight'].shape[-1] == 7
        x = self.conv(x, 'conv1', 2 if large else 1)
        if not self.wide:
            x = F.relu(self.norm(x, 'bn1'))
        if large:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            block = 0
            while f'layer{stage}.{block}.conv1.weight' in self.t:
                step = self.pre_activation if self.wide else self.post_activation
                x = step(x, stage, block, 2 if stage > 1 and block == 0 else 1)
                block += 1
        if self.wide:
            x = F.relu(self.norm(x, 'norm'))
        return x.mean((2, 3)) @ self.t['fc.weight'].T + self.t['fc.bias']


# Gates: logits of one sample's descriptor, and the descriptor of one sample's feature map (C, H, W).

def gap(a):
    return a.mean((1, 2))


def se(net, u, at):
    w1, w2 = net.t[f'{at}.fc1.weight'].flatten(1), net.t[f'{at}.fc2.weight'].flatten(1)
    hidden = w1 @ u
    hidden = hidden + net.t[f'{at}.fc1.bias'] if f'{at}.fc1.bias' in net.t else hidden
    logits = w2 @ torch.where(hidden > 0, hidden, 0 * hidden)
    return logits + net.t[f'{at}.fc2.bias'] if f'{at}.fc2.bias' in net.t else logits


def eca(net, u, at):
    kernel = net.t[f'{at}.conv.weight'].flatten()
    reach = len(kernel) // 2
    return torch.stack([sum(kernel[k + reach] * u[c + k] for k in range(-reach, reach + 1) if 0 <= c + k < len(u))
                        for c in range(len(u))])


def pyramid(a):
    parts = []
    for n in (4, 2, 1):
        if a.shape[1] == 1:
            parts.append(a.expand(-1, n, n).flatten())
            continue
        height, width = a.shape[1] // n, a.shape[2] // n
        parts.append(torch.stack([
            a[c, i * height:(i + 1) * height, j * width:(j + 1) * width].mean()
            for c in range(a.shape[0]) for i in range(n) for j in range(n)]))
    return torch.cat(parts)


def mean_and_std(a):
    mean = gap(a)
    return torch.stack([mean, (((a - mean[:, None, None]) ** 2).mean((1, 2)) + 1e-5) ** 0.5])


def style(net, u, at):
    return (net.t[f'{at}.cfc'] * u.T).sum(1)


DESCRIPTORS = {'se': gap, 'eca': gap, 'spa': pyramid, 'srm': mean_and_std}
LOGITS = {'se': se, 'eca': eca, 'spa': se, 'srm': style}


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def weigh(a, v):
    return a * v[:, :, None, None]


def each(f, a):
    """f of every sample."""
    return torch.stack([f(sample) for sample in a])


def channel_gate(kind, net, a, at):
    """se, eca, spa: a gate of one descriptor."""
    return weigh(a, sigmoid(each(lambda s: LOGITS[kind](net, DESCRIPTORS[kind](s), at), a)))


def srm(net, a, at, bn):
    return weigh(a, sigmoid(net.norm(each(lambda s: style(net, mean_and_std(s), at), a), bn)))


def cbam(net, a, at, bn):
    at_mlp = f'{at}.channel'
    v = each(lambda s: sigmoid(se(net, gap(s), at_mlp) + se(net, s.amax((1, 2)), at_mlp)), a)
    a = weigh(a, v)
    both = torch.stack([a.mean(1), a.amax(1)], 1)
    return a * sigmoid(net.norm(net.conv(both, f'{at}.spatial.conv.conv'), bn))


def spe(net, a, at, reweight='shared', mix=None):
    high, low = a.amax((2, 3)), a.amin((2, 3))
    if mix is None:
        p0, p1 = net.t[f'{at}.mix']
        mix = p0**2 / (p0**2 + p1**2)
    v = sigmoid(net.t[f'{at}.exc_weight'] * (mix * high + (1 - mix) * low) + net.t[f'{at}.exc_bias'])
    if reweight == 'none':
        return weigh(a, v)
    w, b = net.t[f'{at}.rew_weight'], net.t[f'{at}.rew_bias']
    c = a.shape[1]
    again = {
        'shared': lambda: sigmoid(low * w + high * w + b),
        'a': lambda: sigmoid((high * w[:c] + b[:c]) + (low * w[c:] + b[c:])), 'b': lambda: low * w + high * w + b,
        'c': lambda: sigmoid((low * w + b) * (high * w + b)), 'd': lambda: sigmoid(low * w + b) + sigmoid(high * w + b),
        'e': lambda: sigmoid(low * w + b) * sigmoid(high * w + b), 'f': lambda: sigmoid(high * w + b),
        'g': lambda: sigmoid(low * w + b)}[reweight]()
    return weigh(a, v * again)


def ras(net, a, at, steps=2, share=False, connect=None):
    w, b = net.t[f'{at}.weight'], net.t[f'{at}.bias']
    g = w * each(gap, a) + b
    for n in range(steps - 1):
        g = connect(g) if connect else net.norm(g, f'{at}.connections.{0 if share else n}')
        g = w * g + b
    return weigh(a, sigmoid(g))


def recurrent(kind, net, a, at, steps=2, share=False):
    def logits(x):
        return each(lambda s: LOGITS[kind](net, DESCRIPTORS[kind](s), f'{at}.gate'), x)

    g = logits(a)
    for n in range(steps - 1):
        g = logits(net.norm(g, f'{at}.connections.{0 if share else n}')[:, :, None, None])
    return weigh(a, sigmoid(g))


# DIA-LSTM, one sample at a time: what all four gates add up.

def linear(net, x, at):
    return net.t[f'{at}.weight'] @ x + net.t[f'{at}.bias']


def squeezed_gates(net, y, h, at):
    return sum(linear(net, F.relu(linear(net, x, f'{at}.{w}.0')), f'{at}.{w}.2') for x, w in ((y, 'w_ih'), (h, 'w_hh')))


def standard_gates(net, y, h, at):
    return linear(net, y, f'{at}.w_ih') + linear(net, h, f'{at}.w_hh')


def light_gates(net, y, h, at):
    y = net.t[f'{at}.fc2.weight'] @ F.relu(net.t[f'{at}.fc1.weight'] @ y)
    w, u, b = (net.t[f'{at}.{k}'] for k in ('weight_ih', 'weight_hh', 'bias'))
    return w * y.repeat(4) + b + u * h.repeat(4)


GATES = {'squeezed': squeezed_gates, 'standard': standard_gates, 'light': light_gates}
ACTS = {'sigmoid': sigmoid, 'tanh': torch.tanh, 'relu': F.relu}


def lstm(net, a, stage, cell='squeezed', cells=1, act='sigmoid'):
    batch, n = a.shape[:2]
    zeros = (a.new_zeros(n), a.new_zeros(n))
    state = net.state.setdefault(stage, [[zeros] * cells for _ in range(batch)])
    out = []
    for s in range(batch):
        y = gap(a[s])
        for k in range(cells):
            h, c = state[s][k]
            gates = GATES[cell if k == 0 else 'standard'](net, y, h, f'layer{stage}.0.unit.cells.{k}')
            i, f, g, o = gates.view(4, n)
            c = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
            h = sigmoid(o) * ACTS[act](c)
            state[s][k] = (h, c)
            y = h
        out.append(y)
    return weigh(a, torch.stack(out))
