"""OVSegmentor's image tower: a ViT whose learnable tokens bind the patches into a few groups (2301.09121, section 3.2).

Patches and learnable tokens run through the first half of a ViT together. Binding then mixes the tokens into as many queries
as there are groups, assigns every patch to one of them and takes each group's mean; the second half of the ViT runs on the
groups alone. The binding is GroupViT's grouping block (2202.11094), once.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg.encoders import resize_grid
from owseg.losses import at_least_float32
from owseg.noise import DropPath, gumbel


class Binding(NamedTuple):
    """How patches are assigned to groups: the queries and keys of the assignment."""

    q: Tensor
    """[B, K, C]: one query per group."""
    k: Tensor
    """[B, P, C]: one key per patch, row-major."""

    @property
    def logits(self) -> Tensor:
        """[B, K, P]: scaled products of groups with patches, before any noise; at least float32."""
        return assignment_logits(self.q, self.k)


class Groups(NamedTuple):
    """An image as groups of patches."""

    features: Tensor
    """[B, K, C], after the last LayerNorm."""
    binding: Binding
    grid: tuple[int, int]
    """(h, w) of the patches."""


def assignment_logits(q: Tensor, k: Tensor) -> Tensor:
    """Scaled products [B, K, P] of group queries [B, K, C] with patch keys [B, P, C], which may be of another image.

    In at least float32, under autocast too.
    """
    with torch.autocast(q.device.type, enabled=False):
        logits: Tensor = upcast(q) @ upcast(k).transpose(1, 2) * q.shape[-1] ** -0.5
        return logits


def owning_group(binding: Binding, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The group [B, *size] int64 whose soft map, stretched from the patches' grid, is highest at each pixel."""
    maps = binding.logits.softmax(dim=1)
    maps = maps.reshape(*maps.shape[:2], *grid)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False).argmax(dim=1)


def upcast(x: Tensor) -> Tensor:
    """x in at least float32."""
    return x.to(at_least_float32(x))


def hard_assignment(logits: Tensor, *, noisy: bool) -> Tensor:
    """0/1 assignment [B, K, P] of every patch to one group, with the gradient of the softmax over the groups (tau 1).

    noisy: under Gumbel noise.
    """
    if noisy:
        logits = logits + gumbel(logits.shape, logits.device, logits.dtype)
    soft = logits.softmax(dim=1)
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
    return hard - soft.detach() + soft


def _dropping(rate: float, block: nn.Module) -> nn.Module:
    """A block whose both branches are dropped with this probability."""
    block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)
    return block


