#!/usr/bin/env python3
"""Goldens of moe-math's clustering, assignment, orthogonal rows and temperature, made by scikit-learn, scipy and numpy.

    python3.11 -m venv /tmp/goldens && /tmp/goldens/bin/pip install -r requirements.txt
    /tmp/goldens/bin/python make.py        # seconds on one CPU core; two runs give the same bytes

Each file holds its cases as tensors named <case>.<tensor>. Inputs are f32 where moe-math takes f32 (rounded before the
reference sees them), references are computed in float64.

    kmeans.safetensors       points [n, d], initial [k, d] f32; centroids [k, d], inertia [1] f64; assignment [n], iterations [1]
                             i64. From sklearn's KMeans(init=array, n_init=1, tol=0, algorithm="lloyd"); `spherical_*` from
                             numpy below, since sklearn has none; `truncated` stops after max_iter 2, centroids only
    balanced.safetensors     the same and capacity [1] i64: Lloyd in numpy whose assignment is scipy's linear_sum_assignment
                             on columns repeated capacity times; `cosine_*` on unit vectors
    assignment.safetensors   cost [rows, columns] f64, column_of [rows] i64 (-1: none), total [1] f64; with capacity [1] i64:
                             to clusters of that size. From scipy.optimize.linear_sum_assignment
    orthogonal.safetensors   gaussian, rows [n, d] f64: Q of numpy.linalg.qr of its transpose, signs of R's diagonal positive
    temperature.safetensors  logits [tokens, experts] f32; targets, scales [m] f64 from scipy.optimize.brentq
    linkage.safetensors      points [n, d] f32 or distances [n, n] f64; clusters [m], labels [m, n] i64 (numbered by first member):
                             scipy.cluster.hierarchy, average linkage, Euclidean, cut into so many clusters
    alignment.safetensors    reference, member [n, d] f32; permutation [n] i64, total [1] f64: member[permutation] fits reference best, by
                             scipy.optimize.linear_sum_assignment on inner products (`product_*`, the most) or Euclidean
                             distances (`distance_*`, the least); `*_recovered`: permuted rows with a little noise, the permutation is the true one
    pca.safetensors          points [n, d] f32; values [r] f64: squared singular values of the centred points; distances
                             [12, 12] f64 between the first 12 rows of scores (free of signs): numpy.linalg.svd in float64
    least_squares.safetensors p [i, t], q [o, t] f32; t [o, i] f64 = q p⁺ of least norm by numpy.linalg.lstsq, residual [1] f64 = ‖q − t p‖_F
    agreement.safetensors    a, b [n] f64, spearman [1] f64 (scipy.stats.spearmanr; ties get mean ranks); or a, b [n] i64 as
                             sets, jaccard [1] f64 = 1 − scipy.spatial.distance.jaccard

A case whose answer hangs on rounding tells nothing: in every iteration of a k-means case the nearest centroid must be nearer
than the next by MARGIN (relative to the points' variance), and the balanced and assignment cases (`ties` apart) must have one
best answer: forbidding any single chosen pair must cost at least MARGIN.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import brentq, linear_sum_assignment
from scipy.spatial.distance import cdist, jaccard, pdist, squareform
from scipy.special import entr, softmax
from scipy.stats import spearmanr
from sklearn.cluster import KMeans

HERE = Path(__file__).resolve().parent
MARGIN = 1e-5


def save(name, cases):
    tensors = {f"{case}.{key}": np.ascontiguousarray(value) for case, found in cases.items() for key, value in found.items()}
    save_file(tensors, HERE / f"{name}.safetensors")


# ---------------------------------------------------------------- k-means


def blobs(seed, n, d, k, offset=0.0, spread=2.0):
    """Overlapping clusters, far from the origin if there is an offset; initial centroids are k of the points."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(k, d)) * spread
    points = (centers[rng.integers(k, size=n)] + rng.normal(size=(n, d)) + offset).astype(np.float32)
    return points, points[rng.choice(n, size=k, replace=False)]


def squared(points, centroids):
    return ((points[:, None, :] - centroids[None, :, :]) ** 2).sum(-1)


def check_margin(points, centroids):
    distance = np.sort(squared(points, centroids), axis=1)
    margin = (distance[:, 1] - distance[:, 0]).min() / points.var(0).sum()
    assert margin > MARGIN, f"nearly tied: {margin}"


