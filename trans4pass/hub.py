"""Files on the Hugging Face hub by name: user/repo, or hf://user/repo[@revision][/file].

They come into the hub's own cache (HF_HOME, HF_HUB_CACHE), from HF_ENDPOINT where that is set, and with HF_TOKEN where
they are not public.
"""

import functools
import hashlib
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import constants, errors, hf_hub_download, metadata_load, try_to_load_from_cache

from trans4pass.errors import WeightsError, first_line

log = logging.getLogger(__name__)

FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository whose file is not named, the first that it has
NAME = r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)"
FULL = re.compile(rf"hf:/+{NAME}(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")  # a Path makes one slash of two
SHORT = re.compile(rf"{NAME}(?<!\.pt)(?<!\.pth)(?<!\.bin)(?<!\.onnx)(?<!\.safetensors)")


class HubName(NamedTuple):
    repo: str
    revision: str | None = None  # a branch, tag or commit; None: main
    file: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")


def hub_name(source: str | os.PathLike[str]) -> HubName | None:
    """What a name says that is neither a file or folder here, nor in one, nor looks like a path; None for those."""
    text = os.fspath(source)
    found = FULL.fullmatch(text)
    if found is None and not Path(text).exists() and not Path(text).parent.is_dir():
        found = SHORT.fullmatch(text)
    return found and HubName(**found.groupdict())


def fetched(source: str | os.PathLike[str], known_licence: str | None = None) -> Path:
    """The file that a name on the hub means, downloaded once; any other path as it is.

    The licence of a repository is logged once: the known one, or what its page says.

    Raises:
        WeightsError: there is no such repository or file, no network and no copy in the cache, or what came is not
            what its checksum says.
    """
    name = hub_name(source)
    if name is None:
        return Path(source)
    files = (name.file,) if name.file else tuple(sorted(FILES, key=lambda file: cached(name, file) is None))
    held = any(cached(name, file) for file in files)
    path = next((path for path in (download(name, file) for file in files) if path is not None), None)
    if path is None:
        raise WeightsError(
            f"{name} has no file {' or '.join(files)}: look at what it holds and name one, hf://{name.repo}/<file>"
        )
    check_digest(path, name)
    log_licence(str(name), known_licence or licence(name, ask=not held))
    return path


def cached(name: HubName, file: str) -> Path | None:
    """The file's place in the cache, if it is there."""
    path = try_to_load_from_cache(name.repo, file, revision=name.revision)
    return Path(path) if isinstance(path, str) else None


def download(name: HubName, file: str) -> Path | None:
    """The file's place in the cache, with a progress bar on the way there; None where the repository has no such file.

    A connection that breaks is taken up again where it broke; any other error is a WeightsError that says what to do.
    """
    try:
        return Path(hf_hub_download(name.repo, file, revision=name.revision))
    except errors.RemoteEntryNotFoundError:
        return None
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        gated = isinstance(error, errors.GatedRepoError)
        raise WeightsError(
            f"{name.repo} is {'not open to you' if gated else 'no file or folder here, and no repository'} on "
            f"{constants.ENDPOINT}: correct the name, or, if it is private or asks for consent, give that on its page "
            "and log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(
            f"{name.repo} has no revision {name.revision}: give a branch, tag or commit of it"
        ) from error
    except errors.HFValidationError as error:
        raise WeightsError(f"{name.repo} is neither a file or folder here nor a name on the hub: {error}") from error
    except Exception as error:  # what a network raises depends on the hub's version: two clients, and their sockets
        url = f"{constants.ENDPOINT}/{name.repo}/resolve/{name.revision or 'main'}/{file}"
        folder = Path(constants.HF_HUB_CACHE) / f"models--{name.repo.replace('/', '--')}"
        offline = " (HF_HUB_OFFLINE is set)" if constants.is_offline_mode() else ""
        raise WeightsError(
            f"{file} of {name} is not in the cache and could not be downloaded{offline}: "
            f"{first_line(error)} Try again; or download it where there is a network and "
            f"copy {folder} from there to the same place here; or, where a path is taken, give that of a copy of {url}"
        ) from error


def check_digest(path: Path, name: HubName) -> None:
    """Raise WeightsError, and throw the file away, where its content is not what the hub's checksum says.

    A file's entry in the cache is a link to one that is named by its checksum: SHA-256, or git's SHA-1 of small files.
    """
    expected = path.readlink().name if path.is_symlink() else ""
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", expected):
        return
    begun = hashlib.sha256() if len(expected) == 64 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: begun)
    if digest.hexdigest() == expected:
        return
    for file in (path.parent / path.readlink(), path):
        with suppress(OSError):
            file.unlink()
    raise WeightsError(f"{path.name} of {name} came damaged: its checksum is not {expected}. It is deleted; try again")


def licence(name: HubName, ask: bool) -> str | None:
    """What the repository's model card says about its licence, from the cache, or, if we may `ask`, from the hub."""
    path = cached(name, "README.md")
    if path is None and ask:
        with suppress(WeightsError):
            path = download(name, "README.md")
    try:
        facts = (path and metadata_load(path)) or {}
    except (ValueError, yaml.YAMLError):
        return None
    said = [str(facts[key]) for key in ("license", "license_name", "license_link") if facts.get(key)]
    return ", ".join(said) or None


@functools.cache
def log_licence(what: str, licence: str | None) -> None:
    """Say once what the weights of `what` may be used for."""
    log.info("licence of %s: %s", what, licence or "not stated; look at its page before you use it")
