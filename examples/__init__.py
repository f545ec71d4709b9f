"""Five networks, one page each: run them by `python -m examples.NAME`, in reduced form with `--quick`."""