def sklearn_case(points, initial, max_iter=300, empty=False):
    x = points.astype(np.float64)
    model = KMeans(len(initial), init=initial.astype(np.float64), n_init=1, tol=0, algorithm="lloyd", max_iter=max_iter).fit(x)
    centroids = initial.astype(np.float64)
    if not empty:  # the same in plain numpy, to look at every iteration's margins
        for _ in range(model.n_iter_):
            check_margin(x, centroids)
            nearest = squared(x, centroids).argmin(1)
            centroids = np.stack([x[nearest == c].mean(0) for c in range(len(initial))])
        assert np.allclose(centroids, model.cluster_centers_, rtol=1e-9, atol=1e-9)
    check_margin(x, model.cluster_centers_)
    case = dict(points=points, initial=initial, centroids=model.cluster_centers_)
    if max_iter == 300:
        assert model.n_iter_ < 300
        case |= dict(assignment=model.labels_.astype(np.int64), inertia=np.array([model.inertia_]))
        if not empty:  # sklearn counts the iteration that moves a point to an empty cluster otherwise
            case |= dict(iterations=np.array([model.n_iter_]))
    return case


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def spherical_case(points, initial):
    x, centroids, labels = unit(points.astype(np.float64)), unit(initial.astype(np.float64)), None
    for iterations in range(1, 300):
        check_margin(x, centroids)
        before, labels = labels, (x @ centroids.T).argmax(1)
        if np.array_equal(before, labels):
            break
        centroids = unit(np.stack([x[labels == c].sum(0) for c in range(len(initial))]))
    inertia = (2 - 2 * (x * centroids[labels]).sum(1)).sum()
    return dict(points=points, initial=initial, centroids=centroids, assignment=labels, inertia=np.array([inertia]),
                iterations=np.array([iterations]))


def kmeans():
    empty_points, empty_initial = blobs(4, 120, 5, 4)
    empty_initial[2] += 1000  # nearest to no point
    cases = {
        "blobs": sklearn_case(*blobs(1, 300, 9, 8)),
        "noise": sklearn_case(*blobs(2, 257, 17, 5, spread=0.0)),  # no clusters to find: many iterations
        "offset": sklearn_case(*blobs(3, 200, 6, 4, offset=3000.0)),  # |x|² cancels in f32 unless the mean is subtracted
        "empty": sklearn_case(empty_points, empty_initial, empty=True),
        "truncated": sklearn_case(*blobs(2, 257, 17, 5, spread=0.0), max_iter=2),
        "one": sklearn_case_of_one(*blobs(5, 20, 3, 1)),
        "spherical": spherical_case(*blobs(6, 240, 12, 6)),
        "spherical_offset": spherical_case(*blobs(7, 240, 12, 6, offset=3.0)),
    }
    for name, case in cases.items():
        print(name, "iterations", case.get("iterations"), "inertia", case.get("inertia"))
    save("kmeans", cases)


def sklearn_case_of_one(points, initial):
    model = KMeans(1, init=initial.astype(np.float64), n_init=1, tol=0).fit(points.astype(np.float64))
    return dict(points=points, initial=initial, centroids=model.cluster_centers_, inertia=np.array([model.inertia_]),
                assignment=model.labels_.astype(np.int64), iterations=np.array([model.n_iter_]))


# ---------------------------------------------------------------- assignment


def assign(cost):
    column_of = np.full(len(cost), -1)
    rows, columns = linear_sum_assignment(cost)
    column_of[rows] = columns
    return column_of, cost[rows, columns].sum()


def assign_to_clusters(cost, capacity):
    column_of, total = assign(np.repeat(cost, capacity, axis=1))
    return column_of // capacity, total


def check_unique(cost, capacity, chosen, total):
    """Is every other assignment dearer?"""
    for row, column in enumerate(chosen):
        if column >= 0:
            forbidden = cost.copy()
            forbidden[row, column] += 1e6
            assert assign_to_clusters(forbidden, capacity)[1] > total + MARGIN, "another assignment costs as little"


