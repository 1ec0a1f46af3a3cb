"""The main job: slides → tiles → embeddings → predictions → heatmaps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .config import RunSpec
from .folder import RunFolder
from .manifest import SlideRecord
from .model_stages import together
from .receipts import FAILED, Receipt, latest, read_receipts
from .run import Stage, Watcher, run_stage, stage_name
from .stages import has_fitting


@dataclass
class Job:
    """A run in the making: slides that failed at a stage are kept out of the next, and never lost."""

    records: Sequence[SlideRecord]
    spec: RunSpec
    folder: RunFolder
    receipts: dict[str, list[Receipt]] = field(default_factory=dict)

    def do(self, stage: Stage, watch: Callable[[str, int], Watcher]) -> list[Receipt]:
        """Run `stage` over the slides that came so far. `watch` is told the stage's name and its number of slides."""
        failed = self.failed()
        name, records = stage_name(stage), list(self.records)
        if name in ("predict", "heatmap"):  # also with those that failed: a bag that lacks them says so
            records = together(records, self.spec)
        left = [record for record in records if record.slide_id not in failed]
        self.receipts[name] = run_stage(stage, left, self.spec, self.folder, watch(name, len(left)))
        return self.receipts[name]

    def failed(self) -> dict[str, Receipt]:
        """slide_id → the receipt of the stage at which it failed in this job."""
        return {r.slide_id: r for receipts in self.receipts.values() for r in receipts if r.status == FAILED}

    def recall(self, *stages: str, contract: str | None = None) -> None:
        """Take over from the run folder what became of the slides at earlier stages, of an earlier command.

        contract  name of the embeddings' folder that this job needs: a slide that has them there has not failed to
                  embed, whatever became of it with another backbone
        """
        wanted = {record.slide_id for record in self.records}
        for stage in stages:
            known = latest(read_receipts(self.folder.receipts(stage)))
            self.receipts[stage] = [
                receipt
                for slide_id, receipt in known.items()
                if slide_id in wanted and not (contract and self._embedded(receipt, contract))
            ]

    def _embedded(self, receipt: Receipt, contract: str) -> bool:
        path = self.folder.features(contract, receipt.slide_id)
        failed = receipt.stage == "embed" and receipt.status == FAILED
        return failed and has_fitting(path, self.folder, receipt.slide_id)
