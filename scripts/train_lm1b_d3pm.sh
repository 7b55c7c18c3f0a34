#!/bin/bash
# D3PM on LM1B, the paper's settings: blocks of 128 tokens, 1,000 steps of noise.
#
#   sbatch scripts/train_lm1b_d3pm.sh
#
# One GPU: the global batch of the paper in two parts. The numbers do not depend on how it is shared out.
# Given again after a failure, it goes on in the same folder. `maskdiff launch slurm` writes a longer script of this kind, which
# also sets up several nodes.
#SBATCH --job-name=lm1b_d3pm
#SBATCH --output=%x-%j.txt
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120

export OMP_NUM_THREADS=8
# srun does not ask for the job's own number of cores by itself.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun maskdiff train \
  data=lm1b model=small model.length=128 \
  parameterization=d3pm T=1000 \
  loader.global_batch_size=512 loader.batch_size=256 loader.eval_batch_size=256 \
  trainer.max_steps=1000000 trainer.precision=bf16 \
  trainer.val_check_interval=10000 checkpointing.every_n_steps=1000 \
  run.dir=runs/d3pm-lm1b checkpointing.resume_from_ckpt=true \
  wandb.project=mdlm wandb.name=d3pm-lm1b
# Told to stop (the signal above, or a pre-emption), it has written a checkpoint and ends with 75.
code=$?
[ "$code" -ne 75 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$code"
