"""The study: does SKILL do what its paper claims? Methods, sparsities and ablations on small teachers, from one file.

    python -m lab.study run --config lab/study/study.yaml --output runs/study     # rerun to resume
    python -m lab.study list --config lab/study/study.yaml --output runs/study    # what is done, what is not
    python -m lab.study cell ID --config lab/study/study.yaml --output runs/again # one cell, to the same value
    python -m lab.study tables --results lab/results/study                        # every table and figure

`grid` turns the file into cells, `cells` runs one, `calibration` asks how much audio the clusters need, `tables` and
`figures` build what is shown from the JSON files alone.
"""
