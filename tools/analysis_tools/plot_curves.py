"""Plot the training loss and the validation scores from the logs of a work dir.

python tools/analysis_tools/plot_curves.py work_dirs/demo curves.png
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

from rmt_mm.tools.report.logs import MAIN_METRICS, read_logs  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='work dir of a training')
    parser.add_argument('out', type=Path, help='picture to write, .png or .pdf')
    args = parser.parse_args()
    logs = read_logs(args.work_dir)
    for note in logs.notes:
        print(f'note: {note}', file=sys.stderr)
    losses = logs.curve('loss')
    scores = {name: logs.val_curve(name) for name in MAIN_METRICS}
    scores = {name: points for name, points in scores.items() if points}
    if not losses:
        sys.exit(f'error: no training log in {args.work_dir}: it has no */vis_data/scalars.json with a loss.')

    figure, axes = plt.subplots(1, 2 if scores else 1, figsize=(10, 3.6), squeeze=False)
    axes[0, 0].plot(*zip(*losses))
    axes[0, 0].set(xlabel='iteration', ylabel='training loss', ylim=(0, None))
    for name, points in scores.items():
        axes[0, 1].plot(*zip(*points), marker='o', label=name)
        axes[0, 1].set(xlabel='epoch' if logs.by_epoch else 'iteration', ylabel='validation')
        axes[0, 1].legend()
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(args.out, dpi=120)
    print(f'Curves are in {args.out}.')


if __name__ == '__main__':
    main()
