-- The tasks of idempotency keys used before. $1 namespace_id int, $2 key text[]
select found.key, found.digest, found.task_id
from unnest($2::text[]) as wanted (key)
cross join lateral (
  select key, digest, task_id from submit_key where namespace_id = $1 and submit_key.key = wanted.key limit 1
) found
