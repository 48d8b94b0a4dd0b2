"""Where the stages find and leave their files, from the folder that holds dvc.yaml."""

from pathlib import Path

PARAMS = Path("params.yaml")
RAW = Path("data/raw")
SPLIT = Path("data/split")
MODEL = Path("data/model")
PREVIEWS = Path("data/previews")
GENERATED = Path("data/generated")
LABELS = Path("data/labels.csv")
REPLICATES = Path("data/replicates.npz")
TRAJECTORY = Path("data/trajectory.npz")
CLASSIFIER = Path("data/classifier/classifier.safetensors")
REFERENCE = Path("data/reference")
EVALUATION = Path("data/evaluation")
COST = Path("data/cost")
FIGURES = Path("data/figures")
EXPORT = Path("data/export")
METRICS = Path("metrics")
REPORT = Path("data/report.html")
