"""What happens to samples that cannot be used while a run goes on: on_bad_sample=error|skip."""

import logging
from pathlib import Path

from trans4pass import dist
from trans4pass.storage import recall_json, write_json

log = logging.getLogger(__name__)


class BadSamples:
    """Counts and logs the samples of a stage that were skipped, each once, interruptions included.

    `<folder>/bad_samples.json` lists them by image, with reasons; other ranks have files of their own until `finish`.
    """

    def __init__(self, folder: Path):
        self.path = folder / (f"bad_samples.{dist.rank()}.json" if dist.rank() else "bad_samples.json")
        self.reasons: dict[str, str] = recall_json(self.path, (), "samples that were skipped are counted anew") or {}

    def __call__(self, image: str, reason: str) -> None:
        if image in self.reasons:
            return
        self.reasons[image] = reason
        log.warning("bad sample %d skipped: %s: %s", len(self.reasons), image, reason)
        write_json(self.path, self.reasons)

    def finish(self) -> int:
        """The number over all ranks, listed by rank 0; every rank must call it."""
        self.reasons = {image: reason for part in dist.gather_objects(self.reasons) for image, reason in part.items()}
        if dist.is_main() and self.reasons:
            write_json(self.path, self.reasons)
        elif not dist.is_main():
            self.path.unlink(missing_ok=True)
        return len(self.reasons)
