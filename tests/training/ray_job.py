"""Run a job file on Ray in a process of its own: ``python ray_job.py JOB.json RUNS OUT``."""

import hashlib
import json
import sys
from pathlib import Path

from segdistill.network.unet import own_tensors
from segdistill.training import launch
from segdistill.training.job import Job

if __name__ == "__main__":
    job, runs, out = (Path(name) for name in sys.argv[1:])
    network, history = launch.run(Job.from_json(json.loads(job.read_text())), runs)
    digest = hashlib.sha256(
        b"".join(v.detach().numpy().tobytes() for v in own_tensors(network).values())
    )
    out.write_text(json.dumps({"weights": digest.hexdigest(), "history": history}))
