"""Turn a trained checkpoint into the form for inference (RMT.switch_to_deploy): fewer layers, the same outputs.

python tools/model_converters/reparameterize_model.py CONFIG CHECKPOINT OUT.pth
python tools/test.py CONFIG OUT.pth --cfg-options model.backbone.deploy=True
"""

import argparse

from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint

from ...backbone import RMT
from ...checkpoints.files import check_destination, write_checkpoint
from .. import cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or the name of one of ours')
    parser.add_argument('checkpoint', help='checkpoint of a model with RMT as backbone')
    parser.add_argument('out', help='checkpoint to write')
    parser.add_argument('--force', action='store_true', help='replace OUT if it exists')
    args = parser.parse_args()
    with cli.exit_on_error(*cli.FOREIGN_ERRORS):
        cli.force_safe_loading()
        check_destination(args.out, args.force)
        args.checkpoint = cli.check_checkpoint_file(args.checkpoint)
        cfg = cli.read_config(cli.find_config(args.config))
        init_default_scope(cli.library(cfg))
        model = MODELS.build(cfg.model)
        try:
            checkpoint = load_checkpoint(model, args.checkpoint, map_location='cpu', strict=True)
        except RuntimeError as error:
            raise cli.UsageError(f'checkpoint {args.checkpoint} does not fit {args.config}: {error}') from error
        backbones = [module for module in model.modules() if isinstance(module, RMT)]
        if not backbones:
            raise cli.UsageError(f'the model of {args.config} has no RMT.')
        model.eval()
        for backbone in backbones:
            backbone.switch_to_deploy()
        meta = checkpoint.get('meta') or {}
        meta['rmt_mm'] = {**meta.get('rmt_mm', {}), 'deploy': True}
        write_checkpoint(dict(meta=meta, state_dict=model.state_dict()), args.out, args.force)
    print(f'{args.out} is for model.backbone.deploy=True.')


if __name__ == '__main__':  # python -m
    main()
