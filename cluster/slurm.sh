#!/usr/bin/env bash
# A run or a sweep on nodes of Slurm, one shard to each node; from the repository's folder:
#   sbatch cluster/slurm.sh experiments/quickstart.yaml
# Ray starts on all nodes, the command runs on the first, and Ray ends. The same command goes on with what a time limit interrupted.
#SBATCH --job-name=locallearn
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=04:00:00
set -euo pipefail

file=${1:?usage: sbatch cluster/slurm.sh experiments/NAME.yaml}
runs=${RUNS:-${SCRATCH:-$HOME}/runs} # on storage that all nodes share
python=${PYTHON_ENV:-$PWD/.venv}     # the virtual environment that `pip install -e .` was given
command=sweep
grep -q '^base:' "$file" || command=run

# Without a token anybody with an account on these nodes could run code as you. The home folder is shared, so one token serves all.
export PATH="$python/bin:$PATH" RAY_AUTH_MODE=token
export RAY_worker_niceness=0 RAY_max_direct_call_object_size=8000000
ray get-auth-token --generate > /dev/null

name=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head=$(getent ahostsv4 "$name" | awk 'NR == 1 { print $1 }')
port=$((20000 + SLURM_JOB_ID % 10000))
srun ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
  locallearn "$command" "$file" --on ray --address "$head:$port" --runs "$runs"
