"""Turn a checkpoint into the form for inference: see rmt_mm/tools/commands/reparameterize_model.py."""

from rmt_mm.tools.commands.reparameterize_model import main

if __name__ == '__main__':
    main()
