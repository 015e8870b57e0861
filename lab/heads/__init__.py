"""Three routes to a small fine-tuned model, compared at equal size and updates on the lab's data.

    python -m lab.heads finetune --output runs/heads    # teachers: minis with CTC, keyword and emotion heads
    python -m lab.heads routes --output runs/heads      # cells: teacher x task x route x seed; rerun to resume
    python -m lab.heads tables                          # the tables in docs/task_route.md, from the records alone

`data` speaks what is learned and what is scored, `finetuning` is the loop that all heads are trained with, `scoring`
counts errors, `routes` runs a cell, and `tables` reads the records in lab/results/heads.
"""
