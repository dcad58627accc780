"""What each source gives to a training run: shares by weight or by epochs, as a table and as what `pretrain` reads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from megagpt.config.schema import MixtureConfig
from megagpt.data.blend import BLOCK
from megagpt.data.errors import DataError


class SourceSize(NamedTuple):
    documents: int
    tokens: int


@dataclass(frozen=True)
class Mixture:
    """Share of each source in a run: epochs x tokens of the source = share x tokens of the run (Brown et al. 2020, table 2.2)."""

    sizes: dict[str, SourceSize]
    shares: dict[str, float]
    """They add up to 1; a source that has none is left out of the run."""
    tokens: int
    """Length of the run."""

    def epochs(self, source: str) -> float:
        return self.shares[source] * self.tokens / self.sizes[source].tokens

    def rows(self) -> list[dict[str, Any]]:
        """The table as JSON has it, largest share first."""
        order = sorted(self.sizes, key=lambda source: (-self.shares[source], source))
        return [
            {"source": source, **self.sizes[source]._asdict(), "share": round(self.shares[source], 6), "epochs": round(self.epochs(source), 4)}
            for source in order
        ]

    def table(self) -> str:
        """The same for the eye."""
        lines = [("source", "documents", "tokens", "share", "epochs")]
        lines += [(row["source"], f"{row['documents']:,}", f"{row['tokens']:,}", f"{row['share']:.2%}", f"{row['epochs']:.2f}") for row in self.rows()]
        documents, tokens = (sum(column) for column in zip(*self.sizes.values(), strict=True))
        lines.append(("all", f"{documents:,}", f"{tokens:,}", "100.00%", f"{self.tokens / tokens:.2f}"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]) for line in lines)

    def yaml(self, train: str, valid: str, held_out: Collection[str]) -> str:
        """A base file for a `pretrain` configuration: its blend and its length, with the table on top.

        Args:
            train, valid: folders of the token files, below the run folder.
            held_out: sources in the second, which are blended in the same proportions.
        """
        lines = [f"# A run of {self.tokens:,} tokens; `base:` of a pretrain configuration takes this file.", "#"]
        lines += [f"# {line}" for line in self.table().splitlines()]
        lines += [f"train_tokens: {self.tokens}", "data:", "  train:", *self._blend(train, self.sizes)]
        if valid_lines := self._blend(valid, held_out):
            lines += ["  valid:", *valid_lines]
        return "\n".join(lines) + "\n"

    def _blend(self, folder: str, sources: Collection[str]) -> list[str]:
        return [f"    - {{path: {folder}/{source}, weight: {self.shares[source]:.9f}}}" for source in sources if self.shares.get(source)]


def mix(config: MixtureConfig, sizes: dict[str, SourceSize]) -> Mixture:
    """The mixture of token files of these sizes.

    Raises:
        DataError: a source that is not there or has no weight, or a share too small for a blend.
    """
    named = config.weights if config.weights is not None else config.epochs or {}
    if unknown := sorted(named.keys() - sizes.keys()):
        raise DataError(f"mixture: {unknown[0]}", f"no document has this source; there are {', '.join(sorted(sizes))}")
    if config.weights is not None:
        if missing := sorted(sizes.keys() - config.weights.keys()):
            raise DataError(f"mixture.weights: {missing[0]}", "this source of the documents has no weight; 0 leaves it out")
        parts = {source: config.weights[source] for source in sizes}
    else:
        parts = {source: named.get(source, 1.0) * size.tokens for source, size in sizes.items()}
    if not (whole := sum(parts.values())):
        raise DataError("mixture", "every source is left out")
    shares = {source: part / whole for source, part in parts.items()}
    for source, share in shares.items():
        if 0 < share < 1 / BLOCK:
            raise DataError(f"mixture: {source}", f"its share {share:.1e} is less than 1 / {BLOCK:,}, the smallest in a blend; leave it out or give it more")
    if config.weights is None:
        return Mixture(sizes, shares, round(whole))
    return Mixture(sizes, shares, config.tokens or sum(size.tokens for source, size in sizes.items() if parts[source]))
