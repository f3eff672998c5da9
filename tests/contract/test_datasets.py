"""Every registered data set, third-party ones too: facts, split, and embedded cases."""

import numpy as np
import pytest

from segbench import registry
from segbench.config import load_protocol, protocol_names
from segbench.data.store.case_files import valid_id

DATASETS = registry.names("dataset")
SINGLE = [
    n
    for n in DATASETS
    if not registry.get("dataset", n).cls.members and not registry.get("dataset", n).cls.family
]
EMBEDDED = [n for n in SINGLE if registry.get("dataset", n).cls.embedded]


@pytest.mark.parametrize("name", DATASETS)
def test_facts(name):
    cls = registry.get("dataset", name).cls
    assert cls.title
    for member in cls.members:
        assert member in SINGLE
    if name in SINGLE:
        assert cls.classes and len(set(cls.classes)) == len(cls.classes)
        assert (
            cls.modality
            and cls.license
            and cls.dims in (2, 3)
            and cls.channels >= 1
            and cls.labeled >= 1
        )
        assert cls.embedded or (cls.citation and cls.homepage.startswith("https://") and cls.files)


@pytest.mark.parametrize("name", SINGLE)
def test_its_protocol_fits(name):
    cls = registry.get("dataset", name).cls
    protocol = load_protocol(cls.protocol)
    assert cls.protocol in protocol_names() and len(protocol.patch) in (cls.dims, cls.dims - 1)


@pytest.mark.parametrize("name", SINGLE)
def test_split_is_in_order_and_disjoint(name):
    data = registry.get("dataset", name).cls()
    split = data.split()
    ids = (*split.train, *split.val, *split.test)
    assert (
        len(set(ids)) == len(ids) and split.train and split.test and all(valid_id(i) for i in ids)
    )
    patients = [{data.group(i) for i in part} for part in (split.train, split.val, split.test)]
    assert len(set.union(*patients)) == sum(map(len, patients)), "a patient in two lists"
    assert split == registry.get("dataset", name).cls().split() and split.source
    assert registry.get("dataset", name).cls.labeled <= len(split.train)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_cases_are_complete_and_reproducible(name):
    data = registry.get("dataset", name).cls()
    raw = {r.id: r for r in data.find(None)}
    split = data.split()
    assert set(raw) == {*split.train, *split.test}
    first, again = data.load(raw[split.test[0]]), data.load(raw[split.test[0]])
    assert np.array_equal(first.image, again.image) and np.array_equal(first.label, again.label)
    assert (
        first.image.shape == (data.channels, *first.label.shape) and first.label.ndim == data.dims
    )
    assert first.image.dtype == np.float32 and np.isfinite(first.image).all()
    assert set(np.unique(first.label)) == set(range(len(data.classes) + 1))
    assert first.spacing is None or len(first.spacing) == data.dims