def linear_case(cost, unique=True):
    column_of, total = assign(cost)
    if unique:
        check_unique(cost, 1, column_of, total)
        return dict(cost=cost, column_of=column_of, total=np.array([total]))
    return dict(cost=cost, total=np.array([total]))


def balanced_case(cost, capacity, unique=True):
    column_of, total = assign_to_clusters(cost, capacity)
    case = dict(cost=cost, capacity=np.array([capacity]), total=np.array([total]))
    if unique:
        check_unique(cost, capacity, column_of, total)
        case |= dict(column_of=column_of)
    return case


def assignment():
    rng = np.random.default_rng(20)
    bias = np.arange(8) * 0.2  # most items want the same few clusters
    save("assignment", {
        "one": linear_case(np.array([[3.0]])),
        "square": linear_case(rng.normal(size=(30, 30))),
        "wide": linear_case(rng.normal(size=(5, 12))),
        "tall": linear_case(rng.normal(size=(12, 5))),
        "large_values": linear_case(rng.normal(size=(20, 20)) * 1e6 - 1e7),
        "ties": linear_case(rng.integers(-3, 4, size=(25, 25)).astype(np.float64), unique=False),
        "product": linear_case(-np.outer(np.arange(1, 31) ** 0.5, np.arange(1, 31) ** 1.5)),  # hard for augmenting paths
        "balanced": balanced_case(rng.normal(size=(60, 4)), 15),
        "balanced_biased": balanced_case(rng.uniform(size=(160, 8)) + bias, 20),
        "balanced_room": balanced_case(rng.uniform(size=(50, 8)) + bias, 7),
        "balanced_single": balanced_case(rng.normal(size=(9, 9)), 1),
        "balanced_ties": balanced_case(rng.integers(0, 3, size=(64, 8)).astype(np.float64), 8, unique=False),
    })


def lloyd_balanced(points, initial, capacity, cosine=False):
    x, centroids, labels = points.astype(np.float64), initial.astype(np.float64), None
    if cosine:
        x, centroids = unit(x), unit(centroids)
    for iterations in range(1, 100):
        cost = squared(x, centroids)
        before, (labels, total) = labels, assign_to_clusters(cost, capacity)
        check_unique(cost, capacity, labels, total)
        if np.array_equal(before, labels):
            break
        centroids = np.stack([x[labels == c].mean(0) for c in range(len(initial))])
        centroids = unit(centroids) if cosine else centroids
    inertia = ((x - centroids[labels]) ** 2).sum()
    return dict(points=points, initial=initial, capacity=np.array([capacity]), centroids=centroids, assignment=labels,
                inertia=np.array([inertia]), iterations=np.array([iterations]))


