"""Statistics: agreement with scipy and printed examples, simulated studies, what is paired."""

from dataclasses import replace
from math import isnan, nan

import numpy as np
import pytest
from scipy import stats as scipy_stats

from segbench.results.ranking import letters, ranking
from segbench.results.scores import Scores
from segbench.results.stats import compare, estimate, holm
from segbench.results.variance import Contrast, moments, smallest_found

# Student (1908), hours of sleep gained by ten patients under two drugs.
SLEEP = [
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
]


def scores(name, runs, cases=20, mean=0.0, run=0.5, rest=1.0, seed=0):
    rng = np.random.default_rng([seed, len(name), *name.encode()])
    common = np.random.default_rng(99).normal(0, 5, cases)
    return Scores(
        name,
        mean
        + common
        + rng.normal(0, 1, cases)
        + rng.normal(0, run, (runs, 1))
        + rng.normal(0, rest, (runs, cases)),
    )


def test_printed_paired_example():
    """t = -4.0621, df = 9, p = 0.002833, interval -2.4599 to -0.7001 (R's help page on t.test)."""
    a, b = (Scores(n, np.array([v])) for n, v in zip("ab", SLEEP, strict=True))
    d = compare(a, b)
    assert (
        d.mean / d.se == pytest.approx(-4.0621, abs=1e-4)
        and d.df == 9
        and d.p == pytest.approx(0.002833, abs=1e-6)
    )
    assert (d.low, d.high) == pytest.approx((-2.4599, -0.7001), abs=0.2), (
        "a bootstrap keeps the skew of the data"
    )
    assert (d.wins, d.ties, d.losses) == (0, 1, 9)


def test_printed_two_sample_example():
    """The same numbers as runs, without differences between cases: t = -1.8608, df = 17.776."""
    a, b = (
        Scores(n, np.repeat(np.array(v)[:, None], 5, 1)) for n, v in zip("ab", SLEEP, strict=True)
    )
    d = compare(a, b)
    assert d.mean / d.se == pytest.approx(-1.8608, abs=1e-4) and d.df == pytest.approx(
        17.776, abs=1e-3
    )
    assert d.p == pytest.approx(0.07939, abs=1e-5)


def test_printed_holm_example():
    """Demšar (2006), 3.2.2: for p of .016, .019, .607, the first two are rejected."""
    assert holm([0.607, 0.016, 0.019]) == pytest.approx([0.607, 0.048, 0.048])
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = holm([float("nan"), 0.02])
    assert adjusted[1] == 0.04 and np.isnan(adjusted[0])


def test_agrees_with_scipy():
    a, b = scores("a", 1), scores("b", 1)
    d = compare(a, b)
    assert d.p == pytest.approx(scipy_stats.ttest_rel(a.values[0], b.values[0]).pvalue)
    assert d.wilcoxon == pytest.approx(scipy_stats.wilcoxon(a.values[0], b.values[0]).pvalue)
    low, high = scipy_stats.ttest_rel(a.values[0], b.values[0]).confidence_interval()
    assert (d.low, d.high) == pytest.approx((low, high), abs=0.25 * (high - low))
    e = estimate(a)
    assert e.se == pytest.approx(scipy_stats.sem(a.values[0])) and e.df == 19


def test_variance_is_that_of_simulated_means():
    """Compare the standard error of a difference with the spread of 3000 differences."""
    rng = np.random.default_rng(1)
    means, variances = [], []
    for _ in range(3000):
        groups = [
            rng.normal(0, 1, 20) + rng.normal(0, 0.6, (3, 1)) + rng.normal(0, 2, (3, 20))
            for _ in range(2)
        ]
        mean, se, _ = moments(Contrast([groups[0], -groups[1]]))
        means.append(mean)
        variances.append(se**2)
    assert np.mean(variances) == pytest.approx(np.var(means), rel=0.1)


@pytest.mark.parametrize("name", ["usual", "runs scatter"])
def test_coverage_and_false_positives_in_simulated_studies(simulate, name):
    """150 studies: 5 in 100 may err; 12 in 100 would be four standard errors more."""
    design = replace(next(d for d in simulate.DESIGNS if d.name == name), methods=3)
    shares = simulate.measure(design, 150)
    assert shares.mean > 0.88 and shares.difference > 0.88
    assert shares.single < 0.12 and shares.family < 0.12 and shares.ranks < 0.12
    if name == "runs scatter":
        assert shares.paired_t > 0.25, "tests over cases alone mistake the runs for the method"


def test_a_true_difference_is_found():
    found = [compare(scores("a", 3, mean=3.0, seed=s), scores("b", 3, seed=s)) for s in range(40)]
    assert sum(d.p < 0.05 for d in found) > 35 and all(abs(d.mean - 3) < 3 for d in found)


