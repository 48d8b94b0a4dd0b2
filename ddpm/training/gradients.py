"""Gradients that do not depend on how many processes computed them."""

import torch
from torch import Tensor, nn

from ddpm.training.ranks import Ranks


class ShardGradients:
    """The gradients of a batch that is cut into ``shards`` equal parts, of which this rank computes its own.

    Each shard's gradient is kept apart until all ranks have exchanged theirs; then they are summed in the order of the
    shards. So the sum has the same bits however many ranks there are: float addition is not associative.
    """

    def __init__(self, network: nn.Module, shards: int, ranks: Ranks) -> None:
        self.weights, self.shards, self.ranks = list(network.parameters()), shards, ranks
        self.mine = ranks.part(shards)
        size = sum(weight.numel() for weight in self.weights)
        # After a shard's gradient, its loss, and whether this rank was asked to stop.
        self._rows = torch.zeros(ranks.each(shards), size + 2, device=self.weights[0].device)
        self._views = [self._split(row) for row in self._rows]

    def backward(self, shard: int, loss: Tensor) -> None:
        """Compute and keep the gradient of one of this rank's shards."""
        place = shard - self.mine.start
        self._rows[place].zero_()
        self._attach(self._views[place])
        loss.backward()
        self._rows[place, -2] = loss.detach()

    def exchange(self, *, stop: bool, ask: bool) -> tuple[Tensor, bool]:
        """Give every weight the mean of all shards' gradients. stop: whether this rank was asked to stop.

        Returns the mean of their losses and, where ``ask`` is true, whether any rank was asked to stop: asking waits
        for the device.
        """
        if stop:
            self._rows[:, -1] = 1.0
        gathered = self.ranks.gather(self._rows)
        # A rank that has no shard may be the one that was asked to stop.
        rows, asked = gathered[: self.shards], gathered[:, -1]
        total = rows[0] if len(rows) == 1 else rows[0] + rows[1]
        for row in rows[2:]:
            total += row
        total /= self.shards
        self._attach(self._split(total))
        return total[-2], ask and (stop if self.ranks.size == 1 else bool(asked.any()))

    def _attach(self, gradients: list[Tensor]) -> None:
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient

    def _split(self, row: Tensor) -> list[Tensor]:
        """Views of a row, each shaped as its weight and in the same memory order."""
        views, first = [], 0
        for weight in self.weights:
            views.append(row.as_strided(weight.shape, weight.stride(), row.storage_offset() + first))
            first += weight.numel()
        return views