def binary_case():
    """Binary activations [neurons, tokens] as in CMoE: swaps often tie, so the first seed without a tie is taken."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        activations = (rng.uniform(size=(64, 40)) < rng.uniform(size=64)[:, None]).astype(np.float32)
        initial = (rng.dirichlet(np.ones(64), size=4) @ activations).astype(np.float32)
        try:
            return lloyd_balanced(activations, initial, 16)
        except AssertionError:
            continue
    raise AssertionError("every seed has ties")


def balanced():
    cases = {
        "equal": lloyd_balanced(*blobs(30, 96, 6, 6), 16),
        "room": lloyd_balanced(*blobs(33, 90, 6, 6), 18),
        "binary": binary_case(),
        "cosine": lloyd_balanced(*blobs(32, 80, 7, 5), 16, cosine=True),
    }
    for name, case in cases.items():
        print("balanced", name, "iterations", case["iterations"], "inertia", case["inertia"])
    save("balanced", cases)


# ---------------------------------------------------------------- orthogonal rows, temperature


def orthogonal():
    rng = np.random.default_rng(40)

    def case(n, d, offset=0.0):
        gaussian = rng.normal(size=(n, d)) + offset
        q, r = np.linalg.qr(gaussian.T)
        return dict(gaussian=gaussian, rows=(q * np.sign(np.diag(r))).T)

    save("orthogonal", {"square": case(12, 12), "wide": case(8, 37), "one": case(1, 5), "skewed": case(16, 48, offset=50.0)})


def temperature():
    rng = np.random.default_rng(50)

    def case(logits, targets):
        logits = logits.astype(np.float32)
        z = logits.astype(np.float64)

        def excess(log_s, target):
            return entr(softmax(np.exp(log_s) * z, axis=1)).sum(1).mean() / np.log(z.shape[1]) - target

        scales = [np.exp(brentq(excess, -40, 40, args=(target,), xtol=1e-13, rtol=1e-14)) for target in targets]
        return dict(logits=logits, targets=np.array(targets), scales=np.array(scales))

    targets = [0.05, 0.3, 0.5, 0.8, 0.95, 0.999]
    save("temperature", {
        "normal": case(rng.normal(size=(64, 8)), targets),
        "small": case(rng.normal(size=(40, 16)) * 1e-3, targets),
        "large_offset": case(rng.normal(size=(33, 5)) * 20 + 500, targets),
        "uneven": case(rng.normal(size=(64, 6)) * 10 ** rng.uniform(-3, 3, size=(64, 1)), targets),
        "two": case(rng.normal(size=(10, 2)), targets),
    })


# ---------------------------------------------------------------- merging: linkage, alignment, PCA, least squares, agreement


def by_first_member(labels):
    first = {}
    return np.array([first.setdefault(label, len(first)) for label in labels])


def linkage_case(distances, counts):
    tree = linkage(squareform(distances), method="average")
    assert np.diff(tree[:, 2]).min() > MARGIN, "two merges nearly tied"
    clusters = [[i] for i in range(len(distances))]
    while len(clusters) > 1:  # by hand: is every merge clearly the nearest pair?
        means = np.array([[distances[np.ix_(a, b)].mean() if a is not b else np.inf for b in clusters] for a in clusters])
        two = np.sort(means[np.triu_indices(len(clusters), 1)])[:2]
        assert len(two) < 2 or two[1] - two[0] > MARGIN, "two pairs nearly tied"
        a, b = np.unravel_index(means.argmin(), means.shape)
        clusters[a] = clusters[a] + clusters[b]
        del clusters[b]
        if len(clusters) in counts:
            found = fcluster(tree, len(clusters), criterion="maxclust")
            assert {frozenset(c) for c in clusters} == {frozenset(np.flatnonzero(found == label)) for label in set(found)}
    labels = np.stack([by_first_member(fcluster(tree, count, criterion="maxclust")) for count in counts])
    return dict(clusters=np.array(counts), labels=labels)


def average_linkage():
    rng = np.random.default_rng(60)

    def points(n, d, counts, spread=0.0, groups=6):
        x = (rng.normal(size=(groups, d))[rng.integers(groups, size=n)] * spread + rng.normal(size=(n, d))).astype(np.float32)
        return dict(points=x) | linkage_case(squareform(pdist(x.astype(np.float64))), counts)

    def distances(n, counts):
        """Not of points: no triangle inequality holds."""
        upper = np.triu(rng.uniform(0.1, 1.1, size=(n, n)), 1)
        return dict(distances=upper + upper.T) | linkage_case(upper + upper.T, counts)

    save("linkage", {
        "noise": points(24, 40, [1, 2, 5, 12, 18, 23, 24]),
        "blobs": points(64, 16, [3, 6, 16, 32, 48], spread=2.0),
        "line": dict(points=(line := np.array([[0], [1], [2.5], [4.2], [6.1], [8.3], [30]], dtype=np.float32)))
        | linkage_case(squareform(pdist(line.astype(np.float64))), [2, 3, 4]),
        "precomputed": distances(20, [1, 4, 10, 15]),
        "precomputed_large": distances(28, [6, 14, 21]),
    })


def alignment():
    rng = np.random.default_rng(61)

    def case(n, d, product, noise=None):
        reference = rng.normal(size=(n, d)).astype(np.float32)
        member = rng.normal(size=(n, d))
        if noise is not None:
            true = rng.permutation(n)
            member[true] = reference + rng.normal(size=(n, d)) * noise
        member = member.astype(np.float32)
        a, b = reference.astype(np.float64), member.astype(np.float64)
        cost = -a @ b.T if product else cdist(a, b)
        column_of, total = assign(cost)
        check_unique(cost, 1, column_of, total)
        assert noise is None or np.array_equal(column_of, true)
        return dict(reference=reference, member=member, permutation=column_of, total=np.array([-total if product else total]))

    save("alignment", {
        "product_recovered": case(32, 12, True, 0.1),
        "product_noise": case(24, 10, True),
        "distance_recovered": case(32, 12, False, 0.1),
        "distance_noise": case(128, 5, False),
    })


def pca():
    rng = np.random.default_rng(62)

    def case(n, d, r, offset=0.0, decay=0.97):
        spread = decay ** np.arange(d) * np.where(np.arange(d) < r, 1, 0.5)
        x = (rng.normal(size=(n, d)) * spread @ np.linalg.qr(rng.normal(size=(d, d)))[0] + offset).astype(np.float32)
        centred = x.astype(np.float64) - x.astype(np.float64).mean(0)
        _, values, v = np.linalg.svd(centred, full_matrices=False)
        values = values**2
        after = values[r] if r < len(values) else 0
        assert values[r - 1] - after > 0.05 * values[r - 1], "the last direction is nearly tied"
        scores = centred[:12] @ v[:r].T
        return dict(points=x, values=values[:r], distances=cdist(scores, scores))

    save("pca", {"eight": case(50, 24, 8), "offset": case(30, 12, 8, offset=300.0), "sixty_four": case(70, 67, 64), "wide": case(21, 60, 8), "all": case(30, 9, 9)})


def least_squares():
    rng = np.random.default_rng(63)

    def case(p, outputs):
        q = rng.integers(-9, 10, size=(outputs, p.shape[1])).astype(np.float32)
        p = p.astype(np.float32)
        singular = np.linalg.svd(p.astype(np.float64), compute_uv=False)
        assert not ((singular > 1e-10 * singular[0]) & (singular < 1e-3 * singular[0])).any(), "the rank is unclear"
        t = np.linalg.lstsq(p.T.astype(np.float64), q.T.astype(np.float64), rcond=1e-8)[0].T
        assert np.allclose(t, q @ np.linalg.pinv(p.astype(np.float64), rcond=1e-8), rtol=1e-9, atol=1e-11)
        return dict(p=p, q=q, t=t, residual=np.array([np.linalg.norm(q - t @ p)]))

    def whole(*shape):
        return rng.integers(-4, 5, size=shape).astype(np.float64)  # whole numbers: a product's rank is exact in f32

    save("least_squares", {
        "full": case(rng.normal(size=(12, 40)), 9),
        "square": case(rng.normal(size=(8, 8)) + 4 * np.eye(8), 5),
        "deficient": case(whole(12, 7) @ whole(7, 40), 9),
        "few_tokens": case(whole(12, 8), 9),
        "dead_neurons": case(whole(10, 30) * (np.arange(10) % 3 > 0)[:, None], 6),
        "one": case(np.array([[2.0, -1.0, 0.5]]), 2),
    })


def agreement():
    rng = np.random.default_rng(64)

    def ranks(a, b):
        return dict(a=a.astype(np.float64), b=b.astype(np.float64), spearman=np.array([spearmanr(a, b).statistic]))

    def sets(a, b, n):
        bits = [np.isin(np.arange(n), side) for side in (a, b)]
        return dict(a=np.sort(a), b=np.sort(b), jaccard=np.array([1 - jaccard(*bits)]))

    x = rng.normal(size=50)
    save("agreement", {
        "spearman_plain": ranks(x, x + rng.normal(size=50)),
        "spearman_ties": ranks(rng.integers(6, size=50), rng.integers(9, size=50)),
        "spearman_monotone": ranks(x, np.exp(x)),
        "spearman_reversed": ranks(x, -x),
        "spearman_counts": ranks(np.array([7, 7, 0, 0, 0, 12, 3, 3]), np.array([5, 8, 0, 1, 0, 20, 3, 2])),
        "jaccard_some": sets(rng.choice(24, 12, replace=False), rng.choice(24, 12, replace=False), 24),
        "jaccard_same": sets(np.arange(5), np.arange(5), 24),
        "jaccard_none": sets(np.arange(5), np.arange(5, 9), 24),
    })


if __name__ == "__main__":
    kmeans()
    assignment()
    balanced()
    orthogonal()
    temperature()
    average_linkage()
    alignment()
    pca()
    least_squares()
    agreement()
    total = sum(path.stat().st_size for path in HERE.glob("*.safetensors"))
    print(total, "bytes")
    assert total < 300_000