def test_the_smallest_difference_found_is_found_in_80_of_100_studies():
    generator = np.random.default_rng(3)

    def study(difference):
        values = 80 + generator.standard_normal((2, 20, 30))
        values[0] += difference + 2 * generator.standard_normal((20, 1))
        first, second = (
            Scores(name, one, tuple(range(20))) for name, one in zip("ab", values, strict=True)
        )
        return compare(first, second)

    smallest = [smallest_found(study(0.0).basis.moments) for _ in range(50)]
    found = [study(float(np.mean(smallest))).p < 0.05 for _ in range(600)]
    assert 0.76 < np.mean(found) < 0.84
    one = study(0.0).basis.moments
    assert smallest_found(one, tests=10) > smallest_found(one)
    assert isnan(smallest_found(one._replace(se=nan)))


def test_replicates_needed_shrink_with_the_difference():
    needed = [
        compare(scores("a", 3, mean=m, run=2.0), scores("b", 3, run=2.0)).replicates_needed
        for m in (20.0, 5.0, 3.0)
    ]
    assert None not in needed and needed == sorted(needed) and needed[0] < needed[2]
    assert compare(scores("a", 1), scores("b", 3)).replicates_needed is None


def test_same_numbers_same_interval_and_no_global_state():
    a = scores("a", 3)
    first = estimate(a)
    np.random.default_rng(5).normal()
    assert estimate(Scores("a", a.values.copy())) == first != estimate(scores("a", 3, seed=1))


def test_order_of_the_methods_changes_nothing():
    methods = [scores(n, 3, mean=m) for n, m in (("a", 0), ("b", 4), ("c", 8))]
    forward, backward = ranking(methods)[0], ranking(methods[::-1])[0]
    assert forward == backward and [p.name for p in forward] == ["c", "b", "a"]


def test_lower_is_better_for_distances():
    methods = [scores(n, 3, mean=m) for n, m in (("near", 0), ("far", 9))]
    places, pairs = ranking(methods, higher=False)
    assert [p.name for p in places] == ["near", "far"] and [p.rank for p in places] == [1, 2]
    assert pairs[0].mean < 0 and pairs[0].wins == 20


def test_methods_that_are_not_distinguishable_share_a_rank():
    methods = [scores(n, 3, mean=m) for n, m in (("a", 0.0), ("b", 0.1), ("c", -9.0))]
    places, _ = ranking(methods)
    assert [(p.rank, p.tied) for p in places] == [(1, True), (1, True), (3, False)]
    assert [(p.low, p.high) for p in places] == [(1, 2), (1, 2), (3, 3)]
    assert places[0].letters == places[1].letters != places[2].letters


def test_letters():
    apart = {frozenset("ac")}
    assert letters(list("abc"), apart) == {"a": "a", "b": "ab", "c": "b"}
    assert letters(list("abc"), set()) == {"a": "a", "b": "a", "c": "a"}
    every = {frozenset(p) for p in ("ab", "ac", "bc")}
    assert letters(list("abc"), every) == {"a": "a", "b": "b", "c": "c"}


def test_letters_are_shared_exactly_by_pairs_that_are_not_apart():
    rng = np.random.default_rng(0)
    for _ in range(50):
        names = [f"m{i}" for i in range(6)]
        apart = {
            frozenset((a, b)) for i, a in enumerate(names) for b in names[:i] if rng.random() < 0.4
        }
        found = letters(names, apart)
        for i, a in enumerate(names):
            for b in names[:i]:
                assert bool(set(found[a]) & set(found[b])) != (frozenset((a, b)) in apart)


def test_undefined_cases_are_left_out_and_counted():
    a, b = scores("a", 3), scores("b", 3)
    a.values[1, 4] = np.nan
    d = compare(a, b)
    assert (
        d.left_out == 1
        and d.wins + d.ties + d.losses == 19
        and np.isnan(d.by_case[4])
        and np.isfinite(d.p)
    )
    assert np.isfinite(estimate(a).low)


def test_draws_are_the_units_and_shared_ones_are_paired():
    """Seeds of one draw are not independent; the effect of shared draws cancels."""
    rng = np.random.default_rng(3)
    drawn = np.repeat(rng.normal(0, 3, 4), 2)[:, None]
    a, b = (Scores(n, drawn + rng.normal(0, 0.3, (8, 10)), (0, 0, 1, 1, 2, 2, 3, 3)) for n in "ab")
    assert len(a.replicates) == 4 and estimate(a).df < 5
    paired, apart = compare(a, b), compare(a, Scores("b", b.values, (4, 4, 5, 5, 6, 6, 7, 7)))
    assert paired.se < apart.se / 3


