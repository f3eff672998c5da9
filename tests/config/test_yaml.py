"""The strict loader: what is read as what, what is refused, and writing."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segbench.config.yaml import MAX_BYTES, dump_yaml, load_yaml, parse_scalar, parse_yaml
from segbench.errors import UsageError

READ = [
    ("1", 1),
    ("-3", -3),
    ("+4", 4),
    ("0", 0),
    ("1e-4", 1e-4),
    ("1E5", 1e5),
    ("1.5", 1.5),
    (".5", 0.5),
    ("2.", 2.0),
    ("1.10", 1.1),
    ("-1.5e+3", -1500.0),
    ("6.0e-2", 0.06),
    ("010", "010"),
    ("0o17", "0o17"),
    ("0x1F", "0x1F"),
    ("0b1", "0b1"),
    ("1_000", "1_000"),
    ("12:30:45", "12:30:45"),
    ("2026-01-02", "2026-01-02"),
    ("1.2.3", "1.2.3"),
    ("no", "no"),
    ("NO", "NO"),
    ("yes", "yes"),
    ("on", "on"),
    ("off", "off"),
    ("y", "y"),
    ("none", "none"),
    ("true", True),
    ("False", False),
    ("TRUE", True),
    ("null", None),
    ("~", None),
    ("", None),
    ("NULL", None),
    ("'1'", "1"),
    ('"true"', "true"),
    ("'.nan'", ".nan"),
    ("'~'", "~"),
    ("plain words", "plain words"),
    ("[1, 2.0, no]", [1, 2.0, "no"]),
    ("[]", []),
    ("{a: 1e3}", {"a": 1000.0}),
    ("{}", {}),
    ("|\n  two\n  lines", "two\nlines\n"),
    (">\n  one\n  line", "one line\n"),
    ("=", "="),
    ("9223372036854775807", 2**63 - 1),
]


@pytest.mark.parametrize(("text", "value"), READ, ids=[text for text, _ in READ])
def test_a_scalar_means_what_it_says(text, value):
    got = parse_yaml(f"key: {text}\n")["key"]
    assert got == value and type(got) is type(value)


DEEP = "key: " + "[" * 21 + "]" * 21
REFUSED = [
    ("key: .nan", "1:6", "finite"),
    ("key: .inf", "1:6", "finite"),
    ("a: 1\nkey: -.INF", "2:6", "finite"),
    ("key: nan", "1:6", "finite"),
    ("key: [1, inf]", "1:10", "finite"),
    ("key: 1e999", "1:6", "large"),
    ("key: 9223372036854775808", "1:6", "large"),
    ("key: " + "9" * 5000, "1:6", "large"),
    ("a: 1\nb: 2\na: 3", "3:1", "'a' is given twice"),
    ("a:\n  b: 1\n  b: 1", "3:3", "'b' is given twice"),
    ("key: &x 1", "1:6", "an anchor"),
    ("a: &x [1]\nb: *x", "1:4", "an anchor"),
    ("a: *x", "1:4", "an alias"),
    ("a: &x [*x]", "1:4", "an anchor"),
    ("key: !!python/object/apply:os.system [true]", "1:6", "a tag"),
    ("key: !!str 1", "1:6", "a tag"),
    ("key: !mine {a: 1}", "1:6", "a tag"),
    ("!!map {a: 1}", "1:1", "a tag"),
    ("key: ! x", "1:6", "a tag"),
    ("1: a", "1:1", "must be text"),
    ("a: {true: 1}", "1:5", "must be text"),
    ("? [1, 2]\n: 3", "1:3", "must be text"),
    ("~: 1", "1:1", "must be text"),
    (DEEP, "1:25", "deeply"),
    ("key: " + "[" * 3000, "1:25", "deeply"),
    ("a:\tb", "1:3", "tab"),
    ("a:\n\tb: 1", "2:1", "tab"),
    ("# x\ny: 1 #\t", "2:7", "tab"),
    ("a: [1, 2", "1:9", "not valid YAML"),
    ("a: 1\n  b: 2", "2:4", "not valid YAML"),
    ("a: 'x", "1:6", "not valid YAML"),
    ("a: 1\n---\nb: 2", "2:1", "not valid YAML"),
    ("a: \x07", "1:4", "not valid YAML"),
    ("- 1\n- 2", "1:1", "not a mapping"),
    ("word", "1:1", "not a mapping"),
]


@pytest.mark.parametrize(
    ("text", "place", "what"), REFUSED, ids=[repr(text[:30]) for text, *_ in REFUSED]
)
def test_a_trap_is_refused_with_its_place(text, place, what):
    with pytest.raises(UsageError, match=what) as caught:
        parse_yaml(text, "f.yaml")
    assert caught.value.details["where"] == f"f.yaml:{place}"
    assert caught.value.code == 2


def test_twenty_levels_are_allowed():
    assert parse_yaml("key: " + "[" * 19 + "]" * 19)["key"]


def test_a_tag_never_runs_code(tmp_path):
    with pytest.raises(UsageError):
        parse_yaml(f"key: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'made'}]")
    assert not list(tmp_path.iterdir())


def test_files_are_read_with_their_places(tmp_path):
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbf# comment\na:\n  b: 1\n  c: [1,\n    2]\n")
    document = load_yaml(file)
    assert document == {"a": {"b": 1, "c": [1, 2]}}
    assert document.where("a", "b") == f"{file}:3:6"
    assert document.where("a", "c", 1) == f"{file}:5:5"
    assert document.where("a", "c", 1, column=False) == f"{file}:5"
    assert document.where("a", "unknown", "x") == f"{file}:3:3"  # the nearest enclosing value


def test_an_empty_file_is_an_empty_mapping(tmp_path):
    file = tmp_path / "f.yaml"
    file.write_text("# nothing\n")
    assert load_yaml(file) == {}


def test_unreadable_files(tmp_path):
    file = tmp_path / "f.yaml"
    with pytest.raises(UsageError, match="cannot read"):
        load_yaml(file)
    with pytest.raises(UsageError, match="cannot read"):
        load_yaml(tmp_path)
    file.write_bytes(b"a: \xff")
    with pytest.raises(UsageError, match="UTF-8"):
        load_yaml(file)
    file.write_bytes(b"#" * MAX_BYTES + b"\n")
    with pytest.raises(UsageError, match="too large"):
        load_yaml(file)
    os.truncate(file, MAX_BYTES)
    assert load_yaml(file) == {}


OVERRIDES = [
    ("1e-4", 1e-4),
    ("96", 96),
    ("010", "010"),
    ("no", "no"),
    ("true", True),
    ("null", None),
    ("text", "text"),
    ("96x96x64", [96, 96, 64]),
    ("96,96,64", [96, 96, 64]),
    ("[96, 96, 64]", [96, 96, 64]),
    ("0.5,0.999", [0.5, 0.999]),
    ("8,", [8]),
    ("[8]", [8]),
    ("[]", []),
    ("'1'", "1"),
    ('"a,b"', "a,b"),
    (" 3 ", 3),
    ("x2", "x2"),
    ("", None),
]


@pytest.mark.parametrize(("text", "value"), OVERRIDES, ids=[text for text, _ in OVERRIDES])
def test_override_values(text, value):
    got = parse_scalar(text)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("text", [".nan", "inf", "1,nan", "1e400"])
def test_override_values_are_finite(text):
    with pytest.raises(UsageError):
        parse_scalar(text)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from([text for text, _ in READ])
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(), TREES, max_size=4))
def test_a_dump_reads_back_identically(tree):
    assert repr(dict(parse_yaml(dump_yaml(tree)))) == repr(tree)


def test_a_dump_has_no_anchors_and_no_nan():
    shared = [1, 2]
    assert parse_yaml(dump_yaml({"a": shared, "b": shared, "c": (1, 2)})) == {
        "a": [1, 2],
        "b": [1, 2],
        "c": [1, 2],
    }
    with pytest.raises(ValueError, match="finite"):
        dump_yaml({"a": [float("nan")]})
