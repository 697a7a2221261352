"""A node whose evaluator lies: `python -c "from tests.testnet.lying import main; main()" NODE.YAML`.

Everything about it is the real node, but for one bit of each result that it computes.
"""

import asyncio
import sys
from pathlib import Path

from node.config import NodeConfig
from node.daemon import run_node
from node.logs import configure_logging
from workloads.diagnosis_inference import DiagnosisInference
from workloads.inference import InferenceJob, register_inference


class LyingDiagnosis(DiagnosisInference):
    """The lowest bit of the result's last residue is the other one."""

    def run(self, job: InferenceJob) -> int:
        length = DiagnosisInference.run(self, job)
        result = bytearray(job.output.read_bytes())
        result[-8] ^= 1
        job.output.write_bytes(result)
        return length


def main() -> None:
    settings = NodeConfig.load(Path(sys.argv[1]))
    configure_logging(settings.log, settings.name)
    register_inference(LyingDiagnosis())
    asyncio.run(run_node(settings))