def test_one_case_and_no_difference_give_no_verdict():
    one = compare(Scores("a", np.ones((3, 1))), Scores("b", np.zeros((3, 1))))
    assert np.isnan(one.p) and not one.distinguishable
    same = compare(Scores("a", np.ones((3, 4))), Scores("b", np.ones((3, 4))))
    assert same.p == 1 and (same.low, same.high) == (0, 0) and same.ties == 4
    with pytest.raises(ValueError, match="nothing to pair"):
        compare(Scores("a", np.ones((3, 4))), Scores("b", np.ones((3, 5))))


def by_class(name, classes):
    """Return scores as a table makes them: the mean over the classes that a case has."""
    return Scores(name, np.nanmean(classes, 2), (), classes, np.zeros(classes.shape[:2], bool))


def test_statistics_are_of_the_mean_over_class_means():
    """Class 1 is in five of ten cases; the second method has a Dice of 0 in one more."""
    rng = np.random.default_rng(0)
    a, b = (
        np.stack([90 + rng.normal(0, 1, (3, 10)), m + rng.normal(0, 1, (3, 10))], 2)
        for m in (60, 66)
    )
    a[:, 5:, 1] = b[:, 6:, 1] = np.nan
    b[:, 5, 1] = 0
    shown = [np.mean([np.nanmean(m[..., k]) for k in (0, 1)]) for m in (a, b)]
    first, second = by_class("a", a), by_class("b", b)
    for scores_, mean in zip((first, second), shown, strict=True):
        found = estimate(scores_)
        assert (
            found.mean == pytest.approx(mean)
            and found.low < mean < found.high
            and scores_.has_undefined_classes
        )
    assert compare(first, second).mean == pytest.approx(shown[0] - shown[1])
    assert estimate(first).high - estimate(first).low < 4, (
        "cases without a class say nothing against it"
    )


def test_a_class_in_one_case_proves_little():
    one = np.full((3, 10, 2), 80.0) + np.arange(10)[:, None] % 3
    one[:, 1:, 1] = np.nan
    two = one.copy()
    two[:, 0, 1] += 30
    d = compare(by_class("two", two), by_class("one", one))
    assert d.mean == pytest.approx(15) and not d.distinguishable


def test_where_all_classes_are_there_nothing_changes():
    a, b = (np.random.default_rng(i).normal(80, 3, (3, 8, 2)) for i in range(2))
    plain = [Scores(n, m.mean(2)) for n, m in (("a", a), ("b", b))]
    classes = [Scores(n, m.mean(2), (), m, np.zeros((3, 8), bool)) for n, m in (("a", a), ("b", b))]
    assert replace(compare(*plain), by_case=None) == replace(compare(*classes), by_case=None)
    assert estimate(plain[0]) == estimate(classes[0])


def test_without_scatter_two_seeds_suffice():
    d = compare(Scores("a", np.ones((3, 4))), Scores("b", np.zeros((3, 4))))
    assert d.replicates_needed == 2 and d.p == 0


# -- labeled draws and data sets as units ---------------------------------------------------


def by_draw(name, draws, mean=0.0, cases=12, scatter=0.3, seed=0):
    """Return one run per draw; a draw moves all methods alike."""
    rng = np.random.default_rng([seed, len(name), *name.encode()])
    effects = np.random.default_rng(7).normal(0, 4, 100)[list(draws), None]
    case = np.random.default_rng(8).normal(0, 3, cases)
    noise = rng.normal(0, scatter, (len(draws), 1)) + rng.normal(0, 0.3, (len(draws), cases))
    return Scores(name, 80 + mean + effects + case + noise, tuple(draws))


def test_methods_are_compared_over_the_draws_that_both_have():
    a, b = by_draw("a", range(12)), by_draw("b", range(4, 16), mean=-1.0)
    found = compare(a, b)
    same = compare(a.of_draws(range(4, 12)), b.of_draws(range(4, 12)))
    assert found.paired and found.replicates == 8 and found.mean == same.mean
    assert found.se == same.se < 0.3
    apart = compare(a, by_draw("b", range(20, 32)))
    assert not apart.paired and apart.se > 1


def test_seeds_of_one_draw_are_not_paired():
    a, b = (
        Scores(n, np.random.default_rng(i).normal(80, 1, (3, 9)), (0, 0, 0))
        for i, n in enumerate("ab")
    )
    assert not compare(a, b).paired


