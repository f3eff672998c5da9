"""Options that several commands share, and command classes that accept the global ones anywhere."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import click

from segbench.cli.settings import Settings
from segbench.errors import SegbenchError, UsageError

MOST_SEEDS = 1000
DEVICES = "auto, cpu, cuda, cuda:N or mps"


# -- global options --------------------------------------------------------------------------------


def keep_option(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Click callback: store a global option in the settings of the whole program."""
    if value in (None, (), False, 0) or context.resilient_parsing:
        return
    settings = context.find_root().ensure_object(Settings)
    if parameter.name == "plugins":
        value = (*settings.plugins, *_added_plugins(value))
    setattr(settings, str(parameter.name), value)


def _added_plugins(files: Sequence[str]) -> list[str]:
    """Register plug-in files and return their full paths."""
    from segbench import registry

    for file in files:
        registry.add_file(file)
    return [str(Path(file).resolve()) for file in files]


def global_options(hidden: bool) -> list[click.Option]:
    """Return the options that are accepted before and after the verb."""

    def option(*names: str, **details: Any) -> click.Option:
        return click.Option(
            names, expose_value=False, callback=keep_option, hidden=hidden, **details
        )

    folder = click.Path(file_okay=False)
    return [
        option(
            "--root",
            "chosen_root",
            metavar="DIR",
            type=folder,
            help="Folder of the results [./segbench-out].",
        ),
        option(
            "--data-root",
            "chosen_data_root",
            metavar="DIR",
            type=folder,
            help="Folder of the prepared data [./segbench-data].",
        ),
        option(
            "--plugin",
            "plugins",
            metavar="FILE",
            multiple=True,
            is_eager=True,
            help="Add a plug-in file; may be repeated.",
        ),
        option("--json", is_flag=True, help="Print one JSON document on stdout."),
        option("--yes", is_flag=True, help="Do not ask for confirmation."),
        option("-q", "--quiet", count=True, help="Print less."),
        option("-v", "--verbose", count=True, help="Print more."),
        option("--debug", is_flag=True, is_eager=True, help="Show tracebacks."),
    ]


def first_sentence(text: str | None) -> str:
    """Return the first sentence of a help text, without its full stop; nothing is cut off."""
    paragraph = " ".join((text or "").split("\n\n")[0].split())
    sentence = re.split(r"\.(?= |$)", paragraph, maxsplit=1)[0]
    return sentence.removesuffix(".")


class Command(click.Command):
    """A command that accepts the global options."""

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the summary that a group's help shows: it is wrapped, never cut off."""
        return first_sentence(self.short_help or self.help)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options(hidden=True)

    def invoke(self, ctx: click.Context) -> Any:
        """Register the user's linked data sets and run the command."""
        settings = ctx.find_object(Settings)
        if settings is not None:
            _register_links(settings)
        return super().invoke(ctx)


def _register_links(settings: Settings) -> None:
    # Commands that need a broken configuration report it themselves.
    with suppress(SegbenchError):
        if not any(settings.data_root.glob("*/link.json")):
            return
        from segbench.data.links import load_links

        for problem in load_links(settings.data_root):
            settings.say(f"warning: {problem.what} ({problem.details['where']})")


class Group(click.Group):
    """A group that accepts the global options, as all of its commands do."""

    command_class = Command

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the summary that a group's help shows: it is wrapped, never cut off."""
        return first_sentence(self.short_help or self.help)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options(hidden=self.name not in (None, "cli"))


# -- limits on what may be read --------------------------------------------------------------------


