"""What a trained discriminator has learned: its features under a linear classifier, as in section
5.1 of the DCGAN paper (Radford, Metz, Chintala 2016, arXiv 1511.06434).

    python tests/benchmarks/features.py runs/dcgan/checkpoint.pt --data cifar10-train/
    python tests/benchmarks/features.py runs/dcgan/checkpoint.pt --data train/ --test test/

The outputs of the convolutional layers of the discriminator or critic, all but the score, are
max-pooled to 4 x 4 after the activation, flattened and joined; on them a linear L2-SVM is trained:

    min over W, b   strength/2 |W|^2 + 1/N sum_i sum_k  1/2 max(0, 1 - y_ik (x_i W + b)_k)^2

with y_ik = 1 for the class of image i, -1 for the others; LIBLINEAR's C is 1 / (N strength).
Beside it stand the raw pixels (32 x 32 at most: larger images are averaged down) and the network
before training, from the run's seed, in whose batch norms mean 0 and variance 1 still stand. The
networks run in eval mode and float32.

Nothing is fitted to the test images: features are standardized by the training images, and the
strength is the best on a fifth of these after training on the rest; the last training is on all.
Without --test a share of --data is held out, by class. A run on --data has seen these images too,
though not their labels, unless it was --conditional. The paper trained its GAN on other images.
"""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F
from scipy.linalg import cholesky, solve_triangular
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

TRAINERS = ("dcgan.py", "wgan.py", "wgan_gp.py")
STRENGTHS = (100, 30, 10, 3, 1, 0.3, 0.1, 0.03, 0.01)

# ---- Features ------------------------------------------------------------------------------------


def load_run(path):
    """(module of the trainer, its checkpoint); SystemExit if there is no second network in it."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        script, form = saved["script"], saved["format"]
    except Exception as error:  # on a damaged file torch.load raises nearly anything
        reason = " ".join(str(error).split())[:200]
        raise SystemExit(f"{path}: no checkpoint of a trainer ({reason})")
    if script not in TRAINERS:
        raise SystemExit(f"{path}: by {script}, not by one of {', '.join(TRAINERS)}")
    module = importlib.import_module(script[:-3])
    if form != module.FORMAT:
        raise SystemExit(f"{path}: format {form}, not {module.FORMAT} as {script} writes it")
    if not {"D", "critic"} & {*saved}:
        raise SystemExit(f"{path}: a snapshot, the generator alone; give the run's checkpoint.pt")
    return module, saved


def second_network(module, saved, trained):
    """The discriminator or critic of a run, in eval mode: as saved, or as its seed made it."""
    args = argparse.Namespace(**saved["args"])
    torch.manual_seed(args.seed)
    classes = saved["generator"].get("classes", 0)
    parts, _ = module.build(args, classes, torch.device("cpu"))
    name = "D" if "D" in parts else "critic"
    if trained:
        parts[name].load_state_dict(saved[name])
    return parts[name].eval()


@torch.no_grad()
def network_features(net, x, grid=4):
    """Images in [-1, 1] -> (B, d): each activation of net.main, max-pooled to grid x grid."""
    found = []
    for layer in net.main:
        x = layer(x)
        if isinstance(layer, (nn.LeakyReLU, nn.ReLU)):
            found.append(F.adaptive_max_pool2d(x, grid).flatten(1))
    return torch.cat(found, 1)


def pixels(x):
    """Images in [-1, 1] -> (B, d): the pixels, of at most 32 x 32."""
    return F.adaptive_avg_pool2d(x, min(x.shape[-1], 32)).flatten(1)


def collect(features, images, numbers, to_input, batch_size):
    """features of images[numbers], float32 (N, d), a batch at a time."""
    found = torch.empty(len(numbers), features(to_input(images[:1])).shape[1])
    for start in range(0, len(numbers), batch_size):
        part = slice(start, start + batch_size)
        found[part] = features(to_input(images[numbers[part]]))
    return found


def standardize(train, test):
    """Mean 0 and deviation 1 over the rows of train, in both, in place."""
    std, mean = torch.std_mean(train, 0, correction=0)
    std.clamp_(min=1e-6 * max(float(std.max()), 1e-6))  # of what is the same in all images
    for x in (train, test):
        x.sub_(mean).div_(std)


# ---- Classifier ----------------------------------------------------------------------------------


def correlations(x, rows=4096):
    """x^T x / N (d, d) in float64, a block of rows at a time."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        total += part.T @ part  # of which BLAS computes a half
    return total / len(x)


