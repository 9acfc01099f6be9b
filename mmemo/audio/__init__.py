"""Any recording -> waveform: reading, speech detection, cleaning, effects."""
