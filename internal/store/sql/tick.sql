-- What time alone has brought about, in one look: when the next lease ends (NULL: nothing runs), whether a deadline has
-- passed, and tasks that came to their end in error without a note of it, because a server died between a failure and
-- its settle. The last reads all parked rows, so $2 leaves it out.
-- $1 at timestamptz, $2 with_unsettled boolean
select
  (select min(least(until, confirmed_at + run_timeout, stop_at)) from lease) as expires_at,
  coalesce($1, now()) as at,
  exists (select from deadline where due_at <= coalesce($1, now())) as overdue,
  array(
    select distinct parked.task_id
    from parked
    where $2
      and not exists (select from task_end where task_end.task_id = parked.task_id)
      and not exists (select from ready where ready.task_id = parked.task_id)
      and not exists (select from backoff where backoff.task_id = parked.task_id)
      and not exists (select from lease where lease.task_id = parked.task_id)
    limit 500
  ) as unsettled
