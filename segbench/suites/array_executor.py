"""submitit's executor of SLURM, which also writes batch files where there is no SLURM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import submitit


class ArrayExecutor(submitit.SlurmExecutor):
    """Submits calls as one job array.

    Args:
        folder: of the batch file, the calls and the logs; nothing is written before a submission.
        parameters: of submitit.
    """

    def __init__(self, folder: Path, parameters: dict[str, Any]) -> None:
        super().__init__(folder)
        self.update_parameters(**parameters)

    @classmethod
    def affinity(cls) -> int:
        """Return that this executor can be made. SLURM is needed to submit only."""
        return 1

    def text(self, count: int) -> str:
        """Return the batch file for a number of calls. submitit makes no array of one call."""
        shown = ArrayExecutor(self.folder, self.parameters)
        if count > 1:
            shown.parameters["map_count"] = count
        return shown._make_submission_file_text(shown._submitit_command_str, "")
