#!/bin/bash
# The perplexity of MDLM on the held-out part of OpenWebText.
#
#   sbatch scripts/eval_owt_mdlm.sh [CHECKPOINT]
#
# CHECKPOINT is a run folder, a checkpoint, or a name of the hub; by default runs/mdlm-owt.
#SBATCH --job-name=eval_owt_mdlm
#SBATCH --output=%x-%j.txt
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=6:00:00

export OMP_NUM_THREADS=8
# srun does not ask for the job's own number of cores by itself.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun maskdiff eval --checkpoint "${1:-runs/mdlm-owt}" \
  data=openwebtext-split loader.eval_batch_size=16 trainer.precision=bf16 \
  --format text
