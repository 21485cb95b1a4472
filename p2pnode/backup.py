"""placeholder until merged"""

from p2pnode.home import Home


def is_restored(home: Home) -> bool:
    return home.restored_path.exists()


def clear_restored(home: Home) -> None:
    home.restored_path.unlink(missing_ok=True)
