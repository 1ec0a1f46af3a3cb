"""The main job: slides → tiles → embeddings → predictions → heatmaps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .config import RunSpec
from .folder import RunFolder
from .halt import Halt
from .lines import Line
from .manifest import SlideRecord
from .model_stages import together
from .receipts import FAILED, Receipt, latest, read_receipts
from .run import Stage, Watcher, run_stages, stage_name
from .stages import has_fitting


@dataclass
class Job:
    """A run in the making: slides that failed at a stage are kept out of the next, and never lost.

    halted  what ended it before all slides were tried, if anything did
    """

    records: Sequence[SlideRecord]
    spec: RunSpec
    folder: RunFolder
    receipts: dict[str, list[Receipt]] = field(default_factory=dict)
    halted: Halt | None = None

    def do(self, *stages: Stage, watch: Callable[[str, int], Watcher]) -> list[Receipt]:
        """Bring the slides that came so far through `stages`, each as far as it comes; the receipts of the last one.

        watch  is told each stage's name and the number of slides that may come to it
        Raises SpecError where another session on the folder tiles the same slides in another way.
        """
        failed = self.failed()
        lines = []
        for stage in stages:
            records = list(self.records)
            if stage_name(stage) in (
                "predict",
                "heatmap",
            ):  # also with those that failed: a bag that lacks them says so
                records = together(records, self.spec)
            lines.append(Line(stage, {one.slide_id: one for one in records if one.slide_id not in failed}))
        watchers = [watch(line.name, len(line.records)) for line in lines]
        halt = run_stages(lines, self.spec, self.folder, watchers)
        if halt.why is not None:
            self.halted = halt
        for line in lines:
            self.receipts[line.name] = line.ordered()
        return self.receipts[lines[-1].name]

    def failed(self) -> dict[str, Receipt]:
        """slide_id → the receipt of the stage at which it failed in this job."""
        return {r.slide_id: r for receipts in self.receipts.values() for r in receipts if r.status == FAILED}

    def left(self) -> int:
        """Slides that neither failed nor came through the last stage that was run."""
        last = list(self.receipts.values())[-1] if self.receipts else []
        return len(self.records) - len({r.slide_id for r in last} | set(self.failed()))

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