def test_few_draws_share_their_scatter_with_the_family():
    """Three draws that agree by chance prove nothing; ten draws speak for themselves."""
    family = [by_draw(name, range(3), scatter=2.0) for name in "cdef"]
    calm = [by_draw("a", range(3), 1.0, scatter=0.0), by_draw("b", range(3), scatter=0.0)]
    alone, together = compare(*calm), compare(*calm, family=[*calm, *family])
    assert together.se > 3 * alone.se and together.p > 0.05 > alone.p
    many = [by_draw("a", range(10), 1.0, scatter=0.0), by_draw("b", range(10), scatter=0.0)]
    wild = [by_draw(name, range(10), scatter=2.0) for name in "cdef"]
    assert compare(*many, family=[*many, *wild]).se == compare(*many).se


def test_more_draws_than_needed_find_the_difference():
    """A true difference is found in about 80 of 100 studies of the size that ``compare`` names."""
    rng = np.random.default_rng(0)

    def study(draws):
        result = []
        for name, mean in (("a", 81), ("b", 80)):
            values = mean + rng.normal(0, 1.5, (draws, 1)) + rng.normal(0, 1, (draws, 30))
            result.append(Scores(name, values, tuple(range(draws))))
        return result

    # Many draws, so that the scatter is known well.
    first, second = study(400)
    large = compare(first, second)
    needed = large.replicates_needed
    assert 30 < needed < 60
    found = [compare(*study(needed)).p < 0.05 for _ in range(100)]
    assert 65 <= sum(found) <= 95
    assert compare(first, second, tests=55).replicates_needed > needed


def two_datasets(rng, means=(80.0, 60.0), counts=(40, 8), draws=5):
    """Return scores on two data sets with different means and numbers of cases."""
    parts = []
    for mean, count in zip(means, counts, strict=True):
        effect = rng.normal(0, 1, (draws, 1)) + rng.normal(0, 0.5, (draws, count))
        parts.append(mean + rng.normal(0, 3, count) + effect)
    numbers = np.repeat([0, 1], counts)
    return Scores("a", np.hstack(parts), tuple(range(draws)), datasets=tuple(numbers.tolist()))


def test_the_mean_over_data_sets_weighs_them_equally():
    scores = two_datasets(np.random.default_rng(0))
    first, second = scores.values[:, :40], scores.values[:, 40:]
    found = estimate(scores)
    assert found.mean == pytest.approx((first.mean() + second.mean()) / 2)
    assert found.low < found.mean < found.high
    per_draw = scores.balanced(np.ones(48, bool)).mean(1)
    assert per_draw == pytest.approx((first.mean(1) + second.mean(1)) / 2)


def test_data_sets_are_fixed_and_their_cases_random():
    """Compare the standard error with the spread of 2000 means."""
    rng = np.random.default_rng(3)
    found = [estimate_moments(two_datasets(rng)) for _ in range(2000)]
    means, errors = np.array(found).T
    assert np.mean(errors**2) == pytest.approx(np.var(means), rel=0.12)


def estimate_moments(scores):
    cases = np.ones(scores.values.shape[1], bool)
    mean, se, _ = moments(Contrast([scores.balanced(cases)]))
    return mean, se


def test_classes_of_two_data_sets_have_equal_weight_in_their_own():
    classes = np.full((2, 5, 3), np.nan)
    classes[:, :3, 0] = 90.0  # the first data set has one class
    classes[:, 3:, 1] = 40.0  # the second has two, of which a case lacks one
    classes[:, 3, 2] = 80.0
    missing = np.zeros((2, 5), bool)
    scores = Scores("a", np.nanmean(classes, 2), (), classes, missing, (0, 0, 0, 1, 1))
    assert scores.balanced(np.ones(5, bool)).mean(1) == pytest.approx((90 + (40 + 80) / 2) / 2)
    assert scores.has_undefined_classes
    complete = replace(scores, classes=np.where(np.isnan(classes), 80.0, classes)[..., :1])
    assert not complete.has_undefined_classes


@pytest.mark.parametrize("name", ["3 draws", "5 draws, 2 data sets"])
def test_draws_as_units_in_simulated_studies(simulate, name, monkeypatch):
    """100 studies: 5 in 100 may err; 14 in 100 would be four standard errors more."""
    monkeypatch.setattr("segbench.results.variance.RESAMPLES", 200)
    design = next(d for d in simulate.DESIGNS if d.name == name)
    shares = simulate.measure(replace(design, methods=3), 100)
    assert shares.mean > 0.85 and shares.difference > 0.86
    assert shares.single < 0.14 and shares.family < 0.14
    assert shares.naive > 0.3, "tests over cases alone mistake the draws for the method"


def test_effects_of_known_size_in_simulated_studies(simulate, monkeypatch):
    monkeypatch.setattr("segbench.results.variance.RESAMPLES", 200)
    design = next(d for d in simulate.EFFECT_DESIGNS if d.name == "5 draws")
    shares = simulate.measure_effects(design, 100)
    assert shares.gap > 0.86 and shares.gain > 0.86 and shares.no_interval < 0.1
