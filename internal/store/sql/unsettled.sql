-- Tasks that came to their end in error without a note of it, because a server died between a failure and its settle.
-- Reads all parked rows.
select distinct parked.task_id
from parked
where not exists (select from task_end where task_end.task_id = parked.task_id)
  and not exists (select from ready where ready.task_id = parked.task_id)
  and not exists (select from backoff where backoff.task_id = parked.task_id)
  and not exists (select from lease where lease.task_id = parked.task_id)
limit 500
