-- Moves a deadline that has passed to where the time that circuits have suspended puts it. Nothing comes back where that has passed
-- too, or where another server has put it off before: park_overdue.sql looks again, at the same instant of the transaction.
-- $1 at timestamptz, $2 due_at timestamptz, $3 task_id bigint, $4 step_no int
with put_off as materialized (
  select case when $4 = 0 then deadline_end($3, $1)
    else (
      select elapsed_end($3, $4, waits.first_started_at, $1)
      from (
        select ready.first_started_at from ready where ready.task_id = $3 and ready.step_no = $4
        union all
        select backoff.first_started_at from backoff where backoff.task_id = $3 and backoff.step_no = $4
      ) waits
      limit 1
    ) end as due_at
),
gone as (
  delete from deadline
  where due_at = $2 and task_id = $3 and step_no = $4 and (select due_at from put_off) > coalesce($1, now())
  returning task_id, step_no
)
insert into deadline (due_at, task_id, step_no)
select put_off.due_at, gone.task_id, gone.step_no from gone cross join put_off
on conflict do nothing
returning true
