"""What has to be known about an authors' repository: one file per method in benchmarks/official.

Names in a description are those of the authors' script; the values beside them are ours.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pydantic import Field

from segbench.config import load_yaml
from segbench.config.schema import Strict, validate
from segbench.errors import UsageError, did_you_mean

Layers = dict[str, str]  # our module to the prefix of the names of its layers; "" for the rest


class Player(Strict):
    """How the script updates one group of weights."""

    optimizer: str = Field(description="variable of the optimizer")
    total: str = Field(
        description="variable on which the script calls backward, or a sum of variables on each of "
        "which it does, one after the other"
    )
    terms: dict[str, str] = Field(
        description="our loss terms or sums of them, as sums and products of the script's variables"
    )


class Part(Strict):
    """One training loop of the script, the counterpart of a phase of the method."""

    networks: dict[str, Layers] = Field(description="the script's networks and our modules")
    players: dict[str, Player] = Field(description="by our name of the player")
    steps: str = Field("", description="variable with the number of steps")
    weights: dict[str, str] = Field(
        {}, description="the script's ramped weights, and our parameters that they ramp up to"
    )
    functions: dict[str, str] = Field(
        {}, description="other values that change, and our functions of the clock for them"
    )


class Window(Strict):
    """The authors' sliding window."""

    script: str = Field(description="file that calls it, for strides and patch")
    module: str = Field(description="module with the function")
    function: str = Field(description="predicts one volume: labels and probabilities")
    probabilities: bool = Field(
        True, description="whether the function returns probabilities beside the labels"
    )
    networks: tuple[str, ...] = Field(
        ("model",), description="the script's networks that predict, in the order of the function"
    )


class Description(Strict):
    """Where an authors' repository has what the comparison needs."""

    repository: str = Field(description="address of the repository, without https://")
    protocol: str = Field(description="protocol with the recipe of the authors")
    folder: str = Field(".", description="folder of the script")
    script: str = Field(description="file that trains")
    arguments: tuple[str, ...] = Field((), description="command line of the script")
    params: dict[str, str] = Field({}, description="parameters of our method")
    classes: int = Field(2, ge=2, description="number of classes, with background")
    sampling: bool = Field(
        True, description="whether the script's batches and patches can be compared with ours"
    )
    patch: tuple[int, ...] = Field(description="patch size in the script")
    small: tuple[int, ...] = Field(description="patch size that replaces it")
    datasets: dict[str, tuple[str, ...]] = Field(
        description="by module, the data sets that are replaced by synthetic ones"
    )
    loaders: dict[str, str] = Field(
        description="the script's loaders, in the order in which it asks them, and what they "
        "yield: both kinds of items, both kinds twice, labeled or unlabeled items, or the first or "
        "second half of these (labeled 1)"
    )
    dropout: bool = Field(
        True,
        description="whether both sides draw the same dropout; false: nothing is dropped on either "
        "side, because ours passes groups of images through a network at once",
    )
    parts: tuple[Part, ...] = Field(description="training loops in their order")
    afterwards: tuple[str, ...] = Field(
        (), description="function of the script to call at its end, and its arguments"
    )
    without_counterpart: tuple[str, ...] = Field(
        (), description="prefixes of layers of the authors that change no result"
    )
    window: Window | None = Field(None, description="the authors' sliding window")


def _files() -> dict[str, Path]:
    folder = resources.files("segbench.benchmarks") / "official"
    return {file.stem: file for file in sorted(Path(str(folder)).glob("*.yaml"))}


def load_description(method: str, dataset: str = "") -> Description:
    """Return the description of a method's official repository.

    Args:
        dataset: data set of the script, where a repository has several; empty for the main one.

    Raises:
        UsageError: there is none.
    """
    files = _files()
    name = f"{method}_{dataset}" if dataset else method
    if name not in files:
        what = f"no official repository is described for '{method}'"
        if dataset:
            what = f"no official script is described for '{method}' on '{dataset}'"
        raise UsageError(
            f"{what}.{did_you_mean(name, files)}",
            expected=f"one of {', '.join(files)}",
            fix=f"describe it in benchmarks/official/{name}.yaml, like the files there",
        )
    document = load_yaml(files[name])
    return validate(Description, document, lambda key: document.where(*key.split(".")))
