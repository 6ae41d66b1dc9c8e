"""Where verbs write what must not be there yet."""

from pathlib import Path

from pipelines.app.config import ConfigError


def free_place(given: str, name: str) -> Path:
    """The place that an argument, called `name` in messages, gives. Raises ConfigError where it is empty or something is there.

    A folder that holds nothing is free.
    """
    if not given.strip():
        raise ConfigError(f"{name}: '{given}' names no place; give the path of what is to be written")
    place = Path(given)
    refuse_taken(place)
    return place


def refuse_taken(place: Path) -> None:
    """Raise ConfigError where there is something other than an empty folder, or where there cannot be anything."""
    try:
        taken = place.is_symlink() or (place.exists() and not (place.is_dir() and not any(place.iterdir())))
    except OSError as error:
        raise ConfigError(f"{place}: cannot be written ({error.strerror or error})") from error
    if taken:
        raise ConfigError(f"{place}: is there already; give a new name, or move it away")
