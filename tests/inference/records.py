"""A released model's record with everything small, for tests of what reads it."""

from inference.record import MARGIN_KEYS, Fusion, ModelRecord

RECORD = ModelRecord(
    name="tiny",
    version="0",
    weights="tiny.safetensors",
    sha256="",
    side=64,
    fusion=Fusion(0.5, 0.5, 0.2, 0.0),
    threshold=0.2,
    lesion_threshold=-1e9,
    speaks_on={"orientation": ("parallel", "not_parallel")},
    margin_thresholds=dict.fromkeys(MARGIN_KEYS, 0.0),
    training={},
)
