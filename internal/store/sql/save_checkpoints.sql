-- Keeps the newest checkpoint of steps whose leases this transaction holds; the next dispatch is handed it.
-- $1 at timestamptz, $2 task_id bigint[], $3 step_no int[], $4 dispatch int[], $5 body text[]
insert into checkpoint as c (task_id, step_no, dispatch, body, updated_at)
select task_id, step_no, dispatch, body, coalesce($1, clock_timestamp())
from unnest($2::bigint[], $3::int[], $4::int[], $5::text[]) as saved (task_id, step_no, dispatch, body)
order by task_id, step_no
on conflict (task_id, step_no) do update
  set dispatch = excluded.dispatch, body = excluded.body, updated_at = excluded.updated_at