def _keep_limit(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value and not context.resilient_parsing:
        from segbench.data.formats.limits import limited, limits

        changed = replace(limits(), **{str(parameter.name): value})
        context.with_resource(limited(changed))


size_option = click.option(
    "--max-voxels",
    "voxels",
    type=click.IntRange(1),
    metavar="N",
    expose_value=False,
    callback=_keep_limit,
    help="Largest volume to read [1e9].",
)
mismatch_option = click.option(
    "--allow-affine-mismatch",
    "other_spacing",
    is_flag=True,
    expose_value=False,
    callback=_keep_limit,
    help="Accept headers that disagree: voxels are matched by index, the sform counts.",
)


# -- how to compute --------------------------------------------------------------------------------


@dataclass(frozen=True)
class MachineOptions:
    """Options of one command that cannot change a number."""

    save_every: str | None = None
    device: str | None = None
    workers: int | None = None
    log: str | None = None


device_option = click.option("--device", metavar="DEV", help=f"{DEVICES} [auto].")
leak_option = click.option(
    "--leak-meter",
    is_flag=True,
    help="Keep ten checkpoints; report what choosing among them on the test cases would gain.",
)
MACHINE_OPTIONS = (
    click.option(
        "--save-every", metavar="N|TIME", help="Checkpoint every N steps, or 30s, 5m [5m]."
    ),
    device_option,
    click.option(
        "--workers",
        metavar="N",
        type=click.IntRange(0, 64),
        help="Loader processes; 0 loads in a thread [0].",
    ),
    click.option(
        "--log",
        metavar="NAME[,NAME]",
        help="Send the training log to tensorboard, wandb or mlflow while it is written.",
    ),
    click.option(
        "--recompute",
        is_flag=True,
        expose_value=False,
        callback=keep_option,
        help="Recompute activations in the backward pass: less memory, more time.",
    ),
    click.option(
        "--compile",
        is_flag=True,
        expose_value=False,
        callback=keep_option,
        help="Compile the networks: a minute at the start, then faster steps.",
    ),
    click.option(
        "--cuda-graphs",
        is_flag=True,
        expose_value=False,
        callback=keep_option,
        help="Compile the networks and replay them as CUDA graphs.",
    ),
    click.option(
        "--resident",
        type=click.Choice(["auto", "yes", "no"]),
        expose_value=False,
        callback=keep_option,
        help="Keep the training images on the device [auto: on CUDA, if they fit].",
    ),
)


def machine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the machine options; the command gets them as ``machine_options``."""
    return bundled(command, "machine_options", MachineOptions, MACHINE_OPTIONS)


# -- what to compute -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScienceOptions:
    """Options of one command that decide the numbers."""

    dataset: str = "phantom"
    labeled: str | None = None
    draw: int = 0
    fold: str | None = None
    unlabeled: str = "all"
    backbone: str | None = None
    protocol: str | None = None
    as_published: str | None = None
    seed: int | None = None
    seeds: str | None = None
    replicates: int | None = None
    steps: int | None = None
    precision: str | None = None
    overrides: tuple[str, ...] = ()

    def chosen_seeds(self) -> list[int]:
        """Return the seeds that ``--seed`` or ``--seeds`` asks for.

        Raises:
            UsageError: both are given, or ``--seeds`` is neither a range nor a list.
        """
        if self.seed is not None and self.seeds is not None:
            raise UsageError("--seed and --seeds exclude each other", fix="use one of them")
        return parse_numbers(self.seeds, "--seeds") if self.seeds else [self.seed or 0]

    def chosen_draws(self) -> list[tuple[int, int]]:
        """Return the draw and the seed of each run: replicate k has both of them k.

        Raises:
            UsageError: ``--replicates`` beside a draw or seeds, or wrong seeds.
        """
        if self.replicates is None:
            return [(self.draw, seed) for seed in self.chosen_seeds()]
        if self.draw or self.seed is not None or self.seeds is not None:
            raise UsageError(
                "--replicates chooses draws and seeds: --draw, --seed and --seeds cannot be given "
                "beside it",
                fix="use one of them",
            )
        return [(number, number) for number in range(self.replicates)]

    def chosen_folds(self) -> Sequence[int | None]:
        """Return the folds that ``--fold`` asks for; without it None, for the list of test cases.

        Raises:
            UsageError: ``--fold`` is neither a number, a range nor a list.
        """
        return [None] if self.fold is None else parse_numbers(self.fold, "--fold")

    def for_method(self, method: str) -> ScienceOptions:
        """Return the options with the data set and protocol that ``--as-published`` stands for.

        Raises:
            UsageError: other options contradict it, or no recipe of the authors is known.
        """
        if self.as_published is None:
            return self
        from segbench.config.protocol import published_recipes

        datasets = self.as_published
        if self.protocol is not None or self.dataset not in ("phantom", datasets):
            raise UsageError(
                "--as-published names data set and protocol: "
                "--dataset and --protocol cannot be given beside it",
                fix=f"segbench run {method} --as-published {datasets}",
            )
        recipes = published_recipes(datasets.replace("-", "_"))
        recipe = recipes.get(method.replace("-", "_"))
        if recipe is None:
            raise _no_recipe(method, datasets, recipes)
        return replace(self, dataset=datasets, protocol=recipe)


def _no_recipe(method: str, datasets: str, recipes: Mapping[str, str]) -> UsageError:
    """Return the error that no recipe of a method's authors is known for data sets.

    Raises:
        UsageError: the method or a data set is unknown.
    """
    from segbench import registry
    from segbench.config.protocol import recipes_of

    registry.place("method", method)
    for name in datasets.split(","):
        registry.place("dataset", name)
    elsewhere = recipes_of(method.replace("-", "_"))
    if elsewhere:
        known = [f"{protocol} for {trained_on}" for trained_on, protocol in elsewhere.items()]
        found = f"recipes of {method}: {'; '.join(known)}"
        fix = f"segbench run {method} --as-published {next(iter(elsewhere))}"
    else:
        known = [f"{name} ({protocol})" for name, protocol in sorted(recipes.items())]
        found = f"recipes of {', '.join(known)}" if known else "no recipe for this data set"
        fix = f"segbench run {method} --dataset {datasets}, for the protocol that all methods share"
    return UsageError(
        f"no recipe of the authors of {method} is known for {datasets}",
        found=found,
        expected="data sets and a method whose authors trained on them",
        fix=fix,
    )


def override_option(help_text: str) -> Callable[..., Any]:
    """Return the option ``-o KEY=VALUE``; the command gets a tuple of texts."""
    return click.option("-o", "overrides", metavar="KEY=VALUE", multiple=True, help=help_text)


SCIENCE_OPTIONS = (
    click.option(
        "--dataset",
        metavar="NAME[,NAME]",
        default="phantom",
        show_default=True,
        help="Data sets.",
    ),
    click.option(
        "--labeled",
        metavar="N|P%|all",
        help="Number of labeled training cases [the data set's default].",
    ),
    click.option(
        "--draw",
        metavar="N",
        type=click.IntRange(0, 9999),
        default=0,
        show_default=True,
        help="Which cases are labeled: 0 the first of the list, as published; others at random.",
    ),
    click.option(
        "--fold",
        metavar="A-B|A,B",
        help="Cross-validation, one run per fold: test the patients of a fold (0-4) and train on "
        "the others; for own data and data sets without a published test list.",
    ),
    click.option(
        "--unlabeled",
        type=click.Choice(["all", "labeled"]),
        default="all",
        show_default=True,
        help="Images of the unlabeled stream; labeled: train without unlabeled images.",
    ),
    click.option("--backbone", metavar="NAME", help="Network [the protocol's]."),
    click.option("--protocol", metavar="NAME|FILE", help="Protocol [the data set's]."),
    click.option(
        "--as-published",
        metavar="DATASET",
        help="This data set with the recipe of the method's authors, in place of --protocol.",
    ),
    click.option("--seed", metavar="N", type=int, help="Seed [0]."),
    click.option("--seeds", metavar="A-B|A,B", help="Several seeds, one run per seed."),
    click.option(
        "--replicates",
        metavar="N",
        type=click.IntRange(1, MOST_SEEDS),
        help="N runs, each with other labeled cases (draw 0, 1, ...) and another seed; three are "
        "the least that is ranked.",
    ),
    click.option(
        "--steps",
        metavar="N",
        type=click.IntRange(1),
        help="Training steps; this modifies the protocol.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
        help="Arithmetic precision [the protocol's].",
    ),
    override_option("Set a parameter of the method, backbone.NAME, or a key of the protocol."),
)


def science_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that decide the numbers; the command gets them as ``science``."""
    return bundled(command, "science", ScienceOptions, SCIENCE_OPTIONS)


def joined(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> str | None:
    """Return the lists of an option that may be repeated as one list, None without any."""
    return ",".join(texts) or None


# Label values may be any whole numbers that images are stored in, above all -1 and 255; 0 is the
# background.
LABEL_VALUES = click.IntRange(-(2**31), 2**32 - 1)


def label_values(
    context: click.Context, parameter: click.Parameter, values: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the values of ``--ignore``.

    Raises:
        click.BadParameter: one of them is the background.
    """
    if 0 in values:
        raise click.BadParameter("0 is the background, which is never left out.")
    return values


def parse_numbers(text: str, option: str) -> list[int]:
    """Return the numbers of a range such as ``0-2`` or a list such as ``0,1,5``.

    Args:
        option: the option that the text was given to, for the message.

    Raises:
        UsageError: the text is neither.
    """
    span = re.fullmatch(r"(\d+)-(\d+)", text)
    if span:
        first, last = int(span[1]), int(span[2])
        if first <= last < first + MOST_SEEDS:
            return list(range(first, last + 1))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    raise UsageError(f"{option}: '{text}'", expected="a range such as 0-2 or a list such as 0,1,5")


def bundled(
    command: Callable[..., Any], name: str, kind: Callable[..., Any], options: Sequence[Any]
) -> Callable[..., Any]:
    """Add options to a command, which gets their values as one object."""
    keys = [field.name for field in fields(kind)]  # type: ignore[arg-type]

    @functools.wraps(command)
    def with_bundle(*args: Any, **values: Any) -> Any:
        bundle = kind(**{key: values.pop(key) for key in keys})
        return command(*args, **values, **{name: bundle})

    decorated: Callable[..., Any] = with_bundle
    for option in reversed(options):  # click shows the option first that is applied last
        decorated = option(decorated)
    return decorated
