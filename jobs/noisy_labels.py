"""Every method of a configuration on the same noisy labels, with several seeds, and one table.

python jobs/noisy_labels.py --config configs/cifar10_noise.yaml ray.use_gpu=true
python jobs/noisy_labels.py --config configs/cifar10_noise_small.yaml --only cross_entropy,l2t_dln-trusted --seeds 0,1
"""

from functools import partial

from l2t_ray.commands.compare import main as run

main = partial(run, __doc__)

if __name__ == "__main__":
    main()
