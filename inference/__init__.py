"""Reads breast ultrasound: selects frames, runs the ResNet50, explains, drafts."""

import sys

# OpenVINO tells its maker of every import. A hospital's node tells nobody: without the
# package that does it, OpenVINO falls back to a stub of its own.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
