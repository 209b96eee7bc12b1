"""Slurm's commands as far as Snakemake's executor and our stages need them: jobs run at once, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

COMMANDS = """#!{python} -IS
import os, subprocess, sys
name, words, state = os.path.basename(sys.argv[0]), sys.argv[1:], "{folder}/state/"
with open("{folder}/calls", "a") as calls:
    calls.write(name + " " + " ".join(word for word in words if not word.startswith("--wrap")) + "\\n")
if name == "sbatch":
    job = str(100 + len(os.listdir(state)))
    open(state + job, "w").write("RUNNING")
    wrap = next(word.partition("=")[2] for word in words if word.startswith("--wrap="))
    script = "while ( " + wrap + " ); code=$?; [ -e " + state + job + ".again ]; do rm " + state + job + ".again; done; "
    script += "if [ $code = 0 ]; then s=COMPLETED; else s=FAILED; fi; printf $s > " + state + job
    log = open("{folder}/job-" + job, "w")
    environment = dict(os.environ, SLURM_JOB_ID=job)
    subprocess.Popen(["bash", "-c", script], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    print(job)
elif name == "srun":
    words = words[next(i for i, word in enumerate(words) if not word.startswith("-")):]
    os.execvp(words[0], words)
elif name == "sacct":
    for job in os.listdir(state):
        print(job + "|" + open(state + job).read())
elif name == "scontrol" and words[0] == "requeue":
    open(state + words[1] + ".again", "w")
elif name == "sinfo":
    print("PARTITION\\nmain*")
else:
    sys.exit(1)
"""


def make(folder: Path) -> Path:
    """Writes the commands; FOLDER/bin goes on the PATH, FOLDER/calls has a line per call, FOLDER/job-N is the output of one."""
    (folder / "bin").mkdir(parents=True)
    (folder / "state").mkdir()
    text = COMMANDS.format(python=sys.executable, folder=folder)
    for name in ("sbatch", "srun", "sacct", "squeue", "scontrol", "scancel", "sinfo", "sacctmgr"):
        path = folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    return folder / "bin"
