"""What tgi-probe adds to what it measures, what it costs, and how it grows: `python -m benchmarks`. See README.md."""
