"""Plot the training loss and the validation scores from the logs of a work dir.

python tools/analysis_tools/plot_curves.py work_dirs/demo curves.png
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

SCORES = ('coco/bbox_mAP', 'coco/segm_mAP', 'mIoU', 'accuracy/top1')


def read_scalars(work_dir: Path) -> list:
    """Return the scalars of all runs in ``work_dir``; for a step that a resumed run repeats, those of the later run."""
    steps = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            scalars = json.loads(line)
            steps['loss' in scalars, scalars['step'] if 'loss' not in scalars else scalars['iter']] = scalars
    return [steps[key] for key in sorted(steps)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='work dir of a training')
    parser.add_argument('out', type=Path, help='picture to write, .png or .pdf')
    args = parser.parse_args()
    scalars = read_scalars(args.work_dir)
    losses = [(s['iter'], s['loss']) for s in scalars if 'loss' in s]
    # mmengine logs a test as a validation at step 0: leave it out.
    scores = {name: [(s['step'], s[name]) for s in scalars if name in s and s['step'] > 0] for name in SCORES}
    scores = {name: points for name, points in scores.items() if points}
    if not losses:
        sys.exit(f'error: no training log in {args.work_dir}: it has no */vis_data/scalars.json with a loss.')

    figure, axes = plt.subplots(1, 2 if scores else 1, figsize=(10, 3.6), squeeze=False)
    axes[0, 0].plot(*zip(*losses))
    axes[0, 0].set(xlabel='iteration', ylabel='training loss', ylim=(0, None))
    for name, points in scores.items():
        axes[0, 1].plot(*zip(*points), marker='o', label=name)
        axes[0, 1].set(xlabel='epoch' if points[-1][0] < losses[-1][0] else 'iteration', ylabel='validation')
        axes[0, 1].legend()
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(args.out, dpi=120)
    print(f'Curves are in {args.out}.')


if __name__ == '__main__':
    main()
