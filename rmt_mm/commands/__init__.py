"""The command-line tools: in a checkout behind tools/, installed as rmt-train and python -m rmt_mm.commands.NAME."""
