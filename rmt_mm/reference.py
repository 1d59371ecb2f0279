"""RMT written from its formulas, for comparison: nothing is fused, cached or shared.

Every distance, mask and rotation is built where it is used; attention is a matrix product, a sum, a softmax and a
matrix product. Modules and parameters have the names and shapes of the official checkpoints, which load directly.
Feature maps are (B, H, W, C). Tests compare :class:`rmt_mm.RMT` with it; the benchmark measures against it.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def decay(num_heads, a, r, device):
    """Return gamma_i = 1 - 2^(-a - r * i / n), of shape (n, )."""
    return torch.tensor([1 - 2.0 ** (-a - r * i / num_heads) for i in range(num_heads)], device=device)


def log_manhattan(gamma, height, width):
    """Return log D of shape (n, H * W, H * W); D_i[(y,x),(y',x')] = gamma_i^(|y-y'| + |x-x'|)."""
    axes = (torch.arange(length, device=gamma.device) for length in (height, width))
    y, x = torch.meshgrid(*axes, indexing='ij')
    position = torch.stack((y, x), dim=-1).view(-1, 2).float()
    distance = (position[:, None] - position[None, :]).abs().sum(-1)
    return gamma.log()[:, None, None] * distance


def log_line(gamma, length):
    """Return log D along one axis, of shape (n, L, L)."""
    position = torch.arange(length, device=gamma.device).float()
    return gamma.log()[:, None, None] * (position[:, None] - position[None, :]).abs()


def rotate(x, angle):
    """Rotate pairs (u0, u1) of x, (B, H, W, n, d), by (y * W + x) * angle_j."""
    _, height, width, _, _ = x.shape
    phase = torch.arange(height * width, device=x.device).float()[:, None] * angle
    phase = phase.view(height, width, 1, -1)
    u0, u1 = x[..., 0::2], x[..., 1::2]
    return torch.stack((u0 * phase.cos() - u1 * phase.sin(), u1 * phase.cos() + u0 * phase.sin()), -1).flatten(-2)


class DWConv(nn.Module):
    def __init__(self, dim, kernel):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x):
        return self.conv(x.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1).contiguous()


class Retention(nn.Module):
    def __init__(self, dim, num_heads, a, r, decomposed):
        super().__init__()
        self.num_heads, self.a, self.r, self.decomposed = num_heads, a, r, decomposed
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.lepe = DWConv(dim, 5)

    def forward(self, x):
        batch, height, width, dim = x.shape
        n, d = self.num_heads, dim // self.num_heads
        # torch.linspace includes the endpoint: angle_j = 10000^(-j / (d/2 - 1)). Computed on the CPU for every device:
        # a token's index multiplies an error of one unit in the last place.
        angle = (1.0 / 10000 ** torch.linspace(0, 1, d // 2)).to(x.device)
        gamma = decay(n, self.a, self.r, x.device)
        q, k, v = self.q_proj(x), self.k_proj(x) / math.sqrt(d), self.v_proj(x)
        lepe = self.lepe(v)
        q, k, v = (t.view(batch, height, width, n, d) for t in (q, k, v))
        q, k = rotate(q, angle), rotate(k, angle)
        if self.decomposed:
            # along W, in every row: (B, H, n, W, d)
            qw, kw, vw = (t.permute(0, 1, 3, 2, 4) for t in (q, k, v))
            v = ((qw @ kw.transpose(-1, -2) + log_line(gamma, width)).softmax(-1) @ vw).permute(0, 1, 3, 2, 4)
            # along H, in every column: (B, W, n, H, d)
            qh, kh, vh = (t.permute(0, 2, 3, 1, 4) for t in (q, k, v))
            out = ((qh @ kh.transpose(-1, -2) + log_line(gamma, height)).softmax(-1) @ vh).permute(0, 3, 1, 2, 4)
        else:
            # over the whole map: (B, n, H * W, d)
            q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
            out = (q @ k.transpose(-1, -2) + log_manhattan(gamma, height, width)).softmax(-1) @ v
            out = out.transpose(1, 2)
        return self.out_proj(out.reshape(batch, height, width, dim) + lepe)


class FFN(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dwconv = DWConv(hidden, 3)

    def forward(self, x):
        x = F.gelu(self.fc1(x))
        return self.fc2(x + self.dwconv(x))


class Block(nn.Module):
    def __init__(self, dim, num_heads, a, r, ratio, decomposed, layer_scale):
        super().__init__()
        self.pos = DWConv(dim, 3)
        self.retention_layer_norm = nn.LayerNorm(dim, eps=1e-6)
        self.retention = Retention(dim, num_heads, a, r, decomposed)
        self.final_layer_norm = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = FFN(dim, int(dim * ratio))
        if layer_scale:
            self.gamma_1, self.gamma_2 = (nn.Parameter(1e-6 * torch.ones(1, 1, 1, dim)) for _ in range(2))
        else:
            self.gamma_1 = self.gamma_2 = 1

    def forward(self, x):
        x = x + self.pos(x)
        x = x + self.gamma_1 * self.retention(self.retention_layer_norm(x))
        return x + self.gamma_2 * self.ffn(self.final_layer_norm(x))


class Downsample(nn.Module):
    def __init__(self, dim, out_dim):
        super().__init__()
        self.reduction = nn.Conv2d(dim, out_dim, 3, 2, 1)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x):
        return self.norm(self.reduction(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class Stage(nn.Module):
    def __init__(self, depth, dim, out_dim, **block):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, **block) for _ in range(depth))
        if out_dim is not None:
            self.downsample = Downsample(dim, out_dim)


class Stem(nn.Module):
    def __init__(self, dim, form):
        super().__init__()
        half = dim // 2
        convs = {'conv': [(half, 2), (half, 1), (dim, 2), (dim, 1)], 'swin': [(half, 2), (dim, 2)]}[form]
        layers, channels = [], 3
        for width, stride in convs:
            layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width), nn.GELU()]
            channels = width
        self.proj = nn.Sequential(*layers[:-1])


class PlainRMT(nn.Module):
    """The dense backbone: four outputs (B, C_i, H_i, W_i), each after a LayerNorm.

    Args:
        arch (rmt_mm.arch.Arch): a size of RMT or RMT-Swin.

    Raises:
        ValueError: the arch is of a form that no release has.
    """

    def __init__(self, arch):
        super().__init__()
        released = arch.cpe and arch.lce and arch.rotation and (arch.decay, arch.distance) == ('inside', 'manhattan')
        if not released or arch.stem not in ('conv', 'swin'):
            raise ValueError('the reference computes the released forms of RMT and RMT-Swin alone.')
        dims = arch.embed_dims
        self.patch_embed = Stem(dims[0], arch.stem)
        self.layers = nn.ModuleList(
            Stage(
                s.depth,
                s.dim,
                out_dim,
                num_heads=s.num_heads,
                a=s.init_value,
                r=s.heads_range,
                ratio=s.mlp_ratio,
                decomposed=s.decomposed,
                layer_scale=s.layer_scale,
            )
            for s, out_dim in zip(arch.stages(), dims[1:] + (None,))
        )
        self.extra_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)

    def forward(self, x):
        x = self.patch_embed.proj(x).permute(0, 2, 3, 1)
        outs = []
        for layer, norm in zip(self.layers, self.extra_norms):
            for block in layer.blocks:
                x = block(x)
            outs.append(norm(x).permute(0, 3, 1, 2).contiguous())
            if hasattr(layer, 'downsample'):
                x = layer.downsample(x)
        return tuple(outs)
