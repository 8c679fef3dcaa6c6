-- Claims idempotency keys. A key that is being claimed by another transaction is waited for; one that stands is left out
-- of the answer. $1 namespace_id int, $2 key text[] (sorted: the lock order), $3 digest bytea[], $4 task_id bigint[], $5 at timestamptz
insert into submit_key (namespace_id, key, digest, task_id, created_at)
select $1, key, digest, task_id, coalesce($5, now())
from unnest($2::text[], $3::bytea[], $4::bigint[]) as wanted (key, digest, task_id)
on conflict (namespace_id, key) do nothing
returning key
