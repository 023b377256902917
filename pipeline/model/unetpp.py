"""UNet++: U-Nets of all depths nested in one another, their skip connections dense."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.core.errors import ConfigError, sentence
from pipeline.model.base import Heads, LevelNetwork
from pipeline.model.blocks import conv_stage, head, style_of, upsampling
from pipeline.model.network_options import Norm, Size, StageOptions


class UNetPlusPlusOptions(StageOptions):
    """Options of ``unetpp``; the defaults are the paper's: no normalization, dropout 0.5."""

    features: tuple[Size, ...] = Field(default=(32, 64, 128, 256, 512), min_length=2)
    """Channels of each stage, full resolution first; their number is the number of stages."""
    norm: Norm = "none"
    """Normalization; group makes 8 groups, or as many as divide both 8 and the channels."""
    bias: bool = True
    """Whether the convolutions of units have a bias; up-convolutions and heads always have one."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Probability of zeroing a value behind each convolution unit."""
    dense: bool = True
    """Whether a node sees all earlier nodes of its row, as in UNet++, or the last one only, as in UNet+."""
    mode: Literal["fast", "accurate"] = "fast"
    """Prediction with deep supervision. fast: one head. accurate: the mean of all heads' probabilities."""
    head: Size | None = None
    """Level of the head that fast predicts with, e.g. 2 for that on x0_2; by default the deepest."""
    probabilities: Literal["softmax", "sigmoid"] = "softmax"
    """What accurate averages: softmax over classes, or a sigmoid per channel (always so with one output channel)."""

    @model_validator(mode="after")
    def _heads_are_there(self) -> UNetPlusPlusOptions:
        if self.mode == "accurate" and not self.deep_supervision:
            advice = "Set deep_supervision: true, or mode: fast"
            raise ValueError(sentence("mode", "fast where deep_supervision is off", "accurate", advice))
        if self.head is not None and not (self.deep_supervision and self.mode == "fast"):
            rule, advice = "none, unless deep supervision is on and mode is fast", "Leave it out, or set both"
            raise ValueError(sentence("head", rule, self.head, advice))
        if self.head is not None and self.head >= len(self.features):
            rule = f"1 to {len(self.features) - 1}, as there are {len(self.features)} stages"
            raise ValueError(sentence("head", rule, self.head, "Lower it"))
        return self

    def pruned(self, level: int) -> UNetPlusPlusOptions:
        """Options of the network cut off at a depth: its first ``level + 1`` stages and a single head."""
        lists = ("features", "kernel_sizes", "strides")
        cut = {name: value[: level + 1] for name in lists if isinstance(value := getattr(self, name), tuple)}
        return self.model_copy(update={**cut, "deep_supervision": False, "mode": "fast", "head": None})


