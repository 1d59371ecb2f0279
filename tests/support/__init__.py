"""What several tests share: the plain reference model, official files, and the published table."""
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
