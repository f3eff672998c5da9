"""Every registered data set, third-party ones too: facts, split, and embedded cases."""

import numpy as np
import pytest

from segbench import registry
from segbench.config import load_protocol, protocol_names
from segbench.data.store.case_files import valid_id

DATASETS = registry.names("dataset")


def class_of(name):
    return registry.get("dataset", name).cls


SINGLE = [name for name in DATASETS if not class_of(name).members and not class_of(name).family]
EMBEDDED = [name for name in SINGLE if class_of(name).embedded]


@pytest.mark.parametrize("name", DATASETS)
def test_facts(name):
    cls = class_of(name)
    assert cls.title
    for member in cls.members:
        assert member in SINGLE
    if name in SINGLE:
        assert cls.classes and len(set(cls.classes)) == len(cls.classes)
        assert cls.modality and cls.license
        assert cls.dims in (2, 3)
        assert cls.channels >= 1 and cls.labeled >= 1
        assert cls.embedded or (cls.citation and cls.homepage.startswith("https://") and cls.files)


@pytest.mark.parametrize("name", SINGLE)
def test_its_protocol_fits(name):
    cls = class_of(name)
    protocol = load_protocol(cls.protocol)
    assert cls.protocol in protocol_names() and len(protocol.patch) in (cls.dims, cls.dims - 1)


@pytest.mark.parametrize("name", SINGLE)
def test_split_is_in_order_and_disjoint(name):
    data = class_of(name)()
    split = data.split()
    assert split.train and split.test and split.source
    ids = (*split.train, *split.val, *split.test)
    assert len(set(ids)) == len(ids)
    assert all(valid_id(case) for case in ids)
    patients = []
    for part in (split.train, split.val, split.test):
        patients += {data.group(case) for case in part}
    assert len(set(patients)) == len(patients), "a patient in two lists"
    assert split == class_of(name)().split()
    assert class_of(name).labeled <= len(split.train)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_cases_are_complete_and_reproducible(name):
    data = class_of(name)()
    raw = {case.id: case for case in data.find(None)}
    split = data.split()
    assert set(raw) == {*split.train, *split.test}
    case = raw[split.test[0]]
    first = data.load(case)
    again = data.load(case)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    assert first.image.shape == (data.channels, *first.label.shape)
    assert first.label.ndim == data.dims
    assert first.image.dtype == np.float32 and np.isfinite(first.image).all()
    assert set(np.unique(first.label)) == set(range(len(data.classes) + 1))
    assert first.spacing is None or len(first.spacing) == data.dims
