"""nnU-Net's ``splits_final.json``."""

import json

import pytest

from segbench.data.preparation.nnunet_folds import (
    read_nnunet_folds,
    require_patients_in_one_fold,
    validation_folds,
)
from segbench.errors import DataError


def test_folds_are_read_in_the_order_of_the_file(tmp_path):
    file = tmp_path / "splits_final.json"
    folds = [{"train": ["b", "a"], "val": ["c"]}, {"train": ["c", "a"], "val": ["b"]}]
    file.write_text("\ufeff" + json.dumps(folds), encoding="utf-8")
    assert read_nnunet_folds(file) == [(["b", "a"], ["c"]), (["c", "a"], ["b"])]


@pytest.mark.parametrize(
    "content, found",
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"train": ["a"], "val": ["b"]}', "dict"),
        ("[]", "list"),
        ('[{"train": ["a"]}]', "fold 0"),
        ('[{"train": ["a"], "val": ["b"]}, {"train": ["a"], "val": []}]', "fold 1"),
        ('[{"train": [1], "val": ["b"]}]', "fold 0"),
        ('[{"train": ["a", "b"], "val": ["b"]}]', "b twice"),
        ('[["a"], ["b"]]', "fold 0"),
    ],
)
def test_a_file_that_holds_no_folds(tmp_path, content, found):
    file = tmp_path / "splits_final.json"
    file.write_text(content)
    with pytest.raises(DataError, match="folds of nnU-Net") as caught:
        read_nnunet_folds(file)
    assert found in str(caught.value)
    assert caught.value.details["fix"]


def test_every_case_is_validated_on_in_one_fold(tmp_path):
    file = tmp_path / "splits_final.json"
    file.write_text('[{"train": ["b"], "val": ["a", "c"]}, {"train": ["a", "c"], "val": ["b"]}]')
    folds = validation_folds(file)
    assert folds == {"a": 0, "c": 0, "b": 1}
    require_patients_in_one_fold(folds, {"a": "anna", "c": "anna", "b": "ben"}, file)
    with pytest.raises(DataError, match="divide a patient") as caught:
        require_patients_in_one_fold(folds, {"a": "anna", "b": "anna"}, file)
    assert "'anna' in the folds 0 and 1" in str(caught.value)
    file.write_text('[{"train": ["b"], "val": ["a"]}, {"train": ["b"], "val": ["a"]}]')
    with pytest.raises(DataError, match="cannot be used") as caught:
        validation_folds(file)
    assert "fold 1: a, also in an earlier fold" in str(caught.value)
