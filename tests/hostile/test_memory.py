"""What grows with the corpus is bounded: ten times the rows take at most 20% more memory."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("growth.py")
FEW, MANY = 20_000, 200_000


def peak_kilobytes(what: str, folder, rows: int) -> int:
    command = [sys.executable, SCRIPT, what, folder, str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_memory_for_ten_times_the_candidates(tmp_path):
    """One stage after the other: each reads what the one before wrote."""
    for rows in (FEW, MANY):
        (tmp_path / str(rows)).mkdir()
        peak_kilobytes("make", tmp_path / str(rows), rows)
    for stage in ("score", "curate", "pairs"):
        few, many = (peak_kilobytes(stage, tmp_path / str(rows), rows) for rows in (FEW, MANY))
        print(f"\n{stage}: {few / 1000:.0f} MB for {FEW:,} candidates, {many / 1000:.0f} MB for {MANY:,}")
        assert many <= 1.2 * few


@pytest.mark.slow
def test_memory_for_ten_times_the_requests(tmp_path):
    few, many = (peak_kilobytes("decode", tmp_path, rows) for rows in (FEW, MANY))
    print(f"\ndecode: {few / 1000:.0f} MB for {FEW:,} requests, {many / 1000:.0f} MB for {MANY:,}")
    assert many <= 1.2 * few
