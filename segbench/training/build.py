"""Build what an experiment trains with: method, networks, optimizers, data and phases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from segbench import registry
from segbench.config import Experiment
from segbench.config.schema import validate
from segbench.contracts.backbone import Backbone, BackboneParams
from segbench.contracts.method import Method, Optim, Setting, Source
from segbench.data.open import derived
from segbench.data.sampling.batches import TrainingData
from segbench.data.sampling.resident import SAME_BYTES, ResidentData, resident_bytes
from segbench.data.sampling.splits import with_draw, without_held_out
from segbench.data.store.store import Store
from segbench.errors import PLUGIN_FAILURES, UsageError
from segbench.evaluation.precision import use_precision
from segbench.nn.inspect import dry_run
from segbench.training.distributed import World
from segbench.training.placement import fits_on_device
from segbench.training.plan import Stage, stages


def build(experiment: Experiment, stores: list[Store], fresh: bool = True) -> Method:
    """Return the method with its networks, on the CPU, initialized from the experiment's seed.

    With ``fresh=False`` the weights come from a checkpoint later, so no pretrained weights are
    loaded or downloaded.

    Raises:
        UsageError: the backbone does not fit the method or the patch.
    """
    use_precision(experiment.precision)
    method = _without_networks(experiment, stores)
    backbone_params = dict(experiment.backbone_params)
    if not fresh:
        backbone_params.pop("pretrained", None)
    torch.manual_seed(experiment.seed)
    network = network_factory(
        experiment.backbone,
        backbone_params,
        method.setting,
        method.needs,
        registry.get("method", experiment.method).cls.backbones,
    )
    method.build(network)
    return method


def _without_networks(experiment: Experiment, stores: list[Store]) -> Method:
    method_class = registry.get("method", experiment.method).cls
    setting = Setting(
        sources=tuple(Source(store.name, tuple(store.classes)) for store in stores),
        channels=max(store.channels for store in stores),
        patch=tuple(experiment.protocol.patch),
    )
    params = method_class.Params(**experiment.params)
    method: Method = method_class(params, setting)
    return method


def network_factory(
    name: str,
    params: dict[str, Any],
    setting: Setting,
    needs: frozenset[str],
    others: tuple[str, ...] = (),
) -> Callable[..., Backbone]:
    """Return the function ``network()`` that a method's ``build`` receives.

    Args:
        name: registered name of the run's backbone.
        needs: features that the method requires of its backbones, see ``Backbone.provides``.
        others: backbones that the method may ask for by name. They have the parameters of the run's
            backbone where they know them, and their defaults elsewhere.

    Raises:
        UsageError: a backbone does not offer what the method needs, or the patch does not fit it.
    """
    checked = {name: _checked_params(name, params, setting, needs)}
    for other in others:
        known = registry.get("backbone", other).cls.Params.model_fields
        shared = {key: value for key, value in params.items() if key in known}
        checked.setdefault(other, _checked_params(other, shared, setting, needs))

    def network(
        heads: tuple[int, ...] | None = None, backbone: str = name, **options: Any
    ) -> Backbone:
        if backbone not in checked:
            raise UsageError(
                f"the method builds a backbone that it does not declare: '{backbone}'",
                expected=f"one of {', '.join(checked)}",
                fix=f'backbones = ("{backbone}",) in the class of the method',
            )
        outputs = (setting.classes,) if heads is None else heads
        backbone_class = registry.get("backbone", backbone).cls
        built: Backbone = backbone_class(
            checked[backbone], setting.channels, setting.dims, outputs, **options
        )
        dry_run(built, setting.channels, setting.patch)
        if options.get("side_outputs") and len(built.channels) < 3:
            raise UsageError(
                "side outputs need at least two scales to compare",
                found=f"backbone '{backbone}' with {len(built.channels)} levels",
                fix="-o backbone.depth=3",
            )
        return built

    return network


def _checked_params(
    name: str, params: dict[str, Any], setting: Setting, needs: frozenset[str]
) -> BackboneParams:
    """Return the parameters of a backbone that offers what a method needs and fits the patch."""
    backbone_class = registry.get("backbone", name).cls
    missing = needs - backbone_class.provides
    if missing:
        raise UsageError(
            f"backbone '{name}' does not offer what the method needs: {', '.join(sorted(missing))}",
            found=f"it offers {', '.join(sorted(backbone_class.provides))}",
            fix="segbench list backbones",
        )
    checked: BackboneParams = validate(
        backbone_class.Params, params, lambda key: f"backbone {name}", "backbone."
    )
    backbone_class.check_patch(checked, setting.patch)
    return checked


def build_if_fit(experiment: Experiment, stores: list[Store], fresh: bool = True) -> Method | None:
    """Return ``build``'s method, or None if building fails; used before anything is written.

    The run itself then builds again, and reports and records the failure.

    Raises:
        UsageError: the backbone does not fit the method or the patch.
    """
    try:
        return build(experiment, stores, fresh)
    except UsageError:
        raise
    except PLUGIN_FAILURES:
        return None


def optimizers(experiment: Experiment, stores: list[Store], protocol: Optim) -> dict[str, Optim]:
    """Return each player's optimizer, by "player, phase", given the protocol's optimizer."""
    method = _without_networks(experiment, stores)
    return {
        f"{player}, {phase.name}": method.optimizer(player, protocol, phase)
        for player in method.players
        for phase in method.phases()
    }


def training_views(experiment: Experiment, stores: list[Store]) -> dict[str, Store]:
    """Return the data sets as they are trained on, by name.

    They are downsampled as the protocol says, in the order of the draw with the labeled cases first
    (a labeled patient may have unlabeled cases, too), and without the cases that are held out for
    validation. Where the unlabeled stream shows the labeled images, nothing else
    is left in them.
    """
    protocol = experiment.protocol
    views = {}
    for store in stores:
        small = derived(store, protocol.factors(store.name, store.dims))
        view = with_draw(small, experiment.draw, experiment.fold)
        if protocol.selection == "validation":
            view = without_held_out(view, experiment.labeled[store.name])
        labeled = view.labeled(experiment.labeled[store.name])
        others = tuple(case for case in view.train if case not in labeled)
        if experiment.unlabeled == "labeled":
            others = ()
        view = replace(view, train=(*labeled, *others))
        views[store.name] = view
    return views


def training_data(
    experiment: Experiment,
    views: dict[str, Store],
    world: World,
    device: str = "cpu",
    resident: str = "no",
) -> TrainingData:
    """Return the batches of an experiment, or this process's share of them.

    Args:
        resident: "yes" keeps the images on the device; "auto" does so if it is a CUDA device with
            enough free memory and the patches are the same bytes there.

    Raises:
        UsageError: the patches of the protocol cannot be cut on the device.
    """
    labeled = {name: len(view.labeled(experiment.labeled[name])) for name, view in views.items()}
    protocol = experiment.protocol
    on_device = resident == "yes"
    if resident == "auto" and protocol.augment in SAME_BYTES:
        on_device = fits_on_device(lambda: resident_bytes(views, labeled), device)
    if not on_device:
        return TrainingData(views, labeled, protocol, experiment.seed, share=world.share)
    return ResidentData(
        views,
        labeled,
        protocol,
        experiment.seed,
        device=torch.device(device),
        share=world.share,
    )


def training_plan(experiment: Experiment, method: Method, data: TrainingData) -> list[Stage]:
    """Return the phases of a training with their steps and batch sizes.

    Joint training takes the protocol's number of steps for each of its data sets.

    Raises:
        UsageError: the data cannot fill a batch of one of the phases.
    """
    protocol = experiment.protocol
    total = protocol.steps * len(experiment.datasets)
    batch = protocol.batch
    plan = stages(method.phases(), total, batch.labeled, batch.unlabeled, batch.fill)
    for stage in plan:
        data.check(stage.labeled, stage.unlabeled)
    return plan
