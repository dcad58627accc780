"""Last phase over all documents: duplicates go, then what is costly or must see the text as it will be; what remains is the result."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from megagpt.config.prepare import PrepareConfig
from megagpt.data.split import share
from megagpt.prepare.clean import CLEANED, SEEN, from_row, pass_through, to_json
from megagpt.prepare.dedup.verdicts import Verdicts, cut
from megagpt.prepare.ledger import Ledger, read_ledger
from megagpt.prepare.phase import Phase, TaskStep
from megagpt.prepare.representation_counts import Counts
from megagpt.prepare.steps.build import FINISH, build_steps
from megagpt.prepare.tables import DOCUMENTS, Table, read_table, task_file
from megagpt.prepare.timing import Times

SPLITS = ("train", "valid")


class Finish(TaskStep):
    """Writes `documents/<split>-<task>.parquet` and `ledger/<task>.parquet` into the stage's folder."""

    name = "finish"

    def __init__(self, config: PrepareConfig, work: Path, folder: Path) -> None:
        super().__init__()
        self.config, self.work, self.folder = config, work, folder

    def run_task(self, task: int, num_tasks: int) -> None:
        config, work = self.config, self.work
        steps, kept, times, num_bytes = build_steps(FINISH, config, work), read_table(task_file(work / CLEANED, task)), Times(), 0
        with ExitStack() as files:
            verdicts = files.enter_context(Verdicts(work, task, config.steps))
            counts = files.enter_context(Counts(work / "after", task, config.steps.representation))
            ledger = files.enter_context(Ledger(task_file(self.folder / "ledger", task), task, config))
            documents = {split: files.enter_context(Table(self.folder / "documents" / f"{split}-{task:05d}.parquet", DOCUMENTS)) for split in SPLITS}
            for seen in read_ledger(task_file(work / SEEN, task)):
                if not seen["kept"]:
                    ledger.copy(seen)
                    continue
                row = next(kept)
                num_bytes += len(row["text"])
                document, verdict = from_row(row), verdicts.of(row["n"])
                if verdict.reason is not None:
                    dropped = ("duplicates", verdict.reason)
                else:
                    document.text = cut(document.text, verdict)
                    dropped = pass_through(document, steps, times)
                split = None
                if dropped is None:
                    counts.add(document)
                    split = "valid" if share(document.id) < config.valid_fraction else "train"
                    known = document.metadata
                    documents[split].add({
                        "id": document.id, "text": document.text, **{name: known[name] for name in ("source", "url", "licence", "date")},
                        "meta": to_json(known["meta"]), "weight": known["weight"],
                    })  # fmt: skip
                before = seen["characters_before"], seen["tokens_before"]
                ledger.add(document, dropped, *before, split=split, cluster=verdict.cluster, kept_instead=verdict.kept)
        times.tell(self, ledger.num_rows, num_bytes)


def finish_phase(config: PrepareConfig, work: Path, folder: Path, num_tasks: int) -> Phase:
    return Phase("finish", num_tasks, Finish(config, work, folder))
