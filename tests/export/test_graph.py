from __future__ import annotations

import pytest
import torch

from mmemo.export.graph import PlainLogMel
from mmemo.models.log_mel import LogMel
from tests.export.test_onnx import clips


@pytest.mark.parametrize("range_db", [80.0, 50.0])
def test_the_plain_log_mel_equals_the_log_mel(range_db: float) -> None:
    log_mel = LogMel(40, range_db)
    waveforms = clips(1.2345, 0.4, 0.02)
    waveform = torch.zeros(4, len(waveforms[0]))
    for row, clip in zip(waveform, waveforms, strict=False):
        row[: len(clip)] = torch.from_numpy(clip)
    mask = torch.arange(waveform.shape[1]) < torch.tensor([*map(len, waveforms), 0])[:, None]
    expected, expected_mask = log_mel(waveform, mask)
    actual, actual_mask = PlainLogMel(log_mel)(waveform, mask)
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=0)
    assert torch.equal(actual_mask, expected_mask)
