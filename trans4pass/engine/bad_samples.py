"""What happens to files that cannot be read while a run goes on: on_bad_sample=error|skip."""

import logging
from pathlib import Path

import torch.distributed as td

from trans4pass import dist
from trans4pass.errors import ConfigError

log = logging.getLogger(__name__)

CHOICES = ("error", "skip")


class BadSamples:
    """Counts and logs the samples of a stage that were skipped, each once; `<folder>/bad_samples.txt` lists them."""

    def __init__(self, folder: Path):
        self.path = folder / "bad_samples.txt"
        self.reasons: dict[str, str] = {}

    def __call__(self, name: str, reason: str) -> None:
        if name in self.reasons:
            return
        self.reasons[name] = reason
        log.warning("bad sample %d skipped: %s: %s", len(self.reasons), name, reason)
        if dist.is_main():
            self._write(self.reasons)

    def finish(self) -> int:
        """The number over all ranks, listed by rank 0; every rank must call it."""
        everywhere = [self.reasons]
        if dist.active():
            everywhere = [{} for _ in range(dist.world_size())]
            td.all_gather_object(everywhere, self.reasons)
        reasons = {name: reason for part in everywhere for name, reason in part.items()}
        if reasons and dist.is_main():
            self._write(reasons)
        return len(reasons)

    def _write(self, reasons: dict[str, str]) -> None:
        self.path.write_text("".join(f"{name}: {reason}\n" for name, reason in sorted(reasons.items())))


def bad_samples(choice: str, folder: Path) -> BadSamples | None:
    """Who takes bad samples: None raises their error.

    Raises:
        ConfigError: `choice` is neither error nor skip.
    """
    if choice not in CHOICES:
        raise ConfigError(f"on_bad_sample={choice} is not one of {', '.join(CHOICES)}")
    return BadSamples(folder) if choice == "skip" else None