class UNetPlusPlus(LevelNetwork):
    """UNet++ with deep supervision at full resolution, in 2D or 3D, for isotropic and anisotropic voxels.

    Node ``x{i}_{j}`` is at resolution i and column j: x{i}_0 is the encoder, and for j > 0 it sees all earlier nodes of
    its row (in UNet+ the last one only) and the upsampled x{i+1}_{j-1}. ``nodes``, ``upsamplings`` (named after the
    node they lead to) and ``heads`` (on x0_1, x0_2, …; without deep supervision on the last only) carry these names, so
    that the network of level L is the part with i + j <= L: :meth:`prune` cuts it out.

    Reference: Zhou et al. 2018 (arXiv 1807.10165) and 2020 (arXiv 1912.05074).
    """

    options: UNetPlusPlusOptions

    def __init__(self, dims: int, in_channels: int, out_channels: int, options: UNetPlusPlusOptions) -> None:
        stages, style, convs = options.stages(dims), style_of(options, dims), options.convs_per_stage
        super().__init__(dims, in_channels, out_channels, options)
        self.depth = len(stages) - 1
        self.mode = options.mode
        self.head = options.head or self.depth
        self.probabilities: Literal["softmax", "sigmoid"] = "sigmoid" if out_channels == 1 else options.probabilities
        self.nodes, self.upsamplings, self.heads = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        widths = (in_channels, *options.features)
        for level, stage in enumerate(stages):
            self.nodes[_node(level, 0)] = conv_stage(widths[level], stage, style, convs=convs, down=options.down)
        for column in range(1, len(stages)):
            for level in range(len(stages) - column):
                name, stage = _node(level, column), stages[level]
                seen = column + 1 if options.dense else 2
                self.upsamplings[name] = upsampling(stages[level + 1], stage, style, options.up)
                self.nodes[name] = conv_stage(seen * stage.features, stage, style, convs=convs)
        for column in range(1 if self.deep_supervision else self.depth, self.depth + 1):
            self.heads[_node(0, column)] = head(dims, options.features[0], out_channels)

    def segment(self, x: Tensor) -> Tensor | Heads:
        """Logits at full resolution; in training mode with deep supervision those of all heads.

        The head that predictions come from is the first, then follow the others from the deepest. One head alone costs
        the nodes of its level only.
        """
        every = self.deep_supervision and (self.training or self.mode == "accurate")
        row = self._first_row(x, self.depth if every else self.head)
        if not every:
            logits: Tensor = self.heads[_node(0, self.head)](row[self.head])
            return logits
        # The head that predictions come from first: training and scores take the first entry for it.
        columns = sorted(range(1, self.depth + 1), key=lambda column: (column != self.head, -column))
        heads = {_node(0, column): self.heads[_node(0, column)](row[column]) for column in columns}
        return heads if self.training else average_heads(tuple(heads.values()), self.probabilities)

    def prune(self, level: int) -> UNetPlusPlus:
        """The network of a level alone: the nodes with i + j <= level and the head on x0_level.

        Its state is a part of this network's, under the same names, and in evaluation mode its logits are those of the
        head on x0_level bit for bit. ``options`` of the result build it anew. It takes smaller steps of sizes.

        Args:
            level: 1 to ``depth``; at ``depth`` nothing but the other heads is left out.

        Returns:
            A network of its own, in the mode of this one and on its device; nothing is shared.

        Raises:
            ConfigError: If the level is not there or was not supervised, so that its head is not trained.
        """
        if not self.deep_supervision:
            got, advice = "one trained without", "Train with model.deep_supervision: true"
            raise ConfigError([sentence("pruning", "a network trained with deep supervision", got, advice)], "network")
        if not 1 <= level <= self.depth:
            raise ConfigError([sentence("level", f"1 to {self.depth}", level, "Choose one of them")], "network")
        with torch.device("meta"):  # takes no memory and draws no random numbers
            pruned = UNetPlusPlus(self.dims, self.in_channels, self.out_channels, self.options.pruned(level))
        state = self.state_dict()
        pruned.load_state_dict({name: state[name].clone() for name in pruned.state_dict()}, assign=True)
        return pruned.train(self.training)

    def _first_row(self, x: Tensor, depth: int) -> list[Tensor]:
        """x0_0 … x0_depth from the nodes with i + j <= depth."""
        rows: list[list[Tensor]] = []
        for level in range(depth + 1):
            x = self.nodes[_node(level, 0)](x)
            rows.append([x])
        for column in range(1, depth + 1):
            for level in range(depth + 1 - column):
                name, row = _node(level, column), rows[level]
                up = self.upsamplings[name](rows[level + 1][column - 1])
                row.append(self.nodes[name](torch.cat([*(row if self.options.dense else row[-1:]), up], dim=1)))
        return rows[0]


def average_heads(heads: tuple[Tensor, ...], probabilities: Literal["softmax", "sigmoid"] = "softmax") -> Tensor:
    """Logits of the mean of several heads' probabilities, computed in log space so that none underflows.

    Args:
        heads: One or more logits (B, L, *spatial) of the same shape.
        probabilities: Softmax over L, or a sigmoid for each of the L channels.

    Returns:
        (B, L, *spatial), whose softmax or sigmoid is the mean of those of the heads.
    """
    stacked = torch.stack(heads)
    if probabilities == "softmax":
        return torch.logsumexp(F.log_softmax(stacked, dim=2), dim=0) - math.log(len(heads))
    return torch.logsumexp(F.logsigmoid(stacked), dim=0) - torch.logsumexp(F.logsigmoid(-stacked), dim=0)


def _node(level: int, column: int) -> str:
    return f"x{level}_{column}"
