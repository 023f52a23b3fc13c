#!/bin/bash
# Train on SLURM nodes: one launch a node, the first node is the meeting point. The run folder must be on a shared disk.
#   sbatch --nodes 2 --gpus-per-node 8 scripts/slurm_train.sh accelerate_configs/zero3.yaml scripts/recipes/lora_12.8b.yaml --data data/mine --run runs/12.8b
# A job that ran out of time goes on with the same command: SLURM sends SIGTERM, training saves and stops.
#SBATCH --job-name=llm-qa
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@300
set -euo pipefail
config=${1:?accelerate config, such as accelerate_configs/zero3.yaml}
shift
gpus=${SLURM_GPUS_ON_NODE:?SLURM gave no GPUs: add --gpus-per-node}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST") # whole: a pipe that closes early would end this script
main=${hosts%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a node
export main gpus config port
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240 # seconds to save after SLURM's signal; torchrun's own are 30
# shellcheck disable=SC2016 # SLURM_NODEID is each node's own
exec srun --kill-on-bad-exit=1 bash -c '
  exec .venv/bin/accelerate launch --quiet --config_file "$config" \
    --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" --num_processes $((SLURM_NNODES * gpus)) \
    --main_process_ip "$main" --main_process_port "$port" scripts/train.py "$@"' _ "$@"
