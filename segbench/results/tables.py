"""Which tables a leaderboard shows: over labeled draws, with the oracle, over data sets.

Runs are sorted into tables of one data set and one labeled draw (``comparable``). Here

* the runs of all folds of a cross-validation, with one seed, count as one run on all cases;
* tables that differ in the labeled draw only become one, whose replicates are the draws;
* runs of ``supervised`` with all cases labeled join the tables with fewer labels, as the oracle;
* runs with the recipe of their method's authors join the table of the data set's own protocol;
* tables of all data sets of a group get a table of their mean, unless they are cross-validated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from segbench import registry
from segbench.config.protocol import published_recipes
from segbench.errors import SegbenchError
from segbench.results.comparable import (
    BASELINE,
    METHOD,
    ORACLE,
    PUBLISHED,
    FailedRun,
    RowKey,
    Rows,
    TableKey,
    Tables,
    settings_digest,
)
from segbench.results.finished import FinishedRun
from segbench.results.folds import cross_validated
from segbench.results.names import split_name
from segbench.results.recipe import recipe_mark

RANKED_REPLICATES = 3  # rows with fewer replicates are shown, but not ranked

Replicate = tuple[FinishedRun, ...]  # one run per data set; a joint run stands for each of its own


@dataclass
class TableContent:
    """The rows of one table."""

    name: str  # of the data set, or of a group
    keys: list[TableKey]  # one per data set
    rows: dict[RowKey, list[Replicate]]
    left_out_draws: tuple[int, ...] = ()  # draws that only some methods have

    @property
    def draws(self) -> tuple[int, ...]:
        """The labeled draws."""
        return self.keys[0].draws

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets."""
        return tuple(key.dataset for key in self.keys)

    def holds(self, failed: FailedRun) -> bool:
        """Return whether a failed run belongs to the table."""
        if len(self.draws) == 1 and failed.table.draws != self.draws:
            return False
        any_draw = failed.table._replace(draws=())
        return any(any_draw == key._replace(draws=()) for key in self.keys)


def arrange(tables: Tables) -> list[TableContent]:
    """Return the tables that a leaderboard shows."""
    merged: list[TableContent] = []
    for family in _families(tables):
        merged += _over_draws(family)
    shown = [_with_recipes(_with_oracle(table, tables), tables) for table in merged]
    shown = [table for table in shown if not _is_elsewhere(table, shown)]
    return shown + list(_over_datasets(shown))


def hide_variants(table: TableContent) -> list[str]:
    """Remove the rows of variants from a table, and return their names.

    Variants are ablations, and methods with other parameters than their own where the method itself
    has a row of the same kind. A table of nothing else stays as it is.
    """
    plain = set()
    for key in table.rows:
        name = split_name(key.label)
        if name.params is None and not key.is_ablation:
            plain.add((name.method, name.rest, key.kind))
    if not plain:
        return []
    hidden = []
    for key in list(table.rows):
        name = split_name(key.label)
        stands_aside = name.params is not None and (name.method, name.rest, key.kind) in plain
        if key.is_ablation or stands_aside:
            hidden.append(key.label)
            del table.rows[key]
    return hidden


def _families(tables: Tables) -> list[Tables]:
    """Return tables that differ in the labeled draw only."""
    families: dict[TableKey, Tables] = {}
    for key, rows in tables.items():
        families.setdefault(key._replace(draws=()), {})[key] = rows
    return list(families.values())


def _over_draws(family: Tables) -> list[TableContent]:
    """Return the table over all draws and those tables of one draw that rank something by itself.

    The table over draws takes the draws that most methods have. Rows without some of them are
    shown there, too, but not ranked.
    """
    single = [_single(key, rows) for key, rows in sorted(family.items())]
    draws_of_rows: dict[RowKey, set[int]] = {}
    for key, rows in family.items():
        for row in rows:
            draws_of_rows.setdefault(row, set()).update(key.draws)
    draws = _common_draws(draws_of_rows)
    if len(draws) < 2:
        return single
    rows_over_draws: dict[RowKey, list[Replicate]] = {}
    for table in single:
        if table.draws[0] in draws:
            for row, replicates in table.rows.items():
                rows_over_draws.setdefault(row, []).extend(replicates)
    every_draw = {table.draws[0] for table in single}
    first = single[0].keys[0]
    together = TableContent(
        name=first.dataset,
        keys=[first._replace(draws=tuple(sorted(draws)))],
        rows=rows_over_draws,
        left_out_draws=tuple(sorted(every_draw - draws)),
    )
    return [together, *(table for table in single if _ranks_something(table))]


def _single(key: TableKey, rows: Rows) -> TableContent:
    replicates: dict[RowKey, list[Replicate]] = {}
    for row, runs in rows.items():
        replicates[row] = _replicates(key, runs)
    return TableContent(key.dataset, [key], replicates)


def _replicates(key: TableKey, runs: Sequence[FinishedRun]) -> list[Replicate]:
    """Return the replicates of a row in a table of one data set."""
    if key.folds:
        runs = cross_validated(runs)
    return [(run,) for run in runs]


def _common_draws(draws_of_rows: dict[RowKey, set[int]]) -> set[int]:
    """Return the draws that most rows have; of equally common sets, the largest."""
    counts = Counter(tuple(sorted(draws)) for draws in draws_of_rows.values())
    candidates = [(count, len(draws), draws) for draws, count in counts.items()]
    _, _, commonest = max(candidates)
    return set(commonest)


def _ranks_something(table: TableContent) -> bool:
    if table.keys[0].folds >= RANKED_REPLICATES:
        return True
    for replicates in table.rows.values():
        seeds = {run.seed for (run,) in replicates}
        if len(seeds) >= RANKED_REPLICATES:
            return True
    return False


