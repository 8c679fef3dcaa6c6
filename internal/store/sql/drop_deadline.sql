-- Removes a deadline that has had its effect: no step under it waits or runs any more.
-- $1 at timestamptz, $2 due_at timestamptz, $3 task_id bigint, $4 step_no int
delete from deadline
where due_at = $2 and task_id = $3 and step_no = $4
  and not exists (select from ready where ready.task_id = $3
    and ($4 = 0 or ready.step_no = $4 and elapsed_end($3, $4, ready.first_started_at, $1) <= coalesce($1, now())))
  and not exists (select from backoff where backoff.task_id = $3
    and ($4 = 0 or backoff.step_no = $4 and elapsed_end($3, $4, backoff.first_started_at, $1) <= coalesce($1, now())))
  and not exists (select from lease where lease.task_id = $3 and ($4 = 0 or lease.step_no = $4))
