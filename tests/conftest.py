"""Before anything is imported: tests never ask a hub, and never fight over cores."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
