"""Stand-ins for `sbatch`, `srun` and `scontrol`, which run a job's tasks on this machine.

`install(folder)` writes them into a folder to be put on the PATH. A job that `scontrol requeue`
names runs again when its tasks have ended. The tasks' process numbers are in `folder/tasks`;
each is the head of a group, which Slurm signals as a whole.
"""

import sys
from pathlib import Path

_SBATCH = """#!{python}
import subprocess, sys
done = open({folder!r} + "/batch.log", "w")
subprocess.Popen(
    [sys.executable, {folder!r} + "/controller", *sys.argv[1:]],
    stdin=subprocess.DEVNULL, stdout=done, stderr=done, start_new_session=True,
)
print("Submitted batch job 17")
"""

_CONTROLLER = """#!{python}
import os, subprocess, sys
from pathlib import Path
folder = Path({folder!r})
script = Path(sys.argv[1]).read_text()
tasks = next(l.split("=")[1] for l in script.splitlines() if "ntasks-per-node" in l)
for restarts in range(5):
    job = dict(SLURM_JOB_ID="17", SLURM_NTASKS=tasks, SLURM_JOB_NUM_NODES="1",
               SLURM_TASKS_PER_NODE=tasks, SLURM_NODEID="0", SLURM_JOB_NODELIST="localhost")
    if restarts:
        job["SLURM_RESTART_COUNT"] = str(restarts)
    subprocess.run(["bash", "-c", script], env=os.environ | job)
    if not (folder / "requeue").exists():
        break
    (folder / "requeue").unlink()
(folder / "ended").write_text(str(restarts))
"""

_SRUN = """#!{python}
import os, subprocess, sys
from pathlib import Path
words, files = sys.argv[1:], {{}}
while words[0].startswith("--"):
    word = words.pop(0)
    if word in ("--output", "--error"):
        files[word] = words.pop(0)
running = []
for rank in range(int(os.environ["SLURM_NTASKS"])):
    out, err = (
        open(files[key].replace("%j", "17").replace("%t", str(rank)), "a")
        for key in ("--output", "--error")
    )
    env = os.environ | dict(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank),
                            SLURM_STEP_NUM_TASKS=os.environ["SLURM_NTASKS"])
    task = subprocess.Popen(words, stdout=out, stderr=err, env=env, start_new_session=True)
    running.append(task)
Path({folder!r}, "tasks").write_text(" ".join(str(task.pid) for task in running))
sys.exit(max(task.wait() for task in running))
"""

_SCONTROL = """#!{python}
import sys
from pathlib import Path
assert sys.argv[1:] == ["requeue", "17"], sys.argv
Path({folder!r}, "requeue").touch()
"""


def install(folder: Path) -> Path:
    """Write the programs into `folder`, and return it."""
    folder.mkdir()
    programs = {
        "sbatch": _SBATCH, "srun": _SRUN, "scontrol": _SCONTROL, "controller": _CONTROLLER,
    }  # fmt: skip
    for name, text in programs.items():
        file = folder / name
        file.write_text(text.format(python=sys.executable, folder=str(folder)))
        file.chmod(0o755)
    return folder