def fit_svm(x, labels, classes, strength, c):
    """W (d, classes) and b (classes,) of the L2-SVM on x (N, d), by L-BFGS in U = L^T W, where
    L L^T = c + strength I and c is correlations(x), or near it: the loss is about equally curved
    in all directions of U, so that 20 to 50 steps do where W takes some hundred."""
    n, d = x.shape
    y = np.where(labels[:, None] == np.arange(classes), 1, -1).astype(x.dtype)
    root = c.astype(x.dtype)
    root.flat[:: d + 1] += strength
    root = cholesky(root.T, lower=True, overwrite_a=True, check_finite=False)

    def solve(right, trans):
        return solve_triangular(root, right, trans, lower=True, check_finite=False)

    def unpack(v):
        v = v.reshape(d + 1, classes).astype(x.dtype)
        return solve(v[:-1], "T"), v[-1]

    def loss(v):
        """The loss, and its gradient with respect to U and b."""
        w, b = unpack(v)
        slack = np.maximum(0, 1 - y * (x @ w + b))
        slope = -y * slack / n
        value = np.square(slack, dtype=np.float64).sum() / (2 * n)
        value += strength / 2 * np.square(w, dtype=np.float64).sum()
        gradient = np.vstack([solve(x.T @ slope + strength * w, "N"), slope.sum(0)])
        return value, gradient.astype(np.float64).ravel()

    how = {"method": "L-BFGS-B", "options": {"maxiter": 300, "ftol": 1e-8, "gtol": 1e-7}}
    start = np.zeros((d + 1) * classes)
    return unpack(scipy.optimize.minimize(loss, start, jac=True, **how).x)


def accuracy(x, labels, w, b):
    return float(((x @ w + b).argmax(1) == labels).mean())


def evaluate(train, test, train_labels, test_labels, classes):
    """Choose the strength, from strong to weak until it is clearly too weak, on the last fifth of
    the training images; then train on all and test."""
    standardize(train, test)
    train, test = train.numpy(), test.numpy()
    c, fit, best = correlations(train), len(train) - len(train) // 5, (-1.0, 0)
    for strength in STRENGTHS:
        model = fit_svm(train[:fit], train_labels[:fit], classes, strength, c)
        reached = accuracy(train[fit:], train_labels[fit:], *model)
        if reached > best[0]:
            best = reached, strength
        if reached < best[0] - 0.005:
            break
    model = fit_svm(train, train_labels, classes, best[1], c)
    reached = accuracy(test, test_labels, *model)
    row = {"numbers": train.shape[1], "strength": best[1], "validation": best[0], "test": reached}
    return row | {"error": (reached * (1 - reached) / len(test)) ** 0.5}


# ---- Data ----------------------------------------------------------------------------------------


def by_turns(labels, seed):
    """Image numbers in a random order of which every stretch has the classes in their shares."""
    rng = np.random.default_rng(seed)
    key = np.empty(len(labels))
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        key[own] = (np.arange(len(own)) + rng.uniform(size=len(own))) / len(own)
    return torch.from_numpy(key.argsort())


def load_sets(module, size, args):
    """(images, labels, numbers) to train on, the same to test on, and the classes' names."""

    def load(data):
        images, labels, names = module.load_data(data, size, cache=args.cache)
        if len(names) < 2:
            raise SystemExit(f"{data}: has one class; features are judged by telling classes apart")
        return images, labels, names

    images, labels, names = load(args.data)
    numbers = by_turns(labels.numpy(), args.seed)
    if args.test:
        test_images, test_labels, test_names = load(args.test)
        if test_names != names:
            other = " ".join(sorted({*names} ^ {*test_names})[:20])
            raise SystemExit(f"{args.test}: other classes than {args.data} ({other})")
        held = by_turns(test_labels.numpy(), args.seed)
    else:
        held, numbers = numbers.tensor_split([round(args.hold_out * len(numbers))])
        test_images, test_labels = images, labels
    train = images, labels, numbers[: args.n]
    test = test_images, test_labels, held[: args.n_test]
    if len(train[2]) < 5 or not len(test[2]):
        raise SystemExit(f"{args.data}: {len(train[2])} images to train on, {len(test[2])} to test")
    return train, test, names


