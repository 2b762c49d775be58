"""The host's folders: what it lists in them, and where results go."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path, PurePosixPath

import folder_paths

from ...dreamvideo.safety.names import check_name
from ...dreamvideo.safety.paths import inside
from ...dreamvideo.safety.texts import quoted

log = logging.getLogger(__name__)

ADAPTERS_FOLDER, BASES_FOLDER = "dreamvideo_adapters", "dreamvideo"
MOTION_FOLDER = "animatediff_models"  # as AnimateDiff-Evolved calls it


def register_folders() -> None:
    """models/dreamvideo for whole bases, models/dreamvideo_adapters and output/dreamvideo for adapters,
    models/animatediff_models for motion modules."""
    models, output = Path(folder_paths.models_dir), Path(folder_paths.get_output_directory())
    for name, folder in (
        (BASES_FOLDER, models / "dreamvideo"),
        (ADAPTERS_FOLDER, models / "dreamvideo_adapters"),
        (ADAPTERS_FOLDER, output / "dreamvideo"),
        (MOTION_FOLDER, models / MOTION_FOLDER),
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # a read-only model share is no reason to have no nodes
            log.warning("DreamVideo: %s cannot be created: %s", folder, error)
        folder_paths.add_model_folder_path(name, str(folder))
        folder_paths.folder_names_and_paths[name][1].update({".safetensors", ".pth", ".bin", ".ckpt"})


def files_in(name: str) -> list[str]:
    """What the host lists in one of its model folders; nothing where it knows no such folder."""
    try:
        return list(folder_paths.get_filename_list(name))
    except KeyError:
        return []
    except FileNotFoundError:  # a folder was deleted since the host looked into it: let it look anew
        folder_paths.filename_list_cache.pop(name, None)
        return list(folder_paths.get_filename_list(name))


def folders_of(name: str) -> list[Path]:
    return [Path(folder) for folder in folder_paths.get_folder_paths(name)]


def file_in(name: str, file: str) -> Path:
    """The path of a file that the host lists there. ValueError for any other name, and for a link that leads out."""
    if file not in files_in(name):
        raise ValueError(f"There is no {quoted(file)} in the {name} folder; reload the page if it was added just now.")
    path = Path(folder_paths.get_full_path_or_raise(name, file))
    for folder in folders_of(name):
        with suppress(ValueError):
            return inside(folder, path)
    raise ValueError(
        f"{quoted(file)} in the {name} folder is a link to a file elsewhere: put the file itself there, or tell "
        "ComfyUI of its folder in extra_model_paths.yaml."
    )


def output_folder(*parts: str) -> Path:
    return Path(folder_paths.get_output_directory(), *parts)


def temporary_folder(*parts: str) -> Path:
    """Below what the host clears when it starts and ends."""
    return Path(folder_paths.get_temp_directory(), *parts)


def numbered(prefix: str, folder: str, suffix: str) -> Path:
    """The next free `<prefix>_00001_<suffix>` below output/<folder>.

    ValueError for a path that leads out, and for names that some system does not take.
    """
    prefix = prefix.replace("\\", "/")  # folders, as on Windows
    root = output_folder(folder)
    root.mkdir(parents=True, exist_ok=True)
    try:
        inside(root, prefix)  # the host looks at the name only, not at where links lead
    except ValueError as error:
        raise ValueError(
            f"The file name {quoted(prefix)} leads out of the output folder; give a plain name."
        ) from error
    for part in PurePosixPath(prefix).parts:
        check_name(part)
    where, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    return Path(where) / f"{name}_{counter:05}_{suffix}"
