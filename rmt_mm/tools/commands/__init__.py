"""The command-line tools. A checkout has scripts for them in tools/; a wheel installs rmt-train, rmt-test and
rmt-convert, and the others run as python -m rmt_mm.tools.commands.NAME."""
