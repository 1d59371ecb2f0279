"""The report of a training: what its work dir says, evaluated and drawn on one page.

Reading a work dir executes nothing of it: logs are JSON, the dumped config is parsed as literals
(:mod:`rmt_mm.tools.report.run_config`), and predictions are read by a restricted unpickler
(:mod:`rmt_mm.tools.report.predictions`).
"""
