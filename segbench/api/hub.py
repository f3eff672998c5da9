"""Push models to a hub and pull them from it.

The addresses are ``hub:OWNER/NAME``, or ``hub:OWNER/NAME@REVISION`` to read. The hub is that of
``huggingface_hub``, which is optional: ``pip install "segbench[hub]"``. Its variables
``HF_ENDPOINT`` and ``HF_TOKEN`` say where it is and who asks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from segbench import __version__
from segbench.errors import PluginError, UsageError
from segbench.results.rundir import RunDir
from segbench.training.model_file import FILES, INDEX, model_contents, read_model

SCHEME = "hub:"
ADDRESS = re.compile(
    r"hub:(?P<name>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(@(?P<revision>[\w./-]+))?"
)


class Address(NamedTuple):
    """A repository of a hub."""

    name: str  # OWNER/NAME
    revision: str | None  # a branch, a tag or a commit; None for the newest


def is_address(text: object) -> bool:
    """Return whether a text is meant as the address of a model on a hub."""
    return isinstance(text, str) and text.startswith(SCHEME)


def parse(text: str) -> Address:
    """Return the address that a text means.

    Raises:
        UsageError: it has another form.
    """
    found = ADDRESS.fullmatch(text)
    if found is None:
        raise UsageError(
            f"'{text}' is no address of a model",
            expected="hub:OWNER/NAME, or hub:OWNER/NAME@REVISION to read",
            fix="hub:OWNER/NAME",
        )
    return Address(found["name"], found["revision"])


def push(run: RunDir, text: str, public: bool = False) -> str:
    """Write the weights of a finished run to a repository of a hub; return the new commit.

    Args:
        text: the address ``hub:OWNER/NAME``. A repository that does not exist is created.
        public: whether a new repository can be read by everyone.

    Raises:
        UsageError: the address has another form, or the hub does not know it.
        IntegrityError: the run is not finished, was changed, or has no weights.
        PluginError: ``huggingface_hub`` is not installed, or the hub cannot be reached or refuses.
    """
    address = parse(text)
    if address.revision is not None:
        raise UsageError(
            "a push has no revision", found=text, fix=f"{SCHEME}{address.name} makes a new commit"
        )
    client = _client()
    contents = model_contents(run)
    from huggingface_hub import CommitOperationAdd

    operations = []
    for name, content in contents.items():
        operations.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content))
    with _explained(text):
        client.create_repo(address.name, private=not public, exist_ok=True)
        commit = client.create_commit(
            address.name, operations, commit_message=f"segbench run {run.run_id}"
        )
    return str(commit.oid)


def pull(text: str, folder: Path | None = None) -> Path:
    """Return a folder with the files of a model of a hub; their digests are compared.

    Args:
        text: the address ``hub:OWNER/NAME`` or ``hub:OWNER/NAME@REVISION``.
        folder: where to write them; None for the cache of ``huggingface_hub``.

    Raises:
        UsageError: the address has another form, or there is no such model.
        IntegrityError: the repository holds no model, or a damaged one.
        PluginError: ``huggingface_hub`` is not installed, or the hub cannot be reached or refuses.
    """
    address = parse(text)
    client = _client()
    with _explained(text):
        for name in (INDEX, *FILES):
            file = client.hf_hub_download(
                address.name, name, revision=address.revision, local_dir=folder
            )
    found = Path(file).parent
    read_model(found)  # raises unless it is whole
    return found


def _client() -> Any:
    """Return the client of the hub.

    Raises:
        PluginError: it is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise PluginError(
            "models of a hub need huggingface_hub",
            found=f"{error}",
            expected="the optional extra 'hub'",
            fix='pip install "segbench[hub]"',
        ) from error
    endpoint = os.environ.get("HF_ENDPOINT") or None
    return HfApi(endpoint=endpoint, library_name="segbench", library_version=__version__)


@contextmanager
def _explained(text: str) -> Iterator[None]:
    """Turn the errors of the client into ours.

    Raises:
        UsageError: the hub does not know the repository, the revision or a file in it.
        PluginError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except LocalEntryNotFoundError as error:
        raise _unreachable(text, error) from error
    except (
        RepositoryNotFoundError,
        RevisionNotFoundError,
        EntryNotFoundError,
        HFValidationError,
    ) as error:
        raise UsageError(
            f"the hub has no model '{text}', or you may not read it",
            found=_first_line(error),
            expected="a repository that segbench runs push wrote",
            fix="check the name; for a private one set HF_TOKEN",
        ) from error
    except Exception as error:  # of the client or of the HTTP library that its version uses
        raise _unreachable(text, error) from error


def _unreachable(text: str, error: Exception) -> PluginError:
    return PluginError(
        "the hub cannot be reached, or refuses",
        where=text,
        found=_first_line(error),
        expected="an answer of the hub",
        fix="check the network, HF_ENDPOINT and HF_TOKEN, and repeat the command",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:300]
