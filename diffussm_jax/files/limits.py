"""How many files a process may have open."""

import resource

SPARE_FILES = 256  # open files that are none of a data set


def allow_open_files(num_files: int) -> None:
    """Raise the limit of open files: every shard stays open, and ImageNet has more than 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = num_files + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
