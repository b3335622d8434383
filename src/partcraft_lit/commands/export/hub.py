"""Puts an export on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from partcraft_lit.core.errors import UserError


def check_push(repo: str) -> None:
    """What can be told before anything is exported, without a network.

    Raises:
        UserError: for a name that no repository has, without a token, or offline.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if repo.count("/") != 1:
        raise UserError(f"push={repo}: wanted OWNER/NAME, the name of a repository on the Hugging Face Hub.")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"push={repo}: {error}") from error
    if constants.HF_HUB_OFFLINE:
        raise UserError("push needs the network, and HF_HUB_OFFLINE forbids it; unset it.")
    if not get_token():
        raise UserError("push needs a token that may write: run 'hf auth login', or set HF_TOKEN.")


def push(folder: Path, files: Sequence[str], repo: str, public: bool, title: str) -> str:
    """Uploads the files of an export in one commit.

    Args:
        folder: of the export.
        files: names in it.
        repo: OWNER/NAME; it is made if it does not exist.
        public: whether everybody may see it.
        title: of the commit.

    Returns:
        Address of the repository.

    Raises:
        UserError: if the hub refuses, cannot be reached, or has a public repository where a private one is wanted. The
            export stands.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api: Any = HfApi()
    try:
        address = str(api.create_repo(repo, private=not public, exist_ok=True))
        if not public and not api.repo_info(repo).private:
            raise UserError(
                f"push={repo}: this repository is public, and nothing was uploaded. Say public=true, or take another "
                "name."
            )
        api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=list(files), commit_message=title)
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"push={repo}: {reason}. The export is complete, in {folder}; upload it later with "
            f"'hf upload {repo} {folder} .'."
        ) from error
    return address