# ---- Options, main -------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="checkpoint.pt of a run of a trainer")
    add("--data", required=True, metavar="SET", help="labelled images to train the classifier on")
    add("--test", metavar="SET", help="and to test it on; without it, some of --data")
    add("--hold-out", type=float, default=0.2, metavar="X", help="share of --data to test on")
    add("--n", type=int, metavar="N", help="images to train on (default all)")
    add("--n-test", type=int, metavar="N", help="images to test on (default all)")
    add("--grid", type=int, default=4, metavar="N", help="a map is pooled to N x N (default 4)")
    add("--seed", type=int, default=0, metavar="N", help="of the choice of images")
    add("--cache", default="data", metavar="DIR", help="of decoded images")
    add("--batch-size", type=int, default=500, metavar="N", help="images in the network at once")
    add("--json", metavar="FILE", help="write the table there as well")
    args = parser.parse_args(argv)
    for name, low in {"n": 5, "n_test": 1, "grid": 1, "batch_size": 1, "seed": 0}.items():
        value = getattr(args, name)
        if value is not None and value < low:
            parser.error(f"--{name.replace('_', '-')} {value}: must be {low} or more")
    if not 0 < args.hold_out < 1:
        parser.error(f"--hold-out {args.hold_out}: must be between 0 and 1")
    return args


def main(argv=None):
    args = parse_args(argv)
    module, saved = load_run(args.checkpoint)
    try:
        fresh, net = (second_network(module, saved, trained) for trained in (False, True))
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        reason = f"its network is not one of this {saved['script']} ({reason})"
        raise SystemExit(f"{args.checkpoint}: {reason}")
    train, test, names = load_sets(module, saved["args"]["size"], args)
    if saved["generator"].get("classes") and not args.test:
        print("the run was --conditional: it may have seen the labels of the images held out")
    labels = [labels[numbers].numpy() for _, labels, numbers in (train, test)]
    chance = np.bincount(labels[1]).max() / len(labels[1])
    print(f"{args.checkpoint}: {saved['script']}, epoch {saved['epoch']}; {len(names)} classes, "
          f"{len(labels[0]):,} images to train on, {len(labels[1]):,} to test; "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")  # fmt: skip
    print("| input | numbers an image | strength | validation | test | seconds |")
    print("|---|---|---|---|---|---|")
    print(f"| chance (the largest class) | | | | {chance:.1%} | |", flush=True)
    kinds = {"raw pixels": pixels}
    kinds["untrained network"] = lambda x: network_features(fresh, x, args.grid)
    kinds["trained network"] = lambda x: network_features(net, x, args.grid)
    rows = {}
    for name, features in kinds.items():
        start, d = time.perf_counter(), features(module.to_input(train[0][:1])).shape[1]
        need = 4 * d * (len(labels[0]) + len(labels[1])) + 16 * d**2
        if need > 16 * 2**30:
            advice = f"{need / 2**30:.0f} GiB of memory: give a smaller --n or --grid"
            raise SystemExit(f"{name}, {d:,} numbers an image, takes {advice}")
        found = [
            collect(features, images, numbers, module.to_input, args.batch_size)
            for images, _, numbers in (train, test)
        ]
        row = rows[name] = evaluate(*found, *labels, len(names))
        row["seconds"] = round(time.perf_counter() - start, 1)
        print(f"| {name} | {d:,} | {row['strength']:g} | {row['validation']:.1%} "
              f"| {row['test']:.1%} ± {row['error']:.1%} "
              f"| {row['seconds']:,.0f} |", flush=True)  # fmt: skip
    if args.json:
        facts = {"script": saved["script"], "epoch": saved["epoch"], "args": vars(args)}
        facts |= {"classes": names, "train": len(labels[0]), "test": len(labels[1])}
        facts |= {"chance": float(chance), "rows": rows}
        Path(args.json).write_text(json.dumps(facts, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
