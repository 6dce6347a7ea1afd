#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A 70B reward model on two nodes of eight H200 (four of H100: metarm plan says what fits):
#   sbatch configs/launch/slurm.sh
#SBATCH --job-name=metarm-reward
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
set -euo pipefail

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# One task a node; SLURM_NODEID is known in the task alone, hence the quotes. Both nodes see the
# same folders: the first process makes --output, the others read the model and the data.
srun bash -c "accelerate launch --config_file configs/launch/fsdp2_two_nodes.yaml \
  --machine_rank \$SLURM_NODEID --main_process_ip $first_node -m metarm reward \
  --model meta-llama/Llama-3.1-70B --preferences pairs.jsonl --meta-set groups.jsonl \
  --output reward bf16=true gradient_checkpointing=true per_device_train_batch_size=1"