class Mlp(nn.Module):
    """Two linear layers with GELU between them, over the last dimension."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class CrossAttention(nn.Module):
    """Multi-head attention of queries [B, Q, C] to other tokens [B, N, C] → [B, Q, C]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, query: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: broadcastable to [B, heads, Q, N], true where a token may be attended to."""
        q, k, v = (self._split(x) for x in (self.q_proj(query), self.k_proj(tokens), self.v_proj(tokens)))
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.proj(read.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class CrossAttentionBlock(nn.Module):
    """Queries take up other tokens: x + attention, x + MLP(LN(x)), LN. Neither side is normalised before the attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, width)
        self.norm_post = nn.LayerNorm(width)

    def forward(self, query: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, Q, C] queries, [B, N, C] tokens → [B, Q, C]."""
        x = query + self.attn(query, tokens, mask)
        x = x + self.mlp(self.norm2(x))
        out: Tensor = self.norm_post(x)
        return out


class GroupingBlock(nn.Module):
    """Binds patches to groups. Submodules are named as GroupViT's, in its own code and in Hugging Face's."""

    def __init__(self, width: int, heads: int, tokens: int, groups: int) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(width)
        self.mlp_inter = Mlp(tokens, width // 2, groups)
        self.norm_post_tokens = nn.LayerNorm(width)
        self.norm_x = nn.LayerNorm(width)
        self.pre_assign_attn = CrossAttentionBlock(width, heads)
        self.assign = nn.ModuleDict({name: nn.Linear(width, width) for name in ("q_proj", "k_proj", "v_proj", "proj")})
        self.norm_new_x = nn.LayerNorm(width)
        self.mlp_channels = Mlp(width, 4 * width, width)

    def bind(self, patches: Tensor, tokens: Tensor) -> Binding:
        """The assignment's queries and keys alone, of patches [B, P, C] and tokens [B, T, C]."""
        groups, patches = self._read(patches, tokens)
        return self._bind(groups, patches)

    def forward(self, patches: Tensor, tokens: Tensor) -> tuple[Tensor, Binding]:
        """Segment tokens [B, K, C] of patches [B, P, C] and tokens [B, T, C], and how they came about.

        Each patch goes to one group whole, in training under Gumbel noise. A group is the sum of its patches over their number
        plus one (GroupViT's eps 1.0: a shrunk mean).
        """
        groups, patches = self._read(patches, tokens)
        binding = self._bind(groups, patches)
        values = self.assign["v_proj"](patches)
        with torch.autocast(patches.device.type, enabled=False):
            assigned = hard_assignment(binding.logits, noisy=self.training)
            means = assigned / (assigned.sum(dim=-1, keepdim=True) + 1.0) @ upcast(values)
        x = self.assign["proj"](means.to(values.dtype)) + groups
        return x + self.mlp_channels(self.norm_new_x(x)), binding

    def _read(self, patches: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Groups [B, K, C] that have read the patches, and the patches, normalised."""
        tokens, patches = self.norm_tokens(tokens), self.norm_x(patches)
        mixed = self.mlp_inter(tokens.transpose(1, 2)).transpose(1, 2)
        return self.pre_assign_attn(self.norm_post_tokens(mixed), patches), patches

    def _bind(self, groups: Tensor, patches: Tensor) -> Binding:
        return Binding(self.assign["q_proj"](groups), self.assign["k_proj"](patches))


class GroupingEncoder(nn.Module):
    """A ViT cut in two, with binding between the halves. There is no class token; LayerNorms have eps 1e-5."""

    def __init__(
        self,
        *,
        width: int,
        depths: tuple[int, int] = (6, 6),
        heads: int = 8,
        patch_size: int = 16,
        grid: tuple[int, int] = (14, 14),
        tokens: int = 64,
        groups: int = 8,
        drop_path: float = 0.0,
        pre_norm: bool = False,
        quick_gelu: bool = False,
    ) -> None:
        """depths: blocks before and after binding. grid: patches (h, w) that `positions` stand for. drop_path: the last
        block's rate, growing linearly from 0 over both halves. pre_norm: CLIP's, before the first block, which leaves the
        patches without a bias. quick_gelu: in the blocks, not in binding.
        """
        from timm.layers import QuickGELU  # takes seconds, and settings are read without it
        from timm.models.vision_transformer import Block

        super().__init__()
        self.width, self.heads, self.groups, self.grid, self.patch_size = width, heads, groups, grid, patch_size
        self.patches = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=not pre_norm)
        self.positions = nn.Parameter(torch.empty(grid[0] * grid[1], width))
        self.norm_pre = nn.LayerNorm(width) if pre_norm else nn.Identity()
        self.tokens = nn.Parameter(torch.empty(1, tokens, width))
        activation = QuickGELU if quick_gelu else nn.GELU
        blocks = [
            _dropping(rate, Block(width, heads, qkv_bias=True, act_layer=activation, norm_layer=nn.LayerNorm))
            for rate in torch.linspace(0, drop_path, sum(depths)).tolist()
        ]
        self.early, self.late = nn.ModuleList(blocks[: depths[0]]), nn.ModuleList(blocks[depths[0] :])
        self.grouping = GroupingBlock(width, heads, tokens, groups)
        self.norm = nn.LayerNorm(width)
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normal of deviation 0.02 for matrices, positions and tokens (official); LayerNorms and patches as torch."""
        for parameter in (self.positions, self.tokens):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Groups:
        """Groups of images [B, 3, H, W]; H and W are multiples of the patch size."""
        patches, tokens, grid = self._early(image)
        x, binding = self.grouping(patches, tokens)
        for block in self.late:
            x = block(x)
        return Groups(self.norm(x), binding, grid)

    def bind(self, image: Tensor) -> Binding:
        """The binding of images [B, 3, H, W] alone: stops at its queries and keys."""
        patches, tokens, _ = self._early(image)
        return self.grouping.bind(patches, tokens)

    def _early(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Patches [B, P, C] and tokens [B, T, C] after the first half, and the grid of the patches.

        Positions of another grid than the trained one are resized bicubic without aligned corners (official).
        """
        x = self.patches(image)
        grid = (x.shape[-2], x.shape[-1])
        x = self.norm_pre(x.flatten(2).transpose(1, 2) + resize_grid(self.positions, self.grid, grid))
        x = torch.cat([x, self.tokens.expand(len(x), -1, -1).to(x.dtype)], dim=1)
        for block in self.early:
            x = block(x)
        patches, tokens = x.split([grid[0] * grid[1], self.tokens.shape[1]], dim=1)
        return patches, tokens, grid
