"""Make the label maps of training with token labels: see rmt_mm/tools/commands/make_token_labels.py."""

from rmt_mm.tools.commands.make_token_labels import main

if __name__ == '__main__':
    main()
