-- Puts off the ends of leases whose task's or step's budget a circuit has suspended, which is asked only where one
-- seems to have ended. A lease that somebody holds is passed by, as lock_expired.sql passes it by.
-- $1 at timestamptz, $2 task_id bigint[], $3 step_no int[], $4 token uuid[]; sorted by (task_id, step_no): the lock order
with overdue as materialized (
  select l.tid, least(deadline_end(l.task_id, $1), elapsed_end(l.task_id, l.step_no, l.first_started_at, $1)) as stop_at
  from unnest($2::bigint[], $3::int[], $4::uuid[]) as expired (task_id, step_no, token)
  cross join lateral (
    select lease.ctid as tid, lease.task_id, lease.step_no, lease.first_started_at
    from lease
    where lease.task_id = expired.task_id and lease.step_no = expired.step_no and lease.token = expired.token
      and lease.stop_at <= coalesce($1, clock_timestamp())
    limit 1
    for update skip locked
  ) l
),
put_off as (
  update lease set stop_at = (select o.stop_at from overdue o where o.tid = lease.ctid)
  where lease.ctid = any (array(select tid from overdue where stop_at > coalesce($1, clock_timestamp()) or stop_at is null))
  returning 1
)
-- a heartbeat may have come between the snapshot and the lock
select must_move((select count(*) from put_off),
  (select count(*)::int from overdue where stop_at > coalesce($1, clock_timestamp()) or stop_at is null)) as moved
