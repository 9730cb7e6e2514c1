"""Takes what was imported so far out of the garbage collector's sight, for this process and all forked from it.

Celery collects garbage before it forks each process of a pool (``celery.concurrency.asynpool``'s
``AsynPool._create_worker_process``): every fourth sample found the workers of these tests at that.
"""

import gc

__all__: list[str] = []

gc.collect()
gc.freeze()
