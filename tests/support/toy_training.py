"""The config of a short training of toy.py's model, and a call of the tool that trains it."""

from mmengine.config import Config

EPOCHS, LENGTH = 12, 3


def write_config(path, workers=0, iterations=False):
    """Write the config of a training with augmentation, dropped paths, and a validation whose score may be the best."""
    loader = dict(
        batch_size=2,
        num_workers=workers,
        persistent_workers=workers > 0,
        dataset=dict(type='NoisyData'),
        collate_fn=dict(type='default_collate'),
    )
    loop = dict(max_iters=EPOCHS * LENGTH, val_interval=LENGTH) if iterations else dict(max_epochs=EPOCHS)
    Config(
        dict(
            custom_imports=dict(imports=['rmt_mm', 'support.toy']),
            model=dict(type='ToyConvNet', dropout=0.3),
            train_dataloader=dict(
                loader, sampler=dict(type='InfiniteSampler' if iterations else 'DefaultSampler', shuffle=True)
            ),
            val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
            train_cfg=dict(by_epoch=not iterations, **loop),
            val_cfg=dict(),
            val_evaluator=dict(type='ToyMetric'),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.001)),
            randomness=dict(seed=1),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(
                    type='CheckpointHook',
                    interval=LENGTH if iterations else 1,
                    by_epoch=not iterations,
                    max_keep_ckpts=1,
                    save_best='sum',
                    rule='greater',
                ),
            ),
            log_processor=dict(by_epoch=not iterations, window_size=1),
        )
    ).dump(path)


def run_here(main):
    """Call a tool with the command line in ``sys.argv``; return the text of its exit, '' for success."""
    try:
        main()
    except SystemExit as exit:
        return str(exit.code)
    return ''