def _is_oracle(run: FinishedRun) -> bool:
    return run.result["method"] == BASELINE and run.fully_labeled


def _with_oracle(table: TableContent, tables: Tables) -> TableContent:
    """Return a table with the oracle of its data set as one more row.

    All cases of the oracle are labeled, so its labeled draw does not matter: where it has the draws
    of the table, it is paired with the other rows by them; otherwise all of its runs are taken.
    """
    own = table.keys[0]
    found: dict[RowKey, list[FinishedRun]] = {}
    for key, rows in tables.items():
        same_otherwise = key._replace(labeled=own.labeled, draws=own.draws) == own
        if key.labeled == own.labeled or not same_otherwise:
            continue
        for row, runs in rows.items():
            if row.kind == METHOD and _is_oracle(runs[0]):
                label = row.label.replace(BASELINE, ORACLE, 1)
                oracle = RowKey(label, row.variant, ORACLE)
                found.setdefault(oracle, []).extend(runs)
    for row, runs in found.items():
        of_own_draws = [run for run in runs if run.draw in own.draws]
        draws = {run.draw for run in of_own_draws}
        chosen = of_own_draws if draws == set(own.draws) else runs
        table.rows[row] = _replicates(own, chosen)
    return table


def _with_recipes(table: TableContent, tables: Tables) -> TableContent:
    """Return the table of a data set's own protocol with the as-published rows of its methods."""
    own = table.keys[0]
    if not _has_default_protocol(own):
        return table
    recipes = published_recipes(own.dataset)
    for key, rows in tables.items():
        same_otherwise = key._replace(
            draws=own.draws,
            protocol=own.protocol,
            content=own.content,
            backbone=own.backbone,  # the authors may have another network
            network=own.network,
            source=own.source,
        )
        is_other = key.protocol != own.protocol and key.draws[0] in own.draws
        if not is_other or same_otherwise != own:
            continue
        for row, runs in rows.items():
            if row.kind == METHOD and _has_recipe(runs[0], key, recipes):
                name = RowKey(f"{row.label} (as published)", row.variant, PUBLISHED)
                table.rows.setdefault(name, []).extend(_replicates(own, runs))
    return table


def _has_default_protocol(key: TableKey) -> bool:
    """Return whether a table has the data set's own protocol, unmodified."""
    try:
        name: str = registry.get("dataset", key.dataset).cls.protocol
    except SegbenchError:  # the plug-in is not available here
        return False
    return key.protocol.rpartition(" ")[0] == name


def _has_recipe(run: FinishedRun, key: TableKey, recipes: dict[str, str]) -> bool:
    """Return whether a run has the unmodified recipe of its method's authors, and their network."""
    recipe = recipes.get(run.result["method"])
    return key.protocol.rpartition(" ")[0] == recipe and not recipe_mark(run.science)


def _is_elsewhere(table: TableContent, shown: Sequence[TableContent]) -> bool:
    """Return whether all rows of a table are shown as oracle or as published in another one."""
    elsewhere: set[str] = set()
    for other in shown:
        elsewhere.update(row.variant for row in other.rows if row.kind in (ORACLE, PUBLISHED))
    return all(row.variant in elsewhere for row in table.rows)


def _over_datasets(tables: Sequence[TableContent]) -> Iterator[TableContent]:
    """Yield a table of the mean over data sets for each group of which all tables are there."""
    groups: dict[TableKey, dict[str, TableContent]] = {}
    for table in tables:
        if table.keys[0].folds:  # fold 0 of one data set has nothing in common with that of another
            continue
        key = table.keys[0]._replace(dataset="", fingerprint="", split="")
        groups.setdefault(key, {})[table.name] = table
    for by_name in groups.values():
        if len(by_name) < 2:
            continue
        for name, members in _registered_groups().items():
            if all(member in by_name for member in members):
                table = _mean_table(name, [by_name[member] for member in members])
                if table.rows:
                    yield table


def _registered_groups() -> dict[str, tuple[str, ...]]:
    """Return the members of each registered group of data sets."""
    groups = {}
    for name in registry.names("dataset"):
        try:
            members = registry.get("dataset", name).cls.members
        except SegbenchError:  # a broken plug-in has no group
            continue
        if members:
            groups[name] = tuple(members)
    return groups


def _mean_table(name: str, tables: Sequence[TableContent]) -> TableContent:
    """Return the table of the mean over data sets, with the rows that have all of them.

    A replicate of it joins the runs of one draw and one seed on every data set.
    """
    rows_by_table = [_rows_by_setting(table) for table in tables]
    rows = {}
    for key in rows_by_table[0]:
        if not all(key in of_table for of_table in rows_by_table):
            continue
        parts = [of_table[key] for of_table in rows_by_table]
        shared = set(parts[0]).intersection(*parts[1:])
        replicates = []
        for draw_and_seed in sorted(shared):
            replicates.append(tuple(runs[draw_and_seed] for runs in parts))
        if replicates:
            rows[key] = replicates
    return TableContent(
        name=name,
        keys=[table.keys[0] for table in tables],
        rows=rows,
        left_out_draws=tables[0].left_out_draws,
    )


def _rows_by_setting(table: TableContent) -> dict[RowKey, dict[tuple[int, int], FinishedRun]]:
    """Return the runs of each row by (draw, seed), under a key that all data sets share."""
    found: dict[RowKey, dict[tuple[int, int], FinishedRun]] = {}
    for row, replicates in table.rows.items():
        runs = [run for (run,) in replicates]
        variant = settings_digest(runs[0].science, ("datasets",))
        if len(runs[0].result["datasets"]) > 1:  # a joint run: its data sets matter
            variant = row.variant
        key = RowKey(row.label, variant, row.kind)
        found[key] = {(run.draw, run.seed): run for run in runs}
    return found
